//! RMS norms that scale by their weight or by 1 + weight.

use basic_core::ops::rms_norm;
use burn::nn::{Initializer, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, Tensor};

use crate::config::DecoderConfig;

/// A norm over `width` numbers of a decoder, which scales by 1 at first.
pub(super) fn norm(config: &DecoderConfig, width: usize, device: &Device) -> RmsNorm {
    let mut norm = RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device);
    if config.family.norm_plus_one {
        norm.gamma = Initializer::Zeros.init([width], device);
    }
    norm
}

/// Normalizes with the weight of Burn's norm and this project's fused operation. With `one_plus` the
/// scale is 1 + weight.
pub(super) fn normalized<const D: usize>(norm: &RmsNorm, x: Tensor<D>, one_plus: bool) -> Tensor<D> {
    let gamma = norm.gamma.val();
    if !one_plus {
        return rms_norm(x, gamma, norm.epsilon);
    }
    // In f32, as in transformers: in bf16, 1 + weight would lose the weight's low bits.
    let dtype = x.dtype();
    rms_norm(x.cast(DType::F32), gamma.cast(DType::F32).add_scalar(1.0), norm.epsilon).cast(dtype)
}
