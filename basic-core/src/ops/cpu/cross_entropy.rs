//! The language model's loss, fused with the output head.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::distribution::chunk_rows;
use super::super::{HeadLayout, LossAndGrads};
use super::math::{exp_in_place, max, simd};
use super::product::{Matrix, Threads, fill_product, product};
use super::{elements, indices, ordered, tensor};

/// Loss and gradients, chunk by chunk.
pub fn linear_cross_entropy(
    hidden: FlexTensor,
    head: FlexTensor,
    labels: FlexTensor,
    layout: HeadLayout,
    divisor: f64,
    budget: usize,
    [train_hidden, train_head]: [bool; 2],
) -> LossAndGrads<Flex> {
    let (hidden, head, labels) = (ordered(hidden), ordered(head), indices(&labels));
    let [n, d] = [hidden.layout().shape()[0], hidden.layout().shape()[1]];
    let [h_rows, h_columns] = [head.layout().shape()[0], head.layout().shape()[1]];
    let stored = Matrix::rows(elements(&head), h_rows, h_columns, h_columns);
    let (vocabulary, columns) = match layout {
        HeadLayout::TokenRows => (h_rows, stored.t()),
        HeadLayout::TokenColumns => (h_columns, stored),
    };
    let rows = chunk_rows(budget, 1, vocabulary, 4).min(n);
    let mut logits = Vec::new();
    let mut hidden_grad = if train_hidden { vec![0f32; n * d] } else { Vec::new() };
    let mut head_grad = Vec::new();
    let scale = (1.0 / divisor) as f32;
    let mut loss = 0f64;
    for start in (0..n).step_by(rows) {
        let len = rows.min(n - start);
        let x = Matrix::rows(&elements(&hidden)[start * d..(start + len) * d], len, d, d);
        fill_product(&mut logits, x, columns, Threads::Pool);
        let labels = &labels[start..start + len];
        let parts: Vec<f64> = logits
            .par_chunks_mut(vocabulary)
            .zip(labels.par_iter())
            .map(|(row, label)| f64::from(entropy(row, *label as usize, scale)))
            .collect();
        // Added in the order of the rows, so that every run gives the same bits.
        loss += parts.iter().sum::<f64>();
        let grad = Matrix::rows(&logits, len, vocabulary, vocabulary);
        if train_hidden {
            let out = &mut hidden_grad[start * d..(start + len) * d];
            product(out, d, grad, columns.t(), false, Threads::Pool);
        }
        if train_head {
            let (a, b, width) = match layout {
                HeadLayout::TokenRows => (grad.t(), x, d),
                HeadLayout::TokenColumns => (x.t(), grad, vocabulary),
            };
            match start {
                0 => fill_product(&mut head_grad, a, b, Threads::Pool),
                _ => product(&mut head_grad, width, a, b, true, Threads::Pool),
            }
        }
    }
    let hidden_grad = train_hidden.then(|| tensor(hidden_grad, &[n, d]));
    let head_grad = train_head.then(|| tensor(head_grad, &[h_rows, h_columns]));
    (tensor(vec![(loss / divisor) as f32], &[1]), [hidden_grad, head_grad])
}

/// The cross entropy of a row of logits. The row is overwritten with `scale (softmax - one hot)`.
fn entropy(row: &mut [f32], label: usize, scale: f32) -> f32 {
    let hit = row[label];
    let (top, sum) = simd(
        #[inline(always)]
        || {
            let top = max(row);
            let sum = exp_in_place(row, top);
            let by = scale / sum;
            row.iter_mut().for_each(|x| *x *= by);
            (top, sum)
        },
    );
    row[label] -= scale;
    top + sum.ln() - hit
}
