//! Writes records as lines of JSON: `metrics.jsonl` and `eval.jsonl`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;
use basic_models::outside;
use serde::{Deserialize, Serialize};

use super::{Evaluation, StepMetrics, WatchError, Watcher};

/// Writes `metrics.jsonl`, one line per step, and `eval.jsonl`, one line per evaluation. Each line is a single write,
/// so that a process that follows the files sees complete lines.
#[derive(Debug)]
pub struct Jsonl {
    steps: Lines,
    /// Created at the first evaluation, so a run without evaluations has no such file.
    evaluations: Option<Lines>,
    evaluations_path: PathBuf,
}

#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
}

impl Jsonl {
    /// Creates the files of a new run in `dir`.
    ///
    /// # Errors
    ///
    /// [`WatchError::Io`] that names the file.
    pub fn create(dir: &Path) -> Result<Self, WatchError> {
        let path = dir.join("metrics.jsonl");
        let file = File::create(&path).map_err(io(&path))?;
        Ok(Self { steps: Lines { path, file }, evaluations: None, evaluations_path: dir.join("eval.jsonl") })
    }

    /// Opens the files of a run that resumes after step `done`; records of later steps and incomplete lines are
    /// removed.
    ///
    /// # Errors
    ///
    /// [`WatchError::Io`] that names the file.
    pub fn resume(dir: &Path, done: usize) -> Result<Self, WatchError> {
        let (metrics, evaluations_path) = (dir.join("metrics.jsonl"), dir.join("eval.jsonl"));
        let steps = match Lines::kept(&metrics, done)? {
            Some(steps) => steps,
            None => Lines { file: File::create(&metrics).map_err(io(&metrics))?, path: metrics },
        };
        Ok(Self { steps, evaluations: Lines::kept(&evaluations_path, done)?, evaluations_path })
    }
}

/// The steps up to `done` that are missing in the `metrics.jsonl` of a resumed run, because lines were damaged or
/// removed. `None` if no step is missing, or if there is no such file.
pub fn missing_steps(dir: &Path, done: usize) -> Option<String> {
    let path = dir.join("metrics.jsonl");
    let text = outside::read(&path).ok()?;
    let there: BTreeSet<usize> = text.split(|byte| *byte == b'\n').filter_map(step_of).collect();
    let mut missing = (1..=done).filter(|step| !there.contains(step));
    let first = missing.next()?;
    let count = 1 + missing.count();
    Some(format!("{}: {count} of {done} steps are missing or damaged, the first is step {first}", path.display()))
}

/// Whether the `eval.jsonl` of a run has a complete line for `step`.
pub fn is_evaluated(dir: &Path, step: usize) -> bool {
    let text = outside::read(&dir.join("eval.jsonl")).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(step_of).any(|evaluated| evaluated == step)
}

/// The step of a complete line.
fn step_of(line: &[u8]) -> Option<usize> {
    #[derive(Deserialize)]
    struct Record {
        step: usize,
    }
    serde_json::from_slice::<Record>(line).ok().map(|record| record.step)
}

impl Watcher for Jsonl {
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), WatchError> {
        self.steps.write(metrics.step, metrics)
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), WatchError> {
        let lines = match &mut self.evaluations {
            Some(lines) => lines,
            None => {
                let path = self.evaluations_path.clone();
                let file = File::create(&path).map_err(io(&path))?;
                self.evaluations.insert(Lines { path, file })
            }
        };
        lines.write(evaluation.step, evaluation)
    }
}

impl Lines {
    fn write(&mut self, step: usize, record: &impl Serialize) -> Result<(), WatchError> {
        let mut line = serde_json::to_vec(record).map_err(|e| WatchError::Json { step, reason: e.to_string() })?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io(&self.path))
    }

    /// Opens a file of an earlier process and keeps its complete lines of steps up to `done`; `None` if there is no
    /// file.
    fn kept(path: &Path, done: usize) -> Result<Option<Self>, WatchError> {
        let text = match outside::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(WatchError::Io { path: path.into(), source }),
        };
        let stays = |line: &&[u8]| step_of(line).is_some_and(|step| step <= done);
        let kept = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).filter(stays);
        write_atomically(path, &kept.collect::<Vec<_>>().concat()).map_err(io(path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(io(path))?;
        Ok(Some(Self { path: path.into(), file }))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WatchError + '_ {
    move |source| WatchError::Io { path: path.into(), source }
}
