//! The embeddings of patches: by a convolution, or of patches that are given flat; with positions by a table, by a parameter
//! or by sines.

use basic_core::ops::{linear, patches};
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, RmsNorm};
use burn::tensor::{Device, Tensor};

use super::super::norm::normalized;
use super::super::positions::{interpolated, sines};
use crate::config::{Positions, VisionConfig};

/// Embeddings of the patches and of the special positions before them, with position embeddings: a table, or a
/// parameter with a batch dimension.
#[derive(Module, Debug)]
pub(super) struct PatchEmbeddings {
    patch_embedding: PatchEmbedding,
    rms_norm: Option<RmsNorm>,
    class_embedding: Option<Param<Tensor<1>>>,
    position_embedding: Option<Embedding>,
    cls_token: Option<Param<Tensor<3>>>,
    mask_token: Option<Param<Tensor<2>>>,
    mask_token_3d: Option<Param<Tensor<3>>>,
    position_embeddings: Option<Param<Tensor<3>>>,
    register_tokens: Option<Param<Tensor<3>>>,
    // The number of patches along a side: of the input images, and of those that the position
    // embeddings were trained for.
    grid: [usize; 2],
    // Whether positions are told by sines.
    native: bool,
}

/// A convolution over the patches, or a matrix for patches that are given flat, with the channels last.
#[derive(Module, Debug)]
struct PatchEmbedding {
    weight: Option<Param<Tensor<4>>>,
    weight_flat: Option<Param<Tensor<2>>>, // [hidden, values], as on disk
    bias: Option<Param<Tensor<1>>>,
}

impl VisionConfig {
    pub(super) fn patch_embeddings(&self, device: &Device) -> PatchEmbeddings {
        let (d, trained) = (self.hidden_size, self.image_size / self.patch_size);
        let patches = trained * trained;
        let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
        let (class, kind) = (self.family.class, self.family.positions);
        let batched = matches!(kind, Positions::Batched | Positions::Rotary);
        let mask = |of: bool| self.mask_token && of;
        let positions = patches + usize::from(class);
        let Conv2d { weight, bias, .. } = Conv2dConfig::new([self.num_channels, d], [self.patch_size; 2])
            .with_bias(self.family.patch_bias)
            .init(device);
        let flat = self.num_channels * self.patch_size * self.patch_size;
        PatchEmbeddings {
            patch_embedding: PatchEmbedding {
                weight: (!self.is_flexible()).then_some(weight),
                weight_flat: self.is_flexible().then(|| normal.init([d, flat], device)),
                bias,
            },
            rms_norm: self.family.rms_norms.then(|| self.rms_norm(device)),
            class_embedding: (class && !batched).then(|| normal.init([d], device)),
            position_embedding: (!batched && !self.native).then(|| EmbeddingConfig::new(positions, d).init(device)),
            cls_token: (class && batched).then(|| normal.init([1, 1, d], device)),
            mask_token: mask(kind != Positions::Rotary).then(|| normal.init([1, d], device)),
            mask_token_3d: mask(kind == Positions::Rotary).then(|| Initializer::Zeros.init([1, 1, d], device)),
            position_embeddings: (kind == Positions::Batched).then(|| normal.init([1, positions, d], device)),
            register_tokens: (self.registers > 0).then(|| normal.init([1, self.registers, d], device)),
            grid: [self.grid(), trained],
            native: self.native,
        }
    }
}

impl PatchEmbeddings {
    /// Embeds images as patches, with the special positions before them and position embeddings added.
    ///
    /// # Shapes
    /// - pixels: `[N, channels, H, W]`, or `[N, values, 1, 1]` of images with grids of their own
    /// - output: `[N, special + patches, hidden]`; for images with grids of their own also which patches are none but padding,
    ///   `[N, patches]` of 1 and 0
    pub(super) fn forward(&self, pixels: Tensor<4>) -> (Tensor<3>, Option<Tensor<2>>) {
        let PatchEmbedding { weight, weight_flat, bias } = &self.patch_embedding;
        let bias = bias.as_ref().map(|bias| bias.val());
        let mut x = match (weight, weight_flat) {
            (Some(weight), _) => patches(pixels, weight.val(), bias), // [N, patches, hidden]
            (None, Some(weight)) => {
                let (x, valid) = self.flexible(pixels, weight.val(), bias);
                return (x, Some(valid));
            }
            (None, None) => return (pixels.squeeze_dim(3), None),
        };
        let [n, _, d] = x.dims();
        if let Some(norm) = &self.rms_norm {
            x = normalized(norm, x, false);
        }
        if self.native {
            let positions = sines(self.grid[0], d, x.dtype(), &x.device().without_autodiff());
            x = x + positions.unsqueeze::<3>();
        }
        let class = self.class_embedding.as_ref().map(|class| class.val().reshape([1, 1, d]));
        if let Some(class) = class.or_else(|| self.cls_token.as_ref().map(|token| token.val())) {
            x = Tensor::cat(vec![class.expand([n, 1, d]), x], 1);
        }
        if let Some(table) = &self.position_embedding {
            x = x + table.weight.val().unsqueeze::<3>();
        }
        if let Some(positions) = &self.position_embeddings {
            x = x + self.fitted(positions.val());
        }
        if let Some(registers) = &self.register_tokens {
            let [_, count, _] = registers.dims();
            let t = x.dims()[1];
            let (class, patches) = (x.clone().narrow(1, 0, 1), x.narrow(1, 1, t - 1));
            x = Tensor::cat(vec![class, registers.val().expand([n, count, d]), patches], 1);
        }
        (x, None)
    }

    /// Embeds the patches of images with grids of their own, and which of them are none but padding. The table of positions
    /// is interpolated to each image's grid: a position's weight is the product of its row's and its column's.
    ///
    /// # Shapes
    /// - pixels: `[N, patches * values, 1, 1]`, see [`VisionConfig::patch_values`]
    /// - output: `[N, patches, hidden]` and `[N, patches]`
    fn flexible(&self, pixels: Tensor<4>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> (Tensor<3>, Tensor<2>) {
        let ([n, all, ..], [d, own], [side, _]) = (pixels.dims(), weight.dims(), self.grid);
        let count = all / (own + 2 * side + 1);
        let x = pixels.reshape([n, count, own + 2 * side + 1]);
        let part = |start: usize, length: usize| x.clone().narrow(2, start, length);
        let embedded = linear(part(0, own).reshape([n * count, own]), weight.transpose(), bias);
        let rows = part(own, side).reshape([n * count, side, 1]);
        let columns = part(own + side, side).reshape([n * count, 1, side]);
        let weights = (rows * columns).reshape([n * count, side * side]);
        let valid = part(own + 2 * side, 1).reshape([n, count]);
        let Some(table) = &self.position_embedding else { return (embedded.reshape([n, count, d]), valid) };
        ((embedded + weights.matmul(table.weight.val())).reshape([n, count, d]), valid)
    }
}

impl PatchEmbeddings {
    /// The position embeddings, interpolated to the grid of the input images.
    ///
    /// # Shapes
    /// - positions: `[1, 1 + trained patches, hidden]`
    /// - output: `[1, 1 + patches, hidden]`
    fn fitted(&self, positions: Tensor<3>) -> Tensor<3> {
        let [new, old] = self.grid;
        if new == old {
            return positions;
        }
        let class = positions.clone().narrow(1, 0, 1);
        let patches = positions.narrow(1, 1, old * old).squeeze_dim::<2>(0);
        let patches = interpolated(patches, old, new, self.register_tokens.is_some());
        Tensor::cat(vec![class, patches.unsqueeze::<3>()], 1)
    }
}
