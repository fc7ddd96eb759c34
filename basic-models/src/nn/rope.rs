//! Rotary position embeddings (transformers' `LlamaRotaryEmbedding`).

use basic_core::ops::rotate;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::config::Rope;

/// The cosines and sines of a batch's positions. Burn's `RotaryEncoding` does not fit: it rotates neighbouring pairs,
/// while Llama's checkpoints rotate the two halves of a head against each other.
#[derive(Debug, Clone)]
pub struct RotaryTables {
    cos: Tensor<3>, // [B or 1, T, rotated / 2]
    sin: Tensor<3>,
}

impl RotaryTables {
    /// Tables for `positions`, with one row for all samples or one per sample; computed in f32 and stored in `dtype`.
    pub fn new(positions: &[Vec<usize>], head_dim: usize, rope: &Rope, dtype: DType, device: &Device) -> Self {
        let length = positions.iter().flatten().max().map_or(0, |last| last + 1);
        // transformers computes frequencies and angles in f32. In another type, long contexts would drift
        // apart from its results.
        let frequencies = rope.frequencies(head_dim, length);
        let half = frequencies.len();
        let (b, t) = (positions.len(), positions.first().map_or(0, Vec::len));
        let mut cos = Vec::with_capacity(b * t * half);
        let mut sin = Vec::with_capacity(b * t * half);
        for position in positions.iter().flatten() {
            for frequency in &frequencies {
                let angle = *position as f32 * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let table = |values| Tensor::<3>::from_data(TensorData::new(values, [b, t, half]), device).cast(dtype);
        Self { cos: table(cos), sin: table(sin) }
    }

    /// Tables for one position of each of several sequences. Where the frequencies depend on a sequence's length, each
    /// has those of its own.
    pub fn each(positions: &[usize], head_dim: usize, rope: &Rope, dtype: DType, device: &Device) -> Self {
        let tables = positions.iter().map(|position| Self::new(&[vec![*position]], head_dim, rope, dtype, device));
        let (cos, sin) = tables.map(|table| (table.cos, table.sin)).unzip();
        Self { cos: Tensor::cat(cos, 0), sin: Tensor::cat(sin, 0) }
    }

    /// Rotates the heads. If only a part of each head is rotated, the rest stays as it is.
    ///
    /// # Shapes
    /// - x and output: `[B, T, heads, head_dim]`
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let (width, rotated) = (x.dims()[3], 2 * self.cos.dims()[2]);
        if rotated == width {
            return rotate(x, self.cos.clone(), self.sin.clone());
        }
        let rest = x.clone().narrow(3, rotated, width - rotated);
        let turned = rotate(x.narrow(3, 0, rotated), self.cos.clone(), self.sin.clone());
        Tensor::cat(vec![turned, rest], 3)
    }
}
