//! How batches are drawn and prepared: a recipe's `[loader]`.

use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

/// The order in which samples are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrawOrder {
    /// A new permutation each epoch.
    #[default]
    Shuffle,
    /// Batches of samples with images and batches of text-only samples, the longest sample first.
    Grouped,
    /// The order in the data files.
    Sequential,
}

/// What happens to a sample with more tokens than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// The run ends with an error, unless `data.on_error` skips broken samples.
    #[default]
    Error,
    /// It is cut from the right, never inside an image.
    Truncate,
    /// It is left out and reported.
    Skip,
}

/// The order, the length limit and the preparation of batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// The order in which samples are drawn.
    pub order: DrawOrder,
    /// Places several samples one after another in each row of a batch.
    pub packing: bool,
    /// The largest number of tokens of a sample, or of a packed row; by default the model's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// What happens to samples longer than `max_length`.
    pub too_long: TooLong,
    /// Number of threads that read, decode and tokenize; by default one less than the number of cores, at least one.
    /// With 0 the training thread does this work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Number of steps that are prepared ahead of the current one.
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

/// The largest number of samples in a step.
pub const MAX_BATCH: usize = 1_000_000;
/// The largest number of worker threads.
const MAX_WORKERS: usize = 1024;
/// The largest number of steps that are prepared ahead.
const MAX_PREFETCH: usize = 1024;
/// The largest number of samples that are prepared ahead, over all steps.
const MAX_AHEAD: usize = 4_000_000;

impl LoaderConfig {
    /// Explains which setting no machine can satisfy and what to write instead; `None` if all can be. `batch_size` is
    /// the number of samples in a step.
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

    /// The number of worker threads on this machine.
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
