//! VIRAL (visual representation alignment, arXiv 2509.07979): compares a decoder layer's outputs at the image positions
//! with the patch features of a frozen vision encoder.
//!
//! With `similarity = "cosine"`, the outputs `h` of layer `layer` go through a trainable [`Head`], and
//! `L = - mean cos(head(h_i), f_i)` over the patches. With `similarity = "gram"` there is no head: `L` is the mean
//! squared difference between the patch-to-patch cosines of `h` and those of `f`. If the encoder's grid of patches
//! differs from the model's, its features are resampled bilinearly. The mean is over the patches of a sample's images
//! and then over the samples that have an image with text after it, so that it does not depend on how a batch is split.
//! Unlike BASIC's terms, this one has a gradient through the decoder's layers up to that layer.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData, activation::silu};
use serde::{Deserialize, Serialize};

use super::{Evidence, FeatureSource, Method, ModelShape, ObjectiveError, TermInfo};
use crate::ops::linear;
use crate::{ImageSpan, Losses, SupervisionLayout, Term};

/// The name of the method's table and of its term.
pub const NAME: &str = "viral";
/// The name of the term and its heading in reports.
pub const TERM: TermInfo = TermInfo { name: NAME, title: "Visual representation alignment (viral)" };

/// The value of `target` that means the model's own vision encoder.
pub const OWN: &str = "vision";
/// The largest width of the head's hidden layers.
const MOST_WIDTH: usize = 1 << 16;
/// The smallest length that a row is divided by when it is scaled to length 1.
const SHORTEST: f64 = 1e-8;

/// How the decoder's outputs are compared with the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// Each patch's output, through the trainable head, with the feature of the same patch.
    #[default]
    Cosine,
    /// The cosines between the patches of an image, without a head.
    Gram,
}

/// The settings of the method: the table `[objective.viral]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Viral {
    /// Weight of the term.
    pub weight: f64,
    /// The decoder layer (from 1) whose outputs at the image positions are compared; `max(1, L / 2)` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// `vision` for the model's own frozen vision encoder, or the directory or hub name of another.
    pub target: String,
    /// How the two are compared.
    pub similarity: Similarity,
    /// Width of the head's hidden layers.
    pub head_width: usize,
}

impl Default for Viral {
    fn default() -> Self {
        Self { weight: 0.5, layer: None, target: OWN.into(), similarity: Similarity::default(), head_width: 2048 }
    }
}

impl Viral {
    /// The layer (from 1) in a decoder of `layers` layers.
    ///
    /// # Errors
    ///
    /// Returns [`ObjectiveError::Layers`] if the decoder does not have the layer.
    pub fn resolve_layer(&self, layers: usize) -> Result<usize, ObjectiveError> {
        match self.layer {
            None => Ok((layers / 2).max(1)),
            Some(layer) if (1..=layers).contains(&layer) => Ok(layer),
            Some(value) => Err(ObjectiveError::Layers { name: "viral.layer", value, layers }),
        }
    }

    /// Whether it trains a head.
    pub fn has_head(&self) -> bool {
        self.similarity == Similarity::Cosine
    }

    /// The widths of the head's layers, from a decoder of width `decoder` to features of width `features`.
    pub fn head_widths(&self, decoder: usize, features: usize) -> [usize; 4] {
        [decoder, self.head_width, self.head_width, features]
    }
}

/// Three linear layers with SiLU between them, from the decoder's width to the features' width.
#[derive(Module, Debug)]
pub struct Head {
    /// The layers, first to last.
    pub layers: Vec<Linear>,
}

impl Head {
    /// A head whose weights are initialized when they are first used.
    pub fn new(widths: [usize; 4], device: &Device) -> Self {
        let layers = widths.windows(2).map(|pair| LinearConfig::new(pair[0], pair[1]).init(device));
        Self { layers: layers.collect() }
    }

    /// Maps a layer's outputs to the width of the features.
    ///
    /// # Shapes
    /// - rows: `[M, d]`
    /// - output: `[M, feature width]`
    pub fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
        let mut x = rows;
        for (index, layer) in self.layers.iter().enumerate() {
            let input = if index == 0 { x } else { silu(x) };
            x = linear(input, layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val()));
        }
        x
    }
}

