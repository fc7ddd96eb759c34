//! `run.json`: how a run was made, and its status.

use std::path::Path;

use basic_core::DeviceSpec;
use basic_models::{Checkpoint, outside};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{TrainError, state};
use crate::recipe::Recipe;

/// The status of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The run is in progress, or it was killed.
    Running,
    /// The run was asked to stop and can be resumed.
    Stopped,
    /// The run is done and its checkpoint is complete.
    Done,
    /// The run ended with an error.
    Failed,
}

/// How a run was made: `run.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// The run's status.
    pub status: Status,
    /// The resolved recipe: every default written out.
    pub recipe: Recipe,
    /// The devices, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceSpec>,
    /// Number of steps of the run.
    pub steps: usize,
    /// Number of samples in the data.
    pub samples: usize,
    /// basic's version.
    pub version: String,
    /// Burn's version.
    pub burn: String,
    /// The source's git revision, if known.
    pub revision: Option<String>,
    /// Seconds since the run was last started.
    pub seconds: f64,
    /// A checksum of the recipe and the devices; empty in a record of an earlier version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub checksum: String,
}

impl RunInfo {
    /// Reads a run's record.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] if the directory holds no record, or one that cannot be read.
    pub fn open(run: &Path) -> Result<Self, TrainError> {
        let path = run.join("run.json");
        let wrong = |reason: String| TrainError::Resume { path: path.clone(), reason };
        let text = outside::read_json_text(&path)
            .map_err(|e| wrong(format!("{e}: --resume takes the output directory of a run")))?;
        serde_json::from_str(&text).map_err(|e| wrong(format!("is not the record of a run: {e}")))
    }

    /// The checksum of what a resumed run reads from this record.
    pub(super) fn digest(&self) -> String {
        // A recipe without a JSON form cannot be written at all, and writing the record reports that.
        let bytes = serde_json::to_vec(&(&self.recipe, &self.devices)).unwrap_or_default();
        format!("{:016x}", xxh3_64(&bytes))
    }

    /// Returns an error if the recipe was changed after it was written.
    pub(super) fn intact(&self, run: &Path) -> Result<(), TrainError> {
        if self.checksum.is_empty() || self.checksum == self.digest() {
            return Ok(());
        }
        let reason = "is damaged: its recipe is not what the run began with; put back what was there, start anew with \
                      --overwrite, or delete its `checksum` where the recipe was changed on purpose";
        Err(TrainError::Resume { path: run.join("run.json"), reason: reason.into() })
    }
}

/// Why the checkpoint of a finished run cannot be opened; `None` if it can.
pub fn lacks(run: &Path) -> Option<String> {
    // `config.json` is the last file that is moved into place, so opening fails if any is missing.
    Checkpoint::open(run).err().map(|error| error.to_string())
}

/// Whether a run has a state to resume from.
pub fn can_go_on(run: &Path) -> bool {
    !state::saved(run).is_empty()
}
