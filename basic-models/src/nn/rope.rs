//! Rotary position embeddings (transformers' `LlamaRotaryEmbedding`, type `default`).

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The cosines and sines of a batch's positions. Burn's `RotaryEncoding` rotates neighbouring pairs; Llama's
/// checkpoints rotate the two halves of a head against each other, so it doesn't fit.
#[derive(Debug, Clone)]
pub struct RotaryTables {
    cos: Tensor<4>, // [B or 1, 1, T, head_dim]
    sin: Tensor<4>,
}

impl RotaryTables {
    /// Tables for `positions`: one row for all samples, or one per sample; computed in f64, kept in `dtype`.
    pub fn new(positions: &[Vec<usize>], head_dim: usize, theta: f64, dtype: DType, device: &Device) -> Self {
        let half = head_dim / 2;
        let (b, t) = (positions.len(), positions.first().map_or(0, Vec::len));
        let mut cos = Vec::with_capacity(b * t * head_dim);
        let mut sin = Vec::with_capacity(b * t * head_dim);
        // transformers computes frequencies and angles in f32; so do we, or long contexts would drift apart.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (theta as f32).powf(2.0 * i as f32 / head_dim as f32)).collect();
        for position in positions.iter().flatten() {
            let angles = frequencies.iter().map(|f| *position as f32 * f);
            let (c, s): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
            for _ in 0..2 {
                cos.extend_from_slice(&c);
                sin.extend_from_slice(&s);
            }
        }
        let table = |values| Tensor::<4>::from_data(TensorData::new(values, [b, 1, t, head_dim]), device).cast(dtype);
        Self { cos: table(cos), sin: table(sin) }
    }

    /// # Shapes
    /// - x and output: `[B, heads, T, head_dim]`
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.clone().narrow(3, half, half);
        let swapped = Tensor::cat(vec![second.neg(), first], 3);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}
