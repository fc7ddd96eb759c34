//! Rotary position embeddings (transformers' `LlamaRotaryEmbedding`, type `default`).

use basic_core::ops::rotate;
use burn::tensor::{DType, Device, Tensor, TensorData};

/// The cosines and sines of a batch's positions. Burn's `RotaryEncoding` rotates neighbouring pairs; Llama's
/// checkpoints rotate the two halves of a head against each other, so it doesn't fit.
#[derive(Debug, Clone)]
pub struct RotaryTables {
    cos: Tensor<3>, // [B or 1, T, head_dim / 2]
    sin: Tensor<3>,
}

impl RotaryTables {
    /// Tables for `positions`: one row for all samples, or one per sample; computed in f32, kept in `dtype`.
    pub fn new(positions: &[Vec<usize>], head_dim: usize, theta: f64, dtype: DType, device: &Device) -> Self {
        let half = head_dim / 2;
        let (b, t) = (positions.len(), positions.first().map_or(0, Vec::len));
        let mut cos = Vec::with_capacity(b * t * half);
        let mut sin = Vec::with_capacity(b * t * half);
        // transformers computes frequencies and angles in f32; so do we, or long contexts would drift apart.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (theta as f32).powf(2.0 * i as f32 / head_dim as f32)).collect();
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

    /// # Shapes
    /// - x and output: `[B, T, heads, head_dim]`
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        rotate(x, self.cos.clone(), self.sin.clone())
    }
}
