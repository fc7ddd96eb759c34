//! Runs one prompt through the decoder and reports every layer.

use basic_core::ops::attention_mass;
use basic_core::{Basic, Seen, Supervision, SupervisionLayout, Targets};
use basic_models::Batch;
use basic_models::nn::Llava;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, TensorReadError};

use super::LensError;

/// One layer's outputs at the positions of all images of a prompt.
#[derive(Debug, Clone)]
pub struct LayerRows {
    /// 0 for the projector's output, h for decoder layer h.
    pub layer: usize,
    /// v or V~_h, `[M, d]` in f32.
    pub rows: Tensor<2>,
    /// The attention from the text after each image to its rows in this layer, averaged over text rows and heads: `M`
    /// numbers. `None` at layer 0, which has no attention.
    pub attention: Option<Vec<f32>>,
}

/// Runs a batch of one row and calls `visit` for every layer in order, with the targets V^ and a by the settings
/// `basic`. The targets are known after layer k, so the layers up to k are held in memory until then.
///
/// # Errors
///
/// [`LensError::NoImage`] for a batch without an image, [`LensError::Objective`] for settings out of range, and the
/// errors of `visit`.
pub fn trace(
    model: &Llava,
    batch: &Batch,
    basic: &Basic,
    visit: &mut dyn FnMut(LayerRows, &Targets) -> Result<(), LensError>,
) -> Result<(), LensError> {
    let device = model.device().without_autodiff();
    let decoder = &model.language_model;
    let layout = &batch.layout;
    let k = basic.resolve_k(decoder.num_layers())?;
    let mut supervision = Supervision::new(&basic.whole().into(), decoder.num_layers(), layout, &device);
    let v = model.visual_embeddings(batch).ok_or(LensError::NoImage)?;
    let readout = Readout::new(layout, &device);
    let rows = Tensor::<1, Int>::from_data(TensorData::new(layout.flat_positions(), [v.dims()[0]]), &device);
    let (masks, rope) = model.positions(batch);
    let spliced = model.splice(batch, Some(v.clone()));
    let [b, t, d] = spliced.dims();
    let mut waiting = vec![LayerRows { layer: 0, rows: v.without_autodiff().cast(DType::F32), attention: None }];
    let mut targets = None;
    decoder.walk(spliced.reshape([b * t, d]), b, &rope, &masks, None, |index, y, seen| {
        if let Some(supervision) = &mut supervision {
            supervision.observe(index, &y.clone().reshape([b, t, d]), seen);
        }
        let hidden = y.clone().without_autodiff().select(0, rows.clone()).cast(DType::F32); // [M, d]
        waiting.push(LayerRows { layer: index + 1, rows: hidden, attention: Some(readout.attention(seen.clone())?) });
        if index + 1 >= k {
            if let Some(supervision) = supervision.take() {
                targets = supervision.finish().targets().cloned();
            }
            let targets = targets.as_ref().ok_or(LensError::NoImage)?;
            for layer in waiting.drain(..) {
                visit(layer, targets)?;
            }
        }
        Ok::<(), LensError>(())
    })?;
    Ok(())
}

/// The text rows and image positions whose attention is read, in a batch of one row.
struct Readout {
    text: Tensor<2, Int>,             // [1, n], the text rows of all images
    share: Tensor<3>,                 // [1, S, n], 1 / n_s at the n_s text rows of image s, else 0
    images: Vec<(usize, Vec<usize>)>, // n_s and the image's positions
}

impl Readout {
    fn new(layout: &SupervisionLayout, device: &Device) -> Self {
        let mut text: Vec<usize> = layout.images.iter().flat_map(|image| image.text_rows.clone()).collect();
        text.sort_unstable();
        text.dedup();
        let share = layout.images.iter().flat_map(|image| {
            let n = image.text_rows.len().max(1) as f32;
            text.iter().map(move |row| if image.text_rows.contains(row) { 1.0 / n } else { 0.0 })
        });
        let (s, n) = (layout.images.len(), text.len());
        let share = TensorData::new(share.collect::<Vec<f32>>(), [1, s, n]);
        let rows = TensorData::new(text.iter().map(|row| *row as i64).collect::<Vec<i64>>(), [1, n]);
        Self {
            text: Tensor::from_data(rows, device),
            share: Tensor::from_data(share, device),
            images: layout.images.iter().map(|image| (image.text_rows.len(), image.positions.clone())).collect(),
        }
    }

    /// A layer's attention at the positions of every image, in order.
    fn attention(&self, seen: Seen) -> Result<Vec<f32>, TensorReadError> {
        let Seen { q, k, lse, first, cap } = seen;
        let mass = attention_mass(q, k, lse, first, self.text.clone(), self.share.clone(), cap); // [1, S, T]
        let [_, _, t] = mass.dims();
        let mass = mass.cast(DType::F32).try_into_vec_as::<f32>()?;
        let images = self.images.iter().enumerate();
        Ok(images
            .flat_map(|(s, (_, positions))| positions.iter().map(move |p| (s, *p)))
            .map(|(s, p)| mass[s * t + p])
            .collect())
    }
}
