//! Attention, a head at a time: scores of a block of queries stay in the cache, and masked ones are never exponentiated.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::attention::{Saved, Sizes};
use super::math::{dot, exp, exp_in_place, max, simd};
use super::product::{Matrix, Threads, product};
use super::{elements, indices, ordered, tensor};

/// Queries whose scores are held at a time.
const BLOCK: usize = 128;

/// A head's rows within `[B, n, heads, w]`, from `start` on.
fn head<'a>(x: &'a [f32], sizes: &Sizes, n: usize, heads: usize, at: [usize; 2], start: usize) -> &'a [f32] {
    let [sample, head] = at;
    &x[((sample * n + start) * heads + head) * sizes.width..]
}

/// Which keys each query sees.
struct Visible {
    first: Vec<i64>,
    samples: usize,
    queries: usize,
    past: usize,
}

impl Visible {
    fn new(first: &FlexTensor, sizes: &Sizes) -> Self {
        Self {
            first: indices(first),
            samples: first.layout().shape()[0],
            queries: sizes.queries,
            past: sizes.keys - sizes.queries,
        }
    }

    /// The keys of query `row` of `sample`.
    fn keys(&self, sample: usize, row: usize) -> std::ops::Range<usize> {
        let own = self.past + row;
        let first = self.first[sample % self.samples * self.queries + row].max(0) as usize;
        first.min(own)..own + 1
    }
}

/// Output and log-sum-exp.
pub fn forward(q: FlexTensor, k: FlexTensor, v: FlexTensor, first: FlexTensor) -> (FlexTensor, FlexTensor) {
    let sizes = Sizes::of::<Flex>(&q, &k);
    let Sizes { batch, queries, keys, heads, kv_heads, width } = sizes;
    let (q, k, v) = (ordered(q), ordered(k), ordered(v));
    let (q, k, v) = (elements(&q), elements(&k), elements(&v));
    let visible = Visible::new(&first, &sizes);
    let scale = sizes.scale() as f32;
    let mut by_head = vec![0f32; batch * heads * queries * width]; // [B, heads, T, w]
    let mut lse = vec![0f32; batch * heads * queries];
    let tasks = by_head.par_chunks_mut(queries * width).zip(lse.par_chunks_mut(queries)).enumerate();
    tasks.for_each(|(task, (out, lse))| {
        let (sample, h) = (task / heads, task % heads);
        let kv = [sample, h / sizes.group()];
        let mut scores = vec![0f32; BLOCK.min(queries) * keys];
        for start in (0..queries).step_by(BLOCK) {
            let n = BLOCK.min(queries - start);
            let seen = visible.past + start + n;
            let q = Matrix::rows(head(q, &sizes, queries, heads, [sample, h], start), n, width, heads * width);
            let k = Matrix::rows(head(k, &sizes, keys, kv_heads, kv, 0), seen, width, kv_heads * width);
            let v = Matrix::rows(head(v, &sizes, keys, kv_heads, kv, 0), seen, width, kv_heads * width);
            product(&mut scores, seen, q, k.t(), false, Threads::One);
            for (i, row) in scores.chunks_exact_mut(seen).take(n).enumerate() {
                let range = visible.keys(sample, start + i);
                row[..range.start].fill(0.0);
                row[range.end..].fill(0.0);
                let row = &mut row[range];
                lse[start + i] = simd(
                    #[inline(always)]
                    || {
                        row.iter_mut().for_each(|x| *x *= scale);
                        let top = max(row);
                        let sum = exp_in_place(row, top);
                        let by = 1.0 / sum;
                        row.iter_mut().for_each(|x| *x *= by);
                        top + sum.ln()
                    },
                );
            }
            let p = Matrix::rows(&scores, n, seen, seen);
            product(&mut out[start * width..(start + n) * width], width, p, v, false, Threads::One);
        }
    });
    let output = interleaved(&by_head, batch, heads, queries, width);
    (tensor(output, &[batch, queries, heads, width]), tensor(lse, &[batch, heads, queries]))
}

/// `[B, heads, n, w]` to `[B, n, heads, w]`.
fn interleaved(x: &[f32], batch: usize, heads: usize, n: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0f32; batch * n * heads * width];
    out.par_chunks_mut(heads * width).enumerate().with_min_len(64).for_each(|(row, out)| {
        let (sample, position) = (row / n, row % n);
        for (h, out) in out.chunks_exact_mut(width).enumerate() {
            let at = ((sample * heads + h) * n + position) * width;
            out.copy_from_slice(&x[at..at + width]);
        }
    });
    out
}

