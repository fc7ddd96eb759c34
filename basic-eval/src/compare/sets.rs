//! Finds and reads the results of `basic eval`: judged answers of benchmarks, and files of predictions.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use basic_models::outside::{self, Budget, Unparsed};
use serde_json::Value;

use super::CompareError;
use crate::benchmarks::{
    BenchmarkError, Judged, PREDICTIONS, RANKED, RANKED_FROM_TOKENS, ScoreRecord, judged_file, record_file,
};
use crate::questions::Prediction;

/// The answers to one benchmark or one file of questions.
#[derive(Debug, Clone)]
pub struct Set {
    /// The benchmark's or the file's name.
    pub name: String,
    /// The file with the answers.
    pub file: PathBuf,
    /// The record of the evaluation, if there is one.
    pub record: Option<ScoreRecord>,
    /// The name of the mean score; `None` if the true answers are hidden.
    pub measure: Option<String>,
    /// The answers.
    pub judged: Vec<Judged>,
}

/// Reads all results of `basic eval` at `run`, which may be a file of predictions, a benchmark's folder, a folder of
/// these, or a checkpoint with such a folder called `eval`.
///
/// # Errors
///
/// [`CompareError`] if there are no results, or if an evaluation is unfinished or a file is damaged.
pub fn sets(run: &Path) -> Result<Vec<Set>, CompareError> {
    let none = |path: &Path, problem: &str| CompareError::NoRun { path: path.into(), problem: problem.into() };
    let Found { files, unfinished } = find(run)?;
    if let Some(dir) = unfinished.first() {
        return Err(none(dir, "this evaluation is not finished: the same `basic eval` goes on with it"));
    }
    if files.is_empty() {
        return Err(none(
            run,
            "holds no answers that `basic eval` judged: no judged.jsonl, no *.predictions.jsonl, no *.choices.jsonl",
        ));
    }
    files.iter().map(|file| read(file)).collect()
}

/// The files that `basic eval` wrote.
#[derive(Debug, Default)]
pub struct Found {
    /// The files of answers, sorted by path.
    pub files: Vec<PathBuf>,
    /// The folders of benchmarks whose evaluation is unfinished.
    pub unfinished: Vec<PathBuf>,
}

/// Searches `run` for results of `basic eval`.
///
/// # Errors
///
/// [`CompareError::NoRun`] if `run` does not exist; [`CompareError::File`] if a folder cannot be listed.
pub fn find(run: &Path) -> Result<Found, CompareError> {
    let mut found = Found::default();
    if run.is_file() {
        found.files.push(run.into());
        return Ok(found);
    }
    if !run.is_dir() {
        return Err(CompareError::NoRun { path: run.into(), problem: "there is no such file or folder".into() });
    }
    found.look(run)?;
    for folder in folders(run)?.iter().chain(&folders(&run.join("eval"))?) {
        found.look(folder)?;
    }
    found.files.sort();
    found.files.dedup();
    Ok(found)
}

