//! Activation functions with derivatives in closed form: only the input is kept, and 16-bit inputs are computed in f32.
//! In bfloat16, `1 + erf` and `1 - sigmoid` would lose a whole tail to rounding.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI, SQRT_2};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels};

/// Which function [`FusedOps::activation`] applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationKind {
    /// [`gelu`].
    Gelu,
    /// [`gelu_tanh`].
    GeluTanh,
    /// [`quick_gelu`].
    QuickGelu,
    /// [`silu`].
    Silu,
}

/// The exact GELU, `x / 2 (1 + erf(x / sqrt(2)))`. Burn's `gelu` has the same value, but most backends' backward pass
/// computes the derivative of the tanh approximation (off by up to 5e-4); this one computes the exact derivative.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, ActivationKind::Gelu)
}

/// GELU's tanh approximation, `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (PyTorch's `approximate="tanh"`).
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, ActivationKind::GeluTanh)
}

/// `x sigmoid(1.702 x)`, CLIP's GELU (transformers' `quick_gelu`).
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, ActivationKind::QuickGelu)
}

/// `x sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, ActivationKind::Silu)
}

fn apply<const D: usize>(x: Tensor<D>, kind: ActivationKind) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::activation(x.into_dispatch(), kind))
}

/// The coefficient of x^3 relative to that of x, and the coefficient of x in the sigmoid that replaces tanh:
/// `tanh(u) = 2 sigmoid(2 u) - 1`.
const CUBE: f64 = 0.044715;
const TWICE: f64 = FRAC_2_SQRT_PI * SQRT_2;

/// The factor of the input: the cumulative normal distribution, or a sigmoid.
fn gate<B: Backend>(x: Array<B>, kind: ActivationKind) -> Array<B> {
    match kind {
        ActivationKind::Gelu => x.scale(FRAC_1_SQRT_2).erf().plus(1.0).scale(0.5),
        ActivationKind::GeluTanh => {
            let slope = x.clone().square().scale(CUBE * TWICE).plus(TWICE);
            x.mul(slope).sigmoid()
        }
        ActivationKind::QuickGelu => x.scale(1.702).sigmoid(),
        ActivationKind::Silu => x.sigmoid(),
    }
}

pub fn portable<B: Backend>(x: FloatTensor<B>, kind: ActivationKind) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = Array::<B>(x).cast(accumulator(dtype));
    gate(x.clone(), kind).mul(x).cast(dtype).0
}

/// `grad (gate(x) + x gate'(x))`.
pub fn portable_backward<B: Backend>(x: FloatTensor<B>, kind: ActivationKind, grad: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    let wide = accumulator(dtype);
    let (x, grad) = (Array::<B>(x).cast(wide), Array::<B>(grad).cast(wide));
    let gate = gate(x.clone(), kind);
    // The slope of the sigmoid, s (1 - s); each case multiplies it by the slope of the sigmoid's argument.
    let sigmoid = |gate: &Array<B>| gate.clone().mul(gate.clone().neg().plus(1.0));
    let slope = match kind {
        ActivationKind::Gelu => x.clone().square().scale(-0.5).exp().scale(1.0 / (2.0 * PI).sqrt()),
        ActivationKind::GeluTanh => sigmoid(&gate).mul(x.clone().square().scale(3.0 * CUBE * TWICE).plus(TWICE)),
        ActivationKind::QuickGelu => sigmoid(&gate).scale(1.702),
        ActivationKind::Silu => sigmoid(&gate),
    };
    gate.add(x.mul(slope)).mul(grad).cast(dtype).0
}

pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    kind: ActivationKind,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Activation;

    impl<B: Kernels> Backward<B, 1> for Activation {
        type State = (FloatTensor<B>, ActivationKind);

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let (x, kind) = ops.state;
            if let [Some(parent)] = ops.parents {
                grads.register::<B>(parent.id, B::activation_backward_kernel(x, kind, grad));
            }
        }
    }

    let (x, node) = x.into_parts();
    match Activation.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((x.clone(), kind), B::activation_kernel(x, kind)),
        OpsKind::UnTracked(prep) => prep.finish(B::activation_kernel(x, kind)),
    }
}
