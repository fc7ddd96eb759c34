//! POPE: yes-or-no questions whether an object is in the image, in three splits.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::benchmark_folders::Root;
use super::question_files::{jsonl, questions};
use super::{Benchmark, BenchmarkError, Mark, Task};

pub(super) const BENCHMARK: Benchmark = Benchmark { name: "pope", max_new_tokens: 128, read };

const NEED: &str = "it comes from output/coco of the repository AoiDragon/POPE";

#[derive(Deserialize)]
struct Label {
    image: Option<String>,
    label: String,
}

/// Whether an answer is read as yes: its first sentence, without commas, has none of the words "No", "not" and "no".
pub(super) fn says_yes(answer: &str) -> bool {
    let sentence = answer.split('.').next().unwrap_or_default().replace(',', "");
    !sentence.split(' ').any(|word| matches!(word, "No" | "not" | "no"))
}

/// Accuracy, precision, recall, F1 and yes ratio of pairs (answer is yes, truth is yes); an undefined rate is 0.
pub(super) fn rates(pairs: &[(bool, bool)]) -> [f64; 5] {
    let count = |said, is| pairs.iter().filter(|pair| **pair == (said, is)).count() as f64;
    let (tp, fp, r#fn, tn) = (count(true, true), count(true, false), count(false, true), count(false, false));
    let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let (precision, recall) = (ratio(tp, tp + fp), ratio(tp, tp + r#fn));
    let f1 = ratio(2.0 * precision * recall, precision + recall);
    let all = pairs.len() as f64;
    [ratio(tp + tn, all), precision, recall, f1, ratio(tp + fp, all)]
}

fn read(root: &Root) -> Result<Task, BenchmarkError> {
    let dir = root.join("pope");
    let file = dir.join("llava_pope_test.jsonl");
    let (lines, asked) = questions(&file, &root.images(dir.join("val2014"))?)?;
    let mut splits: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(split) = &line.category else {
            return Err(BenchmarkError::line(&file, index + 1, "the question has no \"category\", which is its split"));
        };
        splits.entry(split.clone()).or_default().push(index);
    }
    let mut truths = vec![false; lines.len()];
    for (split, indices) in &splits {
        // As in LLaVA's script, labels and questions of a split are matched by their order.
        let truth = dir.join(format!("coco/coco_pope_{split}.json"));
        let labels: Vec<(usize, Label)> = jsonl(&truth, NEED)?;
        if labels.len() != indices.len() {
            let (labels, questions) = (labels.len(), indices.len());
            let problem = format!("{labels} labels, but {questions} questions in {}", file.display());
            return Err(BenchmarkError::entry(&truth, split, problem));
        }
        for ((number, label), index) in labels.iter().zip(indices) {
            if label.image.is_some() && label.image != lines[*index].image {
                let asked = &lines[*index].question_id;
                let problem = format!("another image than question {asked} of {} has in its place", file.display());
                return Err(BenchmarkError::line(&truth, *number, problem));
            }
            truths[*index] = label.label != "no";
        }
    }
    Ok(Task::new(asked).marked("accuracy", move |i, answer| {
        let (said, is) = (says_yes(answer), truths[i]);
        Mark {
            score: f64::from(u8::from(said == is)),
            expected: if is { "yes" } else { "no" }.into(),
            category: lines[i].category.clone(),
            yes: Some(said),
            ..Mark::default()
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_in_the_first_sentence_is_no_and_all_else_is_yes() {
        for no in ["No", "no.", "No, there is", "There is not one. Yes", "There is no dog"] {
            assert!(!says_yes(no), "{no}");
        }
        for yes in ["Yes", "", "Yes. No", "None", "nothing", "NO", "I can't see,no"] {
            assert!(says_yes(yes), "{yes}");
        }
    }

    #[test]
    fn rates_are_counted_and_what_has_no_value_is_zero() {
        let pairs = [(true, true), (true, true), (true, false), (false, true), (false, false)];
        let expected = [0.6, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 0.6];
        assert!(rates(&pairs).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{:?}", rates(&pairs));
        assert_eq!(rates(&[(false, true)]), [0.0; 5]);
        assert_eq!(rates(&[]), [0.0; 5]);
    }
}
