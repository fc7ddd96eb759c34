//! The objective `L = L_lm + lambda_1 L_das + lambda_2 L_sds` and the method's knobs.

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Targets, directional_alignment, semantic_distribution};

/// How the first k layers are weighted in `V^` (docs/method.md, `w_h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerWeights {
    /// `h^2 / sum h^2`: the paper's.
    #[default]
    Increasing,
    /// `1 / k`.
    Constant,
    /// `(k + 1 - h)^2 / sum`.
    Decreasing,
}

impl LayerWeights {
    /// The k weights, first layer first; they sum to 1.
    pub fn weights(self, k: usize) -> Vec<f64> {
        let raw: Vec<f64> = (1..=k)
            .map(|h| match self {
                Self::Increasing => (h * h) as f64,
                Self::Constant => 1.0,
                Self::Decreasing => ((k + 1 - h) * (k + 1 - h)) as f64,
            })
            .collect();
        let sum: f64 = raw.iter().sum();
        raw.into_iter().map(|w| w / sum).collect()
    }
}

/// How the patches of an image are weighted (docs/method.md, `a_i`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PatchWeights {
    /// The text rows' mean attention to the patch: the paper's.
    #[default]
    Attention,
    /// The mean of the attention weights over the image: the same strength without the distribution.
    Uniform,
}

/// The knobs of the method. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// Whether the directional alignment loss is on.
    pub das: bool,
    /// Whether the semantic distribution loss is on.
    pub sds: bool,
    /// Weight of the directional alignment loss (lambda_1).
    pub lambda_das: f64,
    /// Weight of the semantic distribution loss (lambda_2).
    pub lambda_sds: f64,
    /// How many shallow layers supervise (k); by default `max(1, L / 2)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// The layers' weights in `V^`.
    pub layer_weights: LayerWeights,
    /// The patches' weights in both losses.
    pub patch_weights: PatchWeights,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            das: true,
            sds: true,
            lambda_das: 1.0,
            lambda_sds: 0.01,
            k: None,
            layer_weights: LayerWeights::default(),
            patch_weights: PatchWeights::default(),
        }
    }
}

/// A knob outside its range.
#[derive(Debug, Error, PartialEq)]
pub enum ObjectiveError {
    /// k is 0 or larger than the decoder.
    #[error("k = {k} is outside 1 to {layers}, the decoder's layers")]
    Layers {
        /// What was asked for.
        k: usize,
        /// The decoder's layers.
        layers: usize,
    },
    /// A lambda is negative or not a number.
    #[error("{name} = {value} must be a finite number, at least 0")]
    Lambda {
        /// Which one.
        name: &'static str,
        /// Its value.
        value: f64,
    },
}

impl Objective {
    /// LLaVA's objective: the language-model loss alone.
    pub fn llava() -> Self {
        Self { das: false, sds: false, ..Self::default() }
    }

    /// Whether any supervision loss is on, so that the decoder must be observed.
    pub fn supervises(&self) -> bool {
        self.das || self.sds
    }

    /// The number of supervising layers for a decoder of `layers` layers.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError`] where k or a lambda is out of its range.
    pub fn resolve_k(&self, layers: usize) -> Result<usize, ObjectiveError> {
        for (name, value) in [("lambda_das", self.lambda_das), ("lambda_sds", self.lambda_sds)] {
            if !value.is_finite() || value < 0.0 {
                return Err(ObjectiveError::Lambda { name, value });
            }
        }
        match self.k {
            None => Ok((layers / 2).max(1)),
            Some(k) if (1..=layers).contains(&k) => Ok(k),
            Some(k) => Err(ObjectiveError::Layers { k, layers }),
        }
    }

    /// The objective of a batch.
    ///
    /// `targets` is `None` where no image is supervised (text-only, or both losses off); `image_samples` is the global
    /// count of samples that have an image with text after it, by which both losses divide.
    ///
    /// # Shapes
    /// - lm: `[1]`, the mean cross entropy
    /// - v: `[M, d]`, the visual embeddings of all images of the batch, in sample order
    /// - table: `[V, d]`, the raw input embedding table
    pub fn combine(
        &self,
        lm: Tensor<1>,
        v: Option<Tensor<2>>,
        targets: Option<&Targets>,
        table: Tensor<2>,
        image_samples: usize,
    ) -> LossParts {
        let zero = || Tensor::zeros([1], (&lm.device(), DType::F32));
        let scale = 1.0 / image_samples.max(1) as f64;
        let (mut das, mut sds) = (zero(), zero());
        if let (Some(v), Some(targets)) = (v, targets) {
            let weights = targets.weights.clone();
            if self.das {
                das = directional_alignment(v.clone(), targets.embeddings.clone(), weights.clone()).mul_scalar(scale);
            }
            if self.sds {
                sds = semantic_distribution(v, targets.embeddings.clone(), table, weights).mul_scalar(scale);
            }
        }
        let mut total = lm.clone();
        if self.das {
            total = total + das.clone().mul_scalar(self.lambda_das);
        }
        if self.sds {
            total = total + sds.clone().mul_scalar(self.lambda_sds);
        }
        LossParts { lm, das, sds, total }
    }
}

/// The losses of a batch, each `[1]` in f32; `das` and `sds` are unweighted.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// Mean cross entropy over the target tokens.
    pub lm: Tensor<1>,
    /// Directional alignment supervision, averaged over the image samples.
    pub das: Tensor<1>,
    /// Semantic distribution supervision, averaged over the image samples.
    pub sds: Tensor<1>,
    /// `lm + lambda_das das + lambda_sds sds`.
    pub total: Tensor<1>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_weights_sum_to_one_and_follow_their_names() {
        for k in [1, 2, 3, 16] {
            for kind in [LayerWeights::Increasing, LayerWeights::Constant, LayerWeights::Decreasing] {
                let w = kind.weights(k);
                assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                assert!(w.windows(2).all(|p| match kind {
                    LayerWeights::Increasing => p[0] < p[1],
                    LayerWeights::Constant => p[0] == p[1],
                    LayerWeights::Decreasing => p[0] > p[1],
                }));
            }
        }
        // h^2 / (1 + 4): the paper's weights for k = 2.
        assert_eq!(LayerWeights::Increasing.weights(2), vec![0.2, 0.8]);
    }

    #[test]
    fn k_defaults_to_half_the_layers_and_at_least_one() {
        let objective = Objective::default();
        assert_eq!(objective.resolve_k(1), Ok(1));
        assert_eq!(objective.resolve_k(5), Ok(2));
        assert_eq!(objective.resolve_k(32), Ok(16));
    }

    #[test]
    fn a_knob_out_of_range_is_an_error() {
        let k = |k| Objective { k: Some(k), ..Objective::default() }.resolve_k(4);
        assert_eq!(k(4), Ok(4));
        assert!(k(0).is_err() && k(5).is_err());
        let lambda = Objective { lambda_das: f64::NAN, ..Objective::default() };
        assert!(lambda.resolve_k(4).is_err());
    }
}
