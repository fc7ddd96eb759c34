//! What a run is asked beside its recipe, and how it ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use basic_core::DeviceSpec;

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Overrides the recipe's device: one, or several that share each batch.
    pub devices: Vec<DeviceSpec>,
    /// Overrides the recipe's output.
    pub out: Option<PathBuf>,
    /// Replace a run that is there.
    pub overwrite: bool,
    /// Go on from the latest state in the output directory.
    pub resume: bool,
    /// What memory a device has, where it does not tell itself.
    pub memory: Option<u64>,
    /// Train even where the plan says that the device cannot hold the run.
    pub force: bool,
    /// Once it is set, the run finishes its step, saves its state and ends.
    pub stop: Option<Arc<AtomicBool>>,
    /// The source's git revision, where known.
    pub revision: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; the output directory is a checkpoint.
    Done(PathBuf),
    /// It was asked to stop and saved its state.
    Stopped {
        /// The output directory.
        out: PathBuf,
        /// Steps done.
        step: usize,
        /// Steps of the whole run.
        steps: usize,
    },
}
