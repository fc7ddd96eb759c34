//! Builds the tensors of a batch from tokenized samples.

use std::ops::Range;

use basic_core::{ImageSpan, SupervisionLayout};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::config::Tiles;
use crate::processor::{Example, Prompt};

/// A sample after the image processor and the tokenizer, ready for a batch.
#[derive(Debug, Clone, Default)]
pub struct ImageTokens {
    /// Token ids, with the image placeholders expanded.
    pub ids: Vec<u32>,
    /// For each position, the id that the loss expects there, or -100 for none; as long as `ids`.
    pub labels: Vec<i64>,
    /// The positions of each image's visual embeddings: its patches, without the newlines between their rows.
    pub images: Vec<Vec<usize>>,
    /// The tiles of each image; may be empty if no image is cut.
    pub tiles: Vec<Tiles>,
    /// The pixel values of each image, CHW, tile after tile.
    pub pixels: Vec<Vec<f32>>,
}

impl ImageTokens {
    /// A sample whose images take the given ranges of `ids`.
    fn new(ids: Vec<u32>, labels: Vec<i64>, ranges: &[Range<usize>], tiles: Vec<Tiles>) -> Self {
        let images = ranges.iter().zip(&tiles).map(|(range, tiles)| {
            let places = tiles.places().into_iter();
            places.map(|place| range.start + place).collect()
        });
        Self { ids, labels, images: images.collect(), tiles, pixels: Vec::new() }
    }

    /// All positions of an image, newlines included.
    pub fn range(&self, image: usize) -> Range<usize> {
        let positions = self.images.get(image).map(Vec::as_slice).unwrap_or_default();
        let start = positions.first().copied().unwrap_or(0);
        match self.tiles.get(image) {
            Some(tiles) => start..start + tiles.tokens(),
            None => start..positions.last().map_or(start, |last| last + 1),
        }
    }

    /// The positions that take the newline embedding.
    pub fn newlines(&self) -> impl Iterator<Item = usize> {
        let images = self.tiles.iter().enumerate();
        images.flat_map(|(image, tiles)| {
            let start = self.range(image).start;
            tiles.newlines().map(move |newline| start + newline)
        })
    }

    /// Cuts the sample from the right to at most `length` positions, or to the beginning of the image that this would cut
    /// through; returns how many images are left.
    pub fn cut(&mut self, length: usize) -> usize {
        let kept = (0..self.images.len()).take_while(|image| self.range(*image).end <= length).count();
        let end = if kept < self.images.len() { self.range(kept).start.min(length) } else { length };
        self.ids.truncate(end);
        self.labels.truncate(end);
        self.images.truncate(kept);
        self.tiles.truncate(kept);
        self.pixels.truncate(kept);
        kept
    }

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
        let after = self.range(image).end;
        let mut text = vec![true; self.ids.len()];
        self.images.iter().flatten().for_each(|p| text[*p] = false);
        self.newlines().for_each(|p| text[p] = false);
        (after..self.ids.len()).filter(|p| text[*p]).collect()
    }
}

impl From<Prompt> for ImageTokens {
    fn from(Prompt { ids, image_positions, tiles }: Prompt) -> Self {
        Self::new(ids, Vec::new(), &image_positions, tiles)
    }
}

impl From<Example> for ImageTokens {
    fn from(Example { ids, labels, image_positions, tiles }: Example) -> Self {
        Self::new(ids, labels, &image_positions, tiles)
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
    /// For each position, the row of `[tokens; v; newline]` that it takes, `[B * T]`.
    pub splice_rows: Tensor<1, Int>,
    /// For each position, the id that its output is trained on (the next position's label), or -100 for none,
    /// `[B * T]`. They are on the host, so that only the rows with a label are computed.
    pub targets: Vec<i64>,
    /// The tiles of all images in sample order, `[tiles, channels, H, W]`.
    pub pixels: Option<Tensor<4>>,
    /// The rows of the features of all tiles from which visual embeddings are made, `[M]`; `None` for all rows.
    pub kept: Option<Tensor<1, Int>>,
    /// Patch features of the images `[M, vision]`, if the caller has them already (those of a frozen
    /// encoder never change). They have no rows that are not kept.
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
        let (mut newlines, mut kept, mut encoded, mut cut) = (Vec::new(), Vec::new(), 0, false);
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
                newlines.extend(tokens.newlines().map(|position| start + position));
                for tiles in &tokens.tiles {
                    cut |= tiles.count() > 1 || tiles.encoded() != tiles.patches();
                    kept.extend(tiles.rows().into_iter().map(|row| (encoded + row) as i64));
                    encoded += tiles.encoded();
                }
                pixels.extend(tokens.pixels.iter());
                lengths.push(tokens.ids.len());
                begin += tokens.ids.len();
            }
        }
        // The newline embedding comes after all visual embeddings.
        newlines.into_iter().for_each(|position| splice[position] = next);
        let device = device.clone().without_autodiff();
        let ints = |values: Vec<i64>| {
            let n = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [n]), &device)
        };
        let [c, h, w] = image;
        let pixels = (!pixels.is_empty()).then(|| {
            let flat: Vec<f32> = pixels.into_iter().flatten().copied().collect();
            let count = flat.len() / (c * h * w).max(1);
            Tensor::from_data(TensorData::new(flat, [count, c, h, w]), &device)
        });
        Self {
            ids: ints(ids),
            splice_rows: ints(splice),
            targets,
            pixels,
            kept: cut.then(|| ints(kept)),
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
