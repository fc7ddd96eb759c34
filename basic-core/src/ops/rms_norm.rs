//! Root-mean-square normalization, which keeps only its input for the backward pass.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels};

/// `x / sqrt(mean(x^2) + epsilon) * gamma` over the last dimension; the mean is computed in f32 (f64 for f64), the
/// product with gamma in x's type (transformers' `LlamaRMSNorm`).
///
/// # Shapes
/// - x and output: `[…, d]`
/// - gamma: `[d]`
///
/// # Panics
///
/// Panics if gamma does not fit x.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let shape = x.shape();
    let [d] = gamma.dims();
    assert_eq!(shape[D - 1], d, "rms_norm: gamma is [{d}]");
    // Burn's `reshape` reads a zero as "keep this dimension".
    if shape.num_elements() == 0 {
        return x;
    }
    let rows = shape.num_elements() / d;
    let trained = gamma.is_tracked();
    let x = x.reshape([rows, d]);
    let y = Dispatch::rms_norm(x.into_dispatch(), gamma.into_dispatch(), epsilon, trained);
    Tensor::<2>::from_dispatch(y).reshape(shape)
}

/// The rows divided by their root mean square, and its reciprocal `[N, 1]`; both in the accumulator's type.
fn normalized<B: Backend>(x: FloatTensor<B>, epsilon: f64) -> (Array<B>, Array<B>) {
    let d = x.shape()[1];
    let x = Array::<B>(x);
    let sums = accumulator(x.dtype());
    let x = x.cast(sums);
    let root = x.clone().square().sum_dim(1).scale(1.0 / d as f64).plus(epsilon).sqrt();
    (x.div(root.clone()), root)
}

pub fn portable<B: Backend>(x: FloatTensor<B>, gamma: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    let dtype = x.dtype();
    let d = gamma.shape()[0];
    normalized::<B>(x, epsilon).0.cast(dtype).mul(Array(gamma).reshape(&[1, d])).0
}

/// With y = x / rms and the output's gradient g, the gradients are `(g gamma - y mean(g gamma y)) / rms` for x and
/// `sum g y` for gamma.
pub fn portable_backward<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f64,
    trained: bool,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let dtype = x.dtype();
    let d = gamma.shape()[0];
    let (y, root) = normalized::<B>(x, epsilon);
    let grad = Array::<B>(grad).cast(y.dtype());
    let gamma_grad = trained.then(|| {
        let sum = grad.clone().mul(y.clone()).sum_dim(0);
        sum.reshape(&[d]).cast(gamma.dtype()).0
    });
    let pulled = grad.mul(Array(gamma).cast(y.dtype()).reshape(&[1, d]));
    let mean = pulled.clone().mul(y.clone()).sum_dim(1).scale(1.0 / d as f64);
    (pulled.sub(y.mul(mean)).div(root).cast(dtype).0, gamma_grad)
}

pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    epsilon: f64,
    trained: bool,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct RmsNorm;

    impl<B: Kernels> Backward<B, 2> for RmsNorm {
        type State = (FloatTensor<B>, FloatTensor<B>, f64, bool);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let (x, gamma, epsilon, trained) = ops.state;
            let (x_grad, gamma_grad) = B::rms_norm_backward_kernel(x, gamma, epsilon, trained, grad);
            let [x, gamma] = ops.parents;
            if let Some(x) = x {
                grads.register::<B>(x.id, x_grad);
            }
            if let (Some(gamma), Some(gamma_grad)) = (gamma, gamma_grad) {
                grads.register::<B>(gamma.id, gamma_grad);
            }
        }
    }

    let ((x, a), (gamma, b)) = (x.into_parts(), gamma.into_parts());
    match RmsNorm.prepare::<C>([a, b]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let state = (x.clone(), gamma.clone(), epsilon, trained);
            prep.finish(state, B::rms_norm_kernel(x, gamma, epsilon))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::rms_norm_kernel(x, gamma, epsilon)),
    }
}
