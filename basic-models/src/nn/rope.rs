//! Rotary position embeddings (transformers' `LlamaRotaryEmbedding` and its variants).

use basic_core::ops::rotate;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::config::{DecoderConfig, Rope};

/// The cosines and sines of a batch's positions: those of all layers, or of the layers without and with a window.
#[derive(Debug, Clone)]
pub struct RotaryTables {
    full: RotaryTable,
    windowed: Option<RotaryTable>,
}

/// The cosines and sines of a batch's positions in one rotary embedding. Burn's `RotaryEncoding` does not fit: it
/// rotates neighbouring pairs, while Llama's checkpoints rotate the two halves of a head against each other.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor<3>, // [B or 1, T, rotated / 2]
    sin: Tensor<3>,
    // The factors of the queries, [B or 1, T, 1, 1], if any of them has grown.
    growth: Option<Tensor<4>>,
}

impl RotaryTables {
    /// Tables for `positions`, with one row for all samples or one per sample; computed in f32 and stored in `dtype`.
    pub fn new(positions: &[Vec<usize>], config: &DecoderConfig, dtype: DType, device: &Device) -> Self {
        Self::of_each_rope(config, |rope| RotaryTable::new(positions, config.head_dim(), rope, dtype, device))
    }

    /// Tables for one position of each of several sequences. Where the frequencies depend on a sequence's length, each
    /// has those of its own.
    pub fn each(positions: &[usize], config: &DecoderConfig, dtype: DType, device: &Device) -> Self {
        Self::of_each_rope(config, |rope| RotaryTable::each(positions, config.head_dim(), rope, dtype, device))
    }

    fn of_each_rope(config: &DecoderConfig, table: impl Fn(&Rope) -> RotaryTable) -> Self {
        Self { full: table(&config.rope), windowed: config.local_rope.as_ref().map(table) }
    }

    /// The table of a layer with or without a window.
    pub fn of(&self, windowed: bool) -> &RotaryTable {
        self.windowed.as_ref().filter(|_| windowed).unwrap_or(&self.full)
    }
}

impl RotaryTable {
    fn new(positions: &[Vec<usize>], head_dim: usize, rope: &Rope, dtype: DType, device: &Device) -> Self {
        let length = positions.iter().flatten().max().map_or(0, |last| last + 1);
        // transformers computes frequencies and angles in f32. In another type, long contexts would drift
        // apart from its results.
        let frequencies = rope.frequencies(head_dim, length);
        let factor = rope.attention_factor() as f32;
        let half = frequencies.len();
        let (b, t) = (positions.len(), positions.first().map_or(0, Vec::len));
        let mut cos = Vec::with_capacity(b * t * half);
        let mut sin = Vec::with_capacity(b * t * half);
        for position in positions.iter().flatten() {
            for frequency in &frequencies {
                let angle = *position as f32 * frequency;
                cos.push(angle.cos() * factor);
                sin.push(angle.sin() * factor);
            }
        }
        let table = |values| Tensor::<3>::from_data(TensorData::new(values, [b, t, half]), device).cast(dtype);
        let growth = rope.growth.map(|growth| positions.iter().flatten().map(|p| growth.at(*p)).collect::<Vec<f32>>());
        let growth = growth.filter(|factors| factors.iter().any(|factor| *factor != 1.0));
        let growth = growth.map(|all| Tensor::<4>::from_data(TensorData::new(all, [b, t, 1, 1]), device).cast(dtype));
        Self { cos: table(cos), sin: table(sin), growth }
    }

    fn each(positions: &[usize], head_dim: usize, rope: &Rope, dtype: DType, device: &Device) -> Self {
        let tables: Vec<Self> =
            positions.iter().map(|position| Self::new(&[vec![*position]], head_dim, rope, dtype, device)).collect();
        let growth = tables.iter().any(|table| table.growth.is_some()).then(|| {
            let one = || Tensor::ones([1, 1, 1, 1], (device, dtype));
            Tensor::cat(tables.iter().map(|table| table.growth.clone().unwrap_or_else(one)).collect(), 0)
        });
        let (cos, sin) = tables.into_iter().map(|table| (table.cos, table.sin)).unzip();
        Self { cos: Tensor::cat(cos, 0), sin: Tensor::cat(sin, 0), growth }
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

    /// Rotates the heads of queries, which may also grow with their position.
    ///
    /// # Shapes
    /// - q and output: `[B, T, heads, head_dim]`
    pub fn rotate_queries(&self, q: Tensor<4>) -> Tensor<4> {
        let q = self.rotate(q);
        match &self.growth {
            Some(factors) => q * factors.clone(),
            None => q,
        }
    }
}
