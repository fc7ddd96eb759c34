//! The interface of adapters to the reader of tensors, which merges them into the weights that it reads.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::source::Taken;
use crate::adapters::Factors;
use crate::nn::Llava;
use crate::parameters::Slot;

/// The adapter of a weight.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub a: Taken,
    pub b: Taken,
    pub rank: usize,
    pub scale: f64,
}

/// Adapters that are merged into tensors as these are read.
pub(super) trait LaidOver: Debug + Send + Sync {
    /// The adapters' directory.
    fn dir(&self) -> &Path;

    /// The files of their factors.
    fn paths(&self) -> Vec<PathBuf>;

    /// The names (module paths) of the tensors that the adapters replace entirely.
    fn whole_names(&self) -> Vec<String>;

    /// The adapter of each weight that has one.
    fn place(&self, slots: &[Slot]) -> Result<BTreeMap<String, Placed>, CheckpointError>;

    /// The values of an adapter.
    fn factors(&self, placed: &Placed) -> Result<Factors, CheckpointError>;

    /// Checks that all of the adapters have a place in a model.
    fn fits(&self, model: &Llava) -> Result<(), CheckpointError>;
}
