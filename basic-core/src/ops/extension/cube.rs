//! The computations on GPUs.

use burn::backend::Cube;
use burn::backend::TensorMetadata;
use burn::backend::ops::IntTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, IntDType};

use super::Kernels;
use crate::ops::adamw::AdamWStep;
use crate::ops::array::Array;
use crate::ops::block_budget;
use crate::ops::cube::{self, CubeOps};
use crate::ops::{SQUARES_TOGETHER, Tensors, UPDATES_TOGETHER, adamw, attention, embedding, rms_norm, rotary, swiglu};
#[cfg(feature = "cuda")]
use crate::ops::{product, vendor};

// With Burn's fusion on, `Cube` records primitives and fuses them, which works best on the portable implementations.
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

    fn adamw_each_kernel(tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self> {
        let each = 4 + usize::from(masters);
        let wide = |x: &FloatTensor<Self>| x.dtype() == DType::F32;
        let wide_moments = tensors.0.chunks_exact(each).all(|one| one[each - 2..].iter().all(wide));
        if !(all_taken(&tensors) && wide_moments) {
            return adamw::one_by_one::<Self>(tensors, masters, step);
        }
        let together = cube::together(&tensors.0[0].device().client(), each, UPDATES_TOGETHER);
        let mut updated = Vec::new();
        for group in in_groups(tensors, together * each) {
            updated.extend(<Self as CubeOps>::cube_adamw(group, masters, step).0);
        }
        Tensors(updated)
    }

    fn sums_of_squares_of_each_kernel(xs: Tensors<Self>) -> Tensors<Self> {
        if !all_taken(&xs) {
            return Tensors(xs.0.into_iter().map(Self::sums_of_squares_kernel).collect());
        }
        let together = cube::together(&xs.0[0].device().client(), 1, SQUARES_TOGETHER);
        Tensors(in_groups(xs, together).map(<Self as CubeOps>::cube_sums_of_squares).collect())
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
        let (x_grad, reciprocals) = <Self as CubeOps>::cube_rms_norm_backward(x.clone(), gamma, grad.clone(), epsilon);
        let gamma_grad = trained.then(|| <Self as CubeOps>::cube_rms_norm_gamma(x, grad, reciprocals));
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

/// Whether there are tensors, and kernels of this crate take all of them.
fn all_taken(tensors: &Tensors<Cube>) -> bool {
    !tensors.0.is_empty() && tensors.0.iter().all(|x| cube::takes(x.dtype()))
}

/// The tensors, at most so many at a time.
fn in_groups(tensors: Tensors<Cube>, most: usize) -> impl Iterator<Item = Tensors<Cube>> {
    let mut left = tensors.0.into_iter();
    std::iter::from_fn(move || {
        let group: Vec<_> = left.by_ref().take(most).collect();
        (!group.is_empty()).then_some(Tensors(group))
    })
}

/// Whether attention over heads of these sizes uses the device's tensor cores.
fn on_tensor_cores(q: &FloatTensor<Cube>, k: &FloatTensor<Cube>) -> bool {
    let sizes = attention::Sizes::of::<Cube>(q, k);
    cube::takes(q.dtype())
        && cube::attention::fits(q.dtype(), &sizes)
        && cube::attention::has_room(&q.device().client(), q.dtype(), sizes.width)
}
