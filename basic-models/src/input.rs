//! From tokenized samples to the tensors of a batch.

use basic_core::{ImageSpan, SupervisionLayout};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// A sample after processor and tokenizer: what a batch is made of.
#[derive(Debug, Clone, Default)]
pub struct ImageTokens {
    /// Token ids, image placeholders expanded.
    pub ids: Vec<u32>,
    /// For each position the id that the loss expects there, or -100 for none; as long as `ids`.
    pub labels: Vec<i64>,
    /// The positions of each image.
    pub images: Vec<Vec<usize>>,
    /// The images' pixel values, CHW each.
    pub pixels: Vec<Vec<f32>>,
}

/// A batch on the device, padded on the right.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `[B * T]`.
    pub ids: Tensor<1, Int>,
    /// For each position its row in `[tokens; v]`, `[B * T]`.
    pub splice_rows: Tensor<1, Int>,
    /// For each position the id that its output is trained on (the next position's label), or -100 for none, `[B * T]`;
    /// on the host, so that only the rows with a label are computed.
    pub targets: Vec<i64>,
    /// Images in sample order, `[images, channels, H, W]`.
    pub pixels: Option<Tensor<4>>,
    /// Patch features of the images `[M, vision]`, where the caller has them already (a frozen encoder's never change).
    pub features: Option<Tensor<2>>,
    /// Where images and text sit.
    pub layout: SupervisionLayout,
    /// Real positions per sample.
    pub lengths: Vec<usize>,
}

impl Batch {
    /// Pads and stacks samples. `image` gives the pixel values' channels, height and width.
    pub fn collate(samples: &[ImageTokens], pad: u32, image: [usize; 3], device: &Device) -> Self {
        let (b, t) = (samples.len(), samples.iter().map(|s| s.ids.len()).max().unwrap_or(0));
        let mut ids = vec![i64::from(pad); b * t];
        let mut splice: Vec<i64> = (0..(b * t) as i64).collect();
        let mut targets = vec![-100; b * t];
        let (mut pixels, mut images, mut next) = (Vec::new(), Vec::new(), (b * t) as i64);
        for (sample, tokens) in samples.iter().enumerate() {
            let start = sample * t;
            for (position, id) in tokens.ids.iter().enumerate() {
                ids[start + position] = i64::from(*id);
                if let Some(label) = tokens.labels.get(position)
                    && position > 0
                    && *label >= 0
                {
                    targets[start + position - 1] = *label;
                }
            }
            let all: Vec<usize> = tokens.images.iter().flatten().copied().collect();
            for positions in &tokens.images {
                for position in positions {
                    splice[start + position] = next;
                    next += 1;
                }
                let after = positions.last().map_or(0, |p| p + 1);
                images.push(ImageSpan {
                    sample,
                    positions: positions.clone(),
                    text_rows: (after..tokens.ids.len()).filter(|p| !all.contains(p)).collect(),
                });
            }
            pixels.extend(tokens.pixels.iter());
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
            layout: SupervisionLayout { batch: b, sequence: t, images },
            lengths: samples.iter().map(|s| s.ids.len()).collect(),
        }
    }

    /// Target tokens in the batch.
    pub fn label_count(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }
}
