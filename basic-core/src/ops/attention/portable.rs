//! Attention in the backend's own operations, by blocks of queries: forward, backward, and the read-out of the rows'
//! probabilities. Used wherever this crate has no kernel.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{Shape, Slice};

use super::super::Kernels;
use super::super::array::{Array, accumulator, hidden_keys};
use super::super::blocks::{BLOCK_BUDGET, budget_or};
use super::Saved;

/// The number of blocks that the queries are cut into, so that each block skips the keys after its last query. Eight
/// blocks skip 7/16 of all pairs.
const CAUSAL_BLOCKS: usize = 8;
/// The fewest queries of a block that is cut for that reason.
const CAUSAL_QUERIES: usize = 256;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub width: usize,
}

impl Sizes {
    pub fn of<B: Backend>(q: &FloatTensor<B>, k: &FloatTensor<B>) -> Self {
        let (q, k) = (q.shape(), k.shape());
        Self { batch: q[0], queries: q[1], keys: k[1], heads: q[2], kv_heads: k[2], width: q[3] }
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The factor of the scores.
    pub fn scale(&self) -> f64 {
        (self.width as f64).powf(-0.5)
    }
}

/// For queries `start..start + len`: the first visible key of each, at most its own position; and their positions.
fn visible<B: Backend>(first: &IntTensor<B>, sizes: &Sizes, start: usize, len: usize) -> (IntTensor<B>, IntTensor<B>) {
    let rows = first.shape()[0];
    let device = first.device();
    let int = get_or_init_device_settings::<B>(&device).int_dtype;
    let past = sizes.keys - sizes.queries;
    let positions = B::int_arange((past + start) as i64..(past + start + len) as i64, &device, int);
    let positions = B::int_expand(B::int_reshape(positions, Shape::from(vec![1, len])), Shape::from(vec![rows, len]));
    let slices: [Slice; 2] = [(0..rows).into(), (start..start + len).into()];
    let first = B::int_cast(B::int_slice(first.clone(), &slices), int);
    (at_most::<B>(first, positions.clone()), positions)
}

/// The element-wise minimum.
fn at_most<B: Backend>(values: IntTensor<B>, bound: IntTensor<B>) -> IntTensor<B> {
    let store = get_or_init_device_settings::<B>(&values.device()).bool_dtype;
    let over = B::int_greater(values.clone(), bound.clone(), store);
    B::int_mask_where(values, over, bound)
}

/// `[B, n, heads, w]` to `[B kv_heads, group n, w]`: the queries that share a key head lie one after the other. With a
/// single batch dimension the operands of the matrix products are contiguous, which is fastest.
fn stacked<B: Backend>(x: Array<B>, sizes: &Sizes) -> Array<B> {
    let n = x.dims()[1];
    x.swap(1, 2).reshape(&[sizes.batch * sizes.kv_heads, sizes.group() * n, sizes.width])
}

/// Keys or values `[B, keys, kv_heads, w]` by head, `[B kv_heads, keys, w]`.
fn by_head<B: Backend>(x: FloatTensor<B>, sizes: &Sizes) -> Array<B> {
    Array::<B>(x).swap(1, 2).reshape(&[sizes.batch * sizes.kv_heads, sizes.keys, sizes.width])
}

/// The inverse of [`stacked`].
fn unstacked<B: Backend>(x: Array<B>, sizes: &Sizes, n: usize) -> Array<B> {
    x.reshape(&[sizes.batch, sizes.heads, n, sizes.width]).swap(1, 2)
}

/// Scaled scores `[B, heads, n, seen]` for the first `seen` keys, in the accumulator's type, capped if there is a cap;
/// hidden keys get the lowest finite value.
fn scores<B: Kernels>(
    q: Array<B>,
    k_columns: Array<B>,
    hidden: Option<BoolTensor<B>>,
    sizes: &Sizes,
    cap: Option<f64>,
) -> Array<B> {
    let raw = visible_scores(q, k_columns, hidden.is_none(), sizes);
    let capped = match cap {
        Some(cap) => raw.scale(1.0 / cap).tanh().scale(cap),
        None => raw,
    };
    masked(capped, hidden)
}

/// The scores without a mask and a cap.
fn visible_scores<B: Kernels>(q: Array<B>, k_columns: Array<B>, all: bool, sizes: &Sizes) -> Array<B> {
    let n = q.dims()[1];
    let dtype = accumulator(q.dtype());
    let seen = k_columns.dims()[2];
    let shape = [sizes.batch, sizes.heads, n, seen];
    // If all keys are seen, the queries are scaled instead of the scores, as in transformers' CLIP: they are fewer
    // numbers. In 16 bits that would round them.
    let raw = match all && q.dtype() == dtype {
        true => stacked(q.scale(sizes.scale()), sizes).product(k_columns, dtype),
        false => stacked(q, sizes).product(k_columns, dtype).scale(sizes.scale()),
    };
    raw.reshape(&shape)
}

/// The scores with the lowest finite value at hidden keys.
fn masked<B: Backend>(scores: Array<B>, hidden: Option<BoolTensor<B>>) -> Array<B> {
    match hidden {
        Some(hidden) => {
            let shape = Shape::from(scores.dims());
            scores.mask_fill(B::bool_expand(hidden, shape), f64::from(f32::MIN / 2.0))
        }
        None => scores,
    }
}

/// The masks of the blocks, `[B or 1, 1, n, seen]`, true for keys that a query must not see; `None` if all are seen.
struct Hidden<'a, B: Backend> {
    first: &'a IntTensor<B>,
    sizes: &'a Sizes,
    causal: bool,
    /// The mask of all queries and keys at once, if it is small; that of a block is then a slice of it.
    whole: Option<BoolTensor<B>>,
}

