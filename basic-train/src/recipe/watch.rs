//! The recipe's tables `[eval]`, periodic evaluation on held-out samples, and `[watch]`, the records of a run.

use std::path::PathBuf;

use basic_data::Format;
use serde::{Deserialize, Serialize};

/// `[eval]`: periodic evaluation on samples that the model is not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// The held-out set.
    pub path: PathBuf,
    /// What image paths are relative to; by default the file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// The set's format, where its name and content don't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// After every so many steps, and after the last one.
    pub every: usize,
    /// At most so many samples, the set's first.
    #[serde(default = "samples")]
    pub samples: usize,
    /// How many of them are answered.
    #[serde(default = "predictions")]
    pub predictions: usize,
    /// At most so many tokens an answer.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
}

fn samples() -> usize {
    256
}

fn predictions() -> usize {
    4
}

fn max_new_tokens() -> usize {
    64
}

/// `[watch]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchConfig {
    /// Write event files that TensorBoard reads, in `tensorboard/`.
    pub tensorboard: bool,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}
