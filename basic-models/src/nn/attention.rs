//! The decoder's attention: grouped-query heads, rotary positions, causal and padding masks.

use basic_core::Seen;
use basic_core::ops::{Attention, attention};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{KvCache, RotaryTables};
use crate::config::LlamaConfig;

/// Which keys a query must not see.
#[derive(Debug, Clone)]
pub struct Mask {
    first: Tensor<2, Int>, // [B or 1, T], the first key that a query sees; the last one is its own position
}

impl Mask {
    /// Causal: each of `queries` queries sees the keys up to its own position. The first `padding[b]` keys of sample b
    /// are hidden (left padding).
    pub fn causal(queries: usize, padding: &[usize], device: &Device) -> Self {
        let shared = padding.iter().all(|p| *p == 0);
        let samples = if shared { &[0][..] } else { padding };
        let first: Vec<i64> = samples.iter().flat_map(|pad| std::iter::repeat_n(*pad as i64, queries)).collect();
        let shape = [samples.len(), queries];
        Self { first: Tensor::from_data(TensorData::new(first, shape), &device.clone().without_autodiff()) }
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

    /// Returns the output and what the attention looked at.
    ///
    /// # Shapes
    /// - x and output: `[B * T, d]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        batch: usize,
        rope: &RotaryTables,
        mask: &Mask,
        cache: Option<(&mut KvCache, usize)>,
    ) -> (Tensor<2>, Seen) {
        let [rows, _] = x.dims();
        let t = rows / batch.max(1);
        let split = |y: Tensor<2>, heads| y.reshape([batch, t, heads, self.head_dim]);
        let q = rope.rotate(split(self.q_proj.forward(x.clone()), self.heads));
        let k = rope.rotate(split(self.k_proj.forward(x.clone()), self.kv_heads));
        let v = split(self.v_proj.forward(x), self.kv_heads);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.extend(layer, k, v),
            None => (k, v),
        };
        let Attention { output, lse } = attention(q.clone(), k.clone(), v, mask.first.clone());
        let output = self.o_proj.forward(output.reshape([rows, self.heads * self.head_dim]));
        (output, Seen { q, k, lse, first: mask.first.clone() })
    }
}
