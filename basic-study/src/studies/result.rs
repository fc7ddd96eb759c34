//! A stage's result on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AblateError;
use super::expand::Planned;

/// Numbers by name.
pub type Values = BTreeMap<String, f64>;

/// `cells/HASH/result.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageResult {
    /// The hash of `key`.
    pub hash: String,
    /// basic's version.
    pub version: String,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Where it was computed.
    pub device: String,
    /// Steps of the stage.
    pub steps: usize,
    /// Seconds of training, of the last start.
    pub train_seconds: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Seconds of measuring.
    pub measure_seconds: f64,
    /// What was measured.
    pub values: Values,
    /// All that it depends on.
    pub key: Value,
}

/// A stage's folder.
pub(super) fn folder(out: &Path, hash: &str) -> PathBuf {
    out.join("cells").join(hash)
}

/// The stage's run: its checkpoint, once it is done.
pub(super) fn run_folder(out: &Path, hash: &str) -> PathBuf {
    folder(out, hash).join("run")
}

impl StageResult {
    /// The result of a stage, where there is one.
    pub(super) fn read(out: &Path, planned: &Planned) -> Result<Option<Self>, AblateError> {
        let path = folder(out, &planned.hash).join("result.json");
        let text = match basic_models::outside::read_json_text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AblateError::Io { path, source }),
        };
        let wrong = |reason: String| AblateError::Result { path: path.clone(), reason };
        let found: Self = serde_json::from_str(&text).map_err(|error| wrong(format!("is no result: {error}")))?;
        if found.key != planned.key {
            return Err(wrong("is of another recipe".into()));
        }
        Ok(Some(found))
    }

    pub(super) fn write(&self, out: &Path) -> Result<(), AblateError> {
        let path = folder(out, &self.hash).join("result.json");
        let text = serde_json::to_string_pretty(self).map_err(|e| std::io::Error::other(e.to_string()));
        text.and_then(|text| write_atomically(&path, (text + "\n").as_bytes())).map_err(AblateError::io(&path))
    }
}
