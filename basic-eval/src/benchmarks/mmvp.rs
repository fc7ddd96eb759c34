//! MMVP: pairs of images that CLIP takes for alike; a pair is right if both of its questions are.

use basic_models::outside;
use csv::ReaderBuilder;

use super::benchmark_folders::Root;
use super::multiple_choice::{MultipleChoice, letter, lettered, prompt, task};
use super::question_files::LETTER;
use super::rows::Layout;
use super::{Benchmark, BenchmarkError, Grouping, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "mmvp", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "mmvp",
    name: "MMVP",
    split: &["train", "test"],
    image: "image",
    need: "Questions.csv and the folder \"MMVP Images\" come from MMVP/MMVP on the hub",
};

/// Whether an answer is right, by Cambrian's script: what follows "answer is" or "answer:" is the letter or the text of
/// the true option.
pub(super) fn correct(answer: &str, options: &[(char, String)], truth: char) -> bool {
    let found = cambrian(answer);
    let found = found.trim_end_matches(['.', ':', ',']).trim_start_matches('(').trim_end_matches(')');
    let text = options.iter().find(|(letter, _)| *letter == truth).map(|(_, text)| text.to_lowercase());
    found.chars().eq([truth.to_ascii_lowercase()]) || text.is_some_and(|text| text == found)
}

/// What an answer says after its last "answer is" or "answer:", in lower case.
pub(super) fn cambrian(answer: &str) -> String {
    let mut text = answer.to_lowercase().trim().to_string();
    for keyword in ["answer is", "answer is:", "answer:"] {
        if let Some((_, after)) = text.rsplit_once(keyword) {
            text = after.to_string();
        }
    }
    text.trim().to_string()
}

/// The options in a text such as `(a) Open (b) Closed`.
fn options(text: &str) -> Option<Vec<(char, String)>> {
    let mut rest = text.trim();
    let mut options = Vec::new();
    for letter in 'a'..='z' {
        rest = rest.strip_prefix(&format!("({letter})"))?;
        let next = format!("({})", (letter as u8 + 1) as char);
        let end = rest.find(&next).unwrap_or(rest.len());
        options.push(rest[..end].trim().to_string());
        rest = &rest[end..];
        if rest.is_empty() {
            break;
        }
    }
    lettered(options).filter(|options| options.len() > 1)
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let (path, rows) = match LAYOUT.find(root)? {
        Some(table) => {
            let mut rows = Vec::new();
            for row in &table.rows {
                let mut options = row.lettered();
                if options.is_empty() {
                    let text = row.need(&["Options", "options"])?;
                    options = self::options(&text).ok_or_else(|| row.wrong(format!("{text:?} are no options")))?;
                }
                let truth = row.need(&["answer", "Correct Answer"])?;
                rows.push((row.need(&["question", "Question"])?, options, truth, row.image()?));
            }
            (table.path, rows)
        }
        None => {
            let path = root.join("mmvp/Questions.csv");
            if !path.is_file() {
                return Err(BenchmarkError::Missing { path, need: LAYOUT.need.into() });
            }
            let images = root.images(root.join("mmvp/MMVP Images"))?;
            let bytes = outside::read(&path).map_err(BenchmarkError::io(&path))?;
            let mut rows = Vec::new();
            // The first column's name is misspelled in the authors' file; the columns are known by their order.
            for (number, record) in ReaderBuilder::new().from_reader(&bytes[..]).records().enumerate() {
                let line = number + 2;
                let record = record.map_err(|e| BenchmarkError::line(&path, line, format!("not a table: {e}")))?;
                let [index, question, choices, truth] = [0, 1, 2, 3].map(|at| record.get(at).unwrap_or_default());
                let options = options(choices).ok_or_else(|| {
                    BenchmarkError::line(&path, line, format!("{:?} are no options", outside::excerpt(choices)))
                })?;
                let image =
                    images.file(&format!("{}.jpg", index.trim()), &format!("line {line} of {}", path.display()))?;
                rows.push((question.to_string(), options, truth.to_string(), image.into()));
            }
            (path, rows)
        }
    };
    if rows.len() % 2 == 1 {
        let problem = format!("holds {} questions, which are no pairs", rows.len());
        return Err(BenchmarkError::entry(&path, "the file", problem));
    }
    let mut questions = Vec::new();
    for (place, (question, options, truth, image)) in rows.into_iter().enumerate() {
        let Some(answer) = letter(&truth, &options) else {
            let problem = format!("its answer {truth:?} is the letter of none of its options");
            return Err(BenchmarkError::entry(&path, format!("question {}", place + 1), problem));
        };
        questions.push(MultipleChoice {
            id: (place + 1).into(),
            prompt: prompt(&question, &options, LETTER),
            question,
            image: Some(image),
            options,
            answer,
            category: None,
            grouping: Grouping::together([("pair accuracy", (place / 2 + 1).to_string())]),
        });
    }
    task(&path, questions, "accuracy", correct)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_in_one_text_and_an_answer_is_their_letter_or_their_text() {
        let options = options("(a) Open (wide)  (b) Closed").unwrap();
        assert_eq!(options, [('A', "Open (wide)".to_string()), ('B', "Closed".to_string())]);
        assert!(self::options("Open").is_none() && self::options("(a) Open").is_none());
        for right in ["B", "(b)", "B.", "closed", "The answer is B", "Answer: closed."] {
            assert!(correct(right, &options, 'B'), "{right}");
        }
        for wrong in ["A", "", "B. Closed", "It is closed", "The answer is: B"] {
            assert!(!correct(wrong, &options, 'B'), "{wrong}");
        }
    }
}
