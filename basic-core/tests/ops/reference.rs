//! Each operation with the plain composition that defines it. Scalars multiply instead of divide: the backward pass of
//! Burn's division by a scalar computes its reciprocal in f32, which is too coarse for f64.

use std::f64::consts::FRAC_1_SQRT_2;

use basic_core::ops;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use crate::harness::{Leaf, Pair, Random, Values};

pub use basic_core::ops::HeadLayout;

/// The number of bytes in which `blocks` blocks of logits of `rows` rows just fit, as the operations count them.
fn budget(rows: usize, blocks: usize, vocabulary: usize, leaf: &Leaf) -> usize {
    let size = if leaf.dtype() == DType::F64 { 8 } else { 4 };
    rows * blocks * vocabulary * size
}

pub fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    x.flatten(0, D - 1)
}

fn unit_rows(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().square().sum_dim(1).sqrt();
    x / length
}

/// `m` rows of width `d`; inputs: v, target, weights.
pub fn das(m: usize, d: usize, seed: u64) -> Pair {
    let random = &mut Random(seed);
    let inputs = vec![
        Values::away_from_zero(&[m, d], random),
        Values::away_from_zero(&[m, d], random),
        Values::uniform(&[m], 0.0, 1.0, random),
    ];
    Pair {
        name: "das",
        inputs,
        differentiable: &[true, false, false],
        op: Box::new(|x| ops::directional_alignment(x[0].view(), x[1].view(), x[2].view())),
        reference: Box::new(|x| {
            let distance = (unit_rows(x[0].view()) - unit_rows(x[1].view())).square().sum_dim(1);
            (distance.squeeze_dim::<1>(1) * x[2].view()).sum()
        }),
    }
}

/// Chunks of `chunk` rows; inputs: v, target, table, weights.
pub fn sds(m: usize, d: usize, vocabulary: usize, chunk: usize, seed: u64) -> Pair {
    let random = &mut Random(seed);
    let inputs = vec![
        Values::uniform(&[m, d], -1.0, 1.0, random),
        Values::uniform(&[m, d], -1.0, 1.0, random),
        Values::uniform(&[vocabulary, d], -1.5, 1.5, random),
        Values::uniform(&[m], 0.0, 1.0, random),
    ];
    Pair {
        name: "sds",
        inputs,
        differentiable: &[true, false, false, false],
        op: Box::new(move |x| {
            let bytes = budget(chunk, 2, vocabulary, &x[0]);
            ops::semantic_distribution_within(x[0].view(), x[1].view(), x[2].view(), x[3].view(), bytes)
        }),
        reference: Box::new(move |x| {
            if m == 0 {
                return x[3].view::<1>().sum(); // NdArray cannot multiply empty matrices
            }
            let columns = x[2].view::<2>().detach().transpose();
            let log_p = log_softmax(x[1].view::<2>().matmul(columns.clone()), 1);
            let log_q = log_softmax(x[0].view::<2>().matmul(columns), 1);
            let divergence = (log_p.clone().exp() * (log_p - log_q)).sum_dim(1);
            (divergence.squeeze_dim::<1>(1) * x[3].view()).sum()
        }),
    }
}

/// Labels of `n` rows; about a third of them are -100.
pub fn some_labels(n: usize, vocabulary: usize, random: &mut Random) -> Vec<i64> {
    (0..n).map(|_| if random.below(3) == 0 { -100 } else { random.below(vocabulary) as i64 }).collect()
}