impl<'a, B: Backend> Hidden<'a, B> {
    fn new(first: &'a IntTensor<B>, sizes: &'a Sizes, causal: bool) -> Self {
        let small = causal && first.shape()[0] * sizes.queries * sizes.keys <= BLOCK_BUDGET;
        let whole = small.then(|| {
            let (first, positions) = visible::<B>(first, sizes, 0, sizes.queries);
            hidden_keys::<B>(positions, first, sizes.keys)
        });
        Self { first, sizes, causal, whole }
    }

    fn of(&self, block: &Block) -> Option<BoolTensor<B>> {
        let Block { start, len, seen } = *block;
        if !self.causal {
            return None;
        }
        Some(match &self.whole {
            Some(whole) if len == self.sizes.queries && seen == self.sizes.keys => whole.clone(),
            Some(whole) => {
                let rows = whole.shape()[0];
                let slices: [Slice; 4] =
                    [(0..rows).into(), (0..1).into(), (start..start + len).into(), (0..seen).into()];
                B::bool_slice(whole.clone(), &slices)
            }
            None => {
                let (first, positions) = visible::<B>(self.first, self.sizes, start, len);
                hidden_keys::<B>(positions, first, seen)
            }
        })
    }
}

/// A block of queries, with the number of keys that it sees: up to its last query, or all.
struct Block {
    start: usize,
    len: usize,
    seen: usize,
}

/// Cuts the queries into blocks whose scores fit the device's budget.
fn blocks<B: Kernels>(sizes: &Sizes, causal: bool, device: &B::Device) -> impl Iterator<Item = Block> + use<B> {
    let Sizes { queries, keys, .. } = *sizes;
    let row = 4 * sizes.batch * sizes.heads * keys;
    let fitting = budget_or::<B>(None, device, BLOCK_BUDGET) / row.max(1);
    let useful = if causal { queries.div_ceil(CAUSAL_BLOCKS).max(CAUSAL_QUERIES) } else { queries };
    let block = fitting.min(useful).clamp(1, queries);
    (0..queries).step_by(block).map(move |start| {
        let len = block.min(queries - start);
        Block { start, len, seen: if causal { keys - queries + start + len } else { keys } }
    })
}

