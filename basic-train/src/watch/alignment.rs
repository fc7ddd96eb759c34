//! Measures how close the visual embeddings are to the supervisory embeddings, and how much attention they receive.

use basic_core::{SupervisionLayout, Targets};
use burn::tensor::{DType, Tensor};

/// The sums that [`alignment`] computes, and the counts that they are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Alignment {
    /// Sum of the patch weights over all patches.
    pub mass: f64,
    /// Sum over the patches of the cosine between v and V^.
    pub cosines: f64,
    /// Number of images with text after them; only these have attention mass.
    pub images: f64,
    /// Number of patches.
    pub patches: f64,
}

/// The sum of the patch weights and the sum of the cosines between v and V^ over all patches, without gradients. The
/// two values are read back together with the losses.
///
/// # Shapes
/// - v: `[M, d]`
/// - output: `[2]` in f32
pub fn alignment(v: &Tensor<2>, targets: &Targets) -> Tensor<1> {
    let v = v.clone().without_autodiff().cast(DType::F32);
    let target = targets.embeddings.clone().without_autodiff().cast(DType::F32);
    let norm = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt(); // [M, 1]
    // A zero vector has no direction, so its cosine counts as 0.
    let norms = (norm(&v) * norm(&target)).clamp_min(f32::MIN_POSITIVE);
    let cosines = (v * target).sum_dim(1) / norms; // [M, 1]
    let mass = targets.weights.clone().without_autodiff().cast(DType::F32);
    Tensor::cat(vec![mass.sum(), cosines.sum()], 0)
}

impl Alignment {
    /// Combines the two values that were read back with the counts of the batch's layout.
    pub fn new(read: [f32; 2], layout: &SupervisionLayout) -> Self {
        let seen = layout.images.iter().filter(|image| !image.text_rows.is_empty()).count();
        let patches: usize = layout.images.iter().map(|image| image.positions.len()).sum();
        Self { mass: read[0].into(), cosines: read[1].into(), images: seen as f64, patches: patches as f64 }
    }

    /// The four numbers, to be summed over micro-batches and replicas.
    pub fn sums(&self) -> [f64; 4] {
        [self.mass, self.cosines, self.images, self.patches]
    }

    /// The inverse of [`Alignment::sums`], for summed numbers.
    pub fn from_sums([mass, cosines, images, patches]: [f64; 4]) -> Self {
        Self { mass, cosines, images, patches }
    }

    /// The share of the text's attention that goes to an image, from 0 to 1: the mean over images, supervising layers,
    /// heads and text positions. `None` if no image has text after it.
    pub fn attention_mass(&self) -> Option<f64> {
        (self.images > 0.0).then(|| self.mass / self.images)
    }

    /// The mean cosine between v and V^ over patches; `None` if there is no image.
    pub fn cosine(&self) -> Option<f64> {
        (self.patches > 0.0).then(|| self.cosines / self.patches)
    }
}
