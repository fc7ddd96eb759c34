//! Reads the runs of a report: the steps and the recipe of a training run, evaluations, or both.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use basic_core::methods::TERMS;
use basic_core::{LM, TOTAL};
use basic_eval::benchmarks::{BenchmarkError, Grouping, Judged};
use basic_eval::compare::{Found, Set, find, read};
use basic_models::outside;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ReportError;

/// The values of a line of `metrics.jsonl` or `eval.jsonl` that the page needs. The rest of a long run would take too
/// much memory.
const KEYS: [&str; OTHERS.len() + TERMS.len()] = {
    let mut keys = [""; OTHERS.len() + TERMS.len()];
    let mut at = 0;
    while at < keys.len() {
        keys[at] = if at < OTHERS.len() { OTHERS[at] } else { TERMS[at - OTHERS.len()].name };
        at += 1;
    }
    keys
};
/// The keys besides the terms of the supervision methods.
const OTHERS: [&str; 9] =
    [LM, TOTAL, "lr", "grad_norm", "attention_mass", "cosine", "seconds", "skipped_steps", "accuracy"];

/// A line of `metrics.jsonl` or `eval.jsonl`.
#[derive(Debug, Deserialize)]
#[serde(from = "Line")]
pub(super) struct Step {
    pub step: usize,
    values: [Option<f64>; KEYS.len()],
    predictions: Option<Value>,
}

#[derive(Deserialize)]
struct Line {
    step: usize,
    #[serde(flatten)]
    values: Map<String, Value>,
}

impl From<Line> for Step {
    fn from(Line { step, mut values }: Line) -> Self {
        let value = |key: &str| values.get(key).and_then(Value::as_f64);
        Self { step, values: KEYS.map(value), predictions: values.remove("predictions") }
    }
}

impl Step {
    /// The value of one of [`KEYS`]; `None` if the step lacks it or it is not finite (null in JSON).
    pub fn value(&self, key: &str) -> Option<f64> {
        KEYS.iter().zip(self.values).find(|(name, _)| **name == key)?.1
    }
}

/// The content of one of the given paths.
#[derive(Debug)]
pub(super) struct Run {
    /// The end of its path, as long as needed to tell it from the others.
    pub name: String,
    /// The content of `run.json`.
    pub info: Option<Value>,
    /// Every training step; empty for an evaluation.
    pub steps: Vec<Step>,
    /// Every evaluation on held-out samples.
    pub held_out: Vec<Step>,
    /// The answers that `basic eval` wrote.
    pub sets: Vec<Set>,
    /// The folders of benchmarks whose evaluation is unfinished.
    pub unfinished: Vec<PathBuf>,
}

impl Run {
    pub fn is_training(&self) -> bool {
        self.info.is_some() || !self.steps.is_empty()
    }

    /// The recipe with all defaults filled in.
    pub fn recipe(&self) -> Option<&Value> {
        self.info.as_ref()?.get("recipe")
    }

    fn open(path: &Path) -> Result<Self, ReportError> {
        let info = match json(&path.join("run.json"))? {
            Some(text) => Some(serde_json::from_str(&text).map_err(|e| BenchmarkError::Line {
                path: path.join("run.json"),
                line: e.line(),
                problem: format!("not the record of a run: {e}"),
            })?),
            None => None,
        };
        let (steps, held_out) = (lines(&path.join("metrics.jsonl"))?, lines(&path.join("eval.jsonl"))?);
        let Found { files, unfinished } = find(path)?;
        let mut sets = files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?;
        let run = Self { name: String::new(), info, steps, held_out, sets: Vec::new(), unfinished };
        if !run.is_training() && sets.is_empty() && run.unfinished.is_empty() {
            return Err(ReportError::NoRun(path.into()));
        }
        sets.extend(run.predictions(path));
        Ok(Self { sets, ..run })
    }

