//! CV-Bench: multiple-choice questions of classic vision tasks, in 2D and in 3D.

use super::benchmark_folders::Root;
use super::mmvp::cambrian;
use super::multiple_choice::{MultipleChoice, letter, lettered, task};
use super::question_files::LETTER;
use super::rows::Layout;
use super::{Benchmark, BenchmarkError, Grouping, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "cv-bench", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "cv-bench",
    name: "CV-Bench",
    split: &["test_2d", "test_3d"],
    image: "image",
    need: "test_2d.parquet and test_3d.parquet come from nyu-visionx/CV-Bench on the hub",
};

/// Whether an answer is right, by Cambrian's scripts: what follows "answer is" or "answer:" begins with the letter.
pub(super) fn correct(answer: &str, truth: char) -> bool {
    let found = cambrian(answer);
    let found = found.trim_end_matches('.').trim_start_matches('(').trim_end_matches(')');
    found.starts_with(truth.to_ascii_lowercase())
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let table = LAYOUT.read(root)?;
    let mut questions = Vec::new();
    for (place, row) in table.rows.iter().enumerate() {
        let options = lettered(row.list("choices")?).ok_or_else(|| row.wrong("has more than 26 choices"))?;
        let cell = row.need(&["answer"])?;
        let answer = letter(&cell, &options);
        let answer = answer.ok_or_else(|| row.wrong(format!("its answer {cell:?} is none of its choices")))?;
        let (kind, source) = (row.need(&["type"])?, row.need(&["source"])?);
        questions.push(MultipleChoice {
            id: place.into(),
            question: row.need(&["question"])?,
            prompt: format!("{}\n{LETTER}", row.need(&["prompt"])?),
            image: Some(row.image()?),
            options,
            answer,
            category: row.text("task"),
            grouping: Grouping { parts: vec!["all".into(), kind, source], ..Grouping::default() },
        });
    }
    task(&table.path, questions, "accuracy", |answer, _, truth| correct(answer, truth))
}

#[cfg(test)]
mod tests {
    use super::correct;

    #[test]
    fn the_letter_stands_first_or_after_the_word_answer() {
        for right in ["B", "(B)", "b) two", "The answer is (B).", "Answer: B"] {
            assert!(correct(right, 'B'), "{right}");
        }
        for wrong in ["", "A", "It is B", "(A) b"] {
            assert!(!correct(wrong, 'B'), "{wrong}");
        }
    }
}