/// Chunks of `chunk` labelled rows; inputs: hidden, head. Without a divisor, the mean.
pub fn cross_entropy(
    d: usize,
    vocabulary: usize,
    layout: HeadLayout,
    labels: Vec<i64>,
    divisor: Option<f64>,
    chunk: usize,
    seed: u64,
) -> Pair {
    let random = &mut Random(seed);
    let n = labels.len();
    let head = match layout {
        HeadLayout::TokenRows => [vocabulary, d],
        HeadLayout::TokenColumns => [d, vocabulary],
    };
    let inputs = vec![Values::uniform(&[n, d], -1.0, 1.0, random), Values::uniform(&head, -1.5, 1.5, random)];
    let known = labels.clone();
    Pair {
        name: "linear cross entropy",
        inputs,
        differentiable: &[true, true],
        op: Box::new(move |x| match divisor {
            None => ops::linear_cross_entropy(x[0].view(), x[1].view(), layout, &labels),
            Some(divisor) => {
                let bytes = budget(chunk, 1, vocabulary, &x[0]);
                ops::linear_cross_entropy_within(x[0].view(), x[1].view(), layout, &labels, divisor, bytes)
            }
        }),
        reference: Box::new(move |x| {
            let head = x[1].view::<2>();
            let columns = if layout == HeadLayout::TokenRows { head.transpose() } else { head };
            let counted: Vec<f64> = known.iter().map(|label| if *label < 0 { 0.0 } else { 1.0 }).collect();
            let divisor = divisor.unwrap_or(counted.iter().sum::<f64>().max(1.0));
            let at: Vec<i64> = known.iter().map(|label| (*label).max(0)).collect();
            let log_q = log_softmax(x[0].view::<2>().matmul(columns), 1);
            let own = log_q.gather(1, x[0].ints(&at, [at.len(), 1])).squeeze_dim::<1>(1);
            let counted = TensorData::new(counted, [at.len()]);
            let counted = Tensor::<1>::from_data(counted, (&x[0].device(), x[0].dtype()));
            (own * counted).sum().neg() * divisor.recip()
        }),
    }
}

/// The sizes of an attention with `past` keys before the queries' own.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub queries: usize,
    pub past: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub width: usize,
}

impl Sizes {
    pub fn keys(&self) -> usize {
        self.past + self.queries
    }

    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn q(&self) -> [usize; 4] {
        [self.batch, self.queries, self.heads(), self.width]
    }

    fn k(&self) -> [usize; 4] {
        [self.batch, self.keys(), self.kv_heads, self.width]
    }
}

/// The first visible key of each query, `[1 or B, T]`.
#[derive(Debug, Clone)]
pub struct First {
    pub rows: usize,
    pub values: Vec<i64>,
}

impl First {
    /// Computes each entry from the sample, the query and the query's position among the keys.
    pub fn of(sizes: &Sizes, rows: usize, first: impl Fn(usize, usize, usize) -> usize) -> Self {
        let at = (0..rows).flat_map(|row| (0..sizes.queries).map(move |t| (row, t)));
        Self { rows, values: at.map(|(row, t)| first(row, t, sizes.past + t) as i64).collect() }
    }

    pub fn tensor(&self, leaf: &Leaf) -> Tensor<2, Int> {
        leaf.ints(&self.values, [self.rows, self.values.len() / self.rows])
    }

    /// Whether `sample`'s query `t` sees `key`.
    pub fn sees(&self, sizes: &Sizes, sample: usize, t: usize, key: usize) -> bool {
        let own = sizes.past + t;
        let row = if self.rows == 1 { 0 } else { sample };
        key == own || (key < own && key as i64 >= self.values[row * sizes.queries + t])
    }

    /// True for hidden keys, `[B, 1, T, keys]`.
    pub fn hidden(&self, sizes: &Sizes, leaf: &Leaf) -> Tensor<4, Bool> {
        let (b, t, keys) = (sizes.batch, sizes.queries, sizes.keys());
        let hidden: Vec<bool> =
            (0..b * t * keys).map(|i| !self.sees(sizes, i / keys / t, i / keys % t, i % keys)).collect();
        Tensor::from_data(TensorData::new(hidden, [b, 1, t, keys]), &leaf.device())
    }
}

/// `[B, keys, kv_heads, w]` to `[B, heads, keys, w]`.
pub fn repeated(x: Tensor<4>, sizes: &Sizes) -> Tensor<4> {
    let Sizes { batch, kv_heads, group, width, .. } = *sizes;
    let x = x.swap_dims(1, 2).reshape([batch, kv_heads, 1, sizes.keys(), width]);
    x.repeat_dim(2, group).reshape([batch, sizes.heads(), sizes.keys(), width])
}

/// Scaled scores `[B, heads, T, keys]`; hidden ones are far below all others.
pub fn scores(x: &[Leaf], sizes: &Sizes, first: &First) -> Tensor<4> {
    let keys = repeated(x[1].view(), sizes).swap_dims(2, 3);
    let scores = x[0].view::<4>().swap_dims(1, 2).matmul(keys) * (sizes.width as f64).sqrt().recip();
    let hidden = first.hidden(sizes, &x[0]).expand(scores.dims());
    scores.mask_fill(hidden, -1e30)
}

pub fn qkv(sizes: &Sizes, seed: u64) -> Vec<Values> {
    let random = &mut Random(seed);
    [sizes.q(), sizes.k(), sizes.k()].iter().map(|dims| Values::uniform(dims, -1.5, 1.5, random)).collect()
}

