//! The operations under autodiff: each registers the backward pass of its own module.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, TensorMetadata};
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::{FusedOps, Kernels};
use crate::ops::adamw::{AdamWStep, Updated, UpdatedMaster};
use crate::ops::blocks::budget_or;
use crate::ops::{ActivationKind, HeadLayout, LINEAR_CROSS_ENTROPY_BUDGET, SEMANTIC_DISTRIBUTION_BUDGET};
use crate::ops::{
    activation, attention, cross_entropy, directional, distribution, embedding, product, rms_norm, rotary, swiglu,
};

impl<B: Kernels, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn directional_alignment(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        directional::tracked::<B, C>(v, target.into_primitive(), weights.into_primitive())
    }

    fn semantic_distribution(
        v: FloatTensor<Self>,
        target: FloatTensor<Self>,
        table: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        budget: Option<usize>,
    ) -> FloatTensor<Self> {
        let (target, table, weights) = (target.into_primitive(), table.into_primitive(), weights.into_primitive());
        let budget = budget_or::<B>(budget, &table.device(), SEMANTIC_DISTRIBUTION_BUDGET);
        distribution::tracked::<B, C>(v, target, table, weights, budget)
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        labels: IntTensor<Self>,
        layout: HeadLayout,
        divisor: f64,
        budget: Option<usize>,
        trained: [bool; 2],
    ) -> FloatTensor<Self> {
        let budget = budget_or::<B>(budget, &labels.device(), LINEAR_CROSS_ENTROPY_BUDGET);
        cross_entropy::tracked::<B, C>(hidden, head, labels, layout, divisor, budget, trained)
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: IntTensor<Self>,
        causal: bool,
        cap: Option<f64>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (out, lse) = attention::tracked::<B, C>(q, k, v, first, causal, cap);
        (out, Self::from_inner(lse))
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
        let [q, k, lse, readout] = [q, k, lse, readout].map(|t| t.into_primitive());
        Self::from_inner(B::attention_mass_kernel(q, k, lse, first, rows, readout, cap))
    }

    fn product(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        product::tracked::<B, C>(x, w)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::tracked::<B, C>(gate, up)
    }

    fn activation(x: FloatTensor<Self>, kind: ActivationKind) -> FloatTensor<Self> {
        activation::tracked::<B, C>(x, kind)
    }

    fn embedding_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        embedding::tracked::<B, C>(table, ids)
    }

    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64, trained: bool) -> FloatTensor<Self> {
        rms_norm::tracked::<B, C>(x, gamma, epsilon, trained)
    }

    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        rotary::tracked::<B, C>(x, cos.into_primitive(), sin.into_primitive())
    }

    fn adamw(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> Updated<Self> {
        let [parameter, grad, first, second] = [parameter, grad, first, second].map(|t| t.into_primitive());
        let (parameter, first, second) = B::adamw_kernel(parameter, grad, first, second, step);
        (Self::from_inner(parameter), Self::from_inner(first), Self::from_inner(second))
    }

    fn adamw_with_master(
        parameter: FloatTensor<Self>,
        master: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> UpdatedMaster<Self> {
        let [parameter, master, grad, first, second] =
            [parameter, master, grad, first, second].map(|t| t.into_primitive());
        let (parameter, master, first, second) =
            B::adamw_with_master_kernel(parameter, master, grad, first, second, step);
        let [parameter, master, first, second] = [parameter, master, first, second].map(Self::from_inner);
        (parameter, master, first, second)
    }

    fn sums_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::sums_of_squares_kernel(x.into_primitive()))
    }
}