/// Forward pass: output and log-sum-exp.
pub fn portable<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    first: IntTensor<B>,
    causal: bool,
    cap: Option<f64>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sizes = Sizes::of::<B>(&q, &k);
    let dtype = q.dtype();
    let device = q.device();
    let q = Array::<B>(q);
    let (columns, values) = (by_head::<B>(k, &sizes).swap(1, 2), by_head::<B>(v, &sizes));
    let (mut outputs, mut sums) = (Vec::new(), Vec::new());
    let hidden = Hidden::<B>::new(&first, &sizes, causal);
    for block in blocks::<B>(&sizes, causal, &device) {
        let Block { start, len, seen } = block;
        let columns = columns.clone().narrow(2, 0, seen);
        let scores = scores(q.clone().narrow(1, start, len), columns, hidden.of(&block), &sizes, cap);
        // [B, heads, len, seen] and [B, heads, len, 1]
        let (p, lse) = match causal {
            true => {
                let lse = scores.log_sum_exp();
                (scores.sub(lse.clone()).exp(), lse)
            }
            false => scores.softmax(),
        };
        let p = p.cast(dtype).reshape(&[sizes.batch * sizes.kv_heads, sizes.group() * len, seen]);
        outputs.push(unstacked(p.product(values.clone().narrow(1, 0, seen), dtype), &sizes, len));
        sums.push(lse.reshape(&[sizes.batch, sizes.heads, len]));
    }
    (Array::cat(outputs, 1).0, Array::cat(sums, 2).0)
}

/// With P the probabilities, O the output and G its gradient: `dV = P^T G`, `dS = P (G V^T - rowsum(G O))`,
/// `dQ = dS K / sqrt(w)`, `dK = dS^T Q / sqrt(w)`. Below a cap, dS is multiplied by the slope of the capped scores,
/// `1 - tanh(s / cap)^2`.
pub fn portable_backward<B: Kernels>(saved: Saved<B>, grad: FloatTensor<B>) -> [FloatTensor<B>; 3] {
    let sizes = Sizes::of::<B>(&saved.q, &saved.k);
    let dtype = saved.q.dtype();
    let device = saved.q.device();
    let sums = accumulator(dtype);
    let (q, output, grad) = (Array::<B>(saved.q), Array::<B>(saved.output), Array::<B>(grad));
    let (keys, values) = (by_head::<B>(saved.k, &sizes), by_head::<B>(saved.v, &sizes));
    let lse = Array::<B>(saved.lse);
    let (mut q_grads, mut k_grad, mut v_grad) = (Vec::new(), None::<Array<B>>, None::<Array<B>>);
    // A block's part has only the keys that it sees. The last block sees all of them and comes first.
    let total = |sum: Option<Array<B>>, part: Array<B>| {
        Some(match sum {
            Some(sum) => sum.add_front(1, part),
            None => part,
        })
    };
    let blocks: Vec<Block> = blocks::<B>(&sizes, saved.causal, &device).collect();
    let hidden = Hidden::<B>::new(&saved.first, &sizes, saved.causal);
    for block in blocks.into_iter().rev() {
        let Block { start, len, seen } = block;
        let shape = [sizes.batch, sizes.heads, len, seen];
        let rows = [sizes.batch * sizes.kv_heads, sizes.group() * len, seen];
        let (keys, values) = (keys.clone().narrow(1, 0, seen), values.clone().narrow(1, 0, seen));
        let q = q.clone().narrow(1, start, len);
        let hidden = hidden.of(&block);
        let raw = visible_scores(q.clone(), keys.clone().swap(1, 2), hidden.is_none(), &sizes);
        // The slope is that of the scores before they are masked: with the mask's value it would be infinite.
        let (scores, slope) = match saved.cap {
            Some(cap) => {
                let level = raw.scale(1.0 / cap).tanh();
                (level.clone().scale(cap), Some(level.square().neg().plus(1.0)))
            }
            None => (raw, None),
        };
        let scores = masked(scores, hidden);
        let lse = lse.clone().narrow(2, start, len).reshape(&[sizes.batch, sizes.heads, len, 1]);
        let p = scores.sub(lse).exp(); // [B, heads, len, seen]
        let (q, g) = (stacked(q, &sizes), stacked(grad.clone().narrow(1, start, len), &sizes));
        let o = stacked(output.clone().narrow(1, start, len), &sizes);
        let drop = g.clone().cast(sums).mul(o.cast(sums)).sum_dim(2).reshape(&[sizes.batch, sizes.heads, len, 1]);
        let pull = g.clone().product(values.swap(1, 2), sums).reshape(&shape);
        let s = p.clone().mul(pull.sub(drop));
        let s = match slope {
            Some(slope) => s.mul(slope),
            None => s,
        };
        let s = s.scale(sizes.scale()).cast(dtype).reshape(&rows);
        let p = p.cast(dtype).reshape(&rows);
        q_grads.push(unstacked(s.clone().product(keys, dtype), &sizes, len));
        k_grad = total(k_grad, s.swap(1, 2).product(q, sums));
        v_grad = total(v_grad, p.swap(1, 2).product(g, sums));
    }
    q_grads.reverse();
    let split = [sizes.batch, sizes.kv_heads, sizes.keys, sizes.width];
    let back = |sum: Option<Array<B>>, like: Array<B>| sum.unwrap_or(like).cast(dtype).reshape(&split).swap(1, 2).0;
    [Array::cat(q_grads, 1).0, back(k_grad, keys), back(v_grad, values)]
}

