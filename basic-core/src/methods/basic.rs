//! BASIC (ICCV 2025, arXiv 2508.06895): the decoder's own shallow layers supervise the projector's output.
//!
//! While the decoder runs, an [`Observer`] sums the supervisory embeddings `V^` and the patch weights `a` over its
//! first k layers. Two terms then pull the visual embeddings `v` towards `V^`: `das` by angle
//! ([`directional_alignment`]), `sds` by the distribution over the vocabulary ([`semantic_distribution`]). Neither has
//! a gradient through the decoder. The objective is `L = L_lm + lambda_das L_das + lambda_sds L_sds`.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

use super::{Evidence, Method, ModelShape, ObjectiveError, Observer, TermInfo};
use crate::ops::attention_mass;
use crate::{Losses, Seen, SupervisionLayout, Targets, Term, directional_alignment, semantic_distribution};

/// Directional alignment supervision.
pub const DAS: TermInfo = TermInfo { name: "das", title: "Directional alignment (das)" };
/// Semantic distribution supervision.
pub const SDS: TermInfo = TermInfo { name: "sds", title: "Semantic distribution (sds)" };

/// The method's keys in a recipe.
pub const KEYS: [&str; 8] = ["das", "sds", "lambda_das", "lambda_sds", "k", "layer_weights", "patch_weights", "target"];

/// How the first k layers are weighted in `V^` (`w_h` in docs/method.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerWeights {
    /// `h^2 / sum h^2`, as in the paper.
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

/// How the patches of an image are weighted (`a_i` in docs/method.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PatchWeights {
    /// The mean attention of the text rows to the patch, as in the paper.
    #[default]
    Attention,
    /// The mean of the attention weights over the image, for every patch: the total is the same, the distribution flat.
    Uniform,
}

/// What the visual embeddings are compared with (`V^` in the losses of docs/method.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The weighted sum of the layers' outputs, `V^`, as in the paper.
    #[default]
    Refined,
    /// `V^ - v`: the weighted sum of what the layers have added to the visual embedding. A decoder's layers read normed
    /// values, so that a longer `v` turns `V^` towards itself by length alone, and this far less.
    Refinement,
}

impl Target {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The targets of the visual embeddings `v`, without a gradient.
    ///
    /// # Shapes
    /// - v: `[M, d]`
    /// - refined: `[M, d]` in f32, the supervisory embeddings `V^`
    /// - output: `[M, d]` in f32
    fn of(self, v: &Tensor<2>, refined: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Refined => refined.clone(),
            Self::Refinement => refined.clone() - v.clone().without_autodiff().cast(DType::F32),
        }
    }
}

/// The settings of the method. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Basic {
    /// Whether the directional alignment loss is on.
    pub das: bool,
    /// Whether the semantic distribution loss is on.
    pub sds: bool,
    /// Weight of the directional alignment loss (lambda_1).
    pub lambda_das: f64,
    /// Weight of the semantic distribution loss (lambda_2).
    pub lambda_sds: f64,
    /// How many shallow layers supervise (k); `max(1, L / 2)` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// The layers' weights in `V^`.
    pub layer_weights: LayerWeights,
    /// The patches' weights in both losses.
    pub patch_weights: PatchWeights,
    /// What the visual embeddings are compared with, in both losses.
    #[serde(skip_serializing_if = "Target::is_default")]
    pub target: Target,
}

impl Default for Basic {
    fn default() -> Self {
        Self {
            das: true,
            sds: true,
            lambda_das: 1.0,
            lambda_sds: 0.01,
            k: None,
            layer_weights: LayerWeights::default(),
            patch_weights: PatchWeights::default(),
            target: Target::default(),
        }
    }
}

impl Basic {
    /// The number of supervising layers for a decoder of `layers` layers.
    ///
    /// # Errors
    ///
    /// Returns [`ObjectiveError`] if k or a lambda is out of range.
    pub fn resolve_k(&self, layers: usize) -> Result<usize, ObjectiveError> {
        ObjectiveError::weight("lambda_das", self.lambda_das)?;
        ObjectiveError::weight("lambda_sds", self.lambda_sds)?;
        match self.k {
            None => Ok((layers / 2).max(1)),
            Some(k) if (1..=layers).contains(&k) => Ok(k),
            Some(value) => Err(ObjectiveError::Layers { name: "k", value, layers }),
        }
    }

