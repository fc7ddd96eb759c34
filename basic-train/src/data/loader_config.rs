//! How batches are drawn and made ready: a recipe's `[loader]`, and the plan of a run.

use std::collections::BTreeSet;
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use super::FeatureKeys;

/// The order in which samples are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrawOrder {
    /// A new permutation each epoch.
    #[default]
    Shuffle,
    /// Batches of samples with images, and batches of text-only ones, longest sample first.
    Grouped,
    /// As the data has them.
    Sequential,
}

/// What happens to a sample with more tokens than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// The run ends, unless broken samples are left out.
    #[default]
    Error,
    /// It is cut from the right, never inside an image.
    Truncate,
    /// It is left out and reported.
    Skip,
}

/// Order, length and preparation of batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// The order in which samples are drawn.
    pub order: DrawOrder,
    /// Several samples behind each other in one row of a batch.
    pub packing: bool,
    /// Tokens that a sample may have, and a packed row; by default the model's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// What happens to longer samples.
    pub too_long: TooLong,
    /// Threads that read, decode and tokenize; by default one less than there are cores, at least one. 0 does it in
    /// the training thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Steps that are made ready ahead of the one in progress.
    pub prefetch: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            order: DrawOrder::default(),
            packing: false,
            max_length: None,
            too_long: TooLong::default(),
            workers: None,
            prefetch: 2,
        }
    }
}

impl LoaderConfig {
    /// How many threads that means here.
    pub fn threads(&self) -> usize {
        let spare = || available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1)).max(1);
        self.workers.unwrap_or_else(spare)
    }
}

/// What a run asks of its loader, beside `[loader]`.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The run's optimizer steps: nothing is prepared beyond them.
    pub steps: usize,
    /// Samples that a forward pass takes at most; rows where they are packed.
    pub micro_batch: usize,
    /// Replicas that share each step's samples.
    pub replicas: usize,
    /// Leave broken samples out, instead of ending the run.
    pub skip_broken: bool,
    /// How many different samples may be left out as broken before the run ends.
    pub max_skipped: usize,
    /// The indices of those left out before, where a run resumes ([`Loader::skipped`](super::Loader::skipped)).
    pub skipped: BTreeSet<usize>,
    /// For each replica the images whose features its [`VisionCache`](super::VisionCache) holds: they are not decoded
    /// again. Empty where the vision encoder is trained.
    pub held: Vec<FeatureKeys>,
}

impl Plan {
    /// One replica whose forward passes take `micro_batch` samples; broken samples end the run.
    pub fn new(steps: usize, micro_batch: usize) -> Self {
        Self {
            steps,
            micro_batch,
            replicas: 1,
            skip_broken: false,
            max_skipped: usize::MAX,
            skipped: BTreeSet::new(),
            held: Vec::new(),
        }
    }
}