/// The read-out of the rows' probabilities: see [`attention_mass`](super::attention_mass).
pub fn portable_mass<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    lse: FloatTensor<B>,
    first: IntTensor<B>,
    rows: IntTensor<B>,
    readout: FloatTensor<B>,
    cap: Option<f64>,
) -> FloatTensor<B> {
    let sizes = Sizes::of::<B>(&q, &k);
    let Sizes { batch: b, queries: t, heads, width, .. } = sizes;
    let (n, s) = (rows.shape()[1], readout.shape()[1]);
    let device = rows.device();
    let int = get_or_init_device_settings::<B>(&device).int_dtype;
    let rows = B::int_cast(rows, int);
    // Indices into the flattened rows [B * T].
    let starts = B::int_mul_scalar(B::int_arange(0..b as i64, &device, int), (t as i64).into());
    let starts = B::int_expand(B::int_reshape(starts, Shape::from(vec![b, 1])), Shape::from(vec![b, n]));
    let flat = B::int_reshape(B::int_add(starts, rows.clone()), Shape::from(vec![b * n]));
    let q = Array::<B>(q).reshape(&[b * t, heads * width]).select(0, flat.clone()).reshape(&[b, n, heads, width]);
    let lse = Array::<B>(lse).swap(1, 2).reshape(&[b * t, heads]).select(0, flat);
    let lse = lse.reshape(&[b, n, heads]).swap(1, 2).reshape(&[b, heads, n, 1]);
    let first = B::int_cast(B::int_expand(first, Shape::from(vec![b, t])), int);
    let positions = B::int_add_scalar(rows.clone(), ((sizes.keys - t) as i64).into());
    let first = at_most::<B>(B::int_gather(1, first, rows), positions.clone());
    let columns = by_head::<B>(k, &sizes).swap(1, 2);
    let readout = Array::<B>(readout);
    let fitting = budget_or::<B>(None, &device, BLOCK_BUDGET) / (4 * b * heads * sizes.keys);
    let block = fitting.clamp(1, n);
    let part = |start: usize| -> Array<B> {
        let len = block.min(n - start);
        let slices: [Slice; 2] = [(0..b).into(), (start..start + len).into()];
        let [positions, first] = [&positions, &first].map(|rows| B::int_slice(rows.clone(), &slices));
        let hidden = hidden_keys::<B>(positions, first, sizes.keys);
        let (q, lse) = (q.clone().narrow(1, start, len), lse.clone().narrow(2, start, len));
        let p = scores(q, columns.clone(), Some(hidden), &sizes, cap).sub(lse).exp(); // [B, heads, len, keys]
        let readout = readout.clone().narrow(2, start, len).reshape(&[b, 1, s, len]).expand(&[b, heads, s, len]);
        let (readout, p) = (readout.reshape(&[b * heads, s, len]), p.reshape(&[b * heads, len, sizes.keys]));
        let dtype = p.dtype();
        let mass = readout.product(p, dtype).reshape(&[b, heads, s, sizes.keys]);
        mass.sum_dim(1).scale(1.0 / heads as f64).reshape(&[b, s, sizes.keys])
    };
    let further = (block..n).step_by(block);
    further.map(part).fold(part(0), Array::add).0
}
