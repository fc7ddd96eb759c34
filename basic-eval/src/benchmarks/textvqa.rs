//! TextVQA's validation questions, with the OCR tokens that LLaVA's prompts contain: from LLaVA's question file, from the
//! table on the hub, or from TextVQA's own files.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::benchmark_folders::Root;
use super::question_files::{SHORT, id, json, questions_of_images, unique};
use super::rows::Layout;
use super::{Asked, Benchmark, BenchmarkError, Mark, Task, vqa};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "textvqa", max_new_tokens: 128, read };

const NEED: &str = "it comes from textvqa.org (version 0.5.1, validation)";

const OCR_NEED: &str = "it comes from textvqa.org (Rosetta OCR tokens v0.2, validation), or LLaVA's question file in its \
                        place (llava_textvqa_val_v051_ocr.jsonl) from eval.zip";
const LAYOUT: Layout =
    Layout { dir: "textvqa", name: "TextVQA_VAL", split: &["validation"], image: "image", need: NEED };
/// How many people answered each question; TextVQA's score is made for this number.
const PEOPLE: usize = 10;

/// The tokens that Rosetta read in each image.
#[derive(Deserialize)]
struct Tokens {
    data: Vec<Read>,
}

#[derive(Deserialize)]
struct Read {
    image_id: String,
    ocr_tokens: Vec<String>,
}

#[derive(Deserialize)]
struct Annotations {
    data: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: String,
    question: String,
    answers: Vec<String>,
    #[serde(default)]
    question_id: Option<Value>,
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

/// LLaVA's prompt with the tokens that were read in the image.
fn prompt(question: &str, tokens: &[String]) -> String {
    format!("{question}\nReference OCR token: {}\n{SHORT}", tokens.join(", "))
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    if root.join("textvqa/llava_textvqa_val_v051_ocr.jsonl").is_file() {
        return read_llavas(root);
    }
    if let Some(table) = LAYOUT.find(root)? {
        let (mut asked, mut people) = (Vec::new(), Vec::new());
        for (place, row) in table.rows.iter().enumerate() {
            let tokens = row.list("ocr_tokens")?;
            let answers = row.list("answers").or_else(|_| row.list("answer"))?;
            if answers.len() != PEOPLE {
                return Err(row.wrong(format!("has {} answers, not the {PEOPLE} of TextVQA", answers.len())));
            }
            let id = row.id("question_id").or_else(|| row.id("index")).unwrap_or_else(|| place.into());
            asked.push(Asked { id, prompt: prompt(&row.need(&["question"])?, &tokens), image: Some(row.image()?) });
            people.push(answers);
        }
        unique(&table.path, asked.iter().map(|asked| id(&asked.id)))?;
        return Ok(task(asked, people));
    }
    read_own(root)
}

/// Reads TextVQA's own files: the annotations, and the tokens that Rosetta read.
fn read_own(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("textvqa");
    let (truth, ocr) = (dir.join("TextVQA_0.5.1_val.json"), dir.join("TextVQA_Rosetta_OCR_v0.2_val.json"));
    let tokens: Tokens = json(&ocr, OCR_NEED)?;
    let tokens: HashMap<String, Vec<String>> = tokens.data.into_iter().map(|t| (t.image_id, t.ocr_tokens)).collect();
    let annotations: Annotations = json(&truth, NEED)?;
    let images = root.images(dir.join("train_images"))?;
    let (mut asked, mut people) = (Vec::new(), Vec::new());
    for (place, annotation) in annotations.data.into_iter().enumerate() {
        let Annotation { image_id, question, answers, question_id } = annotation;
        let id = question_id.unwrap_or_else(|| place.into());
        let entry = format!("question {}", self::id(&id));
        let Some(tokens) = tokens.get(&image_id) else {
            let problem = format!("its image {image_id} has no tokens in {}", ocr.display());
            return Err(BenchmarkError::entry(&truth, entry, problem));
        };
        if answers.len() != PEOPLE {
            let problem = format!("has {} answers, not the {PEOPLE} that TextVQA's score is made for", answers.len());
            return Err(BenchmarkError::entry(&truth, entry, problem));
        }
        let image = images.file(&format!("{image_id}.jpg"), &format!("{entry} of {}", truth.display()))?;
        asked.push(Asked { id, prompt: prompt(&question, tokens), image: Some(image.into()) });
        people.push(answers);
    }
    unique(&truth, asked.iter().map(|asked| id(&asked.id)))?;
    Ok(task(asked, people))
}

/// Reads LLaVA's question file, whose prompts hold the tokens.
fn read_llavas(root: &Root) -> Result<Task, BenchmarkError> {
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
        if answers.len() != PEOPLE {
            let problem = format!("has {} answers, not the {PEOPLE} that TextVQA's score is made for", answers.len());
            return Err(BenchmarkError::entry(&truth, entry, problem));
        }
        people.push(answers.clone());
    }
    Ok(task(asked, people))
}

fn task(asked: Vec<Asked>, people: Vec<Vec<String>>) -> Task {
    Task::new(asked).marked("accuracy", move |i, answer| Mark {
        score: vqa::textvqa_accuracy(answer, &people[i]),
        expected: vqa::most_given(&people[i]),
        category: None,
        ..Mark::default()
    })
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
