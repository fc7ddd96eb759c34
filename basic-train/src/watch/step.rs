//! The metrics that are recorded for every step.

use std::collections::BTreeMap;

use basic_core::Losses;
use serde::Serialize;

use super::Speed;
use super::memory::Memory;

/// The metrics of a step: one line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StepMetrics {
    /// The step, from 1.
    pub step: usize,
    /// The mean cross entropy over the batch's target tokens, and every term of the supervision methods, unweighted; 0
    /// for a term that is not active.
    #[serde(flatten)]
    pub losses: Losses<f32>,
    /// The objective: the weighted sum of the losses.
    pub total: f32,
    /// The learning rate of the step, for parts without one of their own.
    pub lr: f64,
    /// The learning rates of the trained parts.
    pub lrs: BTreeMap<&'static str, f64>,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
    /// The gradient norms of the parts that have gradients.
    pub grad_norms: BTreeMap<&'static str, f64>,
    /// Number of target tokens in the batch.
    pub tokens: usize,
    /// Number of samples in the batch that have an image with text after it.
    pub image_samples: usize,
    /// Whether the parameters were left unchanged because the loss or the gradients were not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Number of such steps so far.
    pub skipped_steps: usize,
    /// The share of the text's attention that goes to an image; `None` if nothing is supervised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_mass: Option<f64>,
    /// The mean cosine between the visual embeddings and the supervisory embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Number of samples in the batch.
    pub samples: usize,
    /// Why samples were left out of the batch: they are broken or too long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Number of different samples left out so far because they are broken.
    pub skipped_samples: usize,
    /// The share of this step's time during which training waited for data.
    pub data_wait: f64,
    /// Samples and tokens per second, and MFU.
    #[serde(flatten)]
    pub speed: Speed,
    /// Memory use after the step.
    #[serde(flatten)]
    pub memory: Memory,
    /// Duration of this step in seconds.
    pub seconds: f64,
}
