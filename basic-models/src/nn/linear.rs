//! Linear layers. Their product goes through `basic_core::ops`, which has a faster one for some devices.

use basic_core::ops;
use burn::nn::Linear;
use burn::tensor::Tensor;

/// Applies the layer.
///
/// # Shapes
/// - x: `[.., in]`
/// - output: `[.., out]`
pub(super) fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    ops::linear(x, layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val()))
}
