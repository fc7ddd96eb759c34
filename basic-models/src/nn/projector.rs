//! The projector between vision encoder and decoder.

use basic_core::ops::gelu;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

/// `mlp2x_gelu`: linear, gelu, linear (transformers' `LlavaMultiModalProjector`).
#[derive(Module, Debug)]
pub struct MlpProjector {
    linear_1: Linear,
    linear_2: Linear,
}

impl MlpProjector {
    /// A projector from the vision encoder's width to the decoder's, with lazily made weights.
    pub fn new(vision: usize, text: usize, device: &Device) -> Self {
        Self {
            linear_1: LinearConfig::new(vision, text).init(device),
            linear_2: LinearConfig::new(text, text).init(device),
        }
    }

    /// # Shapes
    /// - features: `[M, vision]`
    /// - output: `[M, d]`, the visual embeddings v
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(gelu(self.linear_1.forward(features)))
    }
}
