//! The loss of semantic distribution supervision as a fused linear KL divergence, which never allocates `[M, V]`.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels, LossAndGrad};

/// The default size in bytes of the logits of a chunk of rows on a CPU: 48 MiB. At 784 rows and a vocabulary of 32,000,
/// the whole operation then needs 13% of the memory that the plain form needs.
pub const SEMANTIC_DISTRIBUTION_BUDGET: usize = 48 << 20;

/// [`semantic_distribution_within`] the default budget, which on a GPU is the [device's](super::block_budget).
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn semantic_distribution(v: Tensor<2>, target: Tensor<2>, table: Tensor<2>, weights: Tensor<1>) -> Tensor<1> {
    chunked(v, target, table, weights, None)
}

/// Semantic distribution supervision: `sum_i weights_i KL(softmax(target_i E^T) || softmax(v_i E^T))` (docs/method.md).
///
/// Differentiable in `v` alone. The value and the gradient `a (q - p) E` are computed together, in chunks of rows whose
/// two blocks of logits take at most `budget` bytes (a chunk has at least one row), with three matrix products; the
/// backward pass only scales. The products are computed in the table's type, softmaxes and sums in f32 (f64 for f64).
///
/// # Shapes
/// - v: `[M, d]`
/// - target: `[M, d]`, the supervisory embeddings
/// - table: `[V, d]`, the raw input embedding table E
/// - weights: `[M]`, the patch weights
/// - output: `[1]`, f32 (f64 for f64 inputs); 0 if M is 0
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn semantic_distribution_within(
    v: Tensor<2>,
    target: Tensor<2>,
    table: Tensor<2>,
    weights: Tensor<1>,
    budget: usize,
) -> Tensor<1> {
    chunked(v, target, table, weights, Some(budget))
}

fn chunked(v: Tensor<2>, target: Tensor<2>, table: Tensor<2>, weights: Tensor<1>, budget: Option<usize>) -> Tensor<1> {
    let [m, d] = v.dims();
    assert_eq!((target.dims(), weights.dims()), ([m, d], [m]), "semantic_distribution: v is [{m}, {d}]");
    assert_eq!(table.dims()[1], d, "semantic_distribution: v is [{m}, {d}], the table is not [V, {d}]");
    let dtype = accumulator(table.dtype());
    if m * d * table.dims()[0] == 0 {
        return Tensor::zeros([1], (&v.device(), dtype));
    }
    let table = table.without_autodiff();
    let target = target.without_autodiff().cast(table.dtype());
    let weights = weights.without_autodiff().cast(dtype);
    let loss = Dispatch::semantic_distribution(
        v.cast(table.dtype()).into_dispatch(),
        target.into_dispatch(),
        table.into_dispatch(),
        weights.into_dispatch(),
        budget,
    );
    Tensor::from_dispatch(loss)
}

/// The number of rows for which `blocks` blocks of `vocabulary` values of `size` bytes fit `budget`; at least one.
pub fn chunk_rows(budget: usize, blocks: usize, vocabulary: usize, size: usize) -> usize {
    (budget / (blocks * vocabulary * size).max(1)).max(1)
}

/// The loss and its gradient, chunk by chunk.
pub fn portable<B: Kernels>(
    v: FloatTensor<B>,
    target: FloatTensor<B>,
    table: FloatTensor<B>,
    weights: FloatTensor<B>,
    budget: usize,
    grad: bool,
) -> LossAndGrad<B> {
    let dtype = v.dtype();
    let sums = accumulator(dtype);
    let (m, vocabulary) = (v.shape()[0], table.shape()[0]);
    let (v, target, table) = (Array::<B>(v), Array::<B>(target), Array::<B>(table));
    let weights = Array::<B>(weights).reshape(&[m, 1]);
    let rows = chunk_rows(budget, 2, vocabulary, sums.size());
    let (mut losses, mut grads) = (Vec::new(), Vec::new());
    for start in (0..m).step_by(rows) {
        let len = rows.min(m - start);
        let log_softmax = |x: &Array<B>| {
            let logits = x.clone().narrow(0, start, len).product(table.clone().swap(0, 1), sums); // [len, V]
            let all = logits.log_sum_exp();
            logits.sub(all)
        };
        let (log_p, log_q) = (log_softmax(&target), log_softmax(&v));
        let p = log_p.clone().exp();
        let a = weights.clone().narrow(0, start, len);
        losses.push(p.clone().mul(log_p.sub(log_q.clone())).sum_dim(1).mul(a.clone()));
        if grad {
            grads.push(log_q.exp().sub(p).mul(a).cast(dtype).product(table.clone(), dtype));
        }
    }
    (Array::cat(losses, 0).sum().0, grad.then(|| Array::cat(grads, 0).0))
}

/// The loss. Its gradient is saved for the backward pass.
pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    v: FloatTensor<Autodiff<B, C>>,
    target: FloatTensor<B>,
    table: FloatTensor<B>,
    weights: FloatTensor<B>,
    budget: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let kernel = |v, grad| B::semantic_distribution_kernel(v, target, table, weights, budget, grad);
    scaled_by_saved::<B, C>(v, kernel)
}

/// A loss of one input whose gradient the forward pass has computed: the backward pass only scales it.
pub fn scaled_by_saved<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    kernel: impl FnOnce(FloatTensor<B>, bool) -> LossAndGrad<B>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Scale;

    impl<B: Backend> Backward<B, 1> for Scale {
        type State = Option<FloatTensor<B>>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let by = grads.consume::<B>(&ops.node);
            let ([Some(parent)], Some(saved)) = (ops.parents, ops.state) else { return };
            grads.register::<B>(parent.id, scale_saved::<B>(saved, by));
        }
    }

    let (x, node) = x.into_parts();
    match Scale.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (loss, grad) = kernel(x, true);
            prep.finish(grad, loss)
        }
        OpsKind::UnTracked(prep) => prep.finish(kernel(x, false).0),
    }
}

/// A saved gradient, times the gradient of the loss, `[1]`.
pub fn scale_saved<B: Backend>(saved: FloatTensor<B>, by: FloatTensor<B>) -> FloatTensor<B> {
    let saved = Array::<B>(saved);
    let ones = vec![1; saved.dims().len()];
    let by = Array::<B>(by).cast(saved.dtype()).reshape(&ones);
    saved.mul(by).0
}
