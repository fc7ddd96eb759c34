//! The fused linear KL divergence of semantic distribution supervision.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::LossAndGrad;
use super::super::distribution::chunk_rows;
use super::math::{LANES, exp, max, simd};
use super::product::{Matrix, Threads, fill_product, product};
use super::{elements, ordered, tensor};
use burn::backend::Flex;

/// Loss and gradient, chunk by chunk: two products for the logits, one pass over them, one product for the gradient.
pub fn semantic_distribution(
    v: FlexTensor,
    target: FlexTensor,
    table: FlexTensor,
    weights: FlexTensor,
    budget: usize,
    grad: bool,
) -> LossAndGrad<Flex> {
    let (v, target, table, weights) = (ordered(v), ordered(target), ordered(table), ordered(weights));
    let [m, d] = [v.layout().shape()[0], v.layout().shape()[1]];
    let vocabulary = table.layout().shape()[0];
    let rows = chunk_rows(budget, 2, vocabulary, 4).min(m);
    let mut gradient = if grad { vec![0f32; m * d] } else { Vec::new() };
    let columns = Matrix::rows(elements(&table), vocabulary, d, d);
    // The chunk's rows of the target, then those of v: with one product for both, the table is packed once.
    let (mut both, mut logits) = (Vec::with_capacity(2 * rows * d), Vec::new());
    let mut loss = 0f64;
    for start in (0..m).step_by(rows) {
        let len = rows.min(m - start);
        both.clear();
        for x in [&target, &v] {
            both.extend_from_slice(&elements(x)[start * d..(start + len) * d]);
        }
        fill_product(&mut logits, Matrix::rows(&both, 2 * len, d, d), columns.t(), Threads::Pool);
        let (p, q) = logits.split_at_mut(len * vocabulary);
        let weights = &elements(&weights)[start..start + len];
        let row = |((p, q), a): ((&mut [f32], &mut [f32]), &f32)| f64::from(*a) * f64::from(divergence(p, q, *a));
        let parts: Vec<f64> =
            p.par_chunks_mut(vocabulary).zip(q.par_chunks_mut(vocabulary)).zip(weights.par_iter()).map(row).collect();
        // Added in the order of the rows, so that every run gives the same bits.
        loss += parts.iter().sum::<f64>();
        if grad {
            let out = &mut gradient[start * d..(start + len) * d];
            product(out, d, Matrix::rows(q, len, vocabulary, vocabulary), columns, false, Threads::Pool);
        }
    }
    (tensor(vec![loss as f32], &[1]), grad.then(|| tensor(gradient, &[m, d])))
}

/// `KL(softmax(p) || softmax(q))` of two rows of logits; `q` is overwritten with `a (softmax(q) - softmax(p))`, and `p`
/// with intermediate values.
///
/// With x and y the logits minus their row's largest, the divergence is `sum p (x - y) - ln sum e^x + ln sum e^y`,
/// which takes one exponential per entry.
fn divergence(p: &mut [f32], q: &mut [f32], a: f32) -> f32 {
    simd(
        #[inline(always)]
        || {
            let q = &mut q[..p.len()];
            let (top_p, top_q) = (max(p), max(q));
            let [mut sum_p, mut sum_q, mut moment] = [[0f32; LANES]; 3];
            let mut step = |lane: usize, x: &mut f32, y: &mut f32| {
                let (from_top_p, from_top_q) = (*x - top_p, *y - top_q);
                (*x, *y) = (exp(from_top_p), exp(from_top_q));
                sum_p[lane] += *x;
                sum_q[lane] += *y;
                moment[lane] += *x * (from_top_p - from_top_q);
            };
            let (p_whole, p_rest) = p.as_chunks_mut::<LANES>();
            let (q_whole, q_rest) = q.as_chunks_mut::<LANES>();
            for (ps, qs) in p_whole.iter_mut().zip(q_whole) {
                for (lane, (x, y)) in ps.iter_mut().zip(qs).enumerate() {
                    step(lane, x, y);
                }
            }
            for (lane, (x, y)) in p_rest.iter_mut().zip(q_rest).enumerate() {
                step(lane, x, y);
            }
            let [sum_p, sum_q, moment] = [sum_p, sum_q, moment].map(|lanes| lanes.into_iter().sum::<f32>());
            let (by_p, by_q) = (a / sum_p, a / sum_q);
            for (x, y) in p.iter().zip(q) {
                *y = *y * by_q - *x * by_p;
            }
            moment / sum_p - sum_p.ln() + sum_q.ln()
        },
    )
}
