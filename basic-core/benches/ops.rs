//! Each fused operation beside its plain composition, forward and backward, on the CPU (Flex): the peak of extra bytes,
//! measured with a counting allocator, and criterion's times. `cargo bench -p basic-core`
//!
//! The sizes are those of a training step of the preset `small`: 4 samples of 196 patches and 65 text positions,
//! width 512, 8 heads.

mod counting;
mod plain;

use basic_core::DeviceSpec;
use basic_core::ops::{self, AdamWMoments, AdamWStep, HeadLayout};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const BATCH: usize = 4;
const LENGTH: usize = 261;
const PATCHES: usize = 784;
const WIDTH: usize = 512;
const VOCABULARY: usize = 32_000;

/// One side of a comparison: its name, and what runs.
type Side<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// Measures the peak of every side and times it.
fn compare(c: &mut Criterion, name: &str, sides: Vec<Side>) {
    for (side, run) in &sides {
        run();
        let mib = counting::peak_extra(run) as f64 / (1 << 20) as f64;
        println!("{name}/{side}: peak extra {mib:.1} MiB");
    }
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    for (side, run) in &sides {
        group.bench_function(*side, |bencher| bencher.iter(run));
    }
    group.finish();
}

fn random<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Normal(0.0, 0.5), device)
}

/// Runs a loss and its backward pass.
fn both_ways<const D: usize>(out: Tensor<D>) {
    let grads = out.sum().backward();
    std::hint::black_box(grads);
}

fn operations(c: &mut Criterion) {
    let device = DeviceSpec::Cpu.open().expect("the CPU backend").autodiff();
    let frozen = device.clone().without_autodiff();
    device.seed(1);
    let leaf2 = |rows, columns| random([rows, columns], &device).require_grad();

    let (v, target) = (leaf2(PATCHES, WIDTH), random([PATCHES, WIDTH], &frozen));
    let weights = Tensor::<1>::ones([PATCHES], &frozen) / PATCHES as f64;
    let table = random([VOCABULARY, WIDTH], &frozen);
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(ops::directional_alignment(v.clone(), target.clone(), weights.clone())))),
        ("plain", Box::new(|| both_ways(plain::directional_alignment(v.clone(), target.clone(), weights.clone())))),
    ];
    compare(c, "directional_alignment", sides);
    let call =
        |table: &Tensor<2>| ops::semantic_distribution(v.clone(), target.clone(), table.clone(), weights.clone());
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(call(&table)))),
        (
            "plain",
            Box::new(|| {
                both_ways(plain::semantic_distribution(v.clone(), target.clone(), table.clone(), weights.clone()))
            }),
        ),
    ];
    compare(c, "semantic_distribution", sides);
    // The products that no implementation can avoid: the logits of v and of the target, and the product back to v.
    let products = || {
        let columns = table.clone().transpose();
        let logits = Tensor::cat(vec![v.clone().without_autodiff(), target.clone()], 0).matmul(columns);
        std::hint::black_box(logits.narrow(0, 0, PATCHES).matmul(table.clone()));
    };
    compare(c, "semantic_distribution_products", vec![("plain", Box::new(products))]);
    // The plain form would hold several matrices of 784 x 151,936 f32, 454 MiB each.
    let large = random([151_936, WIDTH], &frozen);
    compare(c, "semantic_distribution_151936", vec![("fused", Box::new(|| both_ways(call(&large))))]);
    drop(large);

    let (hidden, head) = (leaf2(256, WIDTH), random([WIDTH, VOCABULARY], &frozen));
    let labels: Vec<i64> = (0..256).map(|i| i * 97 % VOCABULARY as i64).collect();
    let at = Tensor::<1, Int>::from_data(TensorData::new(labels.clone(), [256]), &frozen);
    for (name, head) in [
        ("linear_cross_entropy_frozen", head.clone()),
        ("linear_cross_entropy_trained", Tensor::from_data(head.into_data(), &device).require_grad()),
    ] {
        let call = || ops::linear_cross_entropy(hidden.clone(), head.clone(), HeadLayout::TokenColumns, &labels);
        let sides: Vec<Side> = vec![
            ("fused", Box::new(|| both_ways(call()))),
            ("plain", Box::new(|| both_ways(plain::cross_entropy(hidden.clone(), head.clone(), at.clone())))),
        ];
        compare(c, name, sides);
    }

    let heads = || random([BATCH, LENGTH, 8, 64], &device).require_grad();
    let (q, k, values) = (heads(), heads(), heads());
    let first = Tensor::<2, Int>::zeros([1, LENGTH], &frozen);
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(ops::attention(q.clone(), k.clone(), values.clone(), first.clone()).output))),
        ("plain", Box::new(|| both_ways(plain::attention(q.clone(), k.clone(), values.clone())))),
    ];
    compare(c, "attention", sides);
    let angles = random([1, LENGTH, 32], &frozen);
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(ops::rotate(q.clone(), cos.clone(), sin.clone())))),
        ("plain", Box::new(|| both_ways(plain::rotate(q.clone(), cos.clone(), sin.clone())))),
    ];
    compare(c, "rotate", sides);

    let (gate, up) = (leaf2(BATCH * LENGTH, 1376), leaf2(BATCH * LENGTH, 1376));
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(ops::swiglu(gate.clone(), up.clone())))),
        ("plain", Box::new(|| both_ways(plain::swiglu(gate.clone(), up.clone())))),
    ];
    compare(c, "swiglu", sides);
    let (x, gamma) = (leaf2(BATCH * LENGTH, WIDTH), random([WIDTH], &device).require_grad());
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(ops::rms_norm(x.clone(), gamma.clone(), 1e-5)))),
        ("plain", Box::new(|| both_ways(plain::rms_norm(x.clone(), gamma.clone(), 1e-5)))),
    ];
    compare(c, "rms_norm", sides);
    let sides: Vec<Side> = vec![
        ("fused", Box::new(|| both_ways(ops::gelu(x.clone())))),
        ("plain", Box::new(|| both_ways(plain::gelu(x.clone())))),
    ];
    compare(c, "gelu", sides);

    let (parameter, grad) = (random([VOCABULARY, WIDTH], &frozen), random([VOCABULARY, WIDTH], &frozen));
    let step =
        AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, grad_scale: 1.0, time: 2 };
    for (name, fused) in [("fused", true), ("plain", false)] {
        let moments = AdamWMoments { first: grad.clone() * 0.1, second: grad.clone().square() };
        let state = std::cell::RefCell::new(Some((parameter.clone() * 1.0, moments)));
        let run = || {
            let Some((parameter, moments)) = state.take() else { return };
            let next = match fused {
                true => ops::adamw(parameter, grad.clone(), Some(moments), step),
                false => plain::adamw(parameter, grad.clone(), moments, step),
            };
            state.replace(Some(next));
        };
        compare(c, "adamw", vec![(name, Box::new(run))]);
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
