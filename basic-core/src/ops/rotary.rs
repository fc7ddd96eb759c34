//! Rotary positions: the two halves of a head are rotated against each other, as in Llama's checkpoints.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::Array;
use super::{FusedOps, Kernels};

/// Rotates every head by the angles of its position. The backward pass rotates the other way and keeps nothing of `x`.
///
/// # Shapes
/// - x and output: `[B, T, heads, head_dim]`
/// - cos, sin: `[B or 1, T, head_dim / 2]`; no gradient
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn rotate(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let [b, t, _, width] = x.dims();
    let [own, positions, half] = cos.dims();
    let fits = (own == b || own == 1) && positions == t && 2 * half == width && cos.dims() == sin.dims();
    assert!(fits, "rotate: x is {:?}, cos {:?}, sin {:?}", x.dims(), cos.dims(), sin.dims());
    if x.shape().num_elements() == 0 {
        return x;
    }
    let (cos, sin) = (cos.without_autodiff(), sin.without_autodiff());
    Tensor::from_dispatch(Dispatch::rotate(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
}

pub fn portable<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    inverse: bool,
) -> FloatTensor<B> {
    let x = Array::<B>(x);
    let [own, t, half] = [0, 1, 2].map(|dim| cos.shape()[dim]);
    let cos = Array::<B>(cos).reshape(&[own, t, 1, half]);
    let sin = Array::<B>(sin).reshape(&[own, t, 1, half]);
    let sin = if inverse { sin.neg() } else { sin };
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let left = first.clone().mul(cos.clone()).sub(second.clone().mul(sin.clone()));
    let right = second.mul(cos).add(first.mul(sin));
    Array::cat(vec![left, right], 3).0
}

pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Rotate;

    impl<B: Kernels> Backward<B, 1> for Rotate {
        type State = [FloatTensor<B>; 2];

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [cos, sin] = ops.state;
            if let [Some(parent)] = ops.parents {
                grads.register::<B>(parent.id, B::rotate_kernel(grad, cos, sin, true));
            }
        }
    }

    let (x, node) = x.into_parts();
    match Rotate.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish([cos.clone(), sin.clone()], B::rotate_kernel(x, cos, sin, false)),
        OpsKind::UnTracked(prep) => prep.finish(B::rotate_kernel(x, cos, sin, false)),
    }
}
