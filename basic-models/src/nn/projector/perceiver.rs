//! The Perceiver resampler (Flamingo, Alayrac et al. 2022) as TinyLLaVA Factory has it.

use basic_core::ops::{attention_to_all, gelu};
use burn::module::{Module, Param};
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::{attended, linear};

/// The heads of the attention and the width of each.
const HEADS: [usize; 2] = [8, 64];

/// Learned queries that read the features of an image in several layers.
#[derive(Module, Debug)]
pub struct Perceiver {
    linear: Linear,
    latents: Param<Tensor<2>>, // [Q, d]
    layers: Vec<PerceiverLayer>,
    norm: LayerNorm,
}

/// Attention of the queries to the features and to themselves, and a feed-forward block.
#[derive(Module, Debug)]
struct PerceiverLayer {
    norm_media: LayerNorm,
    norm_latents: LayerNorm,
    to_q: Linear,
    // Keys and values in one matrix.
    to_kv: Linear,
    to_out: Linear,
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Perceiver {
    /// A resampler from features `vision` wide to `queries` visual embeddings `d` wide.
    pub fn new(vision: usize, d: usize, queries: usize, layers: usize, device: &Device) -> Self {
        let norm = || LayerNormConfig::new(d).init(device);
        let plain = |i, o| LinearConfig::new(i, o).with_bias(false).init(device);
        let inner = HEADS[0] * HEADS[1];
        let layer = |_| PerceiverLayer {
            norm_media: norm(),
            norm_latents: norm(),
            to_q: plain(d, inner),
            to_kv: plain(d, 2 * inner),
            to_out: plain(inner, d),
            norm: norm(),
            up: plain(d, 4 * d),
            down: plain(4 * d, d),
        };
        Self {
            linear: LinearConfig::new(vision, d).init(device),
            latents: Initializer::Normal { mean: 0.0, std: 1.0 }.init([queries, d], device),
            layers: (0..layers).map(layer).collect(),
            norm: norm(),
        }
    }

    /// # Shapes
    /// - features: `[N, P, vision]`
    /// - output: `[N, Q, d]`
    pub fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        let (media, x) = self.begin(features);
        self.norm.forward(self.layers.iter().fold(x, |x, layer| layer.forward(media.clone(), x)))
    }

    /// How much each query attends to each position of the features in the last layer, as the mean over the heads. The
    /// rest of a query's attention goes to the queries.
    ///
    /// # Shapes
    /// - features: `[N, P, vision]`
    /// - output: `[N, Q, P]`
    pub fn reads(&self, features: Tensor<3>) -> Tensor<3> {
        let positions = features.dims()[1];
        let (media, x) = self.begin(features);
        let Some((last, before)) = self.layers.split_last() else { return x.narrow(2, 0, 0) };
        let x = before.iter().fold(x, |x, layer| layer.forward(media.clone(), x));
        let (q, k, _) = last.heads(media, x);
        attended(q, k).narrow(2, 0, positions)
    }

    /// The features as wide as the decoder, and the queries before the first layer.
    fn begin(&self, features: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let media = linear(&self.linear, features);
        let [n, _, d] = media.dims();
        let queries = self.latents.dims()[0];
        let x = self.latents.val().reshape([1, queries, d]).expand([n, queries, d]);
        (media, x)
    }
}

impl PerceiverLayer {
    fn forward(&self, media: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let [n, queries, _] = x.dims();
        let (q, k, v) = self.heads(media, x.clone());
        let read = attention_to_all(q, k, v).reshape([n, queries, HEADS[0] * HEADS[1]]);
        let x = x + linear(&self.to_out, read);
        x.clone() + linear(&self.down, gelu(linear(&self.up, self.norm.forward(x))))
    }

    /// Queries, keys and values: those of the features first, then the queries' own.
    fn heads(&self, media: Tensor<3>, latents: Tensor<3>) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [n, queries, _] = latents.dims();
        let [heads, width] = HEADS;
        let latents = self.norm_latents.forward(latents);
        let q = linear(&self.to_q, latents.clone()).reshape([n, queries, heads, width]);
        let seen = Tensor::cat(vec![self.norm_media.forward(media), latents], 1);
        let both = linear(&self.to_kv, seen); // [N, P + Q, 2 * heads * width]
        let keys = both.dims()[1];
        let part = |start| both.clone().narrow(2, start, heads * width).reshape([n, keys, heads, width]);
        (q, part(0), part(heads * width))
    }
}