/// Inputs: q, k, v.
pub fn attention(sizes: Sizes, first: First, seed: u64) -> Pair {
    let known = first.clone();
    Pair {
        name: "attention",
        inputs: qkv(&sizes, seed),
        differentiable: &[true, true, true],
        op: Box::new(move |x| {
            let first = first.tensor(&x[0]);
            flat(ops::attention(x[0].view(), x[1].view(), x[2].view(), first).output)
        }),
        reference: Box::new(move |x| {
            let p = softmax(scores(x, &sizes, &known), 3);
            flat(p.matmul(repeated(x[2].view(), &sizes)).swap_dims(1, 2))
        }),
    }
}

/// Attention in which every query sees every key.
pub fn attention_to_all(sizes: Sizes, seed: u64) -> Pair {
    Pair {
        name: "attention to all",
        inputs: qkv(&sizes, seed),
        differentiable: &[true, true, true],
        op: Box::new(|x| flat(ops::attention_to_all(x[0].view(), x[1].view(), x[2].view()))),
        reference: Box::new(move |x| {
            let (q, k) = (x[0].view::<4>().swap_dims(1, 2), repeated(x[1].view(), &sizes));
            let scores = q.matmul(k.transpose()).mul_scalar((sizes.width as f64).powf(-0.5));
            flat(softmax(scores, 3).matmul(repeated(x[2].view(), &sizes)).swap_dims(1, 2))
        }),
    }
}

/// Cuts `[n, channels, height, width]` into patches of size `side`: `[n, patches, out]`.
pub fn patches([n, channels, height, width, side, out]: [usize; 6], seed: u64) -> Pair {
    let random = &mut Random(seed);
    let mut values = |dims: &[usize]| Values::uniform(dims, -2.0, 2.0, random);
    Pair {
        name: "patches",
        inputs: vec![values(&[n, channels, height, width]), values(&[out, channels, side, side]), values(&[out])],
        differentiable: &[true, true, true],
        op: Box::new(|x| flat(ops::patches(x[0].view(), x[1].view(), Some(x[2].view())))),
        reference: Box::new(move |x| {
            let kernel = x[1].view::<4>().reshape([1, out, channels * side * side]).transpose();
            let mut all = Vec::new();
            for (row, column) in (0..height / side).flat_map(|r| (0..width / side).map(move |c| (r, c))) {
                let patch = x[0].view::<4>().narrow(2, row * side, side).narrow(3, column * side, side);
                all.push(patch.reshape([n, 1, channels * side * side]));
            }
            let kernel = kernel.expand([n, channels * side * side, out]);
            flat(Tensor::cat(all, 1).matmul(kernel) + x[2].view::<1>().reshape([1, 1, out]))
        }),
    }
}

/// The log-sum-exp that attention returns with the output; no gradient.
pub fn attention_lse(sizes: Sizes, first: First, seed: u64) -> Pair {
    let known = first.clone();
    Pair {
        name: "the log-sum-exp of attention",
        inputs: qkv(&sizes, seed),
        differentiable: &[false, false, false],
        op: Box::new(move |x| {
            let first = first.tensor(&x[0]);
            flat(ops::attention(x[0].view(), x[1].view(), x[2].view(), first).lse)
        }),
        reference: Box::new(move |x| {
            // Scores are at most a few dozen, so their exponentials need no shift in f64.
            flat(scores(x, &sizes, &known).exp().sum_dim(3).log())
        }),
    }
}

/// `readouts` read-outs of `rows`, `[B, n]`; inputs: q, k, v, the read-outs' weights. No gradient.
pub fn attention_mass(sizes: Sizes, first: First, rows: Vec<i64>, readouts: usize, seed: u64) -> Pair {
    let (b, n) = (sizes.batch, rows.len() / sizes.batch);
    let mut inputs = qkv(&sizes, seed);
    inputs.push(Values::uniform(&[b, readouts, n], 0.0, 1.0, &mut Random(!seed)));
    let (known, asked) = (first.clone(), rows.clone());
    Pair {
        name: "attention mass",
        inputs,
        differentiable: &[false, false, false, false],
        op: Box::new(move |x| {
            let first = first.tensor(&x[0]);
            let lse = ops::attention(x[0].view(), x[1].view(), x[2].view(), first.clone()).lse;
            let rows = x[0].ints(&rows, [b, n]);
            flat(ops::attention_mass(x[0].view(), x[1].view(), lse, first, rows, x[3].view(), None))
        }),
        reference: Box::new(move |x| {
            let p = softmax(scores(x, &sizes, &known), 3).mean_dim(1).squeeze_dim::<3>(1); // [B, T, keys]
            let rows = x[0].ints(&asked, [b, n, 1]).expand([b, n, sizes.keys()]);
            flat(x[3].view::<3>().matmul(p.gather(1, rows)))
        }),
    }
}

