//! What a run asks of its loader.

use std::collections::BTreeSet;

use crate::HeldFeatures;

/// What a run asks of its loader, beside `[loader]`.
#[derive(Debug, Clone)]
pub struct LoaderPlan {
    /// The run's optimizer steps: nothing is prepared beyond them.
    pub steps: usize,
    /// Samples that a forward pass takes at most; rows where they are packed.
    pub micro_batch: usize,
    /// Replicas that share each step's samples.
    pub replicas: usize,
    /// The one replica whose samples are made ready here, where the others are other processes.
    pub only: Option<usize>,
    /// Leave broken samples out, instead of ending the run.
    pub skip_broken: bool,
    /// How many different samples may be left out as broken before the run ends.
    pub max_skipped: usize,
    /// The indices of those left out before, where a run resumes ([`Loader::skipped`](super::Loader::skipped)).
    pub skipped: BTreeSet<usize>,
    /// For each replica that is here the images whose features its [`VisionCache`](crate::VisionCache)s hold: they are not decoded
    /// again.
    pub held: Vec<HeldFeatures>,
}

impl LoaderPlan {
    /// One replica whose forward passes take `micro_batch` samples; broken samples end the run.
    pub fn new(steps: usize, micro_batch: usize) -> Self {
        Self {
            steps,
            micro_batch,
            replicas: 1,
            only: None,
            skip_broken: false,
            max_skipped: usize::MAX,
            skipped: BTreeSet::new(),
            held: Vec::new(),
        }
    }
}
