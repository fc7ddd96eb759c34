//! Linear layers. Their product goes through `basic_core::ops`, which has a faster one for some devices.

use basic_core::ops;
use burn::nn::Linear;
use burn::tensor::Tensor;

use crate::adapters::dense;

/// Applies the layer; one with adapters as `x W + scale (x A) B + b`.
///
/// Burn composes the matrix `W + scale A B` instead. In 16 bits that rounds away what A and B have learned wherever it is
/// below half a unit in the last place of W, and its backward pass computes the dense gradient of the matrix.
///
/// # Shapes
/// - x: `[.., in]`
/// - output: `[.., out]`
pub(super) fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    let Some(adapter) = layer.weight.adapter() else { return ops::linear(x, layer.weight.val(), bias) };
    let weight = dense(layer.weight.base());
    let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(x.dtype()) };
    let learned = ops::linear(ops::linear(x.clone(), adapter.a.val(), None), adapter.b.val(), None);
    ops::linear(x, weight, bias) + learned.mul_scalar(adapter.scale)
}
