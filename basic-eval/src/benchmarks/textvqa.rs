//! TextVQA's validation questions, with the OCR tokens that LLaVA's prompts contain.

use std::collections::HashMap;

use serde::Deserialize;

use super::benchmark_folders::Root;
use super::question_files::{id, json, questions_of_images};
use super::{Benchmark, BenchmarkError, Mark, Task, vqa};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "textvqa", max_new_tokens: 128, read };

const NEED: &str = "it comes from textvqa.org (version 0.5.1, validation)";

#[derive(Deserialize)]
struct Annotations {
    data: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: String,
    question: String,
    answers: Vec<String>,
}

/// The question within one of LLaVA's prompts, in lower case: the line that is neither the OCR tokens nor the request
/// for a short answer. `None` if the prompt has another form.
pub(super) fn question(prompt: &str) -> Option<String> {
    let lines: Vec<&str> = prompt.split('\n').collect();
    if prompt.starts_with("OCR tokens: ") {
        let (_, rest) = prompt.split_once("Question: ")?;
        return Some(rest.split_once(" Short answer:")?.0.to_lowercase());
    }
    match lines[..] {
        [ocr, question, _] if ocr.starts_with("Reference OCR token:") => Some(question.to_lowercase()),
        [question, _, _] if prompt.contains("Reference OCR token: ") => Some(question.to_lowercase()),
        [question, _] => Some(question.to_lowercase()),
        _ => None,
    }
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("textvqa");
    let (file, truth) = (dir.join("llava_textvqa_val_v051_ocr.jsonl"), dir.join("TextVQA_0.5.1_val.json"));
    let (lines, asked) = questions_of_images(&file, &root.images(dir.join("train_images"))?)?;
    let annotations: Annotations = json(&truth, NEED)?;
    // An image has several questions, so the key has both. Of equal keys the last wins, as in the official script.
    let pairs = annotations.data.into_iter().map(|a| ((a.image_id, a.question.to_lowercase()), a.answers));
    let map: HashMap<(String, String), Vec<String>> = pairs.collect();
    let mut people = Vec::with_capacity(lines.len());
    for line in &lines {
        let entry = format!("question {}", id(&line.question_id));
        let Some(question) = question(&line.text) else {
            let problem =
                "its text is none of LLaVA's prompts: the question, perhaps a line of OCR tokens, the request";
            return Err(BenchmarkError::entry(&file, entry, problem));
        };
        let Some(answers) = map.get(&(id(&line.question_id), question.clone())) else {
            let problem = format!("{question:?} of {} is not annotated: are the two of one version?", file.display());
            return Err(BenchmarkError::entry(&truth, entry, problem));
        };
        if answers.len() != 10 {
            let problem = format!("has {} answers, not the 10 that TextVQA's score is made for", answers.len());
            return Err(BenchmarkError::entry(&truth, entry, problem));
        }
        people.push(answers.clone());
    }
    Ok(Task::new(asked).marked("accuracy", move |i, answer| Mark {
        score: vqa::textvqa_accuracy(answer, &people[i]),
        expected: vqa::most_given(&people[i]),
        category: None,
        ..Mark::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::question;

    #[test]
    fn the_question_is_found_in_each_form_of_the_prompt() {
        for prompt in [
            "What IS it?\nReference OCR token: A, B\nAnswer shortly.",
            "Reference OCR token: A, B\nWhat IS it?\nAnswer shortly.",
            "What IS it?\nAnswer shortly.",
            "OCR tokens: A, B. Question: What IS it? Short answer:",
        ] {
            assert_eq!(question(prompt).as_deref(), Some("what is it?"), "{prompt}");
        }
        assert_eq!(question("What is it?"), None);
    }
}
