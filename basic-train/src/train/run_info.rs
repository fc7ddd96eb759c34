//! `run.json`: how a run was made, and where it stands.

use std::path::Path;

use basic_core::DeviceSpec;
use basic_models::{Checkpoint, outside};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{TrainError, state};
use crate::recipe::Recipe;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It runs, or was killed.
    Running,
    /// It was asked to stop and can be resumed.
    Stopped,
    /// The checkpoint is whole.
    Done,
    /// It ended with an error.
    Failed,
}

/// How a run was made: `run.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// Where it stands.
    pub status: Status,
    /// The resolved recipe: every default written out.
    pub recipe: Recipe,
    /// The devices, where they are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceSpec>,
    /// Steps of the run.
    pub steps: usize,
    /// Samples in the data.
    pub samples: usize,
    /// basic's version.
    pub version: String,
    /// Burn's version.
    pub burn: String,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Seconds so far, of the last start.
    pub seconds: f64,
    /// A checksum of recipe and devices; empty in a record that was written without it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub checksum: String,
}

impl RunInfo {
    /// Reads a run's record.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] where the directory holds none, or one that cannot be read.
    pub fn open(run: &Path) -> Result<Self, TrainError> {
        let path = run.join("run.json");
        let wrong = |reason: String| TrainError::Resume { path: path.clone(), reason };
        let text = outside::read_json_text(&path)
            .map_err(|e| wrong(format!("{e}: --resume takes the output directory of a run")))?;
        serde_json::from_str(&text).map_err(|e| wrong(format!("is not the record of a run: {e}")))
    }

    /// The checksum of what a run that goes on takes from here.
    pub(super) fn digest(&self) -> String {
        // A recipe that has no JSON form cannot be written at all, which whoever writes it hears.
        let bytes = serde_json::to_vec(&(&self.recipe, &self.devices)).unwrap_or_default();
        format!("{:016x}", xxh3_64(&bytes))
    }

    /// Refuses a recipe that is not the one that was written.
    pub(super) fn intact(&self, run: &Path) -> Result<(), TrainError> {
        if self.checksum.is_empty() || self.checksum == self.digest() {
            return Ok(());
        }
        let reason = "is damaged: its recipe is not what the run began with; put back what was there, start anew with \
                      --overwrite, or delete its `checksum` where the recipe was changed on purpose";
        Err(TrainError::Resume { path: run.join("run.json"), reason: reason.into() })
    }
}

/// What a run that is done lacks of its checkpoint: why that cannot be opened. `None` where it is whole.
pub fn lacks(run: &Path) -> Option<String> {
    // The configuration is the last file to get its name.
    Checkpoint::open(run).err().map(|error| error.to_string())
}

/// Whether a run has a state to go on from.
pub fn can_go_on(run: &Path) -> bool {
    !state::saved(run).is_empty()
}
