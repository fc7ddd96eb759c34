//! The traits behind each operation: [`FusedOps`], which Burn's dispatch calls, and [`Kernels`], the computations.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
mod tracked;
mod untracked;

#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::tensor::DType;

use super::adamw::{AdamWStep, Updated, UpdatedMaster};
use super::array::Array;
use super::{ActivationKind, HeadLayout, Tensors};
use super::{
    activation, adamw, attention, cross_entropy, directional, distribution, embedding, product, rms_norm, rotary,
    swiglu,
};

/// A loss, `[1]`, and its gradient if it was asked for.
pub type LossAndGrad<B> = (FloatTensor<B>, Option<FloatTensor<B>>);

/// A loss, `[1]`, and its gradients with respect to its two differentiable inputs, if they were asked for.
pub type LossAndGrads<B> = (FloatTensor<B>, [Option<FloatTensor<B>>; 2]);

/// The operations as Burn's dispatch calls them. Call the functions of the parent module instead: they check shapes.
///
/// Each method has the shapes and the meaning of the function that its documentation names.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda")),
    Autodiff
)]
pub trait FusedOps: Backend {
    /// [`directional_alignment`](super::directional_alignment).
    fn directional_alignment(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// [`semantic_distribution`](super::semantic_distribution_within).
    fn semantic_distribution(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        table: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        budget: Option<usize>,
    ) -> FloatTensor<Self>;

    /// [`linear_cross_entropy`](super::linear_cross_entropy_within) on rows that all have a label; `trained` says
    /// whether hidden and head need a gradient.
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        labels: IntTensor<Self>,
        layout: HeadLayout,
        divisor: f64,
        budget: Option<usize>,
        trained: [bool; 2],
    ) -> FloatTensor<Self>;

    /// [`capped_attention`](super::capped_attention), or [`attention_to_all`](super::attention_to_all) if not `causal`:
    /// the output and, without a gradient, the log-sum-exp of each query's scores.
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        causal: bool,
        cap: Option<f64>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// [`attention_mass`](super::attention_mass); no gradient.
    fn attention_mass(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        first: IntTensor<Self>,
        rows: IntTensor<Self>,
        readout: FloatTensor<Self>,
        cap: Option<f64>,
    ) -> FloatTensor<Self>;

