//! ScienceQA's test questions that have an image (the IMG subset).

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::benchmark_folders::Root;
use super::options::science_qa;
use super::question_files::{EVAL_ZIP, LETTER, annotation, id, json, unique};
use super::{Asked, Benchmark, BenchmarkError, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "scienceqa", max_new_tokens: 1024, read };

/// How many options a question may have: the script reads letters from A to E.
const OPTIONS: usize = 5;
const NEED: &str = "it comes from data/scienceqa of the repository lupantech/ScienceQA";

#[derive(Deserialize)]
struct Question {
    id: Value,
    image: Option<String>,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

#[derive(Deserialize)]
struct Problem {
    choices: Vec<String>,
    answer: usize,
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("scienceqa");
    let (file, truth) = (dir.join("llava_test_CQM-A.json"), dir.join("problems.json"));
    let questions: Vec<Question> = json(&file, EVAL_ZIP)?;
    unique(&file, questions.iter().map(|question| id(&question.id)))?;
    let problems: HashMap<String, Problem> = json(&truth, NEED)?;
    let splits_file = dir.join("pid_splits.json");
    let splits: HashMap<String, Vec<String>> = json(&splits_file, NEED)?;
    let test = splits.get("test").ok_or_else(|| BenchmarkError::entry(&splits_file, "test", "no such split"))?;
    let test: std::collections::HashSet<&String> = test.iter().collect();
    let images = root.images(dir.join("images/test"))?;
    let (mut asked, mut truths) = (Vec::new(), Vec::new());
    for question in questions {
        let Some(name) = &question.image else { continue };
        let key = id(&question.id);
        if !test.contains(&key) {
            continue;
        }
        let Some(turn) = question.conversations.first() else {
            return Err(BenchmarkError::entry(&file, format!("question {key}"), "has no turn of conversation"));
        };
        let problem = annotation(&truth, &problems, &key, &file)?;
        if problem.answer >= problem.choices.len().min(OPTIONS) {
            let problem = format!("its answer is option {}, of {}", problem.answer, problem.choices.len());
            return Err(BenchmarkError::entry(&truth, format!("question {key}"), problem));
        }
        truths.push((problem.choices.len(), problem.answer));
        let path = images.file(name, &format!("question {key} of {}", file.display()))?;
        let text = turn.value.replace("<image>", "");
        let prompt = format!("<image>\n{}\n{LETTER}", text.trim());
        asked.push(Asked { id: question.id, prompt, image: Some(path.into()) });
    }
    if asked.is_empty() {
        return Err(BenchmarkError::entry(&file, "the file", "holds no test question with an image"));
    }
    Ok(Task::new(asked).marked("IMG accuracy", move |i, answer| {
        let (choices, truth) = truths[i];
        Mark {
            score: f64::from(u8::from(science_qa(answer, choices) == Some(truth))),
            expected: char::from(b'A' + truth as u8).to_string(),
            category: None,
            yes: None,
        }
    }))
}
