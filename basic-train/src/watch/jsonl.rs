//! Records as lines of JSON: `metrics.jsonl` and `eval.jsonl`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Evaluation, WatchError, Watcher};
use crate::train::StepMetrics;

/// Writes `metrics.jsonl`, one line a step, and `eval.jsonl`, one line an evaluation. Each line is one write, so another
/// process that follows the files sees whole lines.
#[derive(Debug)]
pub struct Jsonl {
    steps: Lines,
    /// Made at the first evaluation: a run without any has no such file.
    evaluations: Option<Lines>,
    evaluations_path: PathBuf,
}

#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
}

impl Jsonl {
    /// The files of a new run in `dir`.
    ///
    /// # Errors
    ///
    /// [`WatchError::Io`] that names the file.
    pub fn create(dir: &Path) -> Result<Self, WatchError> {
        let path = dir.join("metrics.jsonl");
        let file = File::create(&path).map_err(io(&path))?;
        Ok(Self { steps: Lines { path, file }, evaluations: None, evaluations_path: dir.join("eval.jsonl") })
    }

    /// The files of a run that goes on after step `done`: records of later steps, and a last line that was cut off, are
    /// taken away.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file and the line.
    pub fn resume(dir: &Path, done: usize) -> Result<Self, WatchError> {
        let (metrics, evaluations_path) = (dir.join("metrics.jsonl"), dir.join("eval.jsonl"));
        let steps = match Lines::cut(&metrics, done)? {
            Some(steps) => steps,
            None => Lines { file: File::create(&metrics).map_err(io(&metrics))?, path: metrics },
        };
        Ok(Self { steps, evaluations: Lines::cut(&evaluations_path, done)?, evaluations_path })
    }
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

    /// Opens a file of an earlier process and cuts it behind the last whole line of a step up to `done`; `None` where
    /// there is no file.
    fn cut(path: &Path, done: usize) -> Result<Option<Self>, WatchError> {
        #[derive(Deserialize)]
        struct Record {
            step: usize,
        }
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(WatchError::Io { path: path.into(), source }),
        };
        let mut reader = BufReader::new(&file);
        let (mut line, mut kept, mut number) = (Vec::new(), 0, 0);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(io(path))?;
            // A line without its end was being written when the process died.
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            number += 1;
            let wrong =
                |e: serde_json::Error| WatchError::Line { path: path.into(), line: number, reason: e.to_string() };
            let record: Record = serde_json::from_slice(&line).map_err(wrong)?;
            if record.step > done {
                break;
            }
            kept += read as u64;
        }
        let mut file = file;
        file.set_len(kept).map_err(io(path))?;
        file.seek(SeekFrom::Start(kept)).map_err(io(path))?;
        Ok(Some(Self { path: path.into(), file }))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WatchError + '_ {
    move |source| WatchError::Io { path: path.into(), source }
}
