//! What is kept of every step.

use std::collections::BTreeMap;

use basic_core::Losses;
use serde::Serialize;

use super::Speed;
use super::memory::Memory;

/// What a step did: one line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StepMetrics {
    /// The step, from 1.
    pub step: usize,
    /// The mean cross entropy over the batch's target tokens, and every term of the methods, unweighted; 0 where one is
    /// off.
    #[serde(flatten)]
    pub losses: Losses<f32>,
    /// The objective.
    pub total: f32,
    /// The learning rate.
    pub lr: f64,
    /// The learning rates of the parts that are trained.
    pub lrs: BTreeMap<&'static str, f64>,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
    /// The gradient norms of the parts that have one.
    pub grad_norms: BTreeMap<&'static str, f64>,
    /// Target tokens of the batch.
    pub tokens: usize,
    /// Samples of the batch that have an image with text after it.
    pub image_samples: usize,
    /// Whether the parameters were left as they were, because the loss or the gradients were not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Steps so far that were.
    pub skipped_steps: usize,
    /// The share of its attention that the text pays to an image; `None` where nothing is supervised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_mass: Option<f64>,
    /// The mean cosine between the visual embeddings and what the shallow layers make of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Samples of the batch.
    pub samples: usize,
    /// Samples that were left out of it because they are broken or too long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Different samples so far that were left out because they are broken.
    pub skipped_samples: usize,
    /// Share of this step's time in which training waited for data.
    pub data_wait: f64,
    /// Samples and tokens a second, and the share of the device's arithmetic.
    #[serde(flatten)]
    pub speed: Speed,
    /// Memory behind the step.
    #[serde(flatten)]
    pub memory: Memory,
    /// Seconds of this step.
    pub seconds: f64,
}