impl Method for Viral {
    fn name(&self) -> &'static str {
        NAME
    }

    fn bounds(&self) -> Result<(), ObjectiveError> {
        ObjectiveError::weight("viral.weight", self.weight)?;
        if self.layer == Some(0) {
            return Err(ObjectiveError::NoLayer { name: "viral.layer" });
        }
        if !(1..=MOST_WIDTH).contains(&self.head_width) {
            let (name, value, most) = ("viral.head_width", self.head_width, MOST_WIDTH);
            return Err(ObjectiveError::Size { name, value, most });
        }
        Ok(())
    }

    fn check(&self, model: &ModelShape) -> Result<(), ObjectiveError> {
        self.resolve_layer(model.layers)?;
        if !model.patches {
            return Err(ObjectiveError::Queries { name: NAME });
        }
        match self.target == OWN {
            // Each patch of the tiles has its own feature.
            _ if model.tiled && self.target == OWN => Ok(()),
            true => self.check_features(model.features[0], model),
            false => Ok(()),
        }
    }

    fn check_features(&self, positions: usize, model: &ModelShape) -> Result<(), ObjectiveError> {
        if model.tiled {
            return Err(ObjectiveError::Tiles { name: "viral.target" });
        }
        if positions != model.visual_tokens {
            let way = "one grid cannot be resampled to the other: name an encoder with as many patches as the model";
            grid("viral.target", positions, way)?;
            grid("viral.target", model.visual_tokens, way)?;
        }
        Ok(())
    }

    fn supervises(&self) -> bool {
        true
    }

    fn taps(&self, layers: usize) -> Vec<usize> {
        self.resolve_layer(layers).map(|layer| layer - 1).into_iter().collect()
    }

    fn features(&self) -> Option<FeatureSource<'_>> {
        Some(if self.target == OWN { FeatureSource::Own } else { FeatureSource::Encoder(&self.target) })
    }

    fn terms(&self, evidence: Option<&Evidence>, device: &Device) -> Vec<Term> {
        let value = evidence.and_then(|evidence| self.value(evidence)).unwrap_or_else(|| Losses::zero(device));
        vec![Term { name: NAME, weight: self.weight, value }]
    }
}

impl Viral {
    fn value(&self, evidence: &Evidence) -> Option<Tensor<1>> {
        let layout = evidence.layout;
        let rows = evidence.taps.get(&(self.resolve_layer(evidence.layers).ok()? - 1))?;
        let features = evidence.features?.clone().without_autodiff();
        let features = resampled(features, rows.dims()[0], layout.images.len()); // [M, w] in f32
        let shares = shares(layout, evidence.image_samples);
        // Images of as many patches are computed together: all of them, unless they are cut into tiles.
        let mut runs: Vec<(usize, &[f32])> = Vec::new();
        let mut ahead = shares.as_slice();
        for group in layout.images.chunk_by(|a, b| a.positions.len() == b.positions.len()) {
            let (own, rest) = ahead.split_at(group.len());
            runs.push((group[0].positions.len(), own));
            ahead = rest;
        }
        let predicted = match self.similarity {
            Similarity::Cosine => evidence.heads.viral.as_ref()?.forward(rows.clone()),
            Similarity::Gram => rows.clone(),
        };
        let (predicted, targets) = (directions(predicted.cast(DType::F32)), directions(features));
        let mut first = 0;
        let of_runs = runs.into_iter().map(|(m, shares)| {
            let images = shares.len();
            let own = |rows: &Tensor<2>| rows.clone().narrow(0, first, images * m);
            let (predicted, targets) = (own(&predicted), own(&targets));
            first += images * m;
            let of_images = match self.similarity {
                Similarity::Cosine => (predicted * targets).sum_dim(1).reshape([images, m]).mean_dim(1).neg(),
                Similarity::Gram => {
                    let gram = |unit: Tensor<2>| {
                        let width = unit.dims()[1];
                        let unit = unit.reshape([images, m, width]);
                        unit.clone().matmul(unit.swap_dims(1, 2)) // [images, m, m]
                    };
                    let difference = gram(predicted) - gram(targets);
                    difference.powi_scalar(2).reshape([images, m * m]).mean_dim(1)
                }
            }; // [images, 1]
            let shares = Tensor::<1>::from_data(TensorData::new(shares.to_vec(), [images]), &of_images.device());
            (of_images.reshape([images]) * shares).sum()
        });
        of_runs.reduce(|sum, run| sum + run)
    }
}

/// The weight of each image: its share of its sample's images, over the number of samples that have an
/// image with text after it.
fn shares(layout: &SupervisionLayout, image_samples: usize) -> Vec<f32> {
    let counts = |image: &ImageSpan| {
        let own = layout.images.iter().filter(|other| other.sample == image.sample);
        let supervised = own.clone().any(|other| !other.text_rows.is_empty());
        (supervised, own.count())
    };
    let share = |image: &ImageSpan| match counts(image) {
        (true, own) => 1.0 / (own * image_samples.max(1)) as f32,
        (false, _) => 0.0,
    };
    layout.images.iter().map(share).collect()
}

