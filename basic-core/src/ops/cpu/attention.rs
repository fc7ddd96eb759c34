//! Attention, one head at a time: the scores of a block of queries stay in the cache, and masked ones are never
//! exponentiated.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::attention::{Saved, Sizes};
use super::math::{dot, exp, exp_in_place, max, simd};
use super::product::{Matrix, Threads, product};
use super::{elements, indices, ordered, tensor};

/// The number of queries whose scores are held at a time.
const BLOCK: usize = 128;

/// Rows of heads by sample, `[B, n, heads, w]`. There may be gaps between samples, so that the keys and values in a
/// generation's cache, which has room after each sample's rows, are read without a copy.
#[derive(Clone, Copy)]
struct Heads<'a> {
    data: &'a [f32],
    sample: usize,
    heads: usize,
    width: usize,
}

impl<'a> Heads<'a> {
    /// The elements of a tensor returned by [`spaced`].
    fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [batch, _, heads, width] = [0, 1, 2, 3].map(|axis| layout.shape()[axis]);
        let sample = if batch > 1 { layout.strides()[0] as usize } else { 0 };
        Self { data: tensor.storage::<f32>().get(layout.start_offset()..).unwrap_or_default(), sample, heads, width }
    }

    /// `n` rows of a head, from `start` on.
    fn rows(self, [sample, head]: [usize; 2], start: usize, n: usize) -> Matrix<'a> {
        let at = sample * self.sample + (start * self.heads + head) * self.width;
        Matrix::rows(&self.data[at..], n, self.width, self.heads * self.width)
    }

    /// One row of a head.
    fn row(self, [sample, head]: [usize; 2], row: usize) -> &'a [f32] {
        let at = sample * self.sample + (row * self.heads + head) * self.width;
        &self.data[at..at + self.width]
    }
}

/// The tensor itself if the rows of each sample are contiguous, otherwise a copy.
fn spaced(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    let (shape, strides) = (layout.shape(), layout.strides());
    let within = [shape[2] * shape[3], shape[3], 1];
    let in_order = (1..4).all(|axis| shape[axis] == 1 || strides[axis] == within[axis - 1] as isize);
    match in_order && strides[0] >= 0 {
        true => tensor,
        false => tensor.to_contiguous(),
    }
}

/// Which keys each query sees.
struct Visible {
    first: Vec<i64>,
    samples: usize,
    queries: usize,
    past: usize,
    /// The number of keys, if every query sees all of them.
    all: Option<usize>,
}

impl Visible {
    fn new(first: &FlexTensor, sizes: &Sizes, causal: bool) -> Self {
        Self {
            first: indices(first),
            samples: first.layout().shape()[0],
            queries: sizes.queries,
            past: sizes.keys - sizes.queries,
            all: (!causal).then_some(sizes.keys),
        }
    }

    /// The most keys that any of the queries `..end` sees.
    fn seen(&self, end: usize) -> usize {
        self.all.unwrap_or(self.past + end)
    }

    /// The keys that query `row` of `sample` sees.
    fn keys(&self, sample: usize, row: usize) -> std::ops::Range<usize> {
        if let Some(keys) = self.all {
            return 0..keys;
        }
        let own = self.past + row;
        let first = self.first[sample % self.samples * self.queries + row].max(0) as usize;
        first.min(own)..own + 1
    }
}

/// Output and log-sum-exp.
pub fn forward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    first: FlexTensor,
    causal: bool,
) -> (FlexTensor, FlexTensor) {
    let sizes = Sizes::of::<Flex>(&q, &k);
    let Sizes { batch, queries, keys, heads, width, .. } = sizes;
    let [q, k, v] = [q, k, v].map(spaced);
    let [q, k, v] = [&q, &k, &v].map(Heads::of);
    let visible = Visible::new(&first, &sizes, causal);
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
            let seen = visible.seen(start + n);
            let (q, k, v) = (q.rows([sample, h], start, n), k.rows(kv, 0, seen), v.rows(kv, 0, seen));
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
    let visible = Visible::new(&saved.first, &sizes, saved.causal);
    let [q, k, v, output, grad] = [saved.q, saved.k, saved.v, saved.output, grad].map(spaced);
    let [q, k, v, output, grad] = [&q, &k, &v, &output, &grad].map(Heads::of);
    let lse = ordered(saved.lse);
    let lse = elements(&lse);
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
                let seen = visible.seen(start + n);
                let (q, dout) = (q.rows(at, start, n), grad.rows(at, start, n));
                let (k, v) = (k.rows([sample, kv], 0, seen), v.rows([sample, kv], 0, seen));
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
                    simd(
                        #[inline(always)]
                        || {
                            let drop = dot(grad.row(at, row), output.row(at, row));
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

/// The attention of the read-out's rows to each key, averaged over the heads.
pub fn mass(
    q: FlexTensor,
    k: FlexTensor,
    lse: FlexTensor,
    first: FlexTensor,
    rows: FlexTensor,
    readout: FlexTensor,
) -> FlexTensor {
    let sizes = Sizes::of::<Flex>(&q, &k);
    let Sizes { batch, queries, keys, heads, width, .. } = sizes;
    let visible = Visible::new(&first, &sizes, true);
    let (n, s) = (rows.layout().shape()[1], readout.layout().shape()[1]);
    let rows = indices(&rows);
    let [q, k] = [q, k].map(spaced);
    let [q, k] = [&q, &k].map(Heads::of);
    let [lse, readout] = [lse, readout].map(ordered);
    let [lse, readout] = [&lse, &readout].map(elements);
    let scale = sizes.scale() as f32;
    let mut by_head = vec![0f32; batch * heads * s * keys];
    by_head.par_chunks_mut(s * keys).enumerate().for_each(|(task, out)| {
        let (sample, h) = (task / heads, task % heads);
        let rows = &rows[sample * n..(sample + 1) * n];
        let mut asked = Vec::with_capacity(n * width);
        for row in rows {
            asked.extend_from_slice(q.row([sample, h], *row as usize));
        }
        let mut p = vec![0f32; n * keys];
        let k = k.rows([sample, h / sizes.group()], 0, keys);
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
