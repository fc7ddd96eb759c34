//! The traits behind each operation: [`FusedOps`], which Burn's dispatch calls, and [`Kernels`], the computations.

mod tracked;
mod untracked;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::backend::Cube;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::backend::TensorMetadata;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::backend::ops::IntTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use burn::tensor::DType;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::tensor::IntDType;

use super::adamw::{AdamWStep, Updated};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::array::Array;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::block_budget;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::cube::{self, CubeOps};
#[cfg(feature = "cuda")]
use super::vendor;
use super::{ActivationKind, HeadLayout};
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
/// Each method has the shapes and the meaning of the function of the same name.
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

    /// [`adamw`](super::adamw); no gradient.
    fn adamw(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// [`sum_of_squares`](super::sum_of_squares) of `[N]`; no gradient.
    fn sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
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

    /// The sum of squares, `[1]`.
    fn sum_of_squares_kernel(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::portable_sum_of_squares::<Self>(x)
    }
}

#[cfg(feature = "ndarray")]
impl Kernels for NdArray {}
// With Burn's fusion on, `Cube` records primitives and fuses them, which works best on the portable implementations.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
impl Kernels for Cube {
    fn block_budget(device: &Self::Device) -> Option<usize> {
        let client = device.client();
        let memory = &client.properties().memory;
        // A block is one buffer, so it must fit a page.
        let largest = usize::try_from(memory.max_page_size).unwrap_or(usize::MAX);
        Some(block_budget(memory.max_memory()?).min(largest))
    }

    fn attention_kernel(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        causal: bool,
        cap: Option<f64>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // The kernel has no cap of the scores; the few models that have one also have heads too wide for it.
        match on_tensor_cores(&q, &k) && cap.is_none() {
            true => <Self as CubeOps>::cube_attention(q, k, v, Self::int_cast(first, IntDType::I32), causal),
            false => attention::portable::<Self>(q, k, v, first, causal, cap),
        }
    }

    fn attention_backward_kernel(saved: attention::Saved<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        if saved.cap.is_some() || !on_tensor_cores(&saved.q, &saved.k) {
            return attention::portable_backward::<Self>(saved, grad);
        }
        let attention::Saved { q, k, v, output, lse, first, causal, cap: _ } = saved;
        let first = Self::int_cast(first, IntDType::I32);
        <Self as CubeOps>::cube_attention_backward(q, k, v, first, output, lse, grad, causal).into()
    }

    fn attention_mass_kernel(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        first: IntTensor<Self>,
        rows: IntTensor<Self>,
        readout: FloatTensor<Self>,
        cap: Option<f64>,
    ) -> FloatTensor<Self> {
        let shape = readout.shape();
        if cap.is_some() || !(on_tensor_cores(&q, &k) && cube::attention::reads(shape[1])) {
            return attention::portable_mass::<Self>(q, k, lse, first, rows, readout, cap);
        }
        let (heads, keys) = (q.shape()[2], k.shape()[1]);
        let [first, rows] = [first, rows].map(|x| Self::int_cast(x, IntDType::I32));
        let sums = <Self as CubeOps>::cube_attention_masses(q, k, lse, first, rows, readout);
        Array::<Self>(sums).sum_dim(0).scale(1.0 / heads as f64).reshape(&[shape[0], shape[1], keys]).0
    }

    fn rotate_kernel(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        match cube::takes(x.dtype()) && x.dtype() == cos.dtype() {
            true => <Self as CubeOps>::cube_rotate(x, cos, sin, inverse),
            false => rotary::portable::<Self>(x, cos, sin, inverse),
        }
    }

    fn swiglu_kernel(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        match cube::takes(gate.dtype()) && gate.shape().num_elements() > 0 {
            true => <Self as CubeOps>::cube_swiglu(gate, up),
            false => swiglu::portable::<Self>(gate, up),
        }
    }

    fn swiglu_backward_kernel(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        match cube::takes(gate.dtype()) && gate.shape().num_elements() > 0 {
            true => <Self as CubeOps>::cube_swiglu_backward(gate, up, grad).into(),
            false => swiglu::portable_backward::<Self>(gate, up, grad),
        }
    }

    fn adamw_kernel(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> Updated<Self> {
        let takes = cube::takes(parameter.dtype()) && cube::takes(grad.dtype());
        match takes && first.dtype() == DType::F32 && second.dtype() == DType::F32 {
            true => <Self as CubeOps>::cube_adamw(parameter, grad, first, second, step),
            false => adamw::portable::<Self>(parameter, grad, first, second, step),
        }
    }

    fn sum_of_squares_kernel(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match cube::takes(x.dtype()) {
            true => <Self as CubeOps>::cube_sum_of_squares(x),
            false => adamw::portable_sum_of_squares::<Self>(x),
        }
    }

    fn embedding_backward_kernel(rows: usize, ids: IntTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        match cube::takes(grad.dtype()) && grad.shape().num_elements() > 0 {
            true => <Self as CubeOps>::cube_gather(Self::int_cast(ids, IntDType::I32), grad, rows),
            false => embedding::portable_backward::<Self>(rows, ids, grad),
        }
    }

    fn rms_norm_kernel(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        match cube::takes(x.dtype()) && x.dtype() == gamma.dtype() {
            true => <Self as CubeOps>::cube_rms_norm(x, gamma, epsilon),
            false => rms_norm::portable::<Self>(x, gamma, epsilon),
        }
    }

    fn rms_norm_backward_kernel(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        trained: bool,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        if !(cube::takes(x.dtype()) && x.dtype() == gamma.dtype()) {
            return rms_norm::portable_backward::<Self>(x, gamma, epsilon, trained, grad);
        }
        let dtype = gamma.dtype();
        let shape = gamma.shape();
        let (x_grad, reciprocals) = <Self as CubeOps>::cube_rms_norm_backward(x.clone(), gamma, grad.clone(), epsilon);
        let gamma_grad = trained.then(|| {
            let sums = <Self as CubeOps>::cube_rms_norm_gamma(x, grad, reciprocals);
            Array::<Self>(sums).sum_dim(0).reshape(&shape.to_vec()).cast(dtype).0
        });
        (x_grad, gamma_grad)
    }

    #[cfg(feature = "cuda")]
    fn product_kernel(a: FloatTensor<Self>, b: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        match vendor::used() {
            true => <Self as vendor::VendorOps>::vendor_product(a, b, dtype),
            false => product::portable::<Self>(a, b, dtype),
        }
    }
}

/// Whether attention over heads of these sizes uses the device's tensor cores.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn on_tensor_cores(q: &FloatTensor<Cube>, k: &FloatTensor<Cube>) -> bool {
    let sizes = attention::Sizes::of::<Cube>(q, k);
    cube::takes(q.dtype())
        && cube::attention::fits(q.dtype(), &sizes)
        && cube::attention::has_room(&q.device().client(), q.dtype(), sizes.width)
}
