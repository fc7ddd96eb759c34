//! Selects rows of a table, with a gradient that is summed in f32.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Int, Tensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::array::{Array, accumulator};
use super::{FusedOps, Kernels};

/// The rows `ids` of `table`, an embedding table or any other. A token that occurs many times in a batch adds that many
/// rows to one row of the table's gradient. A sum in bfloat16 stops growing at 256 times an addend, so most of them
/// would be lost; the sum is therefore computed in f32 (f64 for f64) and rounded once.
///
/// # Shapes
/// - table: `[V, d]`
/// - ids: `[N]`, each below V
/// - output: `[N, d]`
pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::embedding_rows(table.into_dispatch(), ids.into_dispatch()))
}

/// The rows `ids` of `table`.
pub fn rows<B: Backend>(table: FloatTensor<B>, ids: IntTensor<B>) -> FloatTensor<B> {
    Array::<B>(table).select(0, ids).0
}

/// The table's gradient, `[rows, d]`, in the type of `grad`.
pub fn portable_backward<B: Backend>(rows: usize, ids: IntTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = grad.dtype();
    let wide = accumulator(dtype);
    let d = grad.shape()[1];
    let sum = Array::<B>::zeros(&[rows, d], wide, &grad.device());
    sum.select_add(0, ids, Array(grad).cast(wide)).cast(dtype).0
}

pub fn tracked<B: Kernels, C: CheckpointStrategy>(
    table: FloatTensor<Autodiff<B, C>>,
    ids: IntTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Embedding;

    impl<B: Kernels> Backward<B, 1> for Embedding {
        type State = (usize, IntTensor<B>);

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let (vocabulary, ids) = ops.state;
            if let [Some(parent)] = ops.parents {
                grads.register::<B>(parent.id, B::embedding_backward_kernel(vocabulary, ids, grad));
            }
        }
    }

    let (table, node) = table.into_parts();
    let vocabulary = table.shape()[0];
    match Embedding.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((vocabulary, ids.clone()), rows::<B>(table, ids)),
        OpsKind::UnTracked(prep) => prep.finish(rows::<B>(table, ids)),
    }
}
