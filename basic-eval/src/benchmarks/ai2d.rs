//! AI2D: multiple-choice questions about the diagrams of school books.

use super::benchmark_folders::Root;
use super::multiple_choice::{MultipleChoice, letter, lettered, prompt, task};
use super::question_files::LETTER;
use super::rows::Layout;
use super::{Benchmark, BenchmarkError, Grouping, Task, options};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "ai2d", max_new_tokens: 128, read };

const LAYOUT: Layout = Layout {
    dir: "ai2d",
    name: "AI2D_TEST",
    split: &["test"],
    image: "image",
    need: "it comes from opencompass.openxlab.space/utils/VLMEval/AI2D_TEST.tsv, or from lmms-lab/ai2d on the hub",
};

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let table = LAYOUT.read(root)?;
    let mut questions = Vec::new();
    for (place, row) in table.rows.iter().enumerate() {
        let (question, mut options) = (row.need(&["question"])?, row.lettered());
        let cell = row.need(&["answer"])?;
        let mut answer = letter(&cell, &options);
        if options.is_empty() {
            // The table on the hub has a list of options, and the index of the true one.
            options = lettered(row.list("options")?).ok_or_else(|| row.wrong("has more than 26 options"))?;
            let index: Option<usize> = cell.trim().parse().ok();
            answer = index.and_then(|index| options.get(index)).map(|(letter, _)| *letter);
        }
        let answer = answer.ok_or_else(|| row.wrong(format!("its answer {cell:?} is none of its options")))?;
        questions.push(MultipleChoice {
            id: row.id("index").unwrap_or_else(|| place.into()),
            prompt: prompt(&question, &options, LETTER),
            question,
            image: Some(row.image()?),
            options,
            answer,
            category: None,
            grouping: Grouping::default(),
        });
    }
    task(&table.path, questions, "accuracy", |answer, options, truth| options::mmbench(answer, options) == Some(truth))
}