/// `[b, n, k]` times `[b, k, m]`.
pub fn product([b, n, k, m]: [usize; 4], seed: u64) -> Pair {
    let random = &mut Random(seed);
    Pair {
        name: "product",
        inputs: vec![Values::uniform(&[b, n, k], -2.0, 2.0, random), Values::uniform(&[b, k, m], -2.0, 2.0, random)],
        differentiable: &[true, true],
        op: Box::new(|x| flat(ops::product(x[0].view::<3>(), x[1].view()))),
        reference: Box::new(|x| {
            let (a, b) = (x[0].view::<3>().unsqueeze_dim::<4>(3), x[1].view::<3>().unsqueeze_dim::<4>(1));
            flat((a * b).sum_dim(2))
        }),
    }
}

/// Inputs: x `[b, n, k]`, weight `[k, m]`, bias.
pub fn linear([b, n, k, m]: [usize; 4], seed: u64) -> Pair {
    let random = &mut Random(seed);
    let mut draw = |dims: &[usize]| Values::uniform(dims, -2.0, 2.0, random);
    Pair {
        name: "linear",
        inputs: vec![draw(&[b, n, k]), draw(&[k, m]), draw(&[m])],
        differentiable: &[true, true, true],
        op: Box::new(|x| flat(ops::linear(x[0].view::<3>(), x[1].view(), Some(x[2].view())))),
        reference: Box::new(|x| {
            let (a, w) = (x[0].view::<3>().unsqueeze_dim::<4>(3), x[1].view::<2>().unsqueeze::<4>());
            flat((a * w).sum_dim(2).squeeze_dim::<3>(2) + x[2].view::<1>().unsqueeze())
        }),
    }
}

/// Inputs: gate, up.
pub fn swiglu(dims: [usize; 3], seed: u64) -> Pair {
    let random = &mut Random(seed);
    Pair {
        name: "swiglu",
        inputs: vec![Values::uniform(&dims, -4.0, 4.0, random), Values::uniform(&dims, -2.0, 2.0, random)],
        differentiable: &[true, true],
        op: Box::new(|x| flat(ops::swiglu(x[0].view::<3>(), x[1].view()))),
        reference: Box::new(|x| {
            // Not Burn's `silu`, because NdArray computes its sigmoid in f32.
            let gate = x[0].view::<3>();
            flat(gate.clone() / (gate.neg().exp() + 1.0) * x[1].view())
        }),
    }
}

pub fn gelu(dims: [usize; 3], seed: u64) -> Pair {
    Pair {
        name: "gelu",
        inputs: vec![Values::uniform(&dims, -4.0, 4.0, &mut Random(seed))],
        differentiable: &[true],
        op: Box::new(|x| flat(ops::gelu(x[0].view::<3>()))),
        reference: Box::new(|x| {
            let x = x[0].view::<3>();
            flat(x.clone() * ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5)
        }),
    }
}

