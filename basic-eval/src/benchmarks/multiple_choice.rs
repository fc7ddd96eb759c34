//! Multiple-choice questions: how they are asked, how the letter of an answer is scored, and which options are ranked by
//! their likelihood.

use std::path::Path;

use serde_json::Value;

use super::asked_image::AskedImage;
use super::question_files::{id, unique};
use super::{Asked, BenchmarkError, Grouping, Mark, Options, Task};

/// A question with lettered options.
pub(super) struct MultipleChoice {
    pub id: Value,
    /// What the question says before its options, with its hint.
    pub question: String,
    /// The whole prompt.
    pub prompt: String,
    pub image: Option<AskedImage>,
    pub options: Vec<(char, String)>,
    /// The letter of the true answer.
    pub answer: char,
    pub category: Option<String>,
    pub grouping: Grouping,
}

/// How an answer is read: whether it means the option with this letter.
pub(super) type Rule = fn(answer: &str, options: &[(char, String)], truth: char) -> bool;

/// Numbers options with letters, from A. More than 26 are an error of the file.
pub(super) fn lettered(options: Vec<String>) -> Option<Vec<(char, String)>> {
    (options.len() <= 26).then(|| ('A'..='Z').zip(options).collect())
}

/// LLaVA's prompt: the question, a line `A. option` for each option, and the request.
pub(super) fn prompt(question: &str, options: &[(char, String)], request: &str) -> String {
    let options = options.iter().map(|(letter, text)| format!("\n{letter}. {text}"));
    format!("{question}{}\n{request}", options.collect::<String>())
}

/// The letter that a cell with the true answer names, `B`, `(B)` or `b`, if it is one of the options'.
pub(super) fn letter(cell: &str, options: &[(char, String)]) -> Option<char> {
    let cell = cell.trim().trim_start_matches('(').trim_end_matches(')');
    let mut chars = cell.chars();
    let letter = chars.next()?.to_ascii_uppercase();
    (chars.next().is_none() && options.iter().any(|(other, _)| *other == letter)).then_some(letter)
}

impl MultipleChoice {
    /// The index of the true answer among the options.
    fn truth(&self) -> Option<usize> {
        self.options.iter().position(|(letter, _)| *letter == self.answer)
    }

    /// The options that are ranked by their likelihood as the answer to the question alone, as SEED-Bench's own
    /// evaluation does; `None` if the texts of the options are none (they are images, for instance).
    pub fn options(&self) -> Option<Options> {
        let texts: Vec<String> = self.options.iter().map(|(_, text)| text.clone()).collect();
        let fit = texts.len() > 1 && texts.iter().all(|text| !text.trim().is_empty() && !text.contains("<image"));
        Some(Options { text: self.question.clone(), answer: self.truth()?, options: texts }).filter(|_| fit)
    }
}

/// The task of asking these questions, which `path` holds. Their ids must differ.
pub(super) fn task(
    path: &Path,
    questions: Vec<MultipleChoice>,
    measure: &'static str,
    rule: Rule,
) -> Result<Task, BenchmarkError> {
    unique(path, questions.iter().map(|question| id(&question.id)))?;
    let asked = questions.iter().map(|question| Asked {
        id: question.id.clone(),
        prompt: question.prompt.clone(),
        image: question.image.clone(),
    });
    let ranked = questions.iter().map(MultipleChoice::options).collect();
    Ok(Task::new(asked.collect()).ranked(ranked).marked(measure, move |i, answer| {
        let question = &questions[i];
        Mark {
            score: f64::from(u8::from(rule(answer, &question.options, question.answer))),
            expected: question.answer.to_string(),
            category: question.category.clone(),
            grouping: question.grouping.clone(),
            yes: None,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_the_question_its_options_and_the_request() {
        let options = lettered(vec!["cat".into(), "dog".into()]).unwrap();
        assert_eq!(prompt("What?", &options, "Go."), "What?\nA. cat\nB. dog\nGo.");
        assert!(lettered(vec![String::new(); 27]).is_none());
        for (cell, found) in [
            ("B", Some('B')),
            ("(b)", Some('B')),
            (" A ", Some('A')),
            ("C", None),
            ("", None),
            ("AB", None),
            ("é", None),
        ] {
            assert_eq!(letter(cell, &options), found, "{cell}");
        }
    }

    #[test]
    fn options_that_are_images_or_empty_are_not_ranked() {
        let question = |options: &[&str]| MultipleChoice {
            id: 1.into(),
            question: "q".into(),
            prompt: "q\nA".into(),
            image: None,
            options: lettered(options.iter().map(ToString::to_string).collect()).unwrap(),
            answer: 'B',
            category: None,
            grouping: Grouping::default(),
        };
        let found = question(&["a", "b"]).options().unwrap();
        assert_eq!((found.text.as_str(), found.answer, found.options.len()), ("q", 1, 2));
        for options in [&["a"][..], &["a", " "], &["<image 2>", "b"]] {
            assert!(question(options).options().is_none(), "{options:?}");
        }
    }
}
