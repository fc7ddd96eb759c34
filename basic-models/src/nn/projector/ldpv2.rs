//! MobileVLM V2's lightweight downsample projector, LDPv2 (Chu et al. 2024).

use basic_core::ops::gelu;
use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::grid::{convolved, depthwise, pooled};
use super::linear;

/// An MLP, a pooling of the grid, and a convolution by channel whose result is added.
#[derive(Module, Debug)]
pub struct Ldp {
    mlp_1: Linear,
    mlp_2: Linear,
    peg: Conv2d,
    side: usize,
}

impl Ldp {
    /// A projector from features `vision` wide to `side * side` visual embeddings `d` wide.
    pub fn new(vision: usize, d: usize, side: usize, device: &Device) -> Self {
        let linear = |i, o| LinearConfig::new(i, o).init(device);
        Self { mlp_1: linear(vision, d), mlp_2: linear(d, d), peg: depthwise(d, true, device), side }
    }

    /// # Shapes
    /// - features: `[N, P, vision]`, a square grid row by row
    /// - output: `[N, side * side, d]`
    pub fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        let x = linear(&self.mlp_2, gelu(linear(&self.mlp_1, features)));
        let x = pooled(x, self.side);
        x.clone() + convolved(&self.peg, x)
    }
}