    /// [`product`](super::product).
    fn product(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`swiglu`](super::swiglu).
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`gelu`](super::gelu) and the other activation functions.
    fn activation(x: FloatTensor<Self>, kind: ActivationKind) -> FloatTensor<Self>;

    /// [`embedding`](super::embedding).
    fn embedding_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;

    /// [`rms_norm`](super::rms_norm) on rows, `[N, d]`; `trained` says whether gamma needs a gradient.
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64, trained: bool) -> FloatTensor<Self>;

    /// [`rotate`](super::rotate).
    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`adamw_each`](super::adamw_each) for parameters that agree in their types and in everything else: of each, its
    /// value, its master if they have `masters`, its gradient and its moments. Returns all but the gradients; no gradient.
    fn adamw(#[extension_type] tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self>;

    /// [`sums_of_squares_of_each`](super::sums_of_squares_of_each) of tensors of one type; no gradient.
    fn sums_of_squares(#[extension_type] xs: Tensors<Self>) -> Tensors<Self>;
}

/// The computations behind [`FusedOps`], forward and backward, on a backend without autodiff. The default
/// implementations are portable; a backend overrides those that it can do better.
pub trait Kernels: Backend {
    /// The size in bytes of a block of scores or logits on this device; `None` leaves it to each operation.
    fn block_budget(_device: &Self::Device) -> Option<usize> {
        None
    }

    /// `a b`, `[.., m, k]` by `[.., k, n]`, in type `dtype`: the inputs' own, or the one in which
    /// their sums are computed.
    fn product_kernel(a: FloatTensor<Self>, b: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        product::portable::<Self>(a, b, dtype)
    }

    /// The loss and its gradient with respect to `v`.
    fn directional_alignment_kernel(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        grad: bool,
    ) -> LossAndGrad<Self> {
        directional::portable::<Self>(v, target, weights, grad)
    }

    /// The loss and its gradient with respect to `v`, in chunks of rows whose logits fit `budget` bytes.
    fn semantic_distribution_kernel(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        table: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        budget: usize,
        grad: bool,
    ) -> LossAndGrad<Self> {
        distribution::portable::<Self>(v, target, table, weights, budget, grad)
    }

    /// The loss and its gradients with respect to `hidden` and `head`; the logits of a chunk of
    /// rows fit `budget` bytes.
    fn linear_cross_entropy_kernel(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        labels: IntTensor<Self>,
        layout: HeadLayout,
        divisor: f64,
        budget: usize,
        grads: [bool; 2],
    ) -> LossAndGrads<Self> {
        cross_entropy::portable::<Self>(hidden, head, labels, layout, divisor, budget, grads)
    }

    /// The output and the log-sum-exp, `[B, heads, T]`.
    fn attention_kernel(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        causal: bool,
        cap: Option<f64>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::portable::<Self>(q, k, v, first, causal, cap)
    }

    /// The gradients with respect to q, k and v.
    fn attention_backward_kernel(saved: attention::Saved<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        attention::portable_backward::<Self>(saved, grad)
    }

    /// The attention that the rows of each read-out put on each key: see [`attention_mass`](super::attention_mass).
    fn attention_mass_kernel(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        first: IntTensor<Self>,
        rows: IntTensor<Self>,
        readout: FloatTensor<Self>,
        cap: Option<f64>,
    ) -> FloatTensor<Self> {
        attention::portable_mass::<Self>(q, k, lse, first, rows, readout, cap)
    }

    /// `silu(gate) * up`.
    fn swiglu_kernel(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::portable::<Self>(gate, up)
    }

    /// The gradients with respect to gate and up.
    fn swiglu_backward_kernel(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        swiglu::portable_backward::<Self>(gate, up, grad)
    }

    /// The activation function of each element.
    fn activation_kernel(x: FloatTensor<Self>, kind: ActivationKind) -> FloatTensor<Self> {
        activation::portable::<Self>(x, kind)
    }

    /// The gradient with respect to the input.
    fn activation_backward_kernel(
        x: FloatTensor<Self>,
        kind: ActivationKind,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        activation::portable_backward::<Self>(x, kind, grad)
    }

    /// The gradient of a table of `rows` rows from which the rows `ids` were taken.
    fn embedding_backward_kernel(rows: usize, ids: IntTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        embedding::portable_backward::<Self>(rows, ids, grad)
    }

    /// The rows, normalized.
    fn rms_norm_kernel(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        rms_norm::portable::<Self>(x, gamma, epsilon)
    }

    /// The gradients with respect to x and, if it is trained, gamma.
    fn rms_norm_backward_kernel(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        trained: bool,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        rms_norm::portable_backward::<Self>(x, gamma, epsilon, trained, grad)
    }

    /// The rotated heads; rotated the other way if `inverse`, for the gradient.
    fn rotate_kernel(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rotary::portable::<Self>(x, cos, sin, inverse)
    }

    /// The updated parameter and its moments.
    fn adamw_kernel(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> Updated<Self> {
        adamw::portable::<Self>(parameter, grad, first, second, step)
    }

    /// The updated parameter, its master and its moments.
    fn adamw_with_master_kernel(
        parameter: FloatTensor<Self>,
        master: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> UpdatedMaster<Self> {
        let dtype = parameter.dtype();
        drop(parameter);
        let (master, first, second) = Self::adamw_kernel(master, grad, first, second, step);
        (Array::<Self>(master.clone()).cast(dtype).0, master, first, second)
    }

    /// The updates of several parameters: see [`FusedOps::adamw`].
    fn adamw_each_kernel(tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self> {
        adamw::one_by_one::<Self>(tensors, masters, step)
    }

    /// The sums of squares of parts.
    fn sums_of_squares_kernel(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::portable_sums_of_squares::<Self>(x)
    }

    /// The sums of squares of parts of several tensors, one after the other.
    fn sums_of_squares_of_each_kernel(xs: Tensors<Self>) -> Tensors<Self> {
        Tensors(xs.0.into_iter().map(Self::sums_of_squares_kernel).collect())
    }
}

#[cfg(feature = "ndarray")]
impl Kernels for NdArray {}
