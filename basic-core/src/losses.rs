//! The two supervision losses and the language-model loss, on rows: no batch or padding dimension, so that several
//! images a sample, text-only samples and packed batches are all the same case.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};

/// Rows shorter than this have no direction: they are divided by it and receive no gradient.
const SHORTEST: f32 = 1e-12;

/// Directional alignment supervision: `sum_i weights_i |v_i/|v_i| - target_i/|target_i||^2` (method.md).
///
/// Differentiable in `v` alone. A row with `|v_i| <= 1e-12` is divided by `1e-12` and gets a zero gradient, where
/// PyTorch's `normalize` would give one of `1e12`.
///
/// # Shapes
/// - v: `[M, d]`
/// - target: `[M, d]`, the supervisory embeddings
/// - weights: `[M]`, the patch weights
/// - output: `[1]`, f32; 0 where M is 0
pub fn directional_alignment(v: Tensor<2>, target: Tensor<2>, weights: Tensor<1>) -> Tensor<1> {
    if v.dims()[0] == 0 {
        return zero(&v);
    }
    let u = unit_rows(v);
    let t = unit_rows(target.detach());
    let distance = (u - t).square().sum_dim(1).squeeze_dim::<1>(1); // [M]
    (distance * weights.detach().cast(DType::F32)).sum()
}

/// Rows divided by their length, `[M, d]` in f32.
fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    let rows = rows.cast(DType::F32);
    let length = rows.clone().detach().square().sum_dim(1).sqrt(); // [M, 1]
    let short = length.lower_equal_elem(SHORTEST).expand(rows.dims());
    let rows = rows.clone().mask_where(short, rows.detach());
    let length = rows.clone().square().sum_dim(1).clamp_min(SHORTEST * SHORTEST).sqrt();
    rows / length
}

/// Semantic distribution supervision: `sum_i weights_i KL(softmax(target_i E^T) || softmax(v_i E^T))` (method.md).
///
/// Differentiable in `v` alone. The products are taken in the operands' type, the softmaxes and the sum in f32.
///
/// # Shapes
/// - v: `[M, d]`
/// - target: `[M, d]`, the supervisory embeddings
/// - table: `[V, d]`, the raw input embedding table E
/// - weights: `[M]`, the patch weights
/// - output: `[1]`, f32; 0 where M is 0
pub fn semantic_distribution(v: Tensor<2>, target: Tensor<2>, table: Tensor<2>, weights: Tensor<1>) -> Tensor<1> {
    if v.dims()[0] == 0 {
        return zero(&v);
    }
    let table = table.detach().transpose(); // [d, V]
    let target = target.detach().cast(table.dtype());
    let log_p = log_softmax(target.matmul(table.clone()).cast(DType::F32), 1); // [M, V]
    let log_q = log_softmax(v.matmul(table).cast(DType::F32), 1);
    let divergence = (log_p.clone().exp() * (log_p - log_q)).sum_dim(1); // [M, 1]
    (divergence.squeeze_dim::<1>(1) * weights.detach().cast(DType::F32)).sum()
}

/// Sum of the cross entropies of `logits` against `labels`; divide by the global count of labels for the mean.
///
/// # Shapes
/// - logits: `[N, V]`, one row per label
/// - labels: `[N]`
/// - output: `[1]`, f32; 0 where N is 0
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    if logits.dims()[0] == 0 {
        return zero(&logits);
    }
    let log_q = log_softmax(logits.cast(DType::F32), 1);
    log_q.gather(1, labels.unsqueeze_dim::<2>(1)).sum().neg()
}

fn zero(like: &Tensor<2>) -> Tensor<1> {
    Tensor::zeros([1], (&like.device(), DType::F32))
}