/// The other activation functions, by their definitions.
pub fn activations(dims: [usize; 3], seed: u64) -> Vec<Pair> {
    fn sigmoid(x: Tensor<3>) -> Tensor<3> {
        (x.neg().exp() + 1.0).recip()
    }
    fn pair(
        name: &'static str,
        inputs: Vec<Values>,
        op: fn(Tensor<3>) -> Tensor<3>,
        by: fn(Tensor<3>) -> Tensor<3>,
    ) -> Pair {
        Pair {
            name,
            inputs,
            differentiable: &[true],
            op: Box::new(move |x| flat(op(x[0].view::<3>()))),
            reference: Box::new(move |x| flat(by(x[0].view::<3>()))),
        }
    }
    let inputs = || vec![Values::uniform(&dims, -4.0, 4.0, &mut Random(seed))];
    vec![
        pair("gelu with tanh", inputs(), ops::gelu_tanh, |x| {
            let u = (x.clone() + x.clone() * x.clone() * x.clone() * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
            x * (u.tanh() + 1.0) * 0.5
        }),
        pair("quick gelu", inputs(), ops::quick_gelu, |x| x.clone() * sigmoid(x * 1.702)),
        pair("silu", inputs(), ops::silu, |x| x.clone() * sigmoid(x)),
    ]
}

/// Input: the table. Some rows are selected several times, some never.
pub fn embedding(vocabulary: usize, d: usize, ids: Vec<i64>, seed: u64) -> Pair {
    let known = ids.clone();
    Pair {
        name: "embedding",
        inputs: vec![Values::uniform(&[vocabulary, d], -1.5, 1.5, &mut Random(seed))],
        differentiable: &[true],
        op: Box::new(move |x| flat(ops::embedding(x[0].view(), x[0].ints(&ids, [ids.len()])))),
        // Burn's own `select`, whose gradient is summed in the table's type: the comparison is in f64.
        reference: Box::new(move |x| flat(x[0].view::<2>().select(0, x[0].ints(&known, [known.len()])))),
    }
}

/// Inputs: x, gamma.
pub fn rms_norm(dims: [usize; 3], epsilon: f64, seed: u64) -> Pair {
    let random = &mut Random(seed);
    Pair {
        name: "rms norm",
        inputs: vec![Values::uniform(&dims, -2.0, 2.0, random), Values::uniform(&[dims[2]], 0.5, 1.5, random)],
        differentiable: &[true, true],
        op: Box::new(move |x| flat(ops::rms_norm(x[0].view::<3>(), x[1].view(), epsilon))),
        reference: Box::new(move |x| {
            let (x, gamma) = (x[0].view::<3>(), x[1].view::<1>());
            let root = (x.clone().square().mean_dim(2) + epsilon).sqrt();
            flat(x / root * gamma.unsqueeze::<3>())
        }),
    }
}

/// Inputs: x `[B, T, heads, 2 half]`, cos and sin `[own, T, half]`. Rotation is linear in cos and sin, so any
/// two tables will do.
pub fn rotate(dims: [usize; 4], own: usize, seed: u64) -> Pair {
    let random = &mut Random(seed);
    let angles = [own, dims[1], dims[3] / 2];
    let x = Values::uniform(&dims, -2.0, 2.0, random);
    Pair {
        name: "rotary positions",
        inputs: vec![x, Values::uniform(&angles, -1.0, 1.0, random), Values::uniform(&angles, -1.0, 1.0, random)],
        differentiable: &[true, false, false],
        op: Box::new(|x| flat(ops::rotate(x[0].view(), x[1].view(), x[2].view()))),
        reference: Box::new(move |x| {
            if dims[0] == 0 {
                return flat(x[0].view::<4>()); // Flex cannot slice empty tensors
            }
            let half = dims[3] / 2;
            let table = |leaf: &Leaf| leaf.view::<3>().unsqueeze_dim::<4>(2); // [own, T, 1, half]
            let (cos, sin, x) = (table(&x[1]), table(&x[2]), x[0].view::<4>());
            let (left, right) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
            let first = left.clone() * cos.clone() - right.clone() * sin.clone();
            flat(Tensor::cat(vec![first, right * cos + left * sin], 3))
        }),
    }
}

/// A small instance of each operation, for properties that all must have.
pub fn one_of_each(seed: u64) -> Vec<Pair> {
    let sizes = Sizes { batch: 2, queries: 5, past: 2, kv_heads: 2, group: 3, width: 4 };
    let labels = vec![3, -100, 0, 6, 1];
    let mut all = vec![
        das(5, 7, seed),
        sds(5, 3, 11, 2, seed),
        cross_entropy(3, 7, HeadLayout::TokenRows, labels.clone(), Some(2.5), 3, seed),
        cross_entropy(3, 7, HeadLayout::TokenColumns, labels, None, 0, seed),
        attention(sizes, First::of(&sizes, 2, |row, _, own| if row == 0 { 3 } else { own.saturating_sub(2) }), seed),
        product([2, 3, 5, 4], seed),
        linear([2, 3, 5, 4], seed),
        swiglu([2, 3, 5], seed),
        gelu([2, 3, 5], seed),
        rms_norm([2, 3, 5], 1e-5, seed),
        rotate([2, 3, 2, 6], 1, seed),
        rotate([2, 3, 2, 6], 2, seed),
        embedding(7, 3, vec![3, 2, 3, 6, 3], seed),
    ];
    all.extend(activations([2, 3, 5], seed));
    all
}
