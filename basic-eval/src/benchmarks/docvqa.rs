//! DocVQA: questions about scanned documents, scored by ANLS. The answers of the test split are hidden.

use serde::Deserialize;
use serde_json::{Value, json as object};

use super::benchmark_folders::Root;
use super::python_text::{is_space, split};
use super::question_files::{SHORT, id, json, unique, write_json};
use super::rows::Layout;
use super::{Asked, Benchmark, BenchmarkError, Mark, Task, vqa};

pub(super) const VALIDATION: Benchmark = Benchmark {
    name: "docvqa",
    max_new_tokens: 128,
    read: |root| read(root, &["val_v1.0_withQT.json", "val_v1.0.json"], &VALIDATION_TABLE),
};
pub(super) const TEST: Benchmark =
    Benchmark { name: "docvqa-test", max_new_tokens: 128, read: |root| read(root, &["test_v1.0.json"], &TEST_TABLE) };

const NEED: &str =
    "it comes from rrc.cvc.uab.es (challenge 17, task 1), and a table of it from lmms-lab/DocVQA on the hub";
const VALIDATION_TABLE: Layout =
    Layout { dir: "docvqa", name: "DocVQA_VAL", split: &["validation"], image: "image", need: NEED };
const TEST_TABLE: Layout = Layout { dir: "docvqa", name: "DocVQA_TEST", split: &["test"], image: "image", need: NEED };

/// Below this similarity an answer scores 0.
const THRESHOLD: f64 = 0.5;

/// The official file.
#[derive(Deserialize)]
struct Questions {
    data: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    #[serde(rename = "questionId")]
    question_id: Value,
    question: String,
    image: String,
    #[serde(default)]
    question_types: Vec<String>,
    #[serde(default)]
    answers: Option<Vec<String>>,
}

/// The true answers of a question, `None` in the test split, and its first type.
struct Truth {
    answers: Option<Vec<String>>,
    kind: Option<String>,
}

/// The average normalized Levenshtein similarity of one answer, by the evaluation script of the challenge.
pub(super) fn anls(answer: &str, truths: &[String]) -> f64 {
    let words = |text: &str| split(&text.trim_matches(is_space).to_lowercase()).collect::<Vec<_>>().join(" ");
    // The script divides by the length of the texts as they are, with their spaces.
    let length = |text: &str| text.to_uppercase().chars().count();
    let distance = |truth: &String| {
        let (found, wanted): (Vec<char>, Vec<char>) = (words(answer).chars().collect(), words(truth).chars().collect());
        let longest = length(truth).max(length(answer));
        // A lower bound of the distance that decides for most answers that are much too long.
        let least = found.len().abs_diff(wanted.len()) as f64;
        match longest {
            0 => 0.0,
            longest if 1.0 - least / (longest as f64) < THRESHOLD => 1.0,
            longest => levenshtein(&found, &wanted) as f64 / longest as f64,
        }
    };
    let best = 1.0 - truths.iter().map(distance).fold(1.0, f64::min);
    if best < THRESHOLD { 0.0 } else { best }
}

/// The number of characters to insert, delete or replace.
fn levenshtein(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn read(root: &Root, files: &[&str], layout: &Layout) -> Result<Task, BenchmarkError> {
    let (mut asked, mut truths) = (Vec::new(), Vec::new());
    if let Some(table) = layout.find(root)? {
        for row in &table.rows {
            let prompt = format!("{}\n{SHORT}", row.need(&["question"])?);
            let id =
                row.id("questionId").or_else(|| row.id("index")).ok_or_else(|| row.wrong("has no \"questionId\""))?;
            asked.push(Asked { id, prompt, image: Some(row.image()?) });
            let answers = ["answers", "answer"].iter().find_map(|key| row.list(key).ok());
            let kind = row.list("question_types").ok().and_then(|kinds| kinds.into_iter().next());
            truths.push(Truth { answers, kind });
        }
        unique(&table.path, asked.iter().map(|asked: &Asked| id_of(asked)))?;
        return Ok(task(asked, truths));
    }
    let dir = root.join(layout.dir);
    let file =
        files.iter().map(|name| dir.join(name)).find(|file| file.is_file()).unwrap_or_else(|| dir.join(files[0]));
    let questions: Questions = json(&file, layout.need)?;
    let images = root.images(dir)?;
    for question in questions.data {
        let entry = format!("question {} of {}", id(&question.question_id), file.display());
        let image = images.file(&question.image, &entry)?;
        let prompt = format!("{}\n{SHORT}", question.question);
        asked.push(Asked { id: question.question_id, prompt, image: Some(image.into()) });
        truths.push(Truth { answers: question.answers, kind: question.question_types.into_iter().next() });
    }
    unique(&file, asked.iter().map(id_of))?;
    Ok(task(asked, truths))
}

fn id_of(asked: &Asked) -> String {
    id(&asked.id)
}

fn task(asked: Vec<Asked>, truths: Vec<Truth>) -> Task {
    let ids: Vec<Value> = asked.iter().map(|asked| asked.id.clone()).collect();
    let known = truths.iter().all(|truth| truth.answers.as_ref().is_some_and(|answers| !answers.is_empty()));
    let task = Task::new(asked);
    if !known {
        return task.submitted(move |answers, out| {
            let rows = ids.iter().zip(answers).map(|(id, answer)| object!({"questionId": id, "answer": answer}));
            write_json(&out.join("docvqa_test.json"), &rows.collect::<Vec<_>>())
        });
    }
    task.marked("ANLS", move |i, answer| {
        let answers = truths[i].answers.as_deref().unwrap_or_default();
        Mark {
            score: anls(answer, answers),
            expected: vqa::most_given(answers),
            category: truths[i].kind.clone(),
            ..Mark::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_scores_its_similarity_and_nothing_below_a_half() {
        let truths = ["Tuesday".to_string(), "15 May".to_string()];
        let near = |answer: &str, score: f64| {
            assert!((anls(answer, &truths) - score).abs() < 1e-12, "{answer}: {}", anls(answer, &truths));
        };
        near("tuesday", 1.0);
        near("15  may", 1.0);
        near("Tuesda", 6.0 / 7.0);
        near("Tues", 4.0 / 7.0);
        near("Tue", 0.0); // 3/7
        near("", 0.0);
        near("a long story about some Tuesday", 0.0);
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        for (a, b, distance) in [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2)] {
            assert_eq!(levenshtein(&chars(a), &chars(b)), distance);
        }
    }
}