/// The gradients with respect to q, k and v.
pub fn backward(saved: Saved<Flex>, grad: FlexTensor) -> [FlexTensor; 3] {
    let sizes = Sizes::of::<Flex>(&saved.q, &saved.k);
    let Sizes { batch, queries, keys, heads, kv_heads, width } = sizes;
    let group = sizes.group();
    let visible = Visible::new(&saved.first, &sizes);
    let [q, k, v, output, lse, grad] = [saved.q, saved.k, saved.v, saved.output, saved.lse, grad].map(ordered);
    let [q, k, v, output, lse, grad] = [&q, &k, &v, &output, &lse, &grad].map(elements);
    let scale = sizes.scale() as f32;
    let mut q_grad = vec![0f32; batch * heads * queries * width]; // [B, heads, T, w]
    let mut k_grad = vec![0f32; batch * kv_heads * keys * width]; // [B, kv_heads, keys, w]
    let mut v_grad = vec![0f32; batch * kv_heads * keys * width];
    let tasks = q_grad
        .par_chunks_mut(group * queries * width)
        .zip(k_grad.par_chunks_mut(keys * width))
        .zip(v_grad.par_chunks_mut(keys * width))
        .enumerate();
    tasks.for_each(|(task, ((q_grad, k_grad), v_grad))| {
        let (sample, kv) = (task / kv_heads, task % kv_heads);
        let rows = BLOCK.min(queries);
        let (mut p, mut s) = (vec![0f32; rows * keys], vec![0f32; rows * keys]);
        for (g, q_grad) in q_grad.chunks_exact_mut(queries * width).enumerate() {
            let at = [sample, kv * group + g];
            let lse = &lse[(sample * heads + at[1]) * queries..][..queries];
            for start in (0..queries).step_by(BLOCK) {
                let n = BLOCK.min(queries - start);
                let seen = visible.past + start + n;
                let of_query = |x| Matrix::rows(head(x, &sizes, queries, heads, at, start), n, width, heads * width);
                let of_key =
                    |x| Matrix::rows(head(x, &sizes, keys, kv_heads, [sample, kv], 0), seen, width, kv_heads * width);
                let (q, k, v, dout) = (of_query(q), of_key(k), of_key(v), of_query(grad));
                product(&mut p, seen, q, k.t(), false, Threads::One);
                product(&mut s, seen, dout, v.t(), false, Threads::One);
                for (i, (p, s)) in p.chunks_exact_mut(seen).zip(s.chunks_exact_mut(seen)).take(n).enumerate() {
                    let row = start + i;
                    let range = visible.keys(sample, row);
                    for hidden in [0..range.start, range.end..seen] {
                        p[hidden.clone()].fill(0.0);
                        s[hidden].fill(0.0);
                    }
                    let (p, s) = (&mut p[range.clone()], &mut s[range]);
                    let own = |x| &head(x, &sizes, queries, heads, at, row)[..width];
                    simd(
                        #[inline(always)]
                        || {
                            let drop = dot(own(grad), own(output));
                            for (p, s) in p.iter_mut().zip(s) {
                                *p = exp(*p * scale - lse[row]);
                                *s = *p * (*s - drop) * scale;
                            }
                        },
                    );
                }
                let (p, s) = (Matrix::rows(&p, n, seen, seen), Matrix::rows(&s, n, seen, seen));
                product(&mut q_grad[start * width..(start + n) * width], width, s, k, false, Threads::One);
                product(k_grad, width, s.t(), q, true, Threads::One);
                product(v_grad, width, p.t(), dout, true, Threads::One);
            }
        }
    });
    [
        tensor(interleaved(&q_grad, batch, heads, queries, width), &[batch, queries, heads, width]),
        tensor(interleaved(&k_grad, batch, kv_heads, keys, width), &[batch, keys, kv_heads, width]),
        tensor(interleaved(&v_grad, batch, kv_heads, keys, width), &[batch, keys, kv_heads, width]),
    ]
}

/// The read-out of the rows' probabilities, averaged over the heads.
pub fn mass(
    q: FlexTensor,
    k: FlexTensor,
    lse: FlexTensor,
    first: FlexTensor,
    rows: FlexTensor,
    readout: FlexTensor,
) -> FlexTensor {
    let sizes = Sizes::of::<Flex>(&q, &k);
    let Sizes { batch, queries, keys, heads, kv_heads, width } = sizes;
    let visible = Visible::new(&first, &sizes);
    let (n, s) = (rows.layout().shape()[1], readout.layout().shape()[1]);
    let rows = indices(&rows);
    let [q, k, lse, readout] = [q, k, lse, readout].map(ordered);
    let [q, k, lse, readout] = [&q, &k, &lse, &readout].map(elements);
    let scale = sizes.scale() as f32;
    let mut by_head = vec![0f32; batch * heads * s * keys];
    by_head.par_chunks_mut(s * keys).enumerate().for_each(|(task, out)| {
        let (sample, h) = (task / heads, task % heads);
        let rows = &rows[sample * n..(sample + 1) * n];
        let mut asked = Vec::with_capacity(n * width);
        for row in rows {
            asked.extend_from_slice(&head(q, &sizes, queries, heads, [sample, h], *row as usize)[..width]);
        }
        let mut p = vec![0f32; n * keys];
        let k = head(k, &sizes, keys, kv_heads, [sample, h / sizes.group()], 0);
        let k = Matrix::rows(k, keys, width, kv_heads * width);
        product(&mut p, keys, Matrix::rows(&asked, n, width, width), k.t(), false, Threads::One);
        for (p, row) in p.chunks_exact_mut(keys).zip(rows) {
            let row = *row as usize;
            let range = visible.keys(sample, row);
            p[..range.start].fill(0.0);
            p[range.end..].fill(0.0);
            let all = lse[(sample * heads + h) * queries + row];
            simd(
                #[inline(always)]
                || p[range].iter_mut().for_each(|x| *x = exp(*x * scale - all)),
            );
        }
        let readout = Matrix::rows(&readout[sample * s * n..(sample + 1) * s * n], s, n, n);
        product(out, keys, readout, Matrix::rows(&p, n, keys, keys), false, Threads::One);
    });
    let mut out = vec![0f32; batch * s * keys];
    for (task, part) in by_head.chunks_exact(s * keys).enumerate() {
        let out = &mut out[task / heads * s * keys..][..s * keys];
        out.iter_mut().zip(part).for_each(|(sum, x)| *sum += x / heads as f32);
    }
    tensor(out, &[batch, s, keys])
}
