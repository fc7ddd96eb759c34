//! Compares hidden states with the embedding table, and applies the output head to them, chunk by chunk.

use basic_models::nn::Llava;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::LensError;

/// The most bytes of a chunk of `[rows, V]`.
const BUDGET: usize = 64 << 20;
/// Lengths are clamped to at least this before division, as in the losses.
const SHORTEST: f32 = 1e-12;

/// The embedding table E, without Gemma's scale, and the lengths of its rows.
#[derive(Debug)]
pub struct Vocabulary {
    columns: Tensor<2>, // [d, V], a view of the table in f32
    inverse: Vec<f32>,  // 1 / |E_j|
    mean_norm: f64,
}

/// What [`Vocabulary::read`] computes for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// How many tokens are listed per row and kind of nearness.
    pub top: usize,
    /// Whether tokens are also ranked by inner product and by logits, not only by cosine.
    pub all: bool,
    /// The end token, whose cosine with every row is computed.
    pub end: Option<u32>,
}

/// The nearest tokens of one row. The lists are in descending order; of equal values the lower id comes first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowTokens {
    /// The length (L2 norm) of the row.
    pub norm: f32,
    /// The tokens with the highest cosine with rows of E, and the cosine.
    pub nearest: Vec<(u32, f32)>,
    /// The tokens with the highest probability in `softmax(row E^T)`, and the probability.
    pub scores: Vec<(u32, f32)>,
    /// The tokens with the highest probability by the logits (final norm, then the output head), and the probability.
    pub logits: Vec<(u32, f32)>,
    /// The cosine with the end token; `None` without an end token.
    pub end: Option<f32>,
}

impl Vocabulary {
    /// The input embedding table of a model.
    ///
    /// # Errors
    ///
    /// [`LensError::Read`] if the device fails.
    pub fn of(model: &Llava) -> Result<Self, LensError> {
        let table = model.language_model.table().without_autodiff().cast(DType::F32);
        let norms = table.clone().square().sum_dim(1).sqrt().try_into_vec_as::<f32>()?;
        let mean_norm = norms.iter().map(|norm| f64::from(*norm)).sum::<f64>() / norms.len().max(1) as f64;
        let inverse = norms.into_iter().map(|norm| 1.0 / norm.max(SHORTEST)).collect();
        Ok(Self { columns: table.transpose(), inverse, mean_norm })
    }

    /// The mean length (L2 norm) of the token embeddings.
    pub fn mean_norm(&self) -> f64 {
        self.mean_norm
    }

    /// The number of rows of the table.
    pub(super) fn len(&self) -> usize {
        self.inverse.len()
    }

    /// The table, `[d, V]`.
    pub(super) fn columns(&self) -> &Tensor<2> {
        &self.columns
    }

    /// The nearest tokens of each row. At most one chunk of `[rows, V]` is in memory at a time.
    ///
    /// # Shapes
    /// - rows: `[n, d]` in f32
    ///
    /// # Errors
    ///
    /// [`LensError::NotFinite`] with this layer if a row is NaN or infinite; [`LensError::Read`] if the device fails.
    pub fn read(
        &self,
        model: &Llava,
        rows: &Tensor<2>,
        layer: usize,
        asked: &Asked,
    ) -> Result<Vec<RowTokens>, LensError> {
        let [n, _] = rows.dims();
        let size = (BUDGET / (4 * self.inverse.len()).max(1)).clamp(1, n.max(1));
        let norms = rows.clone().square().sum_dim(1).sqrt().try_into_vec_as::<f32>()?;
        if norms.iter().any(|norm| !norm.is_finite()) {
            return Err(LensError::NotFinite { layer });
        }
        let mut read = Vec::with_capacity(n);
        for start in (0..n).step_by(size) {
            let chunk = rows.clone().narrow(0, start, size.min(n - start));
            let products = chunk.clone().matmul(self.columns.clone()).try_into_vec_as::<f32>()?;
            let logits = match asked.all {
                false => Vec::new(),
                true => {
                    let hidden = model.language_model.finish(chunk.cast(model.dtype()));
                    model.logits(hidden).cast(DType::F32).try_into_vec_as::<f32>()?
                }
            };
            let width = self.inverse.len();
            let part: Vec<RowTokens> = products
                .par_chunks_exact(width)
                .enumerate()
                .map(|(row, products)| {
                    let logits = logits.get(row * width..(row + 1) * width);
                    self.row(norms[start + row], products, logits, asked)
                })
                .collect();
            read.extend(part);
        }
        Ok(read)
    }

    fn row(&self, norm: f32, products: &[f32], logits: Option<&[f32]>, asked: &Asked) -> RowTokens {
        let scale = 1.0 / norm.max(SHORTEST);
        let cosine = |id: usize| products[id] * self.inverse[id] * scale;
        RowTokens {
            norm,
            nearest: largest((0..products.len()).map(cosine), asked.top),
            scores: if asked.all { probable(products, asked.top) } else { Vec::new() },
            logits: logits.map(|logits| probable(logits, asked.top)).unwrap_or_default(),
            end: asked.end.map(|id| id as usize).filter(|id| *id < products.len()).map(cosine),
        }
    }
}

/// The `n` largest values with their indices, largest first; of equal values the lower index comes first.
fn largest(values: impl Iterator<Item = f32>, n: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    for (id, value) in values.enumerate() {
        if n == 0 || best.len() == n && best.last().is_some_and(|(_, least)| value <= *least) {
            continue;
        }
        let at = best.partition_point(|(_, other)| *other >= value);
        best.insert(at, (id as u32, value));
        best.truncate(n);
    }
    best
}

/// The `n` largest probabilities of the softmax of `scores`, with their indices.
fn probable(scores: &[f32], n: usize) -> Vec<(u32, f32)> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|score| f64::from(score - most).exp()).sum();
    let share = |score: f32| (f64::from(score - most).exp() / sum) as f32;
    largest(scores.iter().copied(), n).into_iter().map(|(id, score)| (id, share(score))).collect()
}

#[cfg(test)]
mod tests {
    use super::{largest, probable};

    #[test]
    fn the_largest_come_in_order_and_of_equal_ones_the_first() {
        let values = [0.5, -1.0, 2.0, 0.5, 2.0];
        assert_eq!(largest(values.into_iter(), 3), [(2, 2.0), (4, 2.0), (0, 0.5)]);
        assert_eq!(largest(values.into_iter(), 9).len(), 5);
        assert!(largest(values.into_iter(), 0).is_empty());
    }

    #[test]
    fn probabilities_are_those_of_a_softmax() {
        // exp(0), exp(ln 2) and exp(ln 5) are 1, 2 and 5, so the probabilities are 1/8, 2/8 and 5/8.
        let found = probable(&[0.0, 2f32.ln(), 5f32.ln()], 2);
        assert_eq!((found[0].0, found[1].0), (2, 1));
        assert!((found[0].1 - 0.625).abs() < 1e-6 && (found[1].1 - 0.25).abs() < 1e-6, "{found:?}");
    }
}