    /// The model's answers to the first held-out samples at the last evaluation.
    fn predictions(&self, path: &Path) -> Option<Set> {
        #[derive(Deserialize)]
        struct Sampled {
            prompt: String,
            images: Vec<PathBuf>,
            expected: String,
            answer: String,
        }
        let last = self.held_out.last()?;
        let sampled: Vec<Sampled> = serde_json::from_value(last.predictions.clone()?).ok()?;
        let judged = |(place, sampled): (usize, Sampled)| Judged {
            question_id: place.into(),
            prompt: sampled.prompt,
            image: sampled.images.into_iter().next(),
            answer: sampled.answer,
            expected: Some(sampled.expected),
            category: None,
            score: None,
            yes: None,
            grouping: Grouping::default(),
            by_likelihood: None,
        };
        let judged: Vec<Judged> = sampled.into_iter().enumerate().map(judged).collect();
        let name = "Held-out samples, at the last evaluation".into();
        let file = path.join("eval.jsonl");
        (!judged.is_empty()).then(|| Set { name, file, record: None, measure: None, judged })
    }
}

/// Reads the runs at `paths` and names them.
pub(super) fn open(paths: &[PathBuf]) -> Result<Vec<Run>, ReportError> {
    let mut runs: Vec<Run> = paths.iter().map(|path| Run::open(path)).collect::<Result<_, _>>()?;
    runs.iter_mut().zip(names(paths)).for_each(|(run, name)| run.name = name);
    Ok(runs)
}

/// The ends of the paths, as long as needed to tell them apart.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = paths
        .iter()
        .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        .map(|path| path.iter().map(|part| part.to_string_lossy().into_owned()).collect())
        .collect();
    let end = |parts: &[String], count: usize| parts[parts.len().saturating_sub(count)..].join("/");
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let lengths = (1..=longest).map(|count| parts.iter().map(|parts| end(parts, count)).collect::<Vec<_>>());
    let mut lengths = lengths.skip_while(|names| names.iter().collect::<HashSet<_>>().len() < names.len());
    lengths.next().unwrap_or_else(|| parts.iter().map(|parts| end(parts, longest)).collect())
}

pub(super) fn text(path: &Path) -> Result<Option<String>, ReportError> {
    match outside::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(BenchmarkError::Io { path: path.into(), source }.into()),
    }
}

/// The text of a JSON file, after a check that its values fit the memory budget.
pub(super) fn json(path: &Path) -> Result<Option<String>, ReportError> {
    let Some(text) = text(path)? else { return Ok(None) };
    let costly = |over: outside::OverBudget| BenchmarkError::Io { path: path.into(), source: over.into() };
    outside::check_json(text.as_bytes(), &outside::Budget::of(path)).map_err(costly)?;
    Ok(Some(text))
}

/// The parsed lines of a file that may still be growing: an incomplete last line is left out.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let Some(text) = text(path)? else { return Ok(Vec::new()) };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let budget = outside::Budget::of(path);
    let parse = |(index, line): (usize, &str)| {
        let wrong = |e: serde_json::Error| BenchmarkError::Line {
            path: path.into(),
            line: index + 1,
            problem: format!("no record of a step: {e}"),
        };
        let costly = |over: outside::OverBudget| BenchmarkError::Io { path: path.into(), source: over.into() };
        outside::check_json(line.as_bytes(), &budget).map_err(costly)?;
        Ok(serde_json::from_str(line).map_err(wrong)?)
    };
    text[..whole].lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_by_the_end_of_their_paths_that_tells_them_apart() {
        let of = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/runs/a", "/runs/b"]), ["a", "b"]);
        assert_eq!(of(&["/few/llava/run", "/few/basic/run"]), ["llava/run", "basic/run"]);
        assert_eq!(of(&["/x"]), ["x"]);
    }

    #[test]
    fn a_last_line_that_is_not_whole_is_left_out_and_another_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1,\"lm\":2.5,\"das\":null}\n{\"step\":2,\"l").unwrap();
        let steps: Vec<Step> = lines(&path).unwrap();
        assert_eq!(
            (steps.len(), steps[0].value("lm"), steps[0].value("das"), steps[0].value("sds")),
            (1, Some(2.5), None, None)
        );
        std::fs::write(&path, "{\"step\":1}\n{\"st\n{\"step\":3}\n").unwrap();
        let error = lines::<Step>(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:2"), "{error}");
        assert_eq!(lines::<Step>(&dir.path().join("none")).unwrap().len(), 0);
    }
}
