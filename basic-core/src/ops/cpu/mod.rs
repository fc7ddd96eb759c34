//! Implementations for f32 on Flex: rows in parallel with rayon, vectorized exponentials, and matrix products by the
//! `gemm` crate directly on strided views. Other types use the portable implementations.

mod attention;
mod cross_entropy;
mod distribution;
mod elementwise;
mod math;
mod optimizer;
mod product;

use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};

use super::adamw as portable_adamw;
use super::adamw::{AdamWStep, Updated};
use super::attention::Saved;
use super::{HeadLayout, Kernels, LossAndGrad, LossAndGrads};
use super::{
    attention as portable_attention, cross_entropy as portable_entropy, distribution as portable_distribution,
};
use super::{rms_norm, rotary, swiglu};

/// The fewest elements that one rayon task of an elementwise pass takes.
const TASK: usize = 1 << 14;

/// The tensor, copied if its elements are not contiguous and in order.
fn ordered(tensor: FlexTensor) -> FlexTensor {
    match tensor.is_contiguous() {
        true => tensor,
        false => tensor.to_contiguous(),
    }
}

/// The elements of an [`ordered`] f32 tensor; the caller has checked the type.
fn elements(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("an f32 tensor in order")
}

fn tensor(values: Vec<f32>, dims: &[usize]) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(dims.to_vec())), DType::F32)
}

/// The elements of an int tensor, in order.
fn indices(tensor: &FlexTensor) -> Vec<i64> {
    tensor.clone().into_data().try_into_vec_as::<i64>().expect("an int tensor")
}

fn all_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

impl Kernels for Flex {
    fn semantic_distribution_kernel(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        table: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        budget: usize,
        grad: bool,
    ) -> LossAndGrad<Self> {
        match all_f32([&v, &target, &table, &weights]) {
            true => distribution::semantic_distribution(v, target, table, weights, budget, grad),
            false => portable_distribution::portable::<Self>(v, target, table, weights, budget, grad),
        }
    }

    fn linear_cross_entropy_kernel(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        labels: IntTensor<Self>,
        layout: HeadLayout,
        divisor: f64,
        budget: usize,
        grads: [bool; 2],
    ) -> LossAndGrads<Self> {
        match all_f32([&hidden, &head]) {
            true => cross_entropy::linear_cross_entropy(hidden, head, labels, layout, divisor, budget, grads),
            false => portable_entropy::portable::<Self>(hidden, head, labels, layout, divisor, budget, grads),
        }
    }

    fn attention_kernel(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        causal: bool,
        cap: Option<f64>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // These three have no cap of the scores.
        match all_f32([&q, &k, &v]) && cap.is_none() {
            true => attention::forward(q, k, v, first, causal),
            false => portable_attention::portable::<Self>(q, k, v, first, causal, cap),
        }
    }

    fn attention_backward_kernel(saved: Saved<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        match all_f32([&saved.q, &saved.k, &saved.v, &saved.output, &grad]) && saved.cap.is_none() {
            true => attention::backward(saved, grad),
            false => portable_attention::portable_backward::<Self>(saved, grad),
        }
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
        match all_f32([&q, &k, &lse, &readout]) && cap.is_none() {
            true => attention::mass(q, k, lse, first, rows, readout),
            false => portable_attention::portable_mass::<Self>(q, k, lse, first, rows, readout, cap),
        }
    }

    fn swiglu_kernel(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        match all_f32([&gate, &up]) {
            true => elementwise::swiglu(gate, up),
            false => swiglu::portable::<Self>(gate, up),
        }
    }

    fn swiglu_backward_kernel(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        match all_f32([&gate, &up, &grad]) {
            true => elementwise::swiglu_backward(gate, up, grad),
            false => swiglu::portable_backward::<Self>(gate, up, grad),
        }
    }

    fn rms_norm_kernel(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        match all_f32([&x, &gamma]) {
            true => elementwise::rms_norm(x, gamma, epsilon),
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
        match all_f32([&x, &gamma, &grad]) {
            true => elementwise::rms_norm_backward(x, gamma, epsilon, trained, grad),
            false => rms_norm::portable_backward::<Self>(x, gamma, epsilon, trained, grad),
        }
    }

    fn rotate_kernel(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        match all_f32([&x, &cos, &sin]) {
            true => elementwise::rotate(x, cos, sin, inverse),
            false => rotary::portable::<Self>(x, cos, sin, inverse),
        }
    }

    fn adamw_kernel(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> Updated<Self> {
        match all_f32([&parameter, &grad, &first, &second]) {
            true => optimizer::adamw(parameter, grad, first, second, step),
            false => portable_adamw::portable::<Self>(parameter, grad, first, second, step),
        }
    }

    fn sums_of_squares_kernel(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match all_f32([&x]) {
            true => optimizer::sums_of_squares(x),
            false => portable_adamw::portable_sums_of_squares::<Self>(x),
        }
    }
}
