//! Stores an evaluation's scores (`result.json`) and every answer with its own score (`judged.jsonl`), which
//! `basic compare` and `basic report` read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;
use serde::{Deserialize, Serialize};

use super::{BenchmarkError, Judged, Metric};

/// The scores of an evaluation: `result.json`, or `NAME.result.json` beside `NAME.predictions.jsonl`, and
/// `NAME.choices.result.json` beside `NAME.choices.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreRecord {
    /// The name of the benchmark or of the question file.
    pub name: String,
    /// The checkpoint that gave the answers.
    pub checkpoint: PathBuf,
    /// How prompts were written: the checkpoint's own chat template (`template`) or one of LLaVA's styles.
    pub conversation: String,
    /// The folder that image paths in the answers are relative to; `None` if they are absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// The folders that the images lie below, with symbolic links resolved. `basic report` shows no image from
    /// elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_roots: Vec<PathBuf>,
    /// The name of the mean score; `None` if the true answers are hidden.
    pub measure: Option<String>,
    /// The number of questions.
    pub questions: usize,
    /// The scores.
    pub metrics: Vec<Metric>,
}

/// The ending of a file of answers to a file of questions.
pub const PREDICTIONS: &str = ".predictions.jsonl";

/// The ending of a file of ranked choices.
pub const RANKED: &str = ".choices.jsonl";

/// The ending of a file of choices ranked from the nearest tokens of the visual embeddings.
pub const RANKED_FROM_TOKENS: &str = ".replaced-choices.jsonl";

/// The path of the judged answers in a benchmark's folder.
pub fn judged_file(dir: &Path) -> PathBuf {
    dir.join("judged.jsonl")
}

/// The path of the record of the answers in `file`: `result.json` beside `judged.jsonl`, `x.result.json` beside
/// `x.predictions.jsonl` and `x.jsonl`.
pub fn record_file(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".jsonl").unwrap_or(&name);
    match stem.strip_suffix(".predictions").unwrap_or(stem) {
        "judged" => file.with_file_name("result.json"),
        stem => file.with_file_name(format!("{stem}.result.json")),
    }
}

impl ScoreRecord {
    /// Reads the record of the answers in `file`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file.
    pub fn of(file: &Path) -> Result<Option<Self>, BenchmarkError> {
        let path = record_file(file);
        match basic_models::outside::read_json_text(&path) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(record) => Ok(Some(record)),
                Err(e) => Err(BenchmarkError::entry(&path, "not the record of an evaluation", e)),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BenchmarkError::Io { path, source }),
        }
    }

    /// Writes the record of the answers in `file`.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file.
    pub fn write(&self, file: &Path) -> Result<(), BenchmarkError> {
        let path = record_file(file);
        let text = serde_json::to_string_pretty(self).map_err(|e| BenchmarkError::entry(&path, &self.name, e))?;
        write_atomically(&path, (text + "\n").as_bytes()).map_err(BenchmarkError::io(&path))
    }

    /// Writes `judged` and its record into the benchmark's folder.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file.
    pub fn write_judged(&self, dir: &Path, judged: &[Judged]) -> Result<(), BenchmarkError> {
        let path = judged_file(dir);
        let mut text = String::new();
        for line in judged {
            let wrong = |e| BenchmarkError::entry(&path, format!("question {}", line.question_id), e);
            text += &serde_json::to_string(line).map_err(wrong)?;
            text.push('\n');
        }
        write_atomically(&path, text.as_bytes()).map_err(BenchmarkError::io(&path))?;
        self.write(&path)
    }
}

/// Deletes the scores in a folder whose answers are no longer complete.
pub(super) fn forget(dir: &Path) -> Result<(), BenchmarkError> {
    let judged = judged_file(dir);
    // A user may have files of these names: a file that does not look like ours is an error, and is not deleted.
    let there = ScoreRecord::of(&judged)?.is_some();
    let line = |line: &[u8]| {
        let value: Option<serde_json::Value> = serde_json::from_slice(line).ok();
        value.is_some_and(|value| value.get("question_id").is_some())
    };
    let first = File::open(&judged).and_then(|file| {
        let mut first = Vec::new();
        BufReader::new(file).take(1 << 20).read_until(b'\n', &mut first).map(|_| first)
    });
    if first.is_ok_and(|first| !there && !first.is_empty() && !line(&first)) {
        let problem = "holds no judged answers: move it elsewhere, or choose another --out";
        return Err(BenchmarkError::line(&judged, 1, problem));
    }
    for path in [record_file(&judged), judged] {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(BenchmarkError::Io { path, source: e }),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_lies_beside_the_answers_under_a_name_of_its_own() {
        for (file, record) in [
            ("a/judged.jsonl", "a/result.json"),
            ("a/eval.predictions.jsonl", "a/eval.result.json"),
            ("a/mine.jsonl", "a/mine.result.json"),
            ("a/mine", "a/mine.result.json"),
        ] {
            assert_eq!(record_file(Path::new(file)), Path::new(record), "{file}");
        }
    }

    #[test]
    fn scores_that_no_longer_hold_go_and_files_of_somebodys_own_under_their_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (record, judged) = (dir.path().join("result.json"), dir.path().join("judged.jsonl"));
        let ours =
            r#"{"name": "a", "checkpoint": "b", "conversation": "c", "measure": null, "questions": 1, "metrics": []}"#;
        for (path, mine) in [(&record, "{\"port\": 1}"), (&judged, "{\"port\": 1}\n"), (&judged, "notes")] {
            std::fs::write(path, mine).unwrap();
            let error = forget(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert_eq!(std::fs::read_to_string(path).unwrap(), mine);
            std::fs::remove_file(path).unwrap();
        }
        std::fs::write(&record, ours).unwrap();
        std::fs::write(&judged, "{\"question_id\": 1, \"cut").unwrap();
        forget(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(&judged, "{\"question_id\": 1}\n").unwrap();
        forget(dir.path()).unwrap();
        assert!(!judged.exists());
    }
}