    /// The same settings with both losses on, for `basic losses` and the token lens.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self { das: true, sds: true, ..self.clone() }
    }

    /// The same settings, with the lambdas of losses that are off at their defaults.
    pub(super) fn effective(&self) -> Self {
        let (mut this, default) = (self.clone(), Self::default());
        if !this.das {
            this.lambda_das = default.lambda_das;
        }
        if !this.sds {
            this.lambda_sds = default.lambda_sds;
        }
        this
    }

    /// Reads the value of one of the method's [`KEYS`].
    pub(super) fn read<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "das" => self.das = map.next_value()?,
            "sds" => self.sds = map.next_value()?,
            "lambda_das" => self.lambda_das = map.next_value()?,
            "lambda_sds" => self.lambda_sds = map.next_value()?,
            "k" => self.k = map.next_value()?,
            "layer_weights" => self.layer_weights = map.next_value()?,
            "patch_weights" => self.patch_weights = map.next_value()?,
            "target" => self.target = map.next_value()?,
            _ => return Err(serde::de::Error::unknown_field(key, &KEYS)),
        }
        Ok(())
    }
}

impl Method for Basic {
    fn name(&self) -> &'static str {
        "basic"
    }

    fn bounds(&self) -> Result<(), ObjectiveError> {
        ObjectiveError::weight("lambda_das", self.lambda_das)?;
        ObjectiveError::weight("lambda_sds", self.lambda_sds)?;
        if self.k == Some(0) { Err(ObjectiveError::NoLayer { name: "k" }) } else { Ok(()) }
    }

    fn check(&self, model: &ModelShape) -> Result<(), ObjectiveError> {
        self.resolve_k(model.layers).map(drop)
    }

    fn supervises(&self) -> bool {
        self.das || self.sds
    }

    fn observer(&self, layers: usize, layout: &SupervisionLayout, device: &Device) -> Option<Box<dyn Observer>> {
        let k = self.resolve_k(layers).ok()?;
        Some(Box::new(ShallowLayers::new(self, k, layout, device)))
    }

    fn terms(&self, evidence: Option<&Evidence>, device: &Device) -> Vec<Term> {
        let found = evidence.and_then(|evidence| Some((evidence, evidence.targets?)));
        let term = |info: TermInfo, on: bool, weight: f64, loss: &dyn Fn(&Evidence, &Targets) -> Tensor<1>| {
            let value = match found {
                Some((evidence, targets)) if on => {
                    loss(evidence, targets).mul_scalar(1.0 / evidence.image_samples.max(1) as f64)
                }
                _ => Losses::zero(device),
            };
            Term { name: info.name, weight: if on { weight } else { 0.0 }, value }
        };
        let das = |evidence: &Evidence, Targets { embeddings, weights }: &Targets| {
            directional_alignment(evidence.v.clone(), self.target.of(evidence.v, embeddings), weights.clone())
        };
        let sds = |evidence: &Evidence, Targets { embeddings, weights }: &Targets| {
            let target = self.target.of(evidence.v, embeddings);
            semantic_distribution(evidence.v.clone(), target, evidence.table.clone(), weights.clone())
        };
        vec![term(DAS, self.das, self.lambda_das, &das), term(SDS, self.sds, self.lambda_sds, &sds)]
    }
}

/// Collects [`Targets`] from the decoder's first k layers, in O(M d) memory for any number of layers.
#[derive(Debug)]
struct ShallowLayers {
    layer_weights: Vec<f64>,
    patch_weights: PatchWeights,
    patches: Vec<usize>,
    rows: Tensor<1, Int>,      // [M], into [B * T]
    text_rows: Tensor<2, Int>, // [B, n], padded with row 0, n at least 1
    readout: Tensor<3>,        // [B, S, n]: 1 / (k n_s) at the text rows of the row's s-th image, else 0
    mass_rows: Tensor<1, Int>, // [M], into [B * S * T]
    embeddings: Option<Tensor<2>>,
    mass: Option<Tensor<1>>,
    observed: usize,
}

