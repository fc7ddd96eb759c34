//! MM-Vet, whose answers a GPT model judges: writes a file for its evaluator.

use serde_json::{Map, Value};

use super::benchmark_folders::Root;
use super::question_files::{id, questions, write_json};
use super::{Benchmark, BenchmarkError, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "mm-vet", max_new_tokens: 1024, read };

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("mm-vet");
    let (lines, asked) = questions(&dir.join("llava-mm-vet.jsonl"), &root.images(dir.join("images"))?)?;
    Ok(Task::new(asked).submitted(move |answers, out| {
        let rows = lines.iter().zip(answers);
        let rows = rows.map(|(line, answer)| (format!("v1_{}", id(&line.question_id)), answer.clone().into()));
        write_json(&out.join("mm-vet.json"), &Value::Object(rows.collect::<Map<_, _>>()))
    }))
}
