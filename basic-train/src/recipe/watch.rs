//! The recipe's tables `[eval]`, for periodic evaluation on held-out samples, and `[watch]`, for the records of a run.

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
    /// The set's format, if its name and content don't determine it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The split of a file that holds several; by default `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The number of steps between two evaluations; there is always one after the last step.
    pub every: usize,
    /// The largest number of samples that are evaluated, from the beginning of the set.
    #[serde(default = "samples")]
    pub samples: usize,
    /// The number of these samples for which the model generates an answer.
    #[serde(default = "predictions")]
    pub predictions: usize,
    /// The largest number of tokens in an answer.
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

/// `[watch]`: the records of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchConfig {
    /// Whether event files for TensorBoard are written, in `tensorboard/`.
    pub tensorboard: bool,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}
