//! Linear layers, whose product the device may have an operation of its own for.

use basic_core::ops;
use burn::nn::Linear;
use burn::tensor::Tensor;

/// The layer's output.
///
/// # Shapes
/// - x: `[.., in]`
/// - output: `[.., out]`
pub(super) fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    ops::linear(x, layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val()))
}
