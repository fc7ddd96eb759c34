//! Measures the speed of a run and the share of the device's peak arithmetic that it uses.

use basic_models::LlavaConfig;
use burn::tensor::{DType, Device};
use serde::Serialize;

use super::flops::{BatchCounts, ModelFlops};
use super::memory::device_name;
use super::peak::Peak;
use crate::recipe::Part;

/// Measures the steps of one run.
#[derive(Debug, Clone)]
pub struct Meter {
    flops: ModelFlops,
    /// The peak FLOP/s of all devices together.
    peak: Option<f64>,
}

/// The work of a step, to be summed over micro-batches and replicas.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Number of samples.
    pub samples: f64,
    /// Number of positions, including visual tokens but no padding.
    pub tokens: f64,
    /// FLOPs of the model's forward and backward pass ([`flops`](super::flops)).
    pub flops: f64,
}

/// The speed of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Speed {
    /// Samples per second.
    pub samples_per_s: f64,
    /// Positions per second, including visual tokens but no padding.
    pub tokens_per_s: f64,
    /// Model FLOPs utilization, from 0 to 1: the model's FLOPs divided by what the devices could have computed in that
    /// time. `None` if the device's peak is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
}

impl Meter {
    /// For a model whose parts in `trained` are fully trained, computed in `dtype` on `devices` devices like `device`.
    pub fn new(config: &LlavaConfig, trained: &[Part], device: &Device, dtype: DType, devices: usize) -> Self {
        let peak = device_name(device).and_then(|name| Peak::of(&name)).and_then(|peak| peak.rate(dtype));
        Self::with_peak(config, trained, peak.map(|peak| peak * devices as f64))
    }

    /// For devices whose total peak FLOP/s is given.
    pub fn with_peak(config: &LlavaConfig, trained: &[Part], peak: Option<f64>) -> Self {
        Self { flops: ModelFlops::new(config, trained), peak }
    }

    /// The work of a batch of `samples` samples.
    pub fn work(&self, samples: usize, counts: &BatchCounts) -> Work {
        let tokens: usize = counts.lengths.iter().sum();
        Work { samples: samples as f64, tokens: tokens as f64, flops: self.flops.step(counts) }
    }

    /// The speed at which all devices together did `work`.
    pub fn speed(&self, work: Work, seconds: f64) -> Speed {
        let seconds = seconds.max(1e-9);
        Speed {
            samples_per_s: work.samples / seconds,
            tokens_per_s: work.tokens / seconds,
            mfu: self.peak.map(|peak| work.flops / seconds / peak),
        }
    }
}

impl Work {
    /// The three numbers, to be summed over micro-batches and replicas.
    pub fn sums(&self) -> [f64; 3] {
        [self.samples, self.tokens, self.flops]
    }

    /// The inverse of [`Work::sums`], for summed numbers.
    pub fn from_sums([samples, tokens, flops]: [f64; 3]) -> Self {
        Self { samples, tokens, flops }
    }
}
