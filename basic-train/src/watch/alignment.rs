//! How far the visual embeddings already are what the decoder makes of them.

use basic_core::{SupervisionLayout, Targets};
use burn::tensor::{DType, Tensor};

/// The sums that [`alignment`] read from the device, and what they are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Alignment {
    /// Sum of the patch weights over all patches.
    pub mass: f64,
    /// Sum over the patches of the cosine between v and V^.
    pub cosines: f64,
    /// Images with text after them: only these have attention mass.
    pub images: f64,
    /// Patches.
    pub patches: f64,
}

/// The sum of the patch weights and the sum of the cosines between v and V^ over all patches, without gradient: two
/// values to read back with the losses.
///
/// # Shapes
/// - v: `[M, d]`
/// - output: `[2]` in f32
pub fn alignment(v: &Tensor<2>, targets: &Targets) -> Tensor<1> {
    let v = v.clone().without_autodiff().cast(DType::F32);
    let target = targets.embeddings.clone().without_autodiff().cast(DType::F32);
    let norm = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt(); // [M, 1]
    // A zero vector has no direction: its cosine counts as 0.
    let norms = (norm(&v) * norm(&target)).clamp_min(f32::MIN_POSITIVE);
    let cosines = (v * target).sum_dim(1) / norms; // [M, 1]
    let mass = targets.weights.clone().without_autodiff().cast(DType::F32);
    Tensor::cat(vec![mass.sum(), cosines.sum()], 0)
}

impl Alignment {
    /// From the two values read back and the batch's layout.
    pub fn new(read: [f32; 2], layout: &SupervisionLayout) -> Self {
        let seen = layout.images.iter().filter(|image| !image.text_rows.is_empty()).count();
        let patches: usize = layout.images.iter().map(|image| image.positions.len()).sum();
        Self { mass: read[0].into(), cosines: read[1].into(), images: seen as f64, patches: patches as f64 }
    }

    /// The four numbers, to be added up over micro-batches and replicas.
    pub fn sums(&self) -> [f64; 4] {
        [self.mass, self.cosines, self.images, self.patches]
    }

    /// From added-up [`Alignment::sums`].
    pub fn from_sums([mass, cosines, images, patches]: [f64; 4]) -> Self {
        Self { mass, cosines, images, patches }
    }

    /// The share of its attention that the text pays to an image, 0 to 1: the mean over images, supervising layers, heads
    /// and text positions. `None` without an image that text follows.
    pub fn attention_mass(&self) -> Option<f64> {
        (self.images > 0.0).then(|| self.mass / self.images)
    }

    /// The mean cosine between v and V^ over patches; `None` without an image.
    pub fn cosine(&self) -> Option<f64> {
        (self.patches > 0.0).then(|| self.cosines / self.patches)
    }
}
