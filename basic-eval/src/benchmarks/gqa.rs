//! GQA's balanced test-dev split, scored by exact match after LLaVA's conversion of the predictions.

use std::collections::HashMap;

use serde::Deserialize;

use super::benchmark_folders::Root;
use super::question_files::{annotation, id, json, questions};
use super::{Benchmark, BenchmarkError, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "gqa", max_new_tokens: 128, read };

const NEED: &str = "it comes with GQA's questions (gqadataset.org, questions1.2)";

#[derive(Deserialize)]
struct Annotation {
    answer: String,
    types: Types,
}

#[derive(Deserialize)]
struct Types {
    structural: String,
}

/// Whether `answer`, in lower case and without final periods, equals `truth`.
pub(super) fn correct(answer: &str, truth: &str) -> bool {
    answer.trim_end_matches('.').to_lowercase() == truth
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("gqa");
    let file = dir.join("llava_gqa_testdev_balanced.jsonl");
    let (lines, asked) = questions(&file, &root.images(dir.join("data/images"))?)?;
    // LLaVA's guide does not say whether the questions lie in `data` or in the folder that the archive contains.
    let places = ["data", "data/questions1.2"].map(|place| dir.join(place).join("testdev_balanced_questions.json"));
    let truth = places.iter().find(|path| path.is_file()).unwrap_or(&places[0]);
    let map: HashMap<String, Annotation> = json(truth, NEED)?;
    let (mut answers_of, mut kinds) = (Vec::new(), Vec::new());
    for line in &lines {
        let found = annotation(truth, &map, &id(&line.question_id), &file)?;
        answers_of.push(found.answer.clone());
        kinds.push(if found.types.structural == "query" { "open" } else { "binary" }.to_string());
    }
    Ok(Task::new(asked).marked("accuracy", move |i, answer| Mark {
        score: f64::from(u8::from(correct(answer, &answers_of[i]))),
        expected: answers_of[i].clone(),
        category: Some(kinds[i].clone()),
        ..Mark::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::correct;

    #[test]
    fn case_and_final_periods_do_not_matter_and_all_else_does() {
        assert!(correct("Yes..", "yes") && correct("dark red", "dark red"));
        assert!(!correct("yes, it is", "yes") && !correct("a man", "man") && !correct("yes. ", "yes"));
    }
}