/// The rows scaled to length 1.
fn directions(rows: Tensor<2>) -> Tensor<2> {
    let squares = rows.clone().powi_scalar(2).sum_dim(1); // [M, 1]
    rows / squares.clamp_min(SHORTEST * SHORTEST).sqrt()
}

/// The side of a square grid of `positions` positions.
///
/// # Errors
///
/// Returns [`ObjectiveError::Grid`] if `positions` is not a square number.
pub fn grid(name: &'static str, positions: usize, way: &'static str) -> Result<usize, ObjectiveError> {
    let side = positions.isqrt();
    match side * side == positions && side > 0 {
        true => Ok(side),
        false => Err(ObjectiveError::Grid { name, positions, way }),
    }
}

/// Resamples features to the model's grid of `m = all / images` positions per image, in f32, as PyTorch's
/// `interpolate(mode="bilinear")` does (`align_corners=False`).
///
/// # Shapes
/// - features: `[images * positions, w]`, or `[all, w]`, which stay as they are
/// - output: `[all, w]`
fn resampled(features: Tensor<2>, all: usize, images: usize) -> Tensor<2> {
    let features = features.cast(DType::F32);
    let [rows, width] = features.dims();
    if rows == all {
        return features;
    }
    let (positions, m) = (rows / images.max(1), all / images.max(1));
    let weights = TensorData::new(bilinear(positions.isqrt(), m.isqrt()), [m, positions]);
    let weights = Tensor::<2>::from_data(weights, &features.device()).unsqueeze::<3>(); // [1, m, positions]
    let sampled = weights.expand([images, m, positions]).matmul(features.reshape([images, positions, width]));
    sampled.reshape([images * m, width])
}

/// The weights with which `from * from` positions enter each of `to * to`, `[to * to, from * from]`.
fn bilinear(from: usize, to: usize) -> Vec<f32> {
    let scale = from as f64 / to as f64;
    // For each position along one side: its two neighbours, and the weight of the second.
    let side: Vec<(usize, usize, f64)> = (0..to)
        .map(|at| {
            let center = ((at as f64 + 0.5) * scale - 0.5).max(0.0);
            let first = (center as usize).min(from - 1);
            (first, (first + 1).min(from - 1), center - first as f64)
        })
        .collect();
    let mut weights = vec![0.0; to * to * from * from];
    for (y, (top, bottom, down)) in side.iter().enumerate() {
        for (x, (left, right, across)) in side.iter().enumerate() {
            let row = &mut weights[(y * to + x) * from * from..][..from * from];
            for (line, of_line) in [(top, 1.0 - down), (bottom, *down)] {
                for (column, of_column) in [(left, 1.0 - across), (right, *across)] {
                    row[line * from + column] += (of_line * of_column) as f32;
                }
            }
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_resampled_as_pytorch_does() {
        // torch.nn.functional.interpolate(torch.arange(4.).reshape(1, 1, 2, 2), size=3, mode="bilinear")
        let weights = bilinear(2, 3);
        let found: Vec<f32> =
            weights.chunks(4).map(|row| row.iter().zip([0.0, 1.0, 2.0, 3.0]).map(|(w, x)| w * x).sum()).collect();
        assert_eq!(found, [0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0]);
        for (from, to) in [(1, 4), (4, 1), (5, 3), (3, 5), (7, 7)] {
            let weights = bilinear(from, to);
            assert!(weights.chunks(from * from).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
        }
    }

    #[test]
    fn a_layer_outside_the_decoder_and_a_grid_that_is_none_are_errors_that_name_the_key() {
        let model =
            ModelShape { layers: 4, width: 8, visual_tokens: 4, features: [16, 8], patches: true, tiled: false };
        let viral = Viral::default();
        assert_eq!((viral.check(&model), viral.resolve_layer(4), viral.resolve_layer(1)), (Ok(()), Ok(2), Ok(1)));
        let wrong = Viral { layer: Some(5), ..viral.clone() }.check(&model).unwrap_err();
        assert_eq!(wrong.to_string(), "viral.layer = 5 is outside 1 to 4, the decoder's layers");
        assert!(viral.check(&ModelShape { features: [17, 8], ..model }).is_err());
        let queries = viral.check(&ModelShape { patches: false, ..model }).unwrap_err();
        assert!(queries.to_string().contains("viral") && queries.to_string().contains("queries"));
        let tiled = ModelShape { tiled: true, ..model };
        assert_eq!(
            (viral.check(&tiled), viral.check_features(4, &tiled)),
            (Ok(()), Err(ObjectiveError::Tiles { name: "viral.target" }))
        );
        assert!(Viral { layer: Some(0), ..viral.clone() }.bounds().is_err());
        assert!(Viral { head_width: 0, ..viral.clone() }.bounds().is_err());
        assert!(Viral { weight: -1.0, ..viral }.bounds().is_err());
    }
}
