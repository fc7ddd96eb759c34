//! The decoder's attention: grouped-query heads, rotary positions, causal and padding masks.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use super::{KvCache, RotaryTables};
use crate::config::LlamaConfig;

/// Which keys a query must not see.
#[derive(Debug, Clone)]
pub struct Mask {
    hidden: Tensor<4, Bool>, // [B or 1, 1, T, keys], true where hidden
}

impl Mask {
    /// Causal: query t of `queries`, standing behind `past` earlier positions, sees keys up to itself. The first
    /// `padding[b]` keys of sample b are hidden from everyone (left padding).
    pub fn causal(queries: usize, past: usize, padding: &[usize], device: &Device) -> Self {
        let keys = past + queries;
        let shared = padding.iter().all(|p| *p == 0);
        let samples = if shared { &[0][..] } else { padding };
        let mut hidden = Vec::with_capacity(samples.len() * queries * keys);
        for pad in samples {
            for query in 0..queries {
                hidden.extend((0..keys).map(|key| key > past + query || key < *pad));
            }
        }
        let shape = [samples.len(), 1, queries, keys];
        Self { hidden: Tensor::from_data(TensorData::new(hidden, shape), &device.clone().without_autodiff()) }
    }
}

/// Llama's self-attention (transformers' `LlamaAttention`).
#[derive(Module, Debug)]
pub struct DecoderAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl DecoderAttention {
    pub(crate) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (d, width) = (config.hidden_size, config.head_dim());
        let linear = |i, o| LinearConfig::new(i, o).with_bias(false).init(device);
        Self {
            q_proj: linear(d, config.num_attention_heads * width),
            k_proj: linear(d, config.kv_heads() * width),
            v_proj: linear(d, config.kv_heads() * width),
            o_proj: linear(config.num_attention_heads * width, d),
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head_dim: width,
        }
    }

    /// Returns the output and the attention probabilities.
    ///
    /// # Shapes
    /// - x and output: `[B, T, d]`
    /// - probabilities: `[B, heads, T, keys]`, keys being the cached positions and the T new ones
    pub fn forward(
        &self,
        x: Tensor<3>,
        rope: &RotaryTables,
        mask: &Mask,
        cache: Option<(&mut KvCache, usize)>,
    ) -> (Tensor<3>, Tensor<4>) {
        let [b, t, _] = x.dims();
        let split = |y: Tensor<3>, heads| y.reshape([b, t, heads, self.head_dim]).swap_dims(1, 2);
        let q = rope.rotate(split(self.q_proj.forward(x.clone()), self.heads));
        let k = rope.rotate(split(self.k_proj.forward(x.clone()), self.kv_heads));
        let v = split(self.v_proj.forward(x), self.kv_heads);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.extend(layer, k, v),
            None => (k, v),
        };
        let keys = k.dims()[2];
        let dtype = v.dtype();
        let group = self.heads / self.kv_heads;
        // The queries that share a key head are stacked, so that k and v are not repeated.
        let q = q.reshape([b, self.kv_heads, group * t, self.head_dim]);
        let scores = q
            .matmul(k.transpose())
            .cast(DType::F32)
            .mul_scalar((self.head_dim as f64).powf(-0.5))
            .reshape([b, self.heads, t, keys]);
        // A finite fill: a padding row that sees nothing must not turn into NaN.
        let hidden = self.hidden_for(mask, [b, self.heads, t, keys]);
        let probabilities = softmax(scores.mask_fill(hidden, f32::MIN / 2.0), 3).cast(dtype);
        let out = probabilities
            .clone()
            .reshape([b, self.kv_heads, group * t, keys])
            .matmul(v)
            .reshape([b, self.heads, t, self.head_dim])
            .swap_dims(1, 2)
            .reshape([b, t, self.heads * self.head_dim]);
        (self.o_proj.forward(out), probabilities)
    }

    fn hidden_for(&self, mask: &Mask, shape: [usize; 4]) -> Tensor<4, Bool> {
        mask.hidden.clone().expand(shape)
    }
}
