//! The operations that are checked, with their inputs: odd sizes, grouped heads, packed rows, windows, several blocks.

use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};

use crate::ops::{self, ActivationKind, AdamWMoments, AdamWParameter, AdamWStep, AdamWUpdate, HeadLayout};

/// The device and the type to compute with.
pub struct Place {
    /// The device, with autodiff.
    pub device: Device,
    /// The inputs' type.
    pub dtype: DType,
}

/// An operation with its inputs.
pub struct Case {
    pub name: &'static str,
    /// The value and the gradients of all inputs that have one.
    pub run: fn(&Place) -> Vec<Vec<f64>>,
    /// The tolerance for 16-bit types.
    pub loose: f64,
}

const fn case(name: &'static str, run: fn(&Place) -> Vec<Vec<f64>>, loose: f64) -> Case {
    Case { name, run, loose }
}

/// All cases.
pub const CASES: &[Case] = &[
    case("product", product, 0.05),
    case("linear", linear, 0.05),
    case("patches", patches, 0.05),
    case("gelu", |p| activation(p, ActivationKind::Gelu), 0.03),
    case("gelu_tanh", |p| activation(p, ActivationKind::GeluTanh), 0.03),
    case("quick_gelu", |p| activation(p, ActivationKind::QuickGelu), 0.03),
    case("silu", |p| activation(p, ActivationKind::Silu), 0.03),
    case("swiglu", |p| swiglu(p, [13, 7]), 0.03),
    case("swiglu of long rows", |p| swiglu(p, [65, 344]), 0.03),
    case("embedding", embedding, 0.03),
    case("rms_norm", |p| rms_norm(p, [7, 33]), 0.05),
    case("rms_norm of long rows", |p| rms_norm(p, [70, 1032]), 0.05),
    case("rotate", |p| rotate(p, [2, 7, 3, 10]), 0.05),
    case("rotate of wide heads", |p| rotate(p, [3, 5, 4, 128]), 0.05),
    case("attention", |p| attention(p, [2, 7, 7, 4, 2, 10], &[0; 7]), 0.1),
    case("attention of packed rows", |p| attention(p, [1, 9, 9, 3, 3, 8], &[0, 0, 0, 3, 3, 3, 3, 7, 7]), 0.1),
    case("attention in a window", |p| attention(p, [1, 9, 9, 6, 2, 16], &[0, 0, 0, 1, 2, 3, 4, 5, 6]), 0.1),
    case("attention of one query", |p| attention(p, [3, 1, 33, 4, 1, 12], &[2]), 0.1),
    case("attention in blocks", |p| attention(p, [1, 300, 300, 2, 1, 8], &[0; 300]), 0.2),
    case("attention, 32 wide", |p| attention(p, [1, 64, 64, 1, 1, 32], &[0; 64]), 0.1),
    case("attention, 64 wide, grouped heads", |p| attention(p, [2, 150, 150, 4, 2, 64], &[0; 150]), 0.1),
    case("attention, 128 wide, packed rows", |p| attention(p, [1, 200, 200, 2, 2, 128], &PACKED), 0.1),
    case("attention, 80 wide, in a window", |p| attention(p, [2, 200, 200, 6, 2, 80], &window::<200>(70)), 0.1),
    case("attention, 112 wide, over a past", |p| attention(p, [2, 70, 133, 3, 1, 112], &[3; 70]), 0.1),
    case("attention_to_all", |p| attention_to_all(p, [3, 17, 2, 12]), 0.1),
    case("attention_to_all, 64 wide", |p| attention_to_all(p, [2, 197, 3, 64]), 0.1),
    case("attention_mass", |p| attention_mass(p, [2, 9, 4, 2, 8], &[0, 0, 0, 0, 2, 2, 2, 2, 2], 3), 0.1),
    case("attention_mass, 64 wide", |p| attention_mass(p, [2, 150, 6, 3, 64], &window::<150>(90), 70), 0.1),
    case("directional_alignment", directional_alignment, 0.1),
    case("semantic_distribution", |p| semantic_distribution(p, None), 0.1),
    case("semantic_distribution in chunks", |p| semantic_distribution(p, Some(3 * 2 * 67 * 4)), 0.1),
    case("linear_cross_entropy by rows", |p| cross_entropy(p, HeadLayout::TokenRows, None), 0.1),
    case("linear_cross_entropy in chunks", |p| cross_entropy(p, HeadLayout::TokenColumns, Some(3 * 67 * 4)), 0.1),
    case("adamw", adamw, 0.03),
    case("adamw with a master", adamw_with_master, 0.03),
    case("adamw of several", adamw_each, 0.03),
    case("sums_of_squares", |p| sums_of_squares(p, [101, 57]), 0.03),
    case("sums_of_squares in parts", |p| sums_of_squares(p, [301, 1024]), 0.03),
    case("sums_of_squares of several", sums_of_squares_of_each, 0.03),
];

