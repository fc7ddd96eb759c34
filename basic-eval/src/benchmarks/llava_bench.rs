//! LLaVA-Bench (in the wild), whose answers a GPT model judges: writes a file for its evaluator.

use basic_models::atomic_file::write_atomically;
use serde_json::json;

use super::benchmark_folders::Root;
use super::question_files::questions;
use super::{Benchmark, BenchmarkError, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "llava-bench-in-the-wild", max_new_tokens: 1024, read };

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("llava-bench-in-the-wild");
    let (lines, asked) = questions(&dir.join("questions.jsonl"), &root.images(dir.join("images"))?)?;
    Ok(Task::new(asked).submitted(move |answers, out| {
        // The keys of LLaVA's model_vqa.py; eval_gpt_review_bench.py reads "text", in the order of the questions.
        let row = |(line, answer): (&super::question_files::Line, &String)| {
            let id = format!("{}-basic", super::question_files::id(&line.question_id));
            let row = json!({"question_id": line.question_id, "prompt": line.text, "text": answer, "answer_id": id,
                "model_id": "basic", "metadata": {}});
            format!("{row}\n")
        };
        let path = out.join("llava-bench-in-the-wild.jsonl");
        let text: String = lines.iter().zip(answers).map(row).collect();
        write_atomically(&path, text.as_bytes()).map_err(BenchmarkError::io(&path))?;
        Ok(path)
    }))
}
