//! Activations.

use burn::tensor::Tensor;

/// The exact GELU, `x / 2 (1 + erf(x / sqrt(2)))`. Burn's own has the same value, but most backends' backward pass takes
/// the derivative of the tanh approximation (off by up to 5e-4): composed of `erf`, the gradient is the function's own.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cdf = x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    x * cdf
}