/// The first visible key of each position of a row that packs samples of 70, 65 and 65 positions.
const PACKED: [i64; 200] = {
    let mut first = [0; 200];
    let mut i = 70;
    while i < 200 {
        first[i] = if i < 135 { 70 } else { 135 };
        i += 1;
    }
    first
};

/// The first visible key of each query with a sliding window of `width` keys.
fn window<const N: usize>(width: usize) -> [i64; N] {
    std::array::from_fn(|i| (i + 1).saturating_sub(width) as i64)
}

/// Multiples of 1/64 from -1 to 1, from a linear congruential generator seeded by `seed`.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 129) as f32 / 64.0 - 1.0
    };
    (0..count).map(next).collect()
}

impl Place {
    fn tensor<const D: usize>(&self, seed: u64, dims: [usize; D]) -> Tensor<D> {
        let data = TensorData::new(numbers(seed, dims.iter().product()), dims).convert_dtype(self.dtype);
        Tensor::from_data(data, (&self.device, self.dtype))
    }

    fn leaf<const D: usize>(&self, seed: u64, dims: [usize; D]) -> Tensor<D> {
        self.tensor(seed, dims).require_grad()
    }

    fn ints<const D: usize>(&self, values: &[i64], dims: [usize; D]) -> Tensor<D, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), &self.device.clone().without_autodiff())
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The value, and the gradients of its weighted sum with respect to `leaves`; all weights differ.
fn both<const D: usize>(place: &Place, value: Tensor<D>, leaves: Vec<Leaf>) -> Vec<Vec<f64>> {
    let weights = place.tensor(99, value.dims()).cast(value.dtype());
    let grads = value.clone().mul(weights).sum().backward();
    let mut all = vec![read(value)];
    all.extend(leaves.into_iter().map(|leaf| leaf(&grads)));
    all
}

/// Reads the gradient of an input.
type Leaf = Box<dyn Fn(&Gradients) -> Vec<f64>>;

fn grad<const D: usize>(leaf: &Tensor<D>) -> Leaf {
    let leaf = leaf.clone();
    Box::new(move |grads| leaf.grad(grads).map(read).unwrap_or_default())
}

fn product(p: &Place) -> Vec<Vec<f64>> {
    let (a, b) = (p.leaf(1, [3, 65, 129]), p.leaf(2, [3, 129, 33]));
    both(p, ops::product(a.clone(), b.clone()), vec![grad(&a), grad(&b)])
}

fn linear(p: &Place) -> Vec<Vec<f64>> {
    let (x, w, bias) = (p.leaf(32, [2, 19, 65]), p.leaf(33, [65, 37]), p.leaf(34, [37]));
    let y = ops::linear(x.clone(), w.clone(), Some(bias.clone()));
    both(p, y, vec![grad(&x), grad(&w), grad(&bias)])
}

fn patches(p: &Place) -> Vec<Vec<f64>> {
    let (pixels, weight, bias) = (p.leaf(38, [2, 3, 15, 29]), p.leaf(39, [11, 3, 7, 7]), p.leaf(40, [11]));
    let y = ops::patches(pixels.clone(), weight.clone(), Some(bias.clone()));
    both(p, y, vec![grad(&pixels), grad(&weight), grad(&bias)])
}

fn activation(p: &Place, kind: ActivationKind) -> Vec<Vec<f64>> {
    let x = p.leaf(3, [37, 5]);
    let wide = x.clone().mul_scalar(4.0);
    let value = match kind {
        ActivationKind::Gelu => ops::gelu(wide),
        ActivationKind::GeluTanh => ops::gelu_tanh(wide),
        ActivationKind::QuickGelu => ops::quick_gelu(wide),
        ActivationKind::Silu => ops::silu(wide),
    };
    both(p, value, vec![grad(&x)])
}

fn swiglu(p: &Place, dims: [usize; 2]) -> Vec<Vec<f64>> {
    let (gate, up) = (p.leaf(4, dims), p.leaf(5, dims));
    both(p, ops::swiglu(gate.clone(), up.clone()), vec![grad(&gate), grad(&up)])
}

