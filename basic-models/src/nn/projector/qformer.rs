//! The Q-Former (BLIP-2, Li et al. 2023) as TinyLLaVA Factory has it: BERT's layers over learned queries, without text.

use basic_core::ops::{attention_to_all, gelu};
use burn::module::{Module, Param};
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};

use super::{attended, linear};
use crate::config::QFORMER_HEAD;

/// BERT's `layer_norm_eps`.
const EPSILON: f64 = 1e-12;

/// Learned queries that go through BERT's layers, of which every other one, from the first on, attends to the features.
#[derive(Module, Debug)]
pub struct QFormer {
    query_tokens: Param<Tensor<2>>, // [Q, width]
    layers: Vec<QFormerLayer>,
    projector: Linear,
}

/// A post-norm layer of BERT.
#[derive(Module, Debug)]
struct QFormerLayer {
    attention: QFormerAttention,
    crossattention: Option<QFormerAttention>,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

#[derive(Module, Debug)]
struct QFormerAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
}

impl QFormer {
    /// A Q-Former from features `vision` wide to `queries` visual embeddings `d` wide; `width` is its own.
    pub fn new(vision: usize, d: usize, queries: usize, layers: usize, width: usize, device: &Device) -> Self {
        let linear = |i, o| LinearConfig::new(i, o).init(device);
        let norm = || LayerNormConfig::new(width).with_epsilon(EPSILON).init(device);
        let attention = |read| QFormerAttention {
            query: linear(width, width),
            key: linear(read, width),
            value: linear(read, width),
            dense: linear(width, width),
            norm: norm(),
        };
        let layer = |index: usize| QFormerLayer {
            attention: attention(width),
            crossattention: index.is_multiple_of(2).then(|| attention(vision)),
            intermediate: linear(width, 4 * width),
            output: linear(4 * width, width),
            norm: norm(),
        };
        Self {
            query_tokens: Initializer::Normal { mean: 0.0, std: 0.02 }.init([queries, width], device),
            layers: (0..layers).map(layer).collect(),
            projector: linear(width, d),
        }
    }

    /// # Shapes
    /// - features: `[N, P, vision]`
    /// - output: `[N, Q, d]`
    pub fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        let x = self.begin(&features);
        linear(&self.projector, self.layers.iter().fold(x, |x, layer| layer.forward(x, &features)))
    }

    /// How much each query attends to each position of the features in the last layer that reads them, as the mean over
    /// the heads.
    ///
    /// # Shapes
    /// - features: `[N, P, vision]`
    /// - output: `[N, Q, P]`
    pub fn reads(&self, features: Tensor<3>) -> Tensor<3> {
        let x = self.begin(&features);
        let last = self.layers.iter().rposition(|layer| layer.crossattention.is_some()).unwrap_or(0);
        let x = self.layers.iter().take(last).fold(x, |x, layer| layer.forward(x, &features));
        let Some(QFormerLayer { attention, crossattention: Some(cross), .. }) = self.layers.get(last) else {
            return x.narrow(2, 0, 0);
        };
        let (q, k, _) = cross.heads(attention.forward(x.clone(), x), features);
        attended(q, k)
    }

    /// The queries before the first layer, for each image.
    fn begin(&self, features: &Tensor<3>) -> Tensor<3> {
        let [n, _, _] = features.dims();
        let [queries, width] = self.query_tokens.dims();
        // The embeddings' norm, whose weight and bias the original leaves out.
        let tokens = standardized(self.query_tokens.val()).cast(features.dtype());
        tokens.reshape([1, queries, width]).expand([n, queries, width])
    }
}

impl QFormerLayer {
    fn forward(&self, x: Tensor<3>, features: &Tensor<3>) -> Tensor<3> {
        let mut x = self.attention.forward(x.clone(), x);
        if let Some(cross) = &self.crossattention {
            x = cross.forward(x, features.clone());
        }
        let y = linear(&self.output, gelu(linear(&self.intermediate, x.clone())));
        self.norm.forward(y + x)
    }
}

/// Rows with mean 0 and variance 1, in f32.
fn standardized(x: Tensor<2>) -> Tensor<2> {
    let x = x.cast(DType::F32);
    let centered = x.clone() - x.mean_dim(1);
    let variance = centered.clone().square().mean_dim(1);
    centered / variance.add_scalar(EPSILON).sqrt()
}

impl QFormerAttention {
    /// Attention of x to `read`, which every query sees whole.
    ///
    /// # Shapes
    /// - x and output: `[N, Q, width]`
    /// - read: `[N, P, its width]`
    fn forward(&self, x: Tensor<3>, read: Tensor<3>) -> Tensor<3> {
        let ([n, queries, width], [_, keys, _]) = (x.dims(), read.dims());
        let (q, k, v) = self.heads(x.clone(), read);
        // The fused operation takes at most as many queries as keys. They do not see each other, so that they can be
        // taken in parts.
        let part = |start: usize| {
            let q = q.clone().narrow(1, start, keys.min(queries - start));
            attention_to_all(q, k.clone(), v.clone())
        };
        let seen = Tensor::cat((0..queries).step_by(keys).map(part).collect(), 1);
        self.norm.forward(linear(&self.dense, seen.reshape([n, queries, width])) + x)
    }

    fn heads(&self, x: Tensor<3>, read: Tensor<3>) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let ([n, queries, width], [_, keys, _]) = (x.dims(), read.dims());
        let split = |y: Tensor<3>, t| y.reshape([n, t, width / QFORMER_HEAD, QFORMER_HEAD]);
        let q = split(linear(&self.query, x), queries);
        let k = split(linear(&self.key, read.clone()), keys);
        (q, k, split(linear(&self.value, read), keys))
    }
}