/// The subfolders of a folder, sorted by path; empty if the folder does not exist.
fn folders(dir: &Path) -> Result<Vec<PathBuf>, CompareError> {
    Ok(list(dir)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, CompareError> {
    let io = |source| BenchmarkError::Io { path: dir.into(), source };
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        paths.push(entry.map_err(io)?.path());
    }
    paths.sort();
    Ok(paths)
}

impl Found {
    /// Adds the results that lie directly in a folder.
    fn look(&mut self, dir: &Path) -> Result<(), CompareError> {
        let judged = judged_file(dir);
        if judged.is_file() {
            self.files.push(judged);
        } else if dir.join("answers.jsonl").is_file() && dir.join("made.txt").is_file() {
            self.unfinished.push(dir.into());
        } else {
            let answers = |path: &PathBuf| {
                let name = path.to_string_lossy();
                // A file of questions may have such a name, too. It has no record, but that of its answers if these are
                // beside it.
                let ranked = [RANKED, RANKED_FROM_TOKENS].iter().any(|ending| name.ends_with(ending));
                let answered = || path.with_file_name(answers_to(path)).is_file();
                path.is_file() && (name.ends_with(PREDICTIONS) || ranked && record_file(path).is_file() && !answered())
            };
            self.files.extend(list(dir)?.into_iter().filter(answers));
        }
        Ok(())
    }
}

/// The name of the answers to a file of questions.
fn answers_to(questions: &Path) -> String {
    questions.file_stem().unwrap_or_default().to_string_lossy().into_owned() + PREDICTIONS
}

/// Reads the answers in a file.
///
/// # Errors
///
/// [`CompareError::File`] if the file or a line cannot be read; [`CompareError::NoRun`] for no or repeated answers.
pub fn read(file: &Path) -> Result<Set, CompareError> {
    let io = |source| BenchmarkError::Io { path: file.into(), source };
    let bytes = outside::read(file).map_err(io)?;
    let budget = Budget::of(file);
    let record = ScoreRecord::of(file)?;
    let mut judged = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            let last = !bytes[..].ends_with(b"\n") && bytes.ends_with(line);
            judged.push(parse(line, judged.len(), &budget).map_err(|problem| {
                let problem =
                    if last { format!("the line is cut off ({problem}): run `basic eval` again") } else { problem };
                BenchmarkError::Line { path: file.into(), line: index + 1, problem }
            })?);
        }
    }
    if judged.is_empty() {
        return Err(CompareError::NoRun { path: file.into(), problem: "holds no answer".into() });
    }
    let judged = distinct(judged).map_err(|question| {
        let problem = format!("question {question} is answered twice");
        CompareError::NoRun { path: file.into(), problem }
    })?;
    let stem = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = stem.strip_suffix(".jsonl").unwrap_or(&stem);
    // One folder may hold generated answers to a file of questions and its ranked choices.
    let path = file.to_string_lossy();
    let ending = [RANKED, RANKED_FROM_TOKENS].into_iter().find(|ending| path.ends_with(ending));
    let ending = ending.map_or("", |ending| ending.trim_end_matches(".jsonl"));
    let name = record.as_ref().map(|record| record.name.clone() + ending);
    let folder = file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let name = name.or(folder.filter(|_| stem == "judged"));
    let name = name.unwrap_or_else(|| stem.strip_suffix(".predictions").unwrap_or(stem).into());
    let measure = record.as_ref().map_or_else(|| Some("exact match".into()), |record| record.measure.clone());
    Ok(Set { name, file: file.into(), record, measure, judged })
}

/// The answers without repeated ones; a benchmark may ask the same question twice. An error is the id of a question with two
/// different answers.
fn distinct(judged: Vec<Judged>) -> Result<Vec<Judged>, String> {
    let key = |index: &usize| (id(&judged[*index].question_id), judged[*index].prompt.as_str());
    let mut order: Vec<usize> = (0..judged.len()).collect();
    order.sort_by_cached_key(key);
    let mut again = HashSet::new();
    for pair in order.windows(2).filter(|pair| key(&pair[0]) == key(&pair[1])) {
        match judged[pair[0]] == judged[pair[1]] {
            true => again.insert(pair[1]),
            false => return Err(key(&pair[0]).0),
        };
    }
    Ok(judged.into_iter().enumerate().filter(|(index, _)| !again.contains(index)).map(|(_, line)| line).collect())
}

/// Parses a line of `judged.jsonl` or of a file of predictions.
fn parse(line: &[u8], place: usize, budget: &Budget) -> Result<Judged, String> {
    // The parsed JSON of a line is dropped once its answer is extracted, so its memory goes back to the budget.
    let took = outside::json_bytes(line);
    let value = outside::parse_json(line, budget);
    budget.give_back(took);
    let value = value.map_err(|e| match e {
        Unparsed::Syntax(error) => format!("no JSON: {error}"),
        Unparsed::Costly(over) => over.reason(),
    })?;
    if value.get("correct").is_some() {
        let prediction: Prediction = serde_json::from_value(value).map_err(|e| format!("no prediction: {e}"))?;
        return Ok(Judged::of(&prediction, place));
    }
    let hint = match value.get("text").is_some() && value.get("prompt").is_some() {
        true => ": it holds answers without scores; name their folder instead",
        false => ": `basic eval` writes judged.jsonl, *.predictions.jsonl and *.choices.jsonl",
    };
    serde_json::from_value(value).map_err(|e| format!("no judged answer: {e}{hint}"))
}

/// A question id as text, whether it is a number or a string.
pub(super) fn id(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