fn embedding(p: &Place) -> Vec<Vec<f64>> {
    let table = p.leaf(6, [13, 9]);
    // One token makes up most of the batch.
    let ids: Vec<i64> = (0..41).map(|i| if i % 5 == 0 { i % 13 } else { 7 }).collect();
    both(p, ops::embedding(table.clone(), p.ints(&ids, [41])), vec![grad(&table)])
}

fn rms_norm(p: &Place, dims: [usize; 2]) -> Vec<Vec<f64>> {
    let (x, gamma) = (p.leaf(7, dims), p.leaf(8, [dims[1]]));
    both(p, ops::rms_norm(x.clone(), gamma.clone(), 1e-5), vec![grad(&x), grad(&gamma)])
}

fn rotate(p: &Place, [b, t, heads, width]: [usize; 4]) -> Vec<Vec<f64>> {
    let x = p.leaf(9, [b, t, heads, width]);
    let angles = [1, t, width / 2];
    both(p, ops::rotate(x.clone(), p.tensor(10, angles), p.tensor(11, angles)), vec![grad(&x)])
}

/// `[batch, queries, keys, heads, key heads, head width]`; `first` is the first visible key of each query.
fn attention(p: &Place, [b, t, keys, heads, kv, width]: [usize; 6], first: &[i64]) -> Vec<Vec<f64>> {
    let q = p.leaf(12, [b, t, heads, width]);
    let (k, v) = (p.leaf(13, [b, keys, kv, width]), p.leaf(14, [b, keys, kv, width]));
    // The scores of wide heads on such numbers are nearly equal; scaling the queries makes them differ.
    let stretched = if width > 16 { q.clone().mul_scalar(4.0) } else { q.clone() };
    let found = ops::attention(stretched, k.clone(), v.clone(), p.ints(first, [1, t]));
    let mut all = both(p, found.output, vec![grad(&q), grad(&k), grad(&v)]);
    all.push(read(found.lse));
    all
}

/// `[batch, tokens, heads, head width]`.
fn attention_to_all(p: &Place, dims: [usize; 4]) -> Vec<Vec<f64>> {
    let [q, k, v] = [35, 36, 37].map(|seed| p.leaf(seed, dims));
    both(p, ops::attention_to_all(q.clone().mul_scalar(4.0), k.clone(), v.clone()), vec![grad(&q), grad(&k), grad(&v)])
}

/// `[batch, tokens, heads, key heads, head width]`; the first visible key of each query; the number of rows to read.
fn attention_mass(p: &Place, [b, t, heads, kv, width]: [usize; 5], first: &[i64], n: usize) -> Vec<Vec<f64>> {
    let (q, k) = (p.tensor(15, [b, t, heads, width]), p.tensor(16, [b, t, kv, width]));
    let first = p.ints(first, [1, t]);
    let lse = ops::attention(q.clone(), k.clone(), k.clone(), first.clone()).lse;
    let rows: Vec<i64> = (0..b * n).map(|i| ((7 * i + 2) % t) as i64).collect();
    let readout = p.tensor::<3>(17, [b, 2, n]).abs();
    vec![read(ops::attention_mass(q, k, lse, first, p.ints(&rows, [b, n]), readout, None))]
}

fn directional_alignment(p: &Place) -> Vec<Vec<f64>> {
    let (v, target) = (p.leaf(18, [11, 23]), p.tensor(19, [11, 23]));
    let weights = p.tensor::<1>(20, [11]).abs();
    both(p, ops::directional_alignment(v.clone(), target, weights), vec![grad(&v)])
}

fn semantic_distribution(p: &Place, budget: Option<usize>) -> Vec<Vec<f64>> {
    let (v, target, table) = (p.leaf(21, [11, 23]), p.tensor(22, [11, 23]), p.tensor(23, [67, 23]));
    let weights = p.tensor::<1>(24, [11]).abs();
    let value = match budget {
        None => ops::semantic_distribution(v.clone(), target, table, weights),
        Some(bytes) => ops::semantic_distribution_within(v.clone(), target, table, weights, bytes),
    };
    both(p, value, vec![grad(&v)])
}

