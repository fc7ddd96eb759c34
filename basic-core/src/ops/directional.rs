//! The loss of directional alignment supervision in one pass, with its gradient in closed form.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::array::{Array, accumulator};
use super::distribution::scaled_by_saved;
use super::{FusedOps, Kernels, LossAndGrad};

/// Rows shorter than this are treated as having no direction: they are divided by this length and get no gradient.
pub const SHORTEST: f64 = 1e-12;

/// Directional alignment supervision: `sum_i weights_i |v_i/|v_i| - target_i/|target_i||^2` (docs/method.md).
///
/// Differentiable in `v` alone; the gradient is computed together with the value. A row with `|v_i| <= 1e-12` is
/// divided by `1e-12` and gets a zero gradient; PyTorch's `normalize` would give one of the order of `1e12`.
///
/// # Shapes
/// - v: `[M, d]`
/// - target: `[M, d]`, the supervisory embeddings
/// - weights: `[M]`, the patch weights
/// - output: `[1]`, f32 (f64 for f64 inputs); 0 if M is 0
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn directional_alignment(v: Tensor<2>, target: Tensor<2>, weights: Tensor<1>) -> Tensor<1> {
    let [m, d] = v.dims();
    assert_eq!((target.dims(), weights.dims()), ([m, d], [m]), "directional_alignment: v is [{m}, {d}]");
    if m * d == 0 {
        return Tensor::zeros([1], (&v.device(), accumulator(v.dtype())));
    }
    let dtype = accumulator(v.dtype());
    let (target, weights) = (target.without_autodiff().cast(dtype), weights.without_autodiff().cast(dtype));
    let loss = Dispatch::directional_alignment(v.into_dispatch(), target.into_dispatch(), weights.into_dispatch());
    Tensor::from_dispatch(loss)
}

/// The loss and its gradient `a 2/|v| ((u.t) u - t)`.
pub fn portable<B: Backend>(
    v: FloatTensor<B>,
    target: FloatTensor<B>,
    weights: FloatTensor<B>,
    grad: bool,
) -> LossAndGrad<B> {
    let dtype = v.dtype();
    let m = v.shape()[0];
    let v = Array::<B>(v).cast(accumulator(dtype));
    let length = v.clone().square().sum_dim(1).sqrt(); // [M, 1]
    let u = v.div(length.clone().clamp_min(SHORTEST));
    let t = Array::<B>(target);
    let t = t.clone().div(t.square().sum_dim(1).sqrt().clamp_min(SHORTEST));
    let a = Array::<B>(weights).reshape(&[m, 1]);
    let loss = u.clone().sub(t.clone()).square().sum_dim(1).mul(a.clone()).sum();
    let grad = grad.then(|| {
        let short = length.at_most(SHORTEST);
        let pull = a.scale(2.0).div(length.clamp_min(SHORTEST)).mask_fill(short, 0.0); // [M, 1]
        let cosine = u.clone().mul(t.clone()).sum_dim(1);
        u.mul(cosine).sub(t).mul(pull).cast(dtype).0
    });
    (loss.0, grad)
}

/// The loss. Its gradient is saved for the backward pass.
pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    v: FloatTensor<Autodiff<B, C>>,
    target: FloatTensor<B>,
    weights: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    scaled_by_saved::<B, C>(v, |v, grad| B::directional_alignment_kernel(v, target, weights, grad))
}
