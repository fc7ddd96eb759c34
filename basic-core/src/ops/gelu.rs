//! The exact GELU with its own derivative.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels};

/// The exact GELU, `x / 2 (1 + erf(x / sqrt(2)))`. Burn's own has the same value, but most backends' backward pass takes
/// the derivative of the tanh approximation (off by up to 5e-4); this one's is the function's own.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::exact_gelu(x.into_dispatch()))
}

fn cdf<B: Backend>(x: Array<B>) -> Array<B> {
    x.scale(FRAC_1_SQRT_2).erf().plus(1.0).scale(0.5)
}

pub fn portable<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = Array::<B>(x);
    let dtype = x.dtype();
    // In 16 bits 1 + erf loses the tail: gelu(-3.5) would be 0.
    let x = x.cast(accumulator(dtype));
    cdf(x.clone()).mul(x).cast(dtype).0
}

/// `grad (cdf(x) + x pdf(x))`.
pub fn portable_backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let x = Array::<B>(x);
    let (dtype, wide) = (x.dtype(), accumulator(x.dtype()));
    let x = x.cast(wide);
    let pdf = x.clone().square().scale(-0.5).exp().scale(1.0 / (2.0 * PI).sqrt());
    cdf(x.clone()).add(x.mul(pdf)).mul(Array(grad).cast(wide)).cast(dtype).0
}

pub fn tracked<B: Kernels, C: CheckpointStrategy>(x: FloatTensor<Autodiff<B, C>>) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Gelu;

    impl<B: Kernels> Backward<B, 1> for Gelu {
        type State = FloatTensor<B>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            if let [Some(parent)] = ops.parents {
                grads.register::<B>(parent.id, B::exact_gelu_backward_kernel(ops.state, grad));
            }
        }
    }

    let (x, node) = x.into_parts();
    match Gelu.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(x.clone(), B::exact_gelu_kernel(x)),
        OpsKind::UnTracked(prep) => prep.finish(B::exact_gelu_kernel(x)),
    }
}
