//! The options of a run beside its recipe, and its outcome.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use basic_core::DeviceSpec;

use crate::parallel::Collective;

/// What the command line adds to a recipe.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Overrides the recipe's device: one device, or several that share each batch.
    pub devices: Vec<DeviceSpec>,
    /// Overrides the recipe's output directory.
    pub out: Option<PathBuf>,
    /// Replaces an existing run.
    pub overwrite: bool,
    /// Resumes from the latest state in the output directory.
    pub resume: bool,
    /// The memory of a device in bytes, if the device does not report it.
    pub memory: Option<u64>,
    /// Trains even if the plan says that the device cannot hold the run.
    pub force: bool,
    /// When it is set, the run finishes its step, saves its state and ends.
    pub stop: Option<Arc<AtomicBool>>,
    /// The processes that this one was launched with: they share each batch, and the first writes the files. Each has
    /// one device.
    pub group: Option<Arc<dyn Collective>>,
    /// The source's git revision, if known.
    pub revision: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done, and the output directory is a checkpoint.
    Done(PathBuf),
    /// The run was asked to stop and has saved its state.
    Stopped {
        /// The output directory.
        out: PathBuf,
        /// Number of steps done.
        step: usize,
        /// Number of steps of the whole run.
        steps: usize,
    },
}
