//! VQAv2's test-dev split, whose answers are hidden: writes a file for the evaluation server.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::benchmark_folders::Root;
use super::normalize::m4c;
use super::question_files::{EVAL_ZIP, Line, id, jsonl, questions, write_json};
use super::{Benchmark, BenchmarkError, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "vqav2", max_new_tokens: 128, read };

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("vqav2");
    let (file, set) =
        ["test-dev2015", "test2015"].map(|set| dir.join(format!("llava_vqav2_mscoco_{set}.jsonl"))).into();
    let (lines, asked) = questions(&file, &root.images(dir.join("test2015"))?)?;
    // The server expects every question of the whole test set; those outside test-dev get an empty answer.
    let whole: Vec<(usize, Line)> = jsonl(&set, EVAL_ZIP)?;
    let known: HashSet<String> = whole.iter().map(|(_, line)| id(&line.question_id)).collect();
    if let Some(line) = lines.iter().find(|line| !known.contains(&id(&line.question_id))) {
        let problem = format!("is not among the questions of {}: are the two of one version?", set.display());
        return Err(BenchmarkError::entry(&file, format!("question {}", id(&line.question_id)), problem));
    }
    Ok(Task::new(asked).submitted(move |answers, out| {
        let given: HashMap<String, &String> = lines.iter().map(|line| id(&line.question_id)).zip(answers).collect();
        let rows = whole.iter().map(|(_, line)| {
            let answer = given.get(&id(&line.question_id)).map(|answer| m4c(answer)).unwrap_or_default();
            json!({"question_id": line.question_id, "answer": answer})
        });
        write_json(&out.join("vqav2_test-dev.json"), &rows.collect::<Vec<_>>())
    }))
}
