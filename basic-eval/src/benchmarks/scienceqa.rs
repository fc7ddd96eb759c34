//! ScienceQA's test questions that have an image (the IMG subset).

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::benchmark_folders::Root;
use super::options::science_qa;
use super::question_files::{EVAL_ZIP, LETTER, annotation, id, json, unique};
use super::{Asked, Benchmark, BenchmarkError, Mark, Options, Task};

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
    #[serde(default)]
    question: String,
    #[serde(default)]
    hint: String,
    choices: Vec<String>,
    answer: usize,
}

impl Problem {
    /// The options that are ranked by their likelihood, after the context and the question.
    fn options(&self) -> Option<Options> {
        let lines = [self.hint.trim(), self.question.trim()].into_iter().filter(|line| !line.is_empty());
        let text = lines.collect::<Vec<_>>().join("\n");
        let fit = self.choices.len() > 1 && self.choices.iter().all(|choice| !choice.trim().is_empty());
        (fit && !text.is_empty()).then(|| Options { text, options: self.choices.clone(), answer: self.answer })
    }
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
    let (mut asked, mut truths, mut ranked) = (Vec::new(), Vec::new(), Vec::new());
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
        ranked.push(problem.options());
        let path = images.file(name, &format!("question {key} of {}", file.display()))?;
        let text = turn.value.replace("<image>", "");
        let prompt = format!("<image>\n{}\n{LETTER}", text.trim());
        asked.push(Asked { id: question.id, prompt, image: Some(path.into()) });
    }
    if asked.is_empty() {
        return Err(BenchmarkError::entry(&file, "the file", "holds no test question with an image"));
    }
    Ok(Task::new(asked).ranked(ranked).marked("IMG accuracy", move |i, answer| {
        let (choices, truth) = truths[i];
        Mark {
            score: f64::from(u8::from(science_qa(answer, choices) == Some(truth))),
            expected: char::from(b'A' + truth as u8).to_string(),
            category: None,
            ..Mark::default()
        }
    }))
}
