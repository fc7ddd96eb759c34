//! The Perceiver resampler (Flamingo, Alayrac et al. 2022) as TinyLLaVA Factory has it.

use basic_core::ops::{attention_to_all, gelu};
use burn::module::{Module, Param};
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::linear;

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
        let media = linear(&self.linear, features);
        let [n, _, d] = media.dims();
        let queries = self.latents.dims()[0];
        let mut x = self.latents.val().reshape([1, queries, d]).expand([n, queries, d]);
        for layer in &self.layers {
            x = x.clone() + layer.attend(media.clone(), x);
            x = x.clone() + linear(&layer.down, gelu(linear(&layer.up, layer.norm.forward(x))));
        }
        self.norm.forward(x)
    }
}

impl PerceiverLayer {
    fn attend(&self, media: Tensor<3>, latents: Tensor<3>) -> Tensor<3> {
        let [n, queries, _] = latents.dims();
        let [heads, width] = HEADS;
        let latents = self.norm_latents.forward(latents);
        let q = linear(&self.to_q, latents.clone()).reshape([n, queries, heads, width]);
        let seen = Tensor::cat(vec![self.norm_media.forward(media), latents], 1);
        let both = linear(&self.to_kv, seen); // [N, P + Q, 2 * heads * width]
        let keys = both.dims()[1];
        let part = |start| both.clone().narrow(2, start, heads * width).reshape([n, keys, heads, width]);
        let read = attention_to_all(q, part(0), part(heads * width));
        linear(&self.to_out, read.reshape([n, queries, heads * width]))
    }
}
