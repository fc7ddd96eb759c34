//! Honeybee's C-Abstractor (Cha et al., CVPR 2024): convolution blocks before and after a pooling of the grid.

use basic_core::ops::silu;
use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor};

use super::grid::{convolved, depthwise, pooled};
use super::linear;

/// Convolution blocks, a pooling, convolution blocks, and an MLP. Honeybee's projector with learned positions and without
/// tokens after the image.
#[derive(Module, Debug)]
pub struct CAbstractor {
    pos_emb: Param<Tensor<2>>, // [P, vision]
    before: Vec<RegBlock>,
    after: Vec<RegBlock>,
    readout_1: Linear,
    readout_2: Linear,
    side: usize,
}

/// A bottleneck block of RegNet (Radosavovic et al. 2020) with layer norms over the channels: `timm`'s `RegStage` with
/// its defaults, whose 3 x 3 convolution takes each channel by itself. Convolutions of 1 x 1 are linear layers here.
#[derive(Module, Debug)]
struct RegBlock {
    conv1: Linear,
    norm1: LayerNorm,
    conv2: Conv2d,
    norm2: LayerNorm,
    squeeze: Linear,
    excite: Linear,
    conv3: Linear,
    norm3: LayerNorm,
    // Present where the width changes.
    shortcut: Option<Linear>,
    shortcut_norm: Option<LayerNorm>,
}

impl CAbstractor {
    /// A C-Abstractor from `patches` features `vision` wide to `side * side` visual embeddings `d` wide; `width` is that
    /// of the blocks.
    pub fn new([vision, width, d]: [usize; 3], patches: usize, side: usize, layers: usize, device: &Device) -> Self {
        let blocks =
            |first| (0..layers).map(|i| RegBlock::new(if i == 0 { first } else { width }, width, device)).collect();
        Self {
            pos_emb: Initializer::Normal { mean: 0.0, std: 0.02 }.init([patches, vision], device),
            before: blocks(vision),
            after: blocks(width),
            readout_1: LinearConfig::new(width, d).init(device),
            readout_2: LinearConfig::new(d, d).init(device),
            side,
        }
    }

    /// # Shapes
    /// - features: `[N, P, vision]`, a square grid row by row
    /// - output: `[N, side * side, d]`
    pub fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        let mut x = features + self.pos_emb.val().unsqueeze::<3>();
        for block in &self.before {
            x = block.forward(x);
        }
        x = pooled(x, self.side);
        for block in &self.after {
            x = block.forward(x);
        }
        linear(&self.readout_2, silu(linear(&self.readout_1, x)))
    }
}

impl RegBlock {
    fn new(input: usize, width: usize, device: &Device) -> Self {
        let plain = |i, o| LinearConfig::new(i, o).with_bias(false).init(device);
        let norm = || LayerNormConfig::new(width).init(device);
        // A quarter of the block's input, rounded as Python rounds.
        let squeezed = ((input as f64 * 0.25).round_ties_even() as usize).max(1);
        Self {
            conv1: plain(input, width),
            norm1: norm(),
            conv2: depthwise(width, false, device),
            norm2: norm(),
            squeeze: LinearConfig::new(width, squeezed).init(device),
            excite: LinearConfig::new(squeezed, width).init(device),
            conv3: plain(width, width),
            norm3: norm(),
            shortcut: (input != width).then(|| plain(input, width)),
            shortcut_norm: (input != width).then(norm),
        }
    }

    /// # Shapes
    /// - x: `[N, P, input]`
    /// - output: `[N, P, width]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = silu(self.norm1.forward(linear(&self.conv1, x.clone())));
        let y = silu(self.norm2.forward(convolved(&self.conv2, y)));
        // Squeeze and excitation: each channel is scaled by what the means of all channels say.
        let means = y.clone().mean_dim(1); // [N, 1, width]
        let y = y * sigmoid(linear(&self.excite, silu(linear(&self.squeeze, means))));
        let y = self.norm3.forward(linear(&self.conv3, y));
        let shortcut = match (&self.shortcut, &self.shortcut_norm) {
            (Some(layer), Some(norm)) => norm.forward(linear(layer, x)),
            _ => x,
        };
        silu(y + shortcut)
    }
}
