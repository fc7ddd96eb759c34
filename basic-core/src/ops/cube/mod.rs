//! This crate's own kernels for the devices of CubeCL: one launch for most operations, and of the optimizer's for several
//! parameters, where the portable implementations take many.
//!
//! Burn's fusion treats each as an opaque operation. `BASIC_KERNELS=portable` disables all of them: fusion then
//! compiles the portable implementations. With `BASIC_KERNELS=ahead`, attention copies blocks ahead.

pub mod attention;
mod elementwise;
mod launch;
mod norm;
mod optimizer;
mod rows;

pub use optimizer::together;

use std::env;
use std::sync::OnceLock;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::Tensors;
use super::adamw::{AdamWStep, squares_parts};

/// The environment variable that chooses between these kernels and the portable implementations.
pub const SWITCH: &str = "BASIC_KERNELS";

/// Checks the environment variable.
///
/// # Errors
///
/// Returns a sentence if its value is unknown.
pub fn check() -> Result<(), String> {
    match env::var(SWITCH).as_deref() {
        Err(_) | Ok("" | "own" | "ahead" | "portable") => Ok(()),
        Ok(other) => Err(format!("{SWITCH} is '{other}': own, ahead or portable")),
    }
}

/// Whether these kernels are used for tensors of this type; each kernel computes in f32.
pub fn takes(dtype: DType) -> bool {
    static OWN: OnceLock<bool> = OnceLock::new();
    let own = *OWN.get_or_init(|| !env::var(SWITCH).is_ok_and(|value| value == "portable"));
    own && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether attention copies the next block while it computes with one. Only with `BASIC_KERNELS=ahead`, because its
/// speed has not been measured yet.
fn copies_ahead() -> bool {
    static AHEAD: OnceLock<bool> = OnceLock::new();
    *AHEAD.get_or_init(|| env::var(SWITCH).is_ok_and(|value| value == "ahead"))
}

/// The kernels as operations that Burn's fusion does not touch.
#[backend_extension(Cube, Fusion)]
pub trait CubeOps: Backend {
    /// See [`Kernels::rotate_kernel`](super::Kernels::rotate_kernel).
    #[fusion(meta = |x, _, _, _| x.clone())]
    fn cube_rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self>;

    /// See [`Kernels::swiglu_kernel`](super::Kernels::swiglu_kernel).
    #[fusion(meta = |gate, _| gate.clone())]
    fn cube_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`Kernels::swiglu_backward_kernel`](super::Kernels::swiglu_backward_kernel).
    #[fusion(meta = |gate, up, _| (gate.clone(), up.clone()))]
    fn cube_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`Kernels::rms_norm_kernel`](super::Kernels::rms_norm_kernel).
    #[fusion(meta = |x, _, _| x.clone())]
    fn cube_rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;

    /// The gradient with respect to x, and the reciprocal root mean square of each row, `[N]` in f32.
    #[fusion(meta = |x, _, _, _| (x.clone(), single(x.shape[0])))]
    fn cube_rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gamma's gradient, `[d]`.
    #[fusion(meta = |x, _, _| TensorSpec::new(Shape::from(vec![x.shape[1]]), x.dtype))]
    fn cube_rms_norm_gamma(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        reciprocals: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`FusedOps::adamw`](super::FusedOps::adamw); the moments are in f32, and all have one gradient's type.
    #[fusion(meta = |tensors, masters, _| updated(tensors, *masters))]
    fn cube_adamw(#[extension_type] tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self>;

    /// The sums of the squares of the parts of each `[n]`, one after the other.
    #[fusion(meta = |xs| single(xs.iter().map(|x| squares_parts(x.shape.num_elements())).sum()))]
    fn cube_sums_of_squares(#[extension_type] xs: Tensors<Self>) -> FloatTensor<Self>;

    /// See [`Kernels::embedding_backward_kernel`](super::Kernels::embedding_backward_kernel); ids are in i32.
    #[fusion(meta = |_, grad, table| gathered(grad, *table))]
    fn cube_gather(ids: IntTensor<Self>, grad: FloatTensor<Self>, table: usize) -> FloatTensor<Self>;

    /// See [`Kernels::attention_kernel`](super::Kernels::attention_kernel); `first` is in i32.
    #[fusion(meta = |q, _, _, _, _| (q.clone(), log_sum_exp(q)))]
    fn cube_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        causal: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`Kernels::attention_backward_kernel`](super::Kernels::attention_backward_kernel); `first` is in i32.
    #[fusion(meta = |q, k, v, _, _, _, _, _| (q.clone(), k.clone(), v.clone()))]
    #[allow(clippy::too_many_arguments)] // the forward pass's inputs and results
    fn cube_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        output: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        causal: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Sums over parts of the heads, `[parts, B, S, keys]`, whose mean over the heads
    /// [`Kernels::attention_mass_kernel`](super::Kernels::attention_mass_kernel) returns; `first` and `rows` are in
    /// i32.
    #[fusion(meta = |q, k, _, _, _, readout| masses(q, k, readout))]
    fn cube_attention_masses(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        first: IntTensor<Self>,
        rows: IntTensor<Self>,
        readout: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

fn gathered(grad: &TensorSpec, table: usize) -> TensorSpec {
    TensorSpec::new(Shape::from(vec![table, grad.shape[1]]), grad.dtype)
}

/// The shape of the sums, `[parts of the heads, B, S, keys]`.
fn masses(q: &TensorSpec, k: &TensorSpec, readout: &TensorSpec) -> TensorSpec {
    let shape = vec![attention::parts(q.shape[2]), q.shape[0], readout.shape[1], k.shape[1]];
    TensorSpec::new(Shape::from(shape), DType::F32)
}

fn log_sum_exp(q: &TensorSpec) -> TensorSpec {
    let [b, t, heads, _] = [0, 1, 2, 3].map(|dim| q.shape[dim]);
    TensorSpec::new(Shape::from(vec![b, heads, t]), DType::F32)
}

/// All tensors of an update but the gradients.
fn updated(tensors: &[TensorSpec], masters: bool) -> Vec<TensorSpec> {
    let (each, grad) = (4 + usize::from(masters), 1 + usize::from(masters));
    let kept = |(at, spec): (usize, &TensorSpec)| (at % each != grad).then(|| spec.clone());
    tensors.iter().enumerate().filter_map(kept).collect()
}

fn single(rows: usize) -> TensorSpec {
    TensorSpec::new(Shape::from(vec![rows]), DType::F32)
}

impl CubeOps for CubeBackend {
    fn cube_rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, inverse: bool) -> CubeTensor {
        elementwise::rotate(x, cos, sin, inverse)
    }

    fn cube_swiglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
        elementwise::swiglu(gate, up)
    }

    fn cube_swiglu_backward(gate: CubeTensor, up: CubeTensor, grad: CubeTensor) -> (CubeTensor, CubeTensor) {
        elementwise::swiglu_backward(gate, up, grad)
    }

    fn cube_rms_norm(x: CubeTensor, gamma: CubeTensor, epsilon: f64) -> CubeTensor {
        norm::rms_norm(x, gamma, epsilon)
    }

    fn cube_rms_norm_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        grad: CubeTensor,
        epsilon: f64,
    ) -> (CubeTensor, CubeTensor) {
        norm::rms_norm_backward(x, gamma, grad, epsilon)
    }

    fn cube_rms_norm_gamma(x: CubeTensor, grad: CubeTensor, reciprocals: CubeTensor) -> CubeTensor {
        norm::rms_norm_gamma(x, grad, reciprocals)
    }

    fn cube_adamw(tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self> {
        Tensors(optimizer::adamw(tensors.0, masters, step))
    }

    fn cube_sums_of_squares(xs: Tensors<Self>) -> CubeTensor {
        optimizer::sums_of_squares(xs.0)
    }

    fn cube_gather(ids: CubeTensor, grad: CubeTensor, table: usize) -> CubeTensor {
        rows::gather(table, ids, grad)
    }

    fn cube_attention(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        first: CubeTensor,
        causal: bool,
    ) -> (CubeTensor, CubeTensor) {
        attention::forward(q, k, v, first, causal)
    }

    fn cube_attention_backward(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        first: CubeTensor,
        output: CubeTensor,
        lse: CubeTensor,
        grad: CubeTensor,
        causal: bool,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        attention::backward(q, k, v, first, output, lse, grad, causal)
    }

    fn cube_attention_masses(
        q: CubeTensor,
        k: CubeTensor,
        lse: CubeTensor,
        first: CubeTensor,
        rows: CubeTensor,
        readout: CubeTensor,
    ) -> CubeTensor {
        attention::masses(q, k, lse, first, rows, readout)
    }
}
