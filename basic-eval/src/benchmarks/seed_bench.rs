//! SEED-Bench's multiple-choice questions about images.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::benchmark_folders::Root;
use super::multiple_choice::{MultipleChoice, letter, lettered, prompt, task};
use super::question_files::{LETTER, id, json};
use super::rows::{Layout, Row};
use super::{Benchmark, BenchmarkError, Grouping, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "seed_bench", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "seed_bench",
    name: "SEEDBench_IMG",
    split: &["test"],
    image: "image",
    need: "SEED-Bench.json and the folder SEED-Bench-image come from AILab-CVC/SEED-Bench (DATASET.md)",
};

/// The authors' file.
#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
    #[serde(default)]
    question_type: HashMap<String, Value>,
}

#[derive(Deserialize)]
struct Question {
    question_id: Value,
    question_type_id: Value,
    data_type: String,
    data_id: Value,
    question: String,
    choice_a: String,
    choice_b: String,
    choice_c: String,
    choice_d: String,
    answer: String,
}

/// Whether an answer is right, by LLaVA's script: it is the letter and nothing else.
pub(super) fn correct(answer: &str, truth: char) -> bool {
    answer.chars().eq([truth])
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let (path, questions) = match LAYOUT.find(root)? {
        Some(table) => {
            // The table on the hub has questions about videos too.
            let about_images = |row: &&Row| row.text("data_type").is_none_or(|kind| kind == "image");
            let questions = table.rows.iter().enumerate().filter(|(_, row)| about_images(row));
            let questions = questions.map(|(place, row)| of_row(place, row)).collect::<Result<Vec<_>, _>>()?;
            (table.path, questions)
        }
        None => {
            let dir = root.join(LAYOUT.dir);
            let path = dir.join("SEED-Bench.json");
            let file: Questions = json(&path, LAYOUT.need)?;
            let images = root.images(dir.join("SEED-Bench-image"))?;
            let kinds: HashMap<String, String> =
                file.question_type.iter().map(|(name, number)| (number.to_string(), name.clone())).collect();
            let mut questions = Vec::new();
            for question in file.questions.into_iter().filter(|question| question.data_type == "image") {
                let entry = format!("question {}", id(&question.question_id));
                let options = [question.choice_a, question.choice_b, question.choice_c, question.choice_d];
                let options: Vec<(char, String)> = ('A'..).zip(options).collect();
                let Some(answer) = letter(&question.answer, &options) else {
                    let problem = format!("its answer {:?} is none of A to D", question.answer);
                    return Err(BenchmarkError::entry(&path, entry, problem));
                };
                let image = images.file(&id(&question.data_id), &format!("{entry} of {}", path.display()))?;
                let kind = question.question_type_id.to_string();
                questions.push(MultipleChoice {
                    id: question.question_id,
                    prompt: prompt(&question.question, &options, LETTER),
                    question: question.question,
                    image: Some(image.into()),
                    options,
                    answer,
                    category: Some(kinds.get(&kind).cloned().unwrap_or(kind)),
                    grouping: Grouping::default(),
                });
            }
            (path, questions)
        }
    };
    task(&path, questions, "accuracy", |answer, _, truth| correct(answer, truth))
}

fn of_row(place: usize, row: &Row) -> Result<MultipleChoice, BenchmarkError> {
    let (question, mut options) = (row.need(&["question"])?, row.lettered());
    if options.is_empty() {
        let texts = ["choice_a", "choice_b", "choice_c", "choice_d"].map(|key| row.need(&[key]));
        options = lettered(texts.into_iter().collect::<Result<_, _>>()?).unwrap_or_default();
    }
    let cell = row.need(&["answer"])?;
    let answer = letter(&cell, &options);
    let answer =
        answer.ok_or_else(|| row.wrong(format!("its answer {cell:?} is the letter of none of its options")))?;
    Ok(MultipleChoice {
        id: row.id("question_id").or_else(|| row.id("index")).unwrap_or_else(|| place.into()),
        prompt: prompt(&question, &options, LETTER),
        question,
        image: Some(row.image()?),
        options,
        answer,
        category: row.text("category").or_else(|| row.text("question_type_id")),
        grouping: Grouping::default(),
    })
}
