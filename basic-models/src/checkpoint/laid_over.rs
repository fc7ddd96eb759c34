//! What may lie over the tensors of files and changes what is read of them: adapters.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::source::Taken;
use crate::adapters::Factors;
use crate::nn::Llava;
use crate::parameters::Slot;

/// The adapter that a weight takes.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub a: Taken,
    pub b: Taken,
    pub rank: usize,
    pub scale: f64,
}

/// Adapters over tensors.
pub(super) trait LaidOver: Debug + Send + Sync {
    /// Where they lie.
    fn dir(&self) -> &Path;

    /// The files of their factors.
    fn paths(&self) -> Vec<PathBuf>;

    /// Our names of the tensors that they bring whole.
    fn whole_names(&self) -> Vec<String>;

    /// The adapter of each weight that has one.
    fn place(&self, slots: &[Slot]) -> Result<BTreeMap<String, Placed>, CheckpointError>;

    /// An adapter's values.
    fn factors(&self, placed: &Placed) -> Result<Factors, CheckpointError>;

    /// Checks that all of them have their place in a model.
    fn fits(&self, model: &Llava) -> Result<(), CheckpointError>;
}
