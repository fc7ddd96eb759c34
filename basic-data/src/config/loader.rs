//! How batches are drawn and made ready: a recipe's `[loader]`.

use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

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

/// The samples of a step at most.
pub const MAX_BATCH: usize = 1_000_000;
/// Worker threads at most.
const MAX_WORKERS: usize = 1024;
/// Steps that are made ready ahead at most.
const MAX_PREFETCH: usize = 1024;
/// Samples that are made ready ahead at most, over all steps.
const MAX_AHEAD: usize = 4_000_000;

impl LoaderConfig {
    /// What no machine can do, and what to write instead; `batch_size` is the samples of a step.
    pub fn contradiction(&self, batch_size: usize) -> Option<String> {
        if let Some(workers) = self.workers.filter(|workers| *workers > MAX_WORKERS) {
            return Some(format!("loader.workers is {workers}: it must be at most {MAX_WORKERS}; 0 for no threads"));
        }
        if self.prefetch > MAX_PREFETCH {
            return Some(format!("loader.prefetch is {}: it must be at most {MAX_PREFETCH}", self.prefetch));
        }
        if batch_size > MAX_BATCH {
            return Some(format!("train.batch_size is {batch_size}: it must be at most {MAX_BATCH}"));
        }
        if self.prefetch.saturating_mul(batch_size) > MAX_AHEAD {
            return Some(format!(
                "loader.prefetch = {} steps of train.batch_size = {batch_size} samples are more than the {MAX_AHEAD} \
                 samples that may be made ready ahead: lower one of them",
                self.prefetch
            ));
        }
        None
    }

    /// How many threads that means here.
    pub fn threads(&self) -> usize {
        let spare = || available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1)).max(1);
        self.workers.unwrap_or_else(spare)
    }
}

#[cfg(test)]
mod tests {
    use super::LoaderConfig;

    #[test]
    fn what_no_machine_can_do_is_refused_with_its_key() {
        let config = LoaderConfig::default();
        assert_eq!(config.contradiction(256), None);
        let of = |workers, prefetch, batch| LoaderConfig { workers, prefetch, ..config.clone() }.contradiction(batch);
        for (said, key) in [
            (of(Some(1_000_000_000), 2, 1), "loader.workers"),
            (of(None, usize::MAX, 1), "loader.prefetch"),
            (of(None, 1, usize::MAX), "train.batch_size"),
            (of(None, 1000, 100_000), "loader.prefetch"),
        ] {
            assert!(said.as_ref().is_some_and(|said| said.contains(key)), "{said:?}");
        }
        assert_eq!(of(Some(1024), 1024, 1024), None);
    }
}