impl ShallowLayers {
    fn new(method: &Basic, k: usize, layout: &SupervisionLayout, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let (b, t) = (layout.batch, layout.sequence);
        let mut nth = vec![0usize; b];
        let slots: Vec<usize> = layout
            .images
            .iter()
            .map(|image| {
                nth[image.row] += 1;
                nth[image.row] - 1
            })
            .collect();
        let s = nth.into_iter().max().unwrap_or(1);
        // The images of one row share a list of text rows: a sample's first image has all text
        // rows of its later images.
        let mut text_rows: Vec<Vec<usize>> = vec![Vec::new(); b];
        for image in &layout.images {
            let all = &mut text_rows[image.row];
            all.extend(&image.text_rows);
            all.sort_unstable();
            all.dedup();
        }
        // At least one, of no weight where no text follows any image.
        let n = text_rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut readout = vec![0f32; b * s * n];
        let mut mass_rows = Vec::new();
        for (image, slot) in layout.images.iter().zip(&slots) {
            let row = image.row * s + slot;
            let share = 1.0 / (k as f32 * image.text_rows.len() as f32);
            for (at, position) in text_rows[image.row].iter().enumerate() {
                if image.text_rows.binary_search(position).is_ok() {
                    readout[row * n + at] = share;
                }
            }
            mass_rows.extend(image.positions.iter().map(|p| (row * t + p) as i64));
        }
        let padded = |rows: &Vec<usize>| {
            let rows = rows.iter().map(|row| *row as i64);
            rows.chain(std::iter::repeat(0)).take(n).collect::<Vec<i64>>()
        };
        let text_rows: Vec<i64> = text_rows.iter().flat_map(padded).collect();
        let m = mass_rows.len();
        // CubeCL pads the rows of what is uploaded with several dimensions; every layer's read-out would then copy both.
        let (all_rows, all_shares) = (TensorData::new(text_rows, [b * n]), TensorData::new(readout, [b * s * n]));
        Self {
            layer_weights: method.layer_weights.weights(k),
            patch_weights: method.patch_weights,
            patches: layout.images.iter().map(|i| i.positions.len()).collect(),
            rows: Tensor::from_data(TensorData::new(layout.flat_positions(), [m]), &device),
            text_rows: Tensor::<1, Int>::from_data(all_rows, &device).reshape([b, n]),
            readout: Tensor::<1>::from_data(all_shares, &device).reshape([b, s, n]),
            mass_rows: Tensor::from_data(TensorData::new(mass_rows, [m]), &device),
            embeddings: None,
            mass: None,
            observed: 0,
        }
    }
}

impl Observer for ShallowLayers {
    fn wants(&self, index: usize) -> bool {
        index < self.layer_weights.len()
    }

    /// Records each layer once: a second run of the same layer (activation recompute) changes nothing.
    fn observe(&mut self, index: usize, hidden: &Tensor<3>, seen: &Seen) {
        if index != self.observed || !self.wants(index) {
            return;
        }
        self.observed += 1;
        let [b, t, d] = hidden.dims();
        let rows = hidden
            .clone()
            .without_autodiff()
            .reshape([b * t, d])
            .select(0, self.rows.clone())
            .cast(DType::F32)
            .mul_scalar(self.layer_weights[index]); // [M, d]
        self.embeddings = Some(match self.embeddings.take() {
            Some(sum) => sum + rows,
            None => rows,
        });

        let [_, slots, _] = self.readout.dims();
        let Seen { q, k, lse, first, cap } = seen.clone();
        let mass = attention_mass(q, k, lse, first, self.text_rows.clone(), self.readout.clone(), cap)
            .cast(DType::F32)
            .reshape([b * slots * t])
            .select(0, self.mass_rows.clone()); // [M]
        self.mass = Some(match self.mass.take() {
            Some(sum) => sum + mass,
            None => mass,
        });
    }

    fn finish(self: Box<Self>) -> Option<Targets> {
        if self.observed != self.layer_weights.len() {
            return None;
        }
        let mass = self.mass?;
        let weights = match self.patch_weights {
            PatchWeights::Attention => mass,
            PatchWeights::Uniform => {
                let parts = mass.split_with_sizes(self.patches, 0);
                let even = parts.into_iter().map(|part| {
                    let m = part.dims()[0];
                    part.mean().expand([m])
                });
                Tensor::cat(even.collect(), 0)
            }
        };
        Some(Targets { embeddings: self.embeddings?, weights })
    }
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
        let objective = Basic::default();
        assert_eq!(objective.resolve_k(1), Ok(1));
        assert_eq!(objective.resolve_k(5), Ok(2));
        assert_eq!(objective.resolve_k(32), Ok(16));
    }

    #[test]
    fn a_knob_out_of_range_is_an_error() {
        let k = |k| Basic { k: Some(k), ..Basic::default() }.resolve_k(4);
        assert_eq!(k(4), Ok(4));
        assert!(k(0).is_err() && k(5).is_err());
        let lambda = Basic { lambda_das: f64::NAN, ..Basic::default() };
        assert!(lambda.resolve_k(4).is_err());
    }
}
