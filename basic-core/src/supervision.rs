//! The observer that adds up `V^` and `a` while the decoder runs.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops::attention_mass;
use crate::{Objective, ObjectiveError, PatchWeights};

/// Where one image of a batch sits, and the text that follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpan {
    /// The sample that it belongs to, counted over the batch.
    pub sample: usize,
    /// The batch's row that holds the sample; a packed row holds several.
    pub row: usize,
    /// The image's positions in the row (m of them).
    pub positions: Vec<usize>,
    /// The positions in the row of the same sample's text after the image, in order: no padding, no image positions (n
    /// of them).
    pub text_rows: Vec<usize>,
}

/// The images of a batch, in sample order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SupervisionLayout {
    /// Rows of the batch.
    pub batch: usize,
    /// Positions in a (padded) sequence.
    pub sequence: usize,
    /// The images, in the order of their visual embeddings.
    pub images: Vec<ImageSpan>,
}

impl SupervisionLayout {
    /// The samples that have an image with text after it: what `das` and `sds` are averaged over.
    pub fn image_samples(&self) -> usize {
        let mut samples: Vec<usize> =
            self.images.iter().filter(|image| !image.text_rows.is_empty()).map(|image| image.sample).collect();
        samples.dedup();
        samples.len()
    }

    /// All image positions as rows of the flattened `[B * T]` sequence, `[M]`.
    pub fn flat_positions(&self) -> Vec<i64> {
        self.images
            .iter()
            .flat_map(|image| image.positions.iter().map(|p| (image.row * self.sequence + p) as i64))
            .collect()
    }
}

/// What the shallow layers say about the visual embeddings; no gradient flows through it.
#[derive(Debug, Clone)]
pub struct Targets {
    /// The supervisory embeddings `V^`, `[M, d]` in f32.
    pub embeddings: Tensor<2>,
    /// The patch weights `a`, `[M]` in f32; 0 for an image without text after it.
    pub weights: Tensor<1>,
}

/// What a layer's attention looked at: its probabilities follow from it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Rotated queries, `[B, T, heads, head_dim]`.
    pub q: Tensor<4>,
    /// Rotated keys, `[B, T, kv_heads, head_dim]`.
    pub k: Tensor<4>,
    /// The log-sum-exp of each query's scores, `[B, heads, T]`.
    pub lse: Tensor<3>,
    /// The first visible key of each query, `[B or 1, T]`.
    pub first: Tensor<2, Int>,
}

/// Collects [`Targets`] from the decoder's first k layers: O(M d) memory, however many layers.
#[derive(Debug)]
pub struct Supervision {
    layer_weights: Vec<f64>,
    patch_weights: PatchWeights,
    patches: Vec<usize>,
    rows: Tensor<1, Int>,      // [M], into [B * T]
    text_rows: Tensor<2, Int>, // [B, n], filled up with row 0
    readout: Tensor<3>,        // [B, S, n]: 1 / (k n_s) at the text rows of the row's s-th image, else 0
    mass_rows: Tensor<1, Int>, // [M], into [B * S * T]
    embeddings: Option<Tensor<2>>,
    mass: Option<Tensor<1>>,
    observed: usize,
}

