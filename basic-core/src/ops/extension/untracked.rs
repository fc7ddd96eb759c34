//! The operations on backends without autodiff: only the forward pass.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::backend::Cube;
#[cfg(feature = "cpu")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::{FusedOps, Kernels};
use crate::ops::adamw::AdamWStep;
use crate::ops::blocks::budget_or;
use crate::ops::{
    ActivationKind, HeadLayout, LINEAR_CROSS_ENTROPY_BUDGET, SEMANTIC_DISTRIBUTION_BUDGET, Tensors, embedding,
};

/// A backend without autodiff saves nothing for a backward pass.
macro_rules! untracked {
    ($backend:ty) => {
        impl FusedOps for $backend {
            fn directional_alignment(
                v: FloatTensor<Self>,
                target: FloatTensor<Self>,
                weights: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                Self::directional_alignment_kernel(v, target, weights, false).0
            }
            fn semantic_distribution(
                v: FloatTensor<Self>,
                target: FloatTensor<Self>,
                table: FloatTensor<Self>,
                weights: FloatTensor<Self>,
                budget: Option<usize>,
            ) -> FloatTensor<Self> {
                let budget = budget_or::<Self>(budget, &v.device(), SEMANTIC_DISTRIBUTION_BUDGET);
                Self::semantic_distribution_kernel(v, target, table, weights, budget, false).0
            }
            fn linear_cross_entropy(
                hidden: FloatTensor<Self>,
                head: FloatTensor<Self>,
                labels: IntTensor<Self>,
                layout: HeadLayout,
                divisor: f64,
                budget: Option<usize>,
                _trained: [bool; 2],
            ) -> FloatTensor<Self> {
                let budget = budget_or::<Self>(budget, &hidden.device(), LINEAR_CROSS_ENTROPY_BUDGET);
                Self::linear_cross_entropy_kernel(hidden, head, labels, layout, divisor, budget, [false; 2]).0
            }
            fn attention(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                first: IntTensor<Self>,
                causal: bool,
                cap: Option<f64>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                Self::attention_kernel(q, k, v, first, causal, cap)
            }
            fn attention_mass(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                lse: FloatTensor<Self>,
                first: IntTensor<Self>,
                rows: IntTensor<Self>,
                readout: FloatTensor<Self>,
                cap: Option<f64>,
            ) -> FloatTensor<Self> {
                Self::attention_mass_kernel(q, k, lse, first, rows, readout, cap)
            }
            fn product(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
                let dtype = x.dtype();
                Self::product_kernel(x, w, dtype)
            }
            fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::swiglu_kernel(gate, up)
            }
            fn activation(x: FloatTensor<Self>, kind: ActivationKind) -> FloatTensor<Self> {
                Self::activation_kernel(x, kind)
            }
            fn embedding_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
                embedding::rows::<Self>(table, ids)
            }
            fn rms_norm(
                x: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                epsilon: f64,
                _trained: bool,
            ) -> FloatTensor<Self> {
                Self::rms_norm_kernel(x, gamma, epsilon)
            }
            fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::rotate_kernel(x, cos, sin, false)
            }
            fn adamw(tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self> {
                Self::adamw_each_kernel(tensors, masters, step)
            }
            fn sums_of_squares(xs: Tensors<Self>) -> Tensors<Self> {
                Self::sums_of_squares_of_each_kernel(xs)
            }
        }
    };
}

#[cfg(feature = "cpu")]
untracked!(Flex);
#[cfg(feature = "ndarray")]
untracked!(NdArray);
#[cfg(any(feature = "wgpu", feature = "cuda"))]
untracked!(Cube);
