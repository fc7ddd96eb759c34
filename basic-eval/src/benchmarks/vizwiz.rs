//! VizWiz's test questions, whose answers are hidden: writes a file for the evaluation server.

use serde_json::json;

use super::benchmark_folders::Root;
use super::normalize::m4c;
use super::question_files::{questions, write_json};
use super::{Benchmark, BenchmarkError, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "vizwiz", max_new_tokens: 128, read };

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("vizwiz");
    let (lines, asked) = questions(&dir.join("llava_test.jsonl"), &root.images(dir.join("test"))?)?;
    Ok(Task::new(asked).submitted(move |answers, out| {
        let rows = lines.iter().zip(answers).map(|(line, answer)| json!({"image": line.image, "answer": m4c(answer)}));
        write_json(&out.join("vizwiz_test.json"), &rows.collect::<Vec<_>>())
    }))
}