impl Supervision {
    /// An observer for one forward pass over a decoder of `layers` layers; `None` where nothing is supervised.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError`] where a knob does not fit the decoder.
    pub fn new(
        objective: &Objective,
        layers: usize,
        layout: &SupervisionLayout,
        device: &Device,
    ) -> Result<Option<Self>, ObjectiveError> {
        let k = objective.resolve_k(layers)?;
        if !objective.supervises() || layout.images.is_empty() {
            return Ok(None);
        }
        let device = device.clone().without_autodiff();
        let (b, t) = (layout.batch, layout.sequence);
        let mut nth = vec![0usize; b];
        let slots: Vec<usize> = layout
            .images
            .iter()
            .map(|image| {
                nth[image.row] += 1;
                nth[image.row] - 1
            })
            .collect();
        let s = nth.into_iter().max().unwrap_or(1);
        // Images of one row share text rows: those of a sample's first image hold those of its later ones.
        let mut text_rows: Vec<Vec<usize>> = vec![Vec::new(); b];
        for image in &layout.images {
            let all = &mut text_rows[image.row];
            all.extend(&image.text_rows);
            all.sort_unstable();
            all.dedup();
        }
        let n = text_rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut readout = vec![0f32; b * s * n];
        let mut mass_rows = Vec::new();
        for (image, slot) in layout.images.iter().zip(&slots) {
            let row = image.row * s + slot;
            let share = 1.0 / (k as f32 * image.text_rows.len() as f32);
            for (at, position) in text_rows[image.row].iter().enumerate() {
                if image.text_rows.binary_search(position).is_ok() {
                    readout[row * n + at] = share;
                }
            }
            mass_rows.extend(image.positions.iter().map(|p| (row * t + p) as i64));
        }
        let padded = |rows: &Vec<usize>| {
            let rows = rows.iter().map(|row| *row as i64);
            rows.chain(std::iter::repeat(0)).take(n).collect::<Vec<i64>>()
        };
        let text_rows: Vec<i64> = text_rows.iter().flat_map(padded).collect();
        let m = mass_rows.len();
        Ok(Some(Self {
            layer_weights: objective.layer_weights.weights(k),
            patch_weights: objective.patch_weights,
            patches: layout.images.iter().map(|i| i.positions.len()).collect(),
            rows: Tensor::from_data(TensorData::new(layout.flat_positions(), [m]), &device),
            text_rows: Tensor::from_data(TensorData::new(text_rows, [b, n]), &device),
            readout: Tensor::from_data(TensorData::new(readout, [b, s, n]), &device),
            mass_rows: Tensor::from_data(TensorData::new(mass_rows, [m]), &device),
            embeddings: None,
            mass: None,
            observed: 0,
        }))
    }

    /// Whether layer `index` (0-based) is one of the k supervising ones.
    pub fn wants(&self, index: usize) -> bool {
        index < self.layer_weights.len()
    }

    /// Records layer `index` (0-based), once: a second run of the same layer (activation recompute) changes nothing.
    ///
    /// # Shapes
    /// - hidden: `[B, T, d]`, the layer's output on the residual stream
    pub fn observe(&mut self, index: usize, hidden: &Tensor<3>, seen: &Seen) {
        if index != self.observed || !self.wants(index) {
            return;
        }
        self.observed += 1;
        let [b, t, d] = hidden.dims();
        let rows = hidden
            .clone()
            .without_autodiff()
            .reshape([b * t, d])
            .select(0, self.rows.clone())
            .cast(DType::F32)
            .mul_scalar(self.layer_weights[index]); // [M, d]
        self.embeddings = Some(match self.embeddings.take() {
            Some(sum) => sum + rows,
            None => rows,
        });

        let [_, slots, _] = self.readout.dims();
        let Seen { q, k, lse, first } = seen.clone();
        let mass = attention_mass(q, k, lse, first, self.text_rows.clone(), self.readout.clone())
            .cast(DType::F32)
            .reshape([b * slots * t])
            .select(0, self.mass_rows.clone()); // [M]
        self.mass = Some(match self.mass.take() {
            Some(sum) => sum + mass,
            None => mass,
        });
    }

    /// What was collected; `None` where the decoder did not report all k layers.
    pub fn finish(self) -> Option<Targets> {
        if self.observed != self.layer_weights.len() {
            return None;
        }
        let mass = self.mass?;
        let weights = match self.patch_weights {
            PatchWeights::Attention => mass,
            PatchWeights::Uniform => {
                let parts = mass.split_with_sizes(self.patches, 0);
                let even = parts.into_iter().map(|part| {
                    let m = part.dims()[0];
                    part.mean().expand([m])
                });
                Tensor::cat(even.collect(), 0)
            }
        };
        Some(Targets { embeddings: self.embeddings?, weights })
    }
}
