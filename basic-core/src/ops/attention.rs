//! Attention for training and generation. The forward pass keeps q, k, v, the output and one number per row, and the
//! backward pass recomputes the probabilities block by block, so that no matrix `[heads, T, T]` is ever built.
//!
//! Burn 0.22's autodiff attention materializes the softmax, and no backend returns the log-sum-exp. Burn 0.23 is
//! expected to do both; it would then replace the body of [`attention`].

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Int, Tensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::accumulator;
use super::{FusedOps, Kernels};

mod portable;

pub use portable::{Sizes, portable, portable_backward, portable_mass};

/// The result of [`attention`].
#[derive(Debug, Clone)]
pub struct Attention {
    /// The heads' outputs, `[B, T, heads, head_dim]`.
    pub output: Tensor<4>,
    /// The log-sum-exp of each query's scores, `[B, heads, T]` in f32 (f64 for f64); no gradient.
    pub lse: Tensor<3>,
}

/// Causal attention with scores `q k / sqrt(head_dim)`; softmax and sums in f32 (f64 for f64).
///
/// The T queries are the last T of the keys' positions. Query t sees the keys from `first[t]` to its own position, or
/// only its own if `first[t]` comes after it. That covers left padding (`first` is the first real key), packed samples
/// (the sample's start) and sliding windows. Differentiable in q, k and v.
///
/// # Shapes
/// - q: `[B, T, heads, head_dim]`
/// - k, v: `[B, keys, kv_heads, head_dim]`, `kv_heads` a divisor of `heads`: query head h reads key head
///   `h / (heads / kv_heads)`
/// - first: `[B or 1, T]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, first: Tensor<2, Int>) -> Attention {
    capped_attention(q, k, v, first, None)
}

