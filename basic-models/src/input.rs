//! Builds the tensors of a batch from tokenized samples.

use basic_core::{ImageSpan, SupervisionLayout};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// A sample after the image processor and the tokenizer, ready for a batch.
#[derive(Debug, Clone, Default)]
pub struct ImageTokens {
    /// Token ids, with the image placeholders expanded.
    pub ids: Vec<u32>,
    /// For each position, the id that the loss expects there, or -100 for none; as long as `ids`.
    pub labels: Vec<i64>,
    /// The positions of each image.
    pub images: Vec<Vec<usize>>,
    /// The pixel values of each image, CHW.
    pub pixels: Vec<Vec<f32>>,
}

impl ImageTokens {
    /// The number of positions with a loss: all labeled ones except the first position, which nothing predicts.
    pub fn targets(&self) -> usize {
        self.labels.iter().skip(1).take(self.ids.len().saturating_sub(1)).filter(|label| **label >= 0).count()
    }

    /// Whether the sample has an image with text after it, so that it counts in the supervision methods' terms.
    pub fn supervises(&self) -> bool {
        (0..self.images.len()).any(|image| !self.text_after(image).is_empty())
    }

    /// The positions of the text after an image, without image positions.
    fn text_after(&self, image: usize) -> Vec<usize> {
        let after = self.images[image].last().map_or(0, |p| p + 1);
        let mut text = vec![true; self.ids.len()];
        self.images.iter().flatten().for_each(|p| text[*p] = false);
        (after..self.ids.len()).filter(|p| text[*p]).collect()
    }
}

/// A batch on the device, padded on the right.
///
/// A row holds one sample or, if it is packed, several in sequence. Each sample attends only to itself, and its
/// positions start from 0.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `[B * T]`.
    pub ids: Tensor<1, Int>,
    /// For each position, the row of `[tokens; v]` that it takes, `[B * T]`.
    pub splice_rows: Tensor<1, Int>,
    /// For each position, the id that its output is trained on (the next position's label), or -100 for none,
    /// `[B * T]`. They are on the host, so that only the rows with a label are computed.
    pub targets: Vec<i64>,
    /// Images in sample order, `[images, channels, H, W]`.
    pub pixels: Option<Tensor<4>>,
    /// Patch features of the images `[M, vision]`, if the caller has them already (those of a frozen
    /// encoder never change).
    pub features: Option<Tensor<2>>,
    /// Patch features of the images from another encoder, for a supervision method that compares with it.
    pub other_features: Option<Tensor<2>>,
    /// The positions of images and text.
    pub layout: SupervisionLayout,
    /// The length of each sample without padding.
    pub lengths: Vec<usize>,
    /// The number of samples in each row, `[B]`.
    pub samples_per_row: Vec<usize>,
}

impl Batch {
    /// Pads and stacks samples, one per row. `image` is the channels, height and width of the pixel values.
    pub fn collate(samples: &[ImageTokens], pad: u32, image: [usize; 3], device: &Device) -> Self {
        let rows: Vec<[&ImageTokens; 1]> = samples.iter().map(|sample| [sample]).collect();
        Self::pack(&rows, pad, image, device)
    }

    /// Packs samples into rows, in order, and pads and stacks the rows. Targets and supervised images are the same as
    /// with [`Batch::collate`]: no target and no text row crosses into another sample.
    pub fn pack<'a>(rows: &[impl AsRef<[&'a ImageTokens]>], pad: u32, image: [usize; 3], device: &Device) -> Self {
        let rows: Vec<&[&ImageTokens]> = rows.iter().map(AsRef::as_ref).collect();
        let length = |row: &&[&ImageTokens]| row.iter().map(|sample| sample.ids.len()).sum::<usize>();
        let (b, t) = (rows.len(), rows.iter().map(length).max().unwrap_or(0));
        let mut ids = vec![i64::from(pad); b * t];
        let mut splice: Vec<i64> = (0..(b * t) as i64).collect();
        let mut targets = vec![-100; b * t];
        let (mut pixels, mut images, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = (b * t) as i64;
        for (row, samples) in rows.iter().enumerate() {
            let mut begin = 0; // where the sample begins in its row
            for tokens in samples.iter() {
                let start = row * t + begin;
                for (position, id) in tokens.ids.iter().enumerate() {
                    ids[start + position] = i64::from(*id);
                    if let Some(label) = tokens.labels.get(position)
                        && position > 0
                        && *label >= 0
                    {
                        targets[start + position - 1] = *label;
                    }
                }
                for (index, positions) in tokens.images.iter().enumerate() {
                    for position in positions {
                        splice[start + position] = next;
                        next += 1;
                    }
                    images.push(ImageSpan {
                        sample: lengths.len(),
                        row,
                        positions: positions.iter().map(|p| begin + p).collect(),
                        text_rows: tokens.text_after(index).into_iter().map(|p| begin + p).collect(),
                    });
                }
                pixels.extend(tokens.pixels.iter());
                lengths.push(tokens.ids.len());
                begin += tokens.ids.len();
            }
        }
        let device = device.clone().without_autodiff();
        let ints = |values: Vec<i64>| {
            let n = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [n]), &device)
        };
        let [c, h, w] = image;
        let count = pixels.len();
        let pixels = (count > 0).then(|| {
            let flat: Vec<f32> = pixels.into_iter().flatten().copied().collect();
            Tensor::from_data(TensorData::new(flat, [count, c, h, w]), &device)
        });
        Self {
            ids: ints(ids),
            splice_rows: ints(splice),
            targets,
            pixels,
            features: None,
            other_features: None,
            layout: SupervisionLayout { batch: b, sequence: t, images },
            lengths,
            samples_per_row: rows.iter().map(|row| row.len()).collect(),
        }
    }

    /// The number of target tokens in the batch.
    pub fn label_count(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }

    /// The lengths of each row's samples; `None` if no row holds more than one sample.
    pub fn packing(&self) -> Option<Vec<Vec<usize>>> {
        if self.samples_per_row.iter().all(|samples| *samples <= 1) {
            return None;
        }
        let mut lengths = self.lengths.iter().copied();
        Some(self.samples_per_row.iter().map(|samples| lengths.by_ref().take(*samples).collect()).collect())
    }
}