fn cross_entropy(p: &Place, layout: HeadLayout, budget: Option<usize>) -> Vec<Vec<f64>> {
    let hidden = p.leaf(25, [11, 23]);
    let head = match layout {
        HeadLayout::TokenRows => p.leaf(26, [67, 23]),
        HeadLayout::TokenColumns => p.leaf(26, [23, 67]),
    };
    let labels: Vec<i64> = (0..11).map(|i| if i % 4 == 3 { -100 } else { i * 6 }).collect();
    let value = match budget {
        None => ops::linear_cross_entropy(hidden.clone(), head.clone(), layout, &labels),
        Some(bytes) => ops::linear_cross_entropy_within(hidden.clone(), head.clone(), layout, &labels, 9.0, bytes),
    };
    both(p, value, vec![grad(&hidden), grad(&head)])
}

fn adamw(p: &Place) -> Vec<Vec<f64>> {
    let mut parameter = p.tensor(27, [13, 7]);
    let mut moments: Option<AdamWMoments<2>> = None;
    for time in 1..=3 {
        let step =
            AdamWStep { lr: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, grad_scale: 1.0, time };
        let (next, kept) = ops::adamw(parameter, p.tensor(27 + time as u64, [13, 7]), moments, step);
        (parameter, moments) = (next, Some(kept));
    }
    let moments = moments.map(|kept| [read(kept.first), read(kept.second)]);
    [read(parameter)].into_iter().chain(moments.into_iter().flatten()).collect()
}

fn adamw_with_master(p: &Place) -> Vec<Vec<f64>> {
    let mut parameter = p.tensor::<2>(27, [13, 16]);
    let mut master = parameter.clone().cast(DType::F32);
    let mut moments: Option<AdamWMoments<2>> = None;
    for time in 1..=3 {
        let step =
            AdamWStep { lr: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, grad_scale: 0.3, time };
        let grad = p.tensor(27 + time as u64, [13, 16]);
        let (rounded, next, kept) = ops::adamw_with_master(parameter, master, grad, moments, step);
        (parameter, master, moments) = (rounded, next, Some(kept));
    }
    let moments = moments.map(|kept| [read(kept.first), read(kept.second)]);
    [read(parameter), read(master)].into_iter().chain(moments.into_iter().flatten()).collect()
}

/// Several launches of several parameters each: some of them have masters, and not all are of an even size.
fn adamw_each(p: &Place) -> Vec<Vec<f64>> {
    let step =
        AdamWStep { lr: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, grad_scale: 0.3, time: 1 };
    let parameter = |(at, n): (usize, usize)| {
        let value = p.tensor::<1>(40 + at as u64, [n]);
        let master = (at % 5 != 4).then(|| value.clone().cast(DType::F32));
        AdamWParameter { value, master, moments: None }
    };
    let sizes = [208, 16, 4096, 91, 48, 320, 16, 1, 64, 1040, 32, 8192, 16, 80, 7, 512, 160];
    let mut parameters: Vec<AdamWParameter> = sizes.into_iter().enumerate().map(parameter).collect();
    for time in 1..=2 {
        let update = |(at, parameter): (usize, AdamWParameter)| {
            let grad = p.tensor(60 * time as u64 + at as u64, [parameter.value.dims()[0]]);
            AdamWUpdate { parameter, grad, step: AdamWStep { time, ..step } }
        };
        parameters = ops::adamw_each(parameters.into_iter().enumerate().map(update).collect());
    }
    let mut results = vec![Vec::new(); 4];
    for AdamWParameter { value, master, moments } in parameters {
        let moments = moments.map(|kept| [kept.first, kept.second]);
        let tensors = [Some(value), master].into_iter().chain(moments.into_iter().flatten().map(Some));
        for (result, tensor) in results.iter_mut().zip(tensors) {
            result.extend(tensor.into_iter().flat_map(read));
        }
    }
    results
}

fn sums_of_squares(p: &Place, dims: [usize; 2]) -> Vec<Vec<f64>> {
    vec![read(ops::sums_of_squares(p.tensor::<2>(31, dims)))]
}

/// Several launches of several tensors each, of which some have more than one part and not all an even size.
fn sums_of_squares_of_each(p: &Place) -> Vec<Vec<f64>> {
    let sizes =
        [16, 32, 48, 16_400, 64, 80, 96, 112, 128, 144, 160, 32_768, 176, 192, 208, 224, 240, 256, 7, 16_385, 32];
    let tensor = |(at, n): (usize, usize)| p.tensor::<1>(90 + at as u64, [n]);
    vec![
        ops::sums_of_squares_of_each(sizes.into_iter().enumerate().map(tensor).collect())
            .into_iter()
            .flat_map(read)
            .collect(),
    ]
}