/// [`attention`] whose scores s are `cap tanh(s / cap)` before the softmax, if a cap is given (soft-capping, as in
/// Gemma 2). The shapes and the panics are those of [`attention`].
///
/// With a cap, the portable implementation computes it on every device: the fused kernels have none.
pub fn capped_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    first: Tensor<2, Int>,
    cap: Option<f64>,
) -> Attention {
    let ([b, t, heads, width], [kb, keys, kv_heads, kw]) = (q.dims(), k.dims());
    let fits = kb == b && keys >= t && kw == width && kv_heads > 0 && heads % kv_heads == 0 && v.dims() == k.dims();
    assert!(fits, "attention: q is {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    let [fb, ft] = first.dims();
    assert!((fb == b || fb == 1) && ft == t, "attention: q is {:?}, first {:?}", q.dims(), first.dims());
    if b * t * heads * width == 0 {
        let lse = Tensor::zeros([b, heads, t], (&q.device(), accumulator(q.dtype())));
        return Attention { output: q, lse };
    }
    dispatched(q, k, v, first, true, cap)
}

/// Attention in which every query sees every key, as in a vision encoder; otherwise the same as [`attention`].
///
/// # Shapes
/// - q and output: `[B, T, heads, head_dim]`
/// - k, v: `[B, keys, kv_heads, head_dim]`, at least as many keys as queries
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn attention_to_all(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let ([b, t, heads, width], [kb, keys, kv_heads, kw]) = (q.dims(), k.dims());
    let fits = kb == b && keys >= t && kw == width && kv_heads > 0 && heads % kv_heads == 0 && v.dims() == k.dims();
    assert!(fits, "attention_to_all: q is {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    if b * t * heads * width == 0 {
        return q;
    }
    let first = Tensor::zeros([1, t], &q.device().without_autodiff());
    dispatched(q, k, v, first, false, None).output
}

fn dispatched(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    first: Tensor<2, Int>,
    causal: bool,
    cap: Option<f64>,
) -> Attention {
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    let (output, lse) = Dispatch::attention(q, k, v, first.into_dispatch(), causal, cap);
    Attention { output: Tensor::from_dispatch(output), lse: Tensor::from_dispatch(lse) }
}

/// The attention that weighted query rows put on every key, averaged over the heads. It is recomputed from the results
/// of [`attention`], for these rows only. No gradient.
///
/// # Shapes
/// - q, k, first: as for [`attention`]
/// - lse: `[B, heads, T]`, the log-sum-exp that [`attention`] returned
/// - rows: `[B, n]`, indices into the T queries
/// - readout: `[B, S, n]`, the weights of those rows for each of S read-outs
/// - cap: the soft cap of the scores, as in [`capped_attention`]
/// - output: `[B, S, keys]`, in the type of lse
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn attention_mass(
    q: Tensor<4>,
    k: Tensor<4>,
    lse: Tensor<3>,
    first: Tensor<2, Int>,
    rows: Tensor<2, Int>,
    readout: Tensor<3>,
    cap: Option<f64>,
) -> Tensor<3> {
    let ([b, t, heads, _], [_, keys, _, _]) = (q.dims(), k.dims());
    let ([_, n], [_, s, _]) = (rows.dims(), readout.dims());
    let fits = lse.dims() == [b, heads, t] && rows.dims() == [b, n] && readout.dims() == [b, s, n];
    assert!(fits, "attention_mass: rows is {:?}, readout {:?}", rows.dims(), readout.dims());
    let readout = readout.without_autodiff().cast(lse.dtype());
    if b * n * s * keys * heads == 0 {
        return Tensor::zeros([b, s, keys], (&readout.device(), readout.dtype()));
    }
    let mass = Dispatch::attention_mass(
        q.without_autodiff().into_dispatch(),
        k.without_autodiff().into_dispatch(),
        lse.without_autodiff().into_dispatch(),
        first.into_dispatch(),
        rows.into_dispatch(),
        readout.into_dispatch(),
        cap,
    );
    Tensor::from_dispatch(mass)
}

/// What the backward pass needs from the forward pass.
pub struct Saved<B: Backend> {
    /// `[B, T, heads, head_dim]`.
    pub q: FloatTensor<B>,
    /// `[B, keys, kv_heads, head_dim]`.
    pub k: FloatTensor<B>,
    /// `[B, keys, kv_heads, head_dim]`.
    pub v: FloatTensor<B>,
    /// The output.
    pub output: FloatTensor<B>,
    /// The log-sum-exp.
    pub lse: FloatTensor<B>,
    /// The first visible key of each query.
    pub first: IntTensor<B>,
    /// Whether a query sees no key after its own position.
    pub causal: bool,
    /// The soft cap of the scores.
    pub cap: Option<f64>,
}

impl<B: Backend> Clone for Saved<B> {
    fn clone(&self) -> Self {
        Self {
            q: self.q.clone(),
            k: self.k.clone(),
            v: self.v.clone(),
            output: self.output.clone(),
            lse: self.lse.clone(),
            first: self.first.clone(),
            causal: self.causal,
            cap: self.cap,
        }
    }
}

impl<B: Backend> std::fmt::Debug for Saved<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attention over q {:?} and k {:?}", self.q.shape(), self.k.shape())
    }
}

/// The output; q, k, v, the output and the log-sum-exp are saved for the backward pass.
pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    q: FloatTensor<Autodiff<B, C>>,
    k: FloatTensor<Autodiff<B, C>>,
    v: FloatTensor<Autodiff<B, C>>,
    first: IntTensor<B>,
    causal: bool,
    cap: Option<f64>,
) -> (FloatTensor<Autodiff<B, C>>, FloatTensor<B>) {
    #[derive(Debug)]
    struct AttentionBackward;

    impl<B: Kernels> Backward<B, 3> for AttentionBackward {
        type State = Saved<B>;

        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let all = B::attention_backward_kernel(ops.state, grad);
            for (parent, grad) in ops.parents.into_iter().zip(all) {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, grad);
                }
            }
        }
    }

    let ((q, a), (k, b), (v, c)) = (q.into_parts(), k.into_parts(), v.into_parts());
    let (output, lse) = B::attention_kernel(q.clone(), k.clone(), v.clone(), first.clone(), causal, cap);
    match AttentionBackward.prepare::<C>([a, b, c]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let saved = Saved { q, k, v, output: output.clone(), lse: lse.clone(), first, causal, cap };
            (prep.finish(saved, output), lse)
        }
        OpsKind::UnTracked(prep) => (prep.finish(output), lse),
    }
}
