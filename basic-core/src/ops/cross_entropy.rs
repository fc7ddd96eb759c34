//! The language model's loss, fused with the output head.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Int, Shape, Slice, Tensor, TensorData};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::distribution::{chunk_rows, scale_saved};
use super::{FusedOps, Kernels, LossAndGrads, embedding};

/// The default size in bytes of the logits of a chunk of rows on a CPU: 64 MiB.
pub const LINEAR_CROSS_ENTROPY_BUDGET: usize = 64 << 20;

/// The memory layout of an output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadLayout {
    /// `[V, d]`: an embedding table, or PyTorch's `[out, in]`.
    TokenRows,
    /// `[d, V]`: the layout of Burn's linear layers.
    TokenColumns,
}

/// The mean cross entropy over the rows that have a label: [`linear_cross_entropy_within`] the default budget, which on
/// a GPU is the [device's](super::block_budget).
///
/// # Panics
///
/// Panics if the shapes do not fit each other or a label is not in the vocabulary.
pub fn linear_cross_entropy(hidden: Tensor<2>, head: Tensor<2>, layout: HeadLayout, labels: &[i64]) -> Tensor<1> {
    let count = labels.iter().filter(|label| **label >= 0).count();
    chunked(hidden, head, layout, labels, count.max(1) as f64, None)
}

/// The sum of the cross entropies of the rows that have a label, divided by `divisor` (the global count of labels, for
/// the mean over an accumulated batch). A row with a negative label has no label and adds nothing.
///
/// Differentiable in `hidden` and `head`. Value and gradients are computed together, in chunks of rows whose logits
/// take at most `budget` bytes (a chunk has at least one row): one matrix product for the logits, one for the gradient
/// of the rows and, if the head is trained, one for the head's gradient. The products are computed in the operands'
/// type, the softmax and all sums in f32 (f64 for f64).
///
/// # Shapes
/// - hidden: `[N, d]`
/// - head: `[V, d]` or `[d, V]`, according to `layout`
/// - labels: `[N]`, on the host
/// - output: `[1]`, f32 (f64 for f64 inputs); 0 if no row has a label
///
/// # Panics
///
/// Panics if the shapes do not fit each other or a label is not in the vocabulary.
pub fn linear_cross_entropy_within(
    hidden: Tensor<2>,
    head: Tensor<2>,
    layout: HeadLayout,
    labels: &[i64],
    divisor: f64,
    budget: usize,
) -> Tensor<1> {
    chunked(hidden, head, layout, labels, divisor, Some(budget))
}

fn chunked(
    hidden: Tensor<2>,
    head: Tensor<2>,
    layout: HeadLayout,
    labels: &[i64],
    divisor: f64,
    budget: Option<usize>,
) -> Tensor<1> {
    let [n, d] = hidden.dims();
    assert_eq!(labels.len(), n, "linear_cross_entropy: hidden is [{n}, {d}]");
    let [rows, columns] = head.dims();
    let (vocabulary, width) = match layout {
        HeadLayout::TokenRows => (rows, columns),
        HeadLayout::TokenColumns => (columns, rows),
    };
    assert_eq!(width, d, "linear_cross_entropy: hidden is [{n}, {d}], the head is [{rows}, {columns}], {layout:?}");
    let (at, labels): (Vec<i64>, Vec<i64>) =
        labels.iter().enumerate().filter(|(_, label)| **label >= 0).map(|(row, label)| (row as i64, *label)).unzip();
    if let Some(label) = labels.iter().find(|label| **label >= vocabulary as i64) {
        panic!("linear_cross_entropy: label {label} is not in a vocabulary of {vocabulary}");
    }
    if labels.is_empty() {
        return Tensor::zeros([1], (&hidden.device(), accumulator(hidden.dtype())));
    }
    let device = hidden.device().without_autodiff();
    let count = labels.len();
    let ints = |values: Vec<i64>| Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device);
    let hidden = match count == n {
        true => hidden,
        false => embedding(hidden, ints(at)),
    };
    let trained = [hidden.is_tracked(), head.is_tracked()];
    let loss = Dispatch::linear_cross_entropy(
        hidden.into_dispatch(),
        head.into_dispatch(),
        ints(labels).into_dispatch(),
        layout,
        divisor,
        budget,
        trained,
    );
    Tensor::from_dispatch(loss)
}

