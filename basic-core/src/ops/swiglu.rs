//! `silu(gate) * up` in one pass each way: only the two inputs are kept, and 16-bit inputs are computed in f32.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels};

/// `silu(gate) * up`, the middle of Llama's feed-forward block.
///
/// # Panics
///
/// Panics if the shapes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "swiglu: gate and up have one shape");
    Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub fn portable<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = gate.dtype();
    let [gate, up] = [gate, up].map(|x| Array::<B>(x).cast(accumulator(dtype)));
    gate.clone().mul(gate.sigmoid()).mul(up).cast(dtype).0
}

/// With s = sigmoid(g), the gradients are `grad up s (1 + g (1 - s))` for the gate and `grad g s` for up.
pub fn portable_backward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let dtype = gate.dtype();
    let [gate, up, grad] = [gate, up, grad].map(|x| Array::<B>(x).cast(accumulator(dtype)));
    let s = gate.clone().sigmoid();
    let slope = gate.clone().mul(s.clone().neg().plus(1.0)).plus(1.0).mul(s.clone());
    [grad.clone().mul(up).mul(slope), grad.mul(gate).mul(s)].map(|x| x.cast(dtype).0)
}

pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    gate: FloatTensor<Autodiff<B, C>>,
    up: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Swiglu;

    impl<B: Kernels> Backward<B, 2> for Swiglu {
        type State = [FloatTensor<B>; 2];

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [gate, up] = ops.state;
            let both = B::swiglu_backward_kernel(gate, up, grad);
            for (parent, grad) in ops.parents.into_iter().zip(both) {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, grad);
                }
            }
        }
    }

    let ((gate, a), (up, b)) = (gate.into_parts(), up.into_parts());
    match Swiglu.prepare::<C>([a, b]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish([gate.clone(), up.clone()], B::swiglu_kernel(gate, up)),
        OpsKind::UnTracked(prep) => prep.finish(B::swiglu_kernel(gate, up)),
    }
}
