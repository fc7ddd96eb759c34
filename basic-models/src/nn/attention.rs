//! The decoder's attention: grouped-query heads, rotary positions, and masks for causality, windows and padding.

use basic_core::Seen;
use basic_core::ops::{Attention, capped_attention};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::linear::linear;
use super::norm::{norm, normalized};
use super::{KvCache, RotaryTable};
use crate::config::{DecoderConfig, QkNorm};

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
    // Some families normalize the queries and keys: those of each head, or all of them together.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    // Whether the queries and keys are rotated by their positions.
    rotated: bool,
    // The factor of the queries, if the scores are not divided by the square root of a head's width.
    query_scale: Option<f64>,
    score_cap: Option<f64>,
    // The norms of some families scale by 1 + weight.
    one_plus: bool,
}

impl DecoderAttention {
    /// The attention of layer `index`.
    pub(crate) fn new(config: &DecoderConfig, index: usize, device: &Device) -> Self {
        let (d, width) = (config.hidden_size, config.head_dim());
        let (input, output) = config.attention_biases();
        let linear = |i, o, bias| LinearConfig::new(i, o).with_bias(bias).init(device);
        let norm = |heads| match config.family.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some(norm(config, width, device)),
            QkNorm::Whole => Some(norm(config, heads * width, device)),
        };
        Self {
            q_proj: linear(d, config.num_attention_heads * width, input),
            k_proj: linear(d, config.kv_heads() * width, input),
            v_proj: linear(d, config.kv_heads() * width, input),
            o_proj: linear(config.num_attention_heads * width, d, output),
            q_norm: norm(config.num_attention_heads),
            k_norm: norm(config.kv_heads()),
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head_dim: width,
            rotated: config.rotates(index),
            query_scale: config.query_scale(),
            score_cap: config.score_cap,
            one_plus: config.family.norm_plus_one,
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
        rope: &RotaryTable,
        mask: &Mask,
        cache: Option<(&mut KvCache, usize)>,
    ) -> (Tensor<2>, Seen) {
        let [rows, _] = x.dims();
        let (q, k, v) = self.project(x, batch, rope);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.extend(layer, k, v),
            None => (k, v),
        };
        let Attention { output, lse } = capped_attention(q.clone(), k.clone(), v, mask.first.clone(), self.score_cap);
        let output = linear(&self.o_proj, output.reshape([rows, self.heads * self.head_dim]));
        (output, Seen { q, k, lse, first: mask.first.clone(), cap: self.score_cap })
    }

    /// One new position of each of several sequences that have caches of their own. Query, key, value and output are
    /// computed for all of them together, the attention for each by itself, because their lengths differ.
    ///
    /// # Shapes
    /// - x and output: `[B, d]`
    pub(crate) fn forward_each(
        &self,
        x: Tensor<2>,
        rope: &RotaryTable,
        masks: &[&Mask],
        caches: &mut [&mut KvCache],
        layer: usize,
    ) -> Tensor<2> {
        let [rows, _] = x.dims();
        let (q, k, v) = self.project(x, rows, rope);
        let one = |x: &Tensor<4>, row| x.clone().narrow(0, row, 1);
        let outputs = caches.iter_mut().zip(masks).enumerate().map(|(row, (cache, mask))| {
            let (keys, values) = cache.extend(layer, one(&k, row), one(&v, row));
            capped_attention(one(&q, row), keys, values, mask.first.clone(), self.score_cap).output
        });
        let output = Tensor::cat(outputs.collect(), 0);
        linear(&self.o_proj, output.reshape([rows, self.heads * self.head_dim]))
    }

    /// The queries, keys and values, `[B, T, heads or kv heads, head_dim]`, with their positions rotated in.
    fn project(&self, x: Tensor<2>, batch: usize, rope: &RotaryTable) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let t = x.dims()[0] / batch.max(1);
        let split = |y: Tensor<2>, heads| y.reshape([batch, t, heads, self.head_dim]);
        let normed = |y: Tensor<2>, norm: &Option<RmsNorm>, heads: usize| match norm {
            Some(norm) if norm.gamma.dims() == [heads * self.head_dim] => {
                split(normalized(norm, y, self.one_plus), heads)
            }
            Some(norm) => normalized(norm, split(y, heads), self.one_plus),
            None => split(y, heads),
        };
        let mut q = normed(linear(&self.q_proj, x.clone()), &self.q_norm, self.heads);
        let mut k = normed(linear(&self.k_proj, x.clone()), &self.k_norm, self.kv_heads);
        if self.rotated {
            (q, k) = (rope.rotate_queries(q), rope.rotate(k));
        }
        if let Some(scale) = self.query_scale {
            q = q.mul_scalar(scale);
        }
        (q, k, split(linear(&self.v_proj, x), self.kv_heads))
    }
}