/// The loss and its gradients, chunk by chunk.
pub fn portable<B: Kernels>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    labels: IntTensor<B>,
    layout: HeadLayout,
    divisor: f64,
    budget: usize,
    [train_hidden, train_head]: [bool; 2],
) -> LossAndGrads<B> {
    let dtype = hidden.dtype();
    let sums = accumulator(dtype);
    let device = hidden.device();
    let n = hidden.shape()[0];
    let (hidden, head) = (Array::<B>(hidden), Array::<B>(head));
    let columns = match layout {
        HeadLayout::TokenRows => head.swap(0, 1),
        HeadLayout::TokenColumns => head,
    }; // [d, V]
    let vocabulary = columns.dims()[1];
    let rows = chunk_rows(budget, 1, vocabulary, sums.size());
    let (mut losses, mut hidden_grads, mut head_grad) = (Vec::new(), Vec::new(), None::<Array<B>>);
    for start in (0..n).step_by(rows) {
        let len = rows.min(n - start);
        let x = hidden.clone().narrow(0, start, len);
        let slice: Slice = (start..start + len).into();
        let at = B::int_reshape(B::int_slice(labels.clone(), &[slice]), Shape::from(vec![len, 1]));
        let logits = x.clone().product(columns.clone(), sums); // [len, V]
        let all = logits.log_sum_exp();
        losses.push(all.clone().sub(logits.clone().gather(1, at.clone())));
        if !train_hidden && !train_head {
            continue;
        }
        let hit = Array::<B>::zeros(&[len, 1], sums, &device).plus(-1.0);
        let grad = logits.sub(all).exp().scatter_add(1, at, hit).scale(1.0 / divisor).cast(dtype); // [len, V]
        if train_hidden {
            hidden_grads.push(grad.clone().product(columns.clone().swap(0, 1), dtype));
        }
        if train_head {
            let part = match layout {
                HeadLayout::TokenRows => grad.swap(0, 1).product(x, sums),
                HeadLayout::TokenColumns => x.swap(0, 1).product(grad, sums),
            };
            head_grad = Some(match head_grad {
                Some(sum) => sum.add(part),
                None => part,
            });
        }
    }
    let loss = Array::cat(losses, 0).sum().scale(1.0 / divisor).0;
    let hidden_grad = train_hidden.then(|| Array::cat(hidden_grads, 0).0);
    (loss, [hidden_grad, head_grad.map(|sum| sum.cast(dtype).0)])
}

/// The loss. Its gradients are saved for the backward pass, which only scales them.
pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    head: FloatTensor<Autodiff<B, C>>,
    labels: IntTensor<B>,
    layout: HeadLayout,
    divisor: f64,
    budget: usize,
    trained: [bool; 2],
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct LinearCrossEntropy;

    impl<B: Backend> Backward<B, 2> for LinearCrossEntropy {
        type State = [Option<FloatTensor<B>>; 2];

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let by = grads.consume::<B>(&ops.node);
            for (parent, saved) in ops.parents.into_iter().zip(ops.state) {
                if let (Some(parent), Some(saved)) = (parent, saved) {
                    grads.register::<B>(parent.id, scale_saved::<B>(saved, by.clone()));
                }
            }
        }
    }

    let ((hidden, a), (head, b)) = (hidden.into_parts(), head.into_parts());
    let kernel = |grads| B::linear_cross_entropy_kernel(hidden, head, labels, layout, divisor, budget, grads);
    match LinearCrossEntropy.prepare::<C>([a, b]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (loss, saved) = kernel(trained);
            prep.finish(saved, loss)
        }
        OpsKind::UnTracked(prep) => prep.finish(kernel([false; 2]).0),
    }
}
