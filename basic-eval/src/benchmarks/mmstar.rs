//! MMStar: 1,500 multiple-choice questions that need their image.

use super::benchmark_folders::Root;
use super::multiple_choice::{MultipleChoice, letter, prompt, task};
use super::question_files::LETTER;
use super::rows::Layout;
use super::{Benchmark, BenchmarkError, Grouping, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "mmstar", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "mmstar",
    name: "MMStar",
    split: &["mmstar", "val"],
    image: "image",
    need: "it comes from opencompass.openxlab.space/utils/VLMEval/MMStar.tsv, or from Lin-Chen/MMStar on the hub",
};

/// Whether an answer names the letter, by MMStar's evaluation: as its first character, in parentheses, or after "option "
/// or "the answer is ".
pub(super) fn correct(answer: &str, truth: char) -> bool {
    let answer: Vec<char> = answer.to_lowercase().trim().replace('\n', " ").chars().collect();
    let truth = truth.to_ascii_lowercase();
    let after = |start: &str| {
        let start: Vec<char> = start.chars().collect();
        answer.starts_with(&start) && answer.get(start.len()) == Some(&truth)
    };
    ["", "(", "option ", "the answer is "].into_iter().any(after)
}

/// A question of the table on the hub has its options in its text: `What? Options: A: a cat, B: a dog`.
pub(super) fn split_options(question: &str) -> Option<(String, Vec<(char, String)>)> {
    let (question, mut rest) = question.rsplit_once("Options:")?;
    let mut options = Vec::new();
    for letter in 'A'..='Z' {
        rest = rest.trim_start().strip_prefix(&format!("{letter}:"))?;
        let next = (letter as u8 + 1) as char;
        // An option ends where the next letter begins; the line breaks and commas between them are no part of it.
        let end = [format!(", {next}:"), format!("\n{next}:")].iter().filter_map(|mark| rest.find(mark)).min();
        let (text, after) = end.map_or((rest, ""), |end| rest.split_at(end));
        options.push((letter, text.trim().to_string()));
        rest = after.trim_start_matches([',', '\n']);
        if rest.is_empty() {
            break;
        }
    }
    Some((question.trim().to_string(), options))
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let table = LAYOUT.read(root)?;
    let any: Vec<(char, String)> = ('A'..='Z').map(|letter| (letter, String::new())).collect();
    let mut questions = Vec::new();
    for (place, row) in table.rows.iter().enumerate() {
        let (text, mut options) = (row.need(&["question"])?, row.lettered());
        let cell = row.need(&["answer"])?;
        let (mut question, mut asked) = (text.clone(), prompt(&text, &options, LETTER));
        let mut answer = letter(&cell, &options);
        if options.is_empty() {
            asked = format!("{}\n{LETTER}", text.trim());
            answer = letter(&cell, &any);
            // Options that are written in another way are not ranked; the letter is scored all the same.
            if let Some(found) = split_options(&text).filter(|(_, options)| letter(&cell, options).is_some()) {
                (question, options) = found;
            }
        }
        let Some(answer) = answer else {
            return Err(row.wrong(format!("its answer {cell:?} is the letter of none of its options")));
        };
        questions.push(MultipleChoice {
            id: row.id("index").unwrap_or_else(|| place.into()),
            question: question.replace("<image 1>", "").trim().into(),
            prompt: asked,
            image: Some(row.image()?),
            options,
            answer,
            category: Some(row.need(&["category"])?),
            grouping: Grouping::default(),
        });
    }
    task(&table.path, questions, "accuracy", |answer, _, truth| correct(answer, truth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_letter_stands_at_the_start_or_after_one_of_two_phrases() {
        for right in ["B", "b.", "(B) a dog", "Option B", "The answer is b, surely", "Because it is so"] {
            assert!(correct(right, 'B'), "{right}");
        }
        for wrong in ["", "A", "It is B", "The answer is (B)", "option", "é"] {
            assert!(!correct(wrong, 'B'), "{wrong}");
        }
    }

    #[test]
    fn options_are_found_in_the_questions_of_the_hubs_table() {
        for text in ["What?\nOptions: A: cat, B: a dog, big, C: 3:1", "What?\nOptions: A: cat\nB: a dog, big,\nC: 3:1"]
        {
            let (question, options) = split_options(text).unwrap();
            assert_eq!(question, "What?");
            let texts: Vec<&str> = options.iter().map(|(_, text)| text.trim_end_matches(',')).collect();
            assert_eq!(texts, ["cat", "a dog, big", "3:1"]);
        }
        assert!(split_options("What?").is_none() && split_options("What? Options: B: x").is_none());
    }
}
