//! The projector between the vision encoder and the decoder.

mod c_abstractor;
mod grid;
mod ldpv2;
mod perceiver;
mod qformer;

use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor};

use super::activate;
use super::linear::linear;
use c_abstractor::CAbstractor;
use ldpv2::Ldp;
use perceiver::Perceiver;
use qformer::QFormer;

use crate::config::{Activation, LlavaConfig, ProjectorKind};

/// Linear layers with an activation between them. LLaVA-1.5 has two, with GELU (transformers'
/// `LlavaMultiModalProjector`). The fields have transformers' names for two layers; further layers are
/// `linear.0` and so on. A resampler has a module of its own instead.
#[derive(Module, Debug)]
pub struct Projector {
    linear_1: Option<Linear>,
    linear_2: Option<Linear>,
    linear: Vec<Linear>,
    perceiver: Option<Perceiver>,
    qformer: Option<QFormer>,
    c_abstractor: Option<CAbstractor>,
    ldpv2: Option<Ldp>,
    /// The embedding behind each row of patches of an image that is cut into tiles, `[d]`.
    pub image_newline: Option<Param<Tensor<1>>>,
    // The number of an image's features, and of patches along its side.
    positions: usize,
    side: usize,
    #[module(skip)]
    kind: ProjectorKind,
    #[module(skip)]
    activation: Activation,
}

impl Projector {
    /// Builds the projector of the configuration. A weight is allocated only when it is first used or loaded.
    pub fn new(config: &LlavaConfig, device: &Device) -> Self {
        let (kind, d) = (config.projector, config.text_config.hidden_size);
        let layers = kind.layers();
        let widths = kind.widths(config.feature_width(), d);
        let bias = config.multimodal_projector_bias;
        let layer = |index: usize| {
            let [input, output] = widths[index];
            LinearConfig::new(input, output).with_bias(bias).init(device)
        };
        let (vision, positions) = (config.feature_width(), config.features());
        let side = kind.pooled_side().unwrap_or(1);
        Self {
            linear_1: (layers > 0).then(|| layer(0)),
            linear_2: (layers > 1).then(|| layer(1)),
            linear: (2..layers).map(layer).collect(),
            perceiver: match kind {
                ProjectorKind::Perceiver { queries, layers } => {
                    Some(Perceiver::new(vision, d, queries, layers, device))
                }
                _ => None,
            },
            qformer: match kind {
                ProjectorKind::QFormer { queries, layers, width } => {
                    Some(QFormer::new(vision, d, queries, layers, width, device))
                }
                _ => None,
            },
            c_abstractor: match kind {
                ProjectorKind::CAbstractor { layers, width, .. } => {
                    Some(CAbstractor::new([vision, width, d], positions, side, layers, device))
                }
                _ => None,
            },
            ldpv2: matches!(kind, ProjectorKind::Ldp { .. }).then(|| Ldp::new(vision, d, side, device)),
            positions,
            image_newline: config.tiling().cuts().then(|| {
                // As transformers' `LlavaNextModel` does.
                Initializer::Normal { mean: 0.0, std: 1.0 / (d as f64).sqrt() }.init([d], device)
            }),
            side: config.vision_config.grid(),
            kind,
            activation: config.projector_hidden_act,
        }
    }

    /// Projects patch features to visual embeddings.
    ///
    /// # Shapes
    /// - features: `[M, vision]`; for a pixel shuffle, whole images of square grids, row by row; for a resampler, whole
    ///   images
    /// - output: `[M / R^2, d]`, or `[images * Q, d]` for a resampler: the visual embeddings v
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        if let Some(queries) = self.kind.queries() {
            let [rows, vision] = features.dims();
            let images = rows / self.positions;
            let v = self.resampled(features.reshape([images, self.positions, vision]));
            let d = v.dims()[2];
            return v.reshape([images * queries, d]);
        }
        let mut x = match self.kind.shuffle() {
            1 => features,
            factor => shuffled(features, self.side, factor),
        };
        let layers = self.linear_1.iter().chain(&self.linear_2).chain(&self.linear);
        for (index, layer) in layers.enumerate() {
            if index > 0 {
                x = activate(self.activation, x);
            }
            x = linear(layer, x);
        }
        x
    }

    /// For a resampler of learned queries, how much each of them attends to each position of the features in the last layer
    /// that reads them, as the mean over the heads; `None` for any other projector.
    ///
    /// # Shapes
    /// - features: `[N * P, vision]`, whole images
    /// - output: `[N, Q, P]`
    pub fn reads(&self, features: Tensor<2>) -> Option<Tensor<3>> {
        let [rows, vision] = features.dims();
        let features = features.reshape([rows / self.positions, self.positions, vision]);
        match (&self.perceiver, &self.qformer) {
            (Some(module), _) => Some(module.reads(features)),
            (_, Some(module)) => Some(module.reads(features)),
            _ => None,
        }
    }

    /// The visual embeddings of a resampler, `[N, Q, d]`, from features `[N, P, vision]`.
    fn resampled(&self, features: Tensor<3>) -> Tensor<3> {
        match (&self.perceiver, &self.qformer, &self.c_abstractor, &self.ldpv2) {
            (Some(module), ..) => module.forward(features),
            (_, Some(module), ..) => module.forward(features),
            (_, _, Some(module), _) => module.forward(features),
            (.., Some(module)) => module.forward(features),
            _ => features,
        }
    }
}

/// The attention's probabilities in f32, as the mean over the heads.
///
/// # Shapes
/// - q: `[N, Q, heads, width]`
/// - k: `[N, P, heads, width]`
/// - output: `[N, Q, P]`
fn attended(q: Tensor<4>, k: Tensor<4>) -> Tensor<3> {
    let [n, queries, _, width] = q.dims();
    let positions = k.dims()[1];
    let (q, k) = (q.cast(DType::F32).swap_dims(1, 2), k.cast(DType::F32).swap_dims(1, 2));
    let scores = q.matmul(k.transpose()).div_scalar((width as f64).sqrt());
    softmax(scores, 3).mean_dim(1).reshape([n, queries, positions])
}

/// Joins squares of `factor` x `factor` patches into one: their features are concatenated, row by row of the square.
///
/// # Shapes
/// - x: `[N * side * side, width]`
/// - output: `[N * (side / factor)^2, factor^2 * width]`
fn shuffled(x: Tensor<2>, side: usize, factor: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    let (n, small) = (rows / (side * side), side / factor);
    x.reshape([n, small, factor, small, factor * width])
        .swap_dims(2, 3)
        .reshape([n * small * small, factor * factor * width])
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::shuffled;

    #[test]
    fn a_shuffle_joins_squares_of_patches() {
        let device = basic_core::DeviceSpec::Cpu.open().unwrap();
        // Two images of 4 x 4 patches, where the feature of each patch is its index.
        let x = Tensor::<1>::from_floats(std::array::from_fn::<f32, 32, _>(|i| i as f32), &device).reshape([32, 1]);
        let y = shuffled(x, 4, 2);
        assert_eq!(y.dims(), [8, 4]);
        let rows: Vec<f32> = y.into_data().try_to_vec().unwrap();
        assert_eq!(rows[..8], [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert_eq!(rows[16..20], [16.0, 17.0, 20.0, 21.0]);
    }
}
