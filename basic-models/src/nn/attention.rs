//! The decoder's attention: grouped-query heads, rotary positions, and masks for causality, windows and padding.

use basic_core::Seen;
use basic_core::ops::{Attention, attention};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::linear::linear;
use super::norm::normalized;
use super::{KvCache, RotaryTables};
use crate::config::DecoderConfig;

/// The keys that each query must not see.
#[derive(Debug, Clone)]
pub struct Mask {
    first: Tensor<2, Int>, // [B or 1, T], the first key that a query sees; the last one is at its own position
}

impl Mask {
    /// A causal mask: each of `queries` queries, which follow `past` earlier positions, sees the keys up to its
    /// own position; with a window, only the last `window` of them. The first `padding[b]` keys of sample b are
    /// hidden (left padding).
    pub fn causal(past: usize, queries: usize, padding: &[usize], window: Option<usize>, device: &Device) -> Self {
        let shared = padding.iter().all(|p| *p == 0);
        let samples = if shared { &[0][..] } else { padding };
        let earliest = |query: usize| window.map_or(0, |window| (past + query + 1).saturating_sub(window));
        let first: Vec<i64> =
            samples.iter().flat_map(|pad| (0..queries).map(|query| (*pad).max(earliest(query)) as i64)).collect();
        let shape = [samples.len(), queries];
        Self { first: Tensor::from_data(TensorData::new(first, shape), &device.clone().without_autodiff()) }
    }

    /// A causal mask within each sample of packed rows: `rows` holds the lengths of each row's samples. Positions of
    /// padding after them see only themselves.
    pub fn packed(rows: &[Vec<usize>], queries: usize, window: Option<usize>, device: &Device) -> Self {
        let positions = packed_positions(rows, queries);
        let first = positions.iter().enumerate().flat_map(|(row, positions)| {
            let real: usize = rows[row].iter().sum();
            positions.iter().enumerate().map(move |(query, position)| {
                let back = window.map_or(*position, |window| (*position).min(window.saturating_sub(1)));
                (query - if query < real { back } else { 0 }) as i64
            })
        });
        let data = TensorData::new(first.collect::<Vec<i64>>(), [rows.len(), queries]);
        Self { first: Tensor::from_data(data, &device.clone().without_autodiff()) }
    }
}

/// The index of each position within its own sample, `[B][T]`; 0 for padding. `rows` holds the lengths of
/// each row's samples.
pub fn packed_positions(rows: &[Vec<usize>], queries: usize) -> Vec<Vec<usize>> {
    let row = |lengths: &Vec<usize>| {
        let places = lengths.iter().flat_map(|length| 0..*length);
        places.chain(std::iter::repeat(0)).take(queries).collect()
    };
    rows.iter().map(row).collect()
}

/// The masks of a decoder's layers, without and with a window.
#[derive(Debug, Clone)]
pub struct Masks {
    full: Mask,
    windowed: Option<Mask>,
}

impl Masks {
    /// The masks that the layers of `config` need; the arguments are those of [`Mask::causal`].
    pub fn new(config: &DecoderConfig, past: usize, queries: usize, padding: &[usize], device: &Device) -> Self {
        let windowed = config
            .sliding_window
            .filter(|window| past + queries > *window)
            .map(|window| Mask::causal(past, queries, padding, Some(window), device));
        Self { full: Mask::causal(past, queries, padding, None, device), windowed }
    }

    /// The masks that the layers of `config` need for packed rows; the arguments are those of [`Mask::packed`].
    pub fn packed(config: &DecoderConfig, rows: &[Vec<usize>], queries: usize, device: &Device) -> Self {
        let longest = rows.iter().flatten().max().copied().unwrap_or(0);
        let windowed = config
            .sliding_window
            .filter(|window| longest > *window)
            .map(|window| Mask::packed(rows, queries, Some(window), device));
        Self { full: Mask::packed(rows, queries, None, device), windowed }
    }

    /// The mask of a layer with or without a window.
    pub fn of(&self, windowed: bool) -> &Mask {
        self.windowed.as_ref().filter(|_| windowed).unwrap_or(&self.full)
    }
}

/// Self-attention (transformers' `LlamaAttention` and its variants).
#[derive(Module, Debug)]
pub struct DecoderAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    // Some families normalize the queries and keys of each head.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl DecoderAttention {
    pub(crate) fn new(config: &DecoderConfig, device: &Device) -> Self {
        let (d, width) = (config.hidden_size, config.head_dim());
        let (input, output) = config.attention_biases();
        let linear = |i, o, bias| LinearConfig::new(i, o).with_bias(bias).init(device);
        let norm = || RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device);
        let norms = config.family.qk_norm;
        Self {
            q_proj: linear(d, config.num_attention_heads * width, input),
            k_proj: linear(d, config.kv_heads() * width, input),
            v_proj: linear(d, config.kv_heads() * width, input),
            o_proj: linear(config.num_attention_heads * width, d, output),
            q_norm: norms.then(norm),
            k_norm: norms.then(norm),
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head_dim: width,
        }
    }

    /// Returns the output, and the attention's inputs with its log-sum-exp for the supervision methods.
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
        let (q, k, v) = self.project(x, batch, rope);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.extend(layer, k, v),
            None => (k, v),
        };
        let Attention { output, lse } = attention(q.clone(), k.clone(), v, mask.first.clone());
        let output = linear(&self.o_proj, output.reshape([rows, self.heads * self.head_dim]));
        (output, Seen { q, k, lse, first: mask.first.clone() })
    }

    /// One new position of each of several sequences that have caches of their own. Query, key, value and output are
    /// computed for all of them together, the attention for each by itself, because their lengths differ.
    ///
    /// # Shapes
    /// - x and output: `[B, d]`
    pub(crate) fn forward_each(
        &self,
        x: Tensor<2>,
        rope: &RotaryTables,
        masks: &[&Mask],
        caches: &mut [&mut KvCache],
        layer: usize,
    ) -> Tensor<2> {
        let [rows, _] = x.dims();
        let (q, k, v) = self.project(x, rows, rope);
        let one = |x: &Tensor<4>, row| x.clone().narrow(0, row, 1);
        let outputs = caches.iter_mut().zip(masks).enumerate().map(|(row, (cache, mask))| {
            let (keys, values) = cache.extend(layer, one(&k, row), one(&v, row));
            attention(one(&q, row), keys, values, mask.first.clone()).output
        });
        let output = Tensor::cat(outputs.collect(), 0);
        linear(&self.o_proj, output.reshape([rows, self.heads * self.head_dim]))
    }

    /// The queries, keys and values, `[B, T, heads or kv heads, head_dim]`, with their positions rotated in.
    fn project(&self, x: Tensor<2>, batch: usize, rope: &RotaryTables) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let t = x.dims()[0] / batch.max(1);
        let split = |y: Tensor<2>, heads| y.reshape([batch, t, heads, self.head_dim]);
        let normed = |y: Tensor<4>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => normalized(norm, y, false),
            None => y,
        };
        let q = rope.rotate(normed(split(linear(&self.q_proj, x.clone()), self.heads), &self.q_norm));
        let k = rope.rotate(normed(split(linear(&self.k_proj, x.clone()), self.kv_heads), &self.k_norm));
        (q, k, split(linear(&self.v_proj, x), self.kv_heads))
    }
}
