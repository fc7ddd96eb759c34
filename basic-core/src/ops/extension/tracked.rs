//! The operations under autodiff: each registers the backward pass of its own module.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::{FusedOps, Kernels};
use crate::ops::adamw::AdamWStep;
use crate::ops::blocks::budget_or;
use crate::ops::{ActivationKind, HeadLayout, LINEAR_CROSS_ENTROPY_BUDGET, SEMANTIC_DISTRIBUTION_BUDGET, Tensors};
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

    fn adamw(tensors: Tensors<Self>, masters: bool, step: AdamWStep) -> Tensors<Self> {
        tracked_by_none(B::adamw_each_kernel(inner(tensors), masters, step))
    }

    fn sums_of_squares(xs: Tensors<Self>) -> Tensors<Self> {
        tracked_by_none(B::sums_of_squares_of_each_kernel(inner(xs)))
    }
}

/// The tensors without autodiff.
fn inner<B: Backend, C: CheckpointStrategy>(tensors: Tensors<Autodiff<B, C>>) -> Tensors<B> {
    Tensors(tensors.0.into_iter().map(|tensor| tensor.into_primitive()).collect())
}

/// The tensors under autodiff, without a gradient.
fn tracked_by_none<B: Backend, C: CheckpointStrategy>(tensors: Tensors<B>) -> Tensors<Autodiff<B, C>> {
    Tensors(tensors.0.into_iter().map(Autodiff::<B, C>::from_inner).collect())
}
