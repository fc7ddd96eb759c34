//! Reads LLaVA's question files and annotations in JSON, and writes submission files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;
use basic_models::outside::{Budget, OverBudget, check_json, read_text};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::benchmark_folders::Images;
use super::{Asked, BenchmarkError};

/// Where the files of LLaVA's archive come from.
pub(super) const EVAL_ZIP: &str = "it comes with LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA)";

/// LLaVA's request for a short answer.
pub(super) const SHORT: &str = "Answer the question using a single word or phrase.";
/// LLaVA's request for an option's letter.
pub(super) const LETTER: &str = "Answer with the option's letter from the given choices directly.";

/// Reads a text file. If it is missing, the error says `need`: what the file is and where it comes from.
pub(super) fn text(path: &Path, need: &str) -> Result<String, BenchmarkError> {
    let text = read_text(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => BenchmarkError::Missing { path: path.into(), need: need.into() },
        _ => BenchmarkError::Io { path: path.into(), source },
    })?;
    match text.trim().is_empty() {
        true => Err(BenchmarkError::entry(path, "the file", format!("is empty: {need}"))),
        false => Ok(text),
    }
}

/// Reads a JSON file.
pub(super) fn json<T: DeserializeOwned>(path: &Path, need: &str) -> Result<T, BenchmarkError> {
    let text = text(path, need)?;
    let over = |over: OverBudget| BenchmarkError::Io { path: path.into(), source: over.into() };
    check_json(text.as_bytes(), &Budget::of(path)).map_err(over)?;
    let reader = &mut serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(reader).map_err(|e| {
        let (entry, problem) = (e.path().to_string(), e.inner());
        let entry = if entry == "." { "the file".into() } else { format!("entry {entry}") };
        BenchmarkError::entry(path, entry, format!("{problem}: {OTHER}"))
    })
}

const OTHER: &str = "not this benchmark's file, or another version of it";

/// The message for a line that cannot be parsed, without serde's position, whose line number is always 1.
fn in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    format!("{}: {OTHER}", text.rsplit_once(" at line ").map_or(text.as_str(), |(problem, _)| problem))
}

/// Reads a file with one JSON object per line; each comes with its line number, from 1.
pub(super) fn jsonl<T: DeserializeOwned>(path: &Path, need: &str) -> Result<Vec<(usize, T)>, BenchmarkError> {
    let text = text(path, need)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let budget = Budget::of(path);
    let parse = |(index, line): (usize, &str)| {
        check_json(line.as_bytes(), &budget)
            .map_err(|over| BenchmarkError::Io { path: path.into(), source: over.into() })?;
        match serde_json::from_str(line) {
            Ok(value) => Ok((index + 1, value)),
            Err(e) => Err(BenchmarkError::line(path, index + 1, in_line(&e))),
        }
    };
    let values: Vec<(usize, T)> = lines.map(parse).collect::<Result<_, _>>()?;
    match values.is_empty() {
        true => Err(BenchmarkError::entry(path, "the file", "holds no question")),
        false => Ok(values),
    }
}

/// A line of LLaVA's question files.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    /// The question's id.
    pub question_id: Value,
    /// The image's path in the folder of images.
    pub image: Option<String>,
    /// The prompt, including the request for the form of the answer.
    pub text: String,
    /// POPE's split.
    pub category: Option<String>,
}

/// Reads LLaVA's question file `path`: its lines, and the questions with their images in `images`.
pub(super) fn questions(path: &Path, images: &Images) -> Result<(Vec<Line>, Vec<Asked>), BenchmarkError> {
    let (lines, asked) = questions_of_images(path, images)?;
    unique(path, lines.iter().map(|line| id(&line.question_id)))?;
    Ok((lines, asked))
}

/// Like [`questions`], for files whose ids are those of images, so that several questions may share an id.
pub(super) fn questions_of_images(path: &Path, images: &Images) -> Result<(Vec<Line>, Vec<Asked>), BenchmarkError> {
    let lines: Vec<(usize, Line)> = jsonl(path, EVAL_ZIP)?;
    let mut asked = Vec::with_capacity(lines.len());
    for (number, line) in &lines {
        let Some(name) = &line.image else {
            return Err(BenchmarkError::line(path, *number, "the question has no \"image\""));
        };
        let file = images.file(name, &format!("question {} of {}", line.question_id, path.display()))?;
        asked.push(Asked { id: line.question_id.clone(), prompt: line.text.clone(), image: Some(file.into()) });
    }
    Ok((lines.into_iter().map(|(_, line)| line).collect(), asked))
}

/// A question id as text, whether the file has a number or a string.
pub(super) fn id(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Refuses a file that has an id twice, because the answers would be ambiguous.
pub(super) fn unique(path: &Path, ids: impl Iterator<Item = String>) -> Result<(), BenchmarkError> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (place, id) in ids.enumerate() {
        if let Some(earlier) = first.insert(id.clone(), place) {
            let problem = format!("is there twice, as the {}. and the {}. question", earlier + 1, place + 1);
            return Err(BenchmarkError::entry(path, format!("question {id}"), problem));
        }
    }
    match first.is_empty() {
        true => Err(BenchmarkError::entry(path, "the file", "holds no question")),
        false => Ok(()),
    }
}

/// A map of annotations by id. No id may occur twice.
pub(super) fn by_id<T>(
    path: &Path,
    entries: impl IntoIterator<Item = (String, T)>,
) -> Result<HashMap<String, T>, BenchmarkError> {
    let mut map = HashMap::new();
    for (id, entry) in entries {
        if map.insert(id.clone(), entry).is_some() {
            return Err(BenchmarkError::entry(path, format!("question {id}"), "is there twice"));
        }
    }
    Ok(map)
}

/// The annotation of a question; an error if there is none.
pub(super) fn annotation<'a, T>(
    path: &Path,
    map: &'a HashMap<String, T>,
    id: &str,
    questions: &Path,
) -> Result<&'a T, BenchmarkError> {
    map.get(id).ok_or_else(|| {
        let problem = format!("is asked in {} but not annotated: are the two of one version?", questions.display());
        BenchmarkError::entry(path, format!("question {id}"), problem)
    })
}

/// Writes a submission file in JSON.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<PathBuf, BenchmarkError> {
    let bytes = serde_json::to_vec(value).map_err(|e| BenchmarkError::entry(path, "the submission", e))?;
    write_atomically(path, &bytes).map_err(BenchmarkError::io(path))?;
    Ok(path.to_path_buf())
}
