//! How fast a run goes, and how much of the device's arithmetic it uses.

use basic_models::LlavaConfig;
use burn::tensor::{DType, Device};
use serde::Serialize;

use super::flops::{BatchCounts, ModelFlops};
use super::memory::device_name;
use super::peak::Peak;
use crate::recipe::Part;

/// Measures steps of one run.
#[derive(Debug, Clone)]
pub struct Meter {
    flops: ModelFlops,
    /// FLOP/s of all devices together.
    peak: Option<f64>,
}

/// What a step did, to be added up over micro-batches and replicas.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Samples.
    pub samples: f64,
    /// Positions, visual ones included, padding not.
    pub tokens: f64,
    /// Forward and backward of the model ([`flops`](super::flops)).
    pub flops: f64,
}

/// A step's speed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Speed {
    /// Samples a second.
    pub samples_per_s: f64,
    /// Positions a second, visual ones included, padding not.
    pub tokens_per_s: f64,
    /// Model FLOPs utilization: the model's FLOPs over what the devices could have done in that time, 0 to 1; absent where
    /// the device's peak is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
}

impl Meter {
    /// For a model of which `trained` is trained whole, computed in `dtype` on `devices` devices like `device`.
    pub fn new(config: &LlavaConfig, trained: &[Part], device: &Device, dtype: DType, devices: usize) -> Self {
        let peak = device_name(device).and_then(|name| Peak::of(&name)).and_then(|peak| peak.rate(dtype));
        Self::with_peak(config, trained, peak.map(|peak| peak * devices as f64))
    }

    /// With the peak FLOP/s of all devices given.
    pub fn with_peak(config: &LlavaConfig, trained: &[Part], peak: Option<f64>) -> Self {
        Self { flops: ModelFlops::new(config, trained), peak }
    }

    /// What a batch of `samples` samples costs.
    pub fn work(&self, samples: usize, counts: &BatchCounts) -> Work {
        let tokens: usize = counts.lengths.iter().sum();
        Work { samples: samples as f64, tokens: tokens as f64, flops: self.flops.step(counts) }
    }

    /// The speed at which `work`, that of all devices, was done.
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
    /// The three numbers.
    pub fn sums(&self) -> [f64; 3] {
        [self.samples, self.tokens, self.flops]
    }

    /// From added-up [`Work::sums`].
    pub fn from_sums([samples, tokens, flops]: [f64; 3]) -> Self {
        Self { samples, tokens, flops }
    }
}
