//! Compares wgpu with the CPU: every operation forward and backward, three training steps and greedy generation, within
//! 1e-3. A software Vulkan driver is enough: `.ci/wgpu` installs Mesa's llvmpipe and runs this file.
//!
//! `cargo test -p tests --features wgpu --test wgpu`
#![cfg(feature = "wgpu")]

use std::ffi::OsString;
use std::fs;

use basic_core::DeviceSpec;
use basic_core::ops::{self, AdamWParameter, AdamWStep, AdamWUpdate, Attention, HeadLayout};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;
use tests::fixtures::{fixture, number, read_jsonl};
use tests::{args, run};

/// The tolerance, relative to the largest entry.
const WITHIN: f64 = 1e-3;

fn wgpu() -> Device {
    // Without an index wgpu uses a GPU if there is one, or else the software driver.
    DeviceSpec::Wgpu(None).open().expect("a Vulkan driver: Debian's mesa-vulkan-drivers has a software one")
}

/// A fixed sequence of numbers between -1 and 1.
fn numbers<const D: usize>(dims: [usize; D], seed: u32, device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Tensor::from_data(TensorData::new((0..dims.iter().product()).map(|_| next()).collect::<Vec<f32>>(), dims), device)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_to_vec::<f64>().unwrap()
}

/// The value and the gradients of an operation on leaves of the given shapes. The output is weighted, so that the
/// incoming gradients are not all one.
fn evaluate<const D: usize, const O: usize>(
    device: &Device,
    shapes: &[[usize; D]],
    op: &dyn Fn(&[Tensor<D>]) -> Tensor<O>,
) -> Vec<Vec<f64>> {
    let device = device.clone().autodiff();
    let leaves: Vec<Tensor<D>> =
        shapes.iter().enumerate().map(|(i, dims)| numbers(*dims, i as u32, &device).require_grad()).collect();
    let out = op(&leaves);
    let weights = numbers(out.dims(), 99, &device.clone().without_autodiff());
    let grads = (out.clone() * weights).sum().backward();
    let mut all = vec![values(out)];
    all.extend(leaves.iter().filter_map(|leaf| leaf.grad(&grads)).map(values));
    assert_eq!(all.len(), 1 + shapes.len(), "every leaf receives a gradient");
    all
}

fn agree<const D: usize, const O: usize>(name: &str, shapes: &[[usize; D]], op: &dyn Fn(&[Tensor<D>]) -> Tensor<O>) {
    let cpu = DeviceSpec::Cpu.open().unwrap();
    for (ours, theirs) in evaluate(&wgpu(), shapes, op).iter().zip(evaluate(&cpu, shapes, op)) {
        near(name, ours, &theirs);
    }
}

fn near(name: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let scale = theirs.iter().fold(0f64, |top, x| top.max(x.abs()));
    assert!(scale > 0.0, "{name}: nothing to compare");
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= WITHIN * scale, "{name}: {a} is not {b} (largest {scale})");
    }
}

/// A fixed tensor on the device of a leaf.
fn beside<const D: usize, const L: usize>(dims: [usize; D], seed: u32, leaf: &Tensor<L>) -> Tensor<D> {
    numbers(dims, seed, &leaf.device().without_autodiff())
}

fn first(leaf: &Tensor<4>, values: Vec<i64>) -> Tensor<2, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [1, n]), &leaf.device().without_autodiff())
}

#[test]
fn the_losses_and_their_gradients_are_those_of_the_cpu() {
    let (m, d, vocabulary) = (37, 24, 301);
    agree("das", &[[m, d]], &|x| {
        ops::directional_alignment(x[0].clone(), beside([m, d], 5, &x[0]), beside([m], 6, &x[0]).abs())
    });
    agree("sds", &[[m, d]], &|x| {
        let table = beside([vocabulary, d], 7, &x[0]);
        let (target, weights) = (beside([m, d], 5, &x[0]), beside([m], 6, &x[0]).abs());
        // The budget makes chunks of 11 rows.
        ops::semantic_distribution_within(x[0].clone(), target, table, weights, 11 * 2 * vocabulary * 4)
    });
    let labels: Vec<i64> = (0..m as i64).map(|i| if i % 3 == 0 { -100 } else { i * 7 % vocabulary as i64 }).collect();
    agree("linear cross entropy", &[[m, d], [vocabulary, d]], &|x| {
        let (hidden, head) = (x[0].clone(), x[1].clone());
        ops::linear_cross_entropy_within(hidden, head, HeadLayout::TokenRows, &labels, 9.0, 5 * vocabulary * 4)
    });
}

#[test]
fn attention_and_its_read_out_are_those_of_the_cpu() {
    let (b, t, heads, kv_heads, width) = (2, 19, 4, 2, 8);
    let starts: Vec<i64> = (0..t as i64).map(|i| if i > 11 { 12 } else { 0 }).collect();
    agree("attention", &[[b, t, heads, width]], &|x| {
        let k = beside([b, t, kv_heads, width], 3, &x[0]);
        ops::attention(x[0].clone(), k.clone(), k, first(&x[0], starts.clone())).output
    });
    agree("attention by its keys and values", &[[b, t, kv_heads, width], [b, t, kv_heads, width]], &|x| {
        let q = beside([b, t, heads, width], 3, &x[0]);
        ops::attention(q, x[0].clone(), x[1].clone(), first(&x[0], starts.clone())).output
    });
    let mass = |device: &Device| {
        let [q, k] = [(1, heads), (2, kv_heads)].map(|(seed, heads)| numbers([b, t, heads, width], seed, device));
        let first = first(&q, starts.clone());
        let Attention { lse, .. } = ops::attention(q.clone(), k.clone(), k.clone(), first.clone());
        let rows = Tensor::<2, Int>::from_data(TensorData::new(vec![3i64, 18, 12, 7, 0, 11], [b, 3]), device);
        values(ops::attention_mass(q, k, lse, first, rows, numbers([b, 2, 3], 4, device), None))
    };
    near("attention mass", &mass(&wgpu()), &mass(&DeviceSpec::Cpu.open().unwrap()));
}

#[test]
fn elementwise_operations_are_those_of_the_cpu() {
    agree("swiglu", &[[7, 33], [7, 33]], &|x| ops::swiglu(x[0].clone() * 4.0, x[1].clone()));
    agree("gelu", &[[7, 33]], &|x| ops::gelu(x[0].clone() * 4.0));
    agree("rotate", &[[2, 5, 3, 8]], &|x| {
        let angles = beside([2, 5, 4], 3, &x[0]) * 3.0;
        ops::rotate(x[0].clone(), angles.clone().cos(), angles.sin())
    });
    agree("rms_norm", &[[7, 33]], &|x| ops::rms_norm(x[0].clone(), beside([33], 8, &x[0]), 1e-5));
    agree("rms_norm by gamma", &[[33]], &|x| ops::rms_norm(beside([7, 33], 8, &x[0]), x[0].clone(), 1e-5));
    let step =
        AdamWStep { lr: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01, grad_scale: 0.7, time: 1 };
    let updated = |device: &Device| {
        let (p, moments) = ops::adamw(numbers([5, 9], 1, device), numbers([5, 9], 2, device), None, step);
        let (p, moments) = ops::adamw(p, numbers([5, 9], 3, device), Some(moments), AdamWStep { time: 2, ..step });
        let third = AdamWStep { time: 3, ..step };
        let (copy, master, moments) =
            ops::adamw_with_master(numbers([5, 9], 6, device), p, numbers([5, 9], 4, device), Some(moments), third);
        let square = ops::sums_of_squares(moments.second);
        [values(copy), values(master), values(moments.first), values(square)].concat()
    };
    near("adamw", &updated(&wgpu()), &updated(&DeviceSpec::Cpu.open().unwrap()));
    // More than one launch takes, some of them of an odd size.
    let sizes = [16, 32, 7, 48, 64, 80, 96, 112, 128, 4096, 5, 144];
    let vectors = |seed: u32, device: &Device| {
        let vector = |(at, n): (usize, &usize)| numbers([*n], seed + at as u32, device);
        sizes.iter().enumerate().map(vector).collect::<Vec<Tensor<1>>>()
    };
    let several = |device: &Device| {
        let mut parameters: Vec<AdamWParameter> =
            vectors(7, device).into_iter().map(|value| AdamWParameter { value, master: None, moments: None }).collect();
        for time in 1..=2 {
            let grads = vectors(30 * time as u32, device);
            let update = |(parameter, grad)| AdamWUpdate { parameter, grad, step: AdamWStep { time, ..step } };
            parameters = ops::adamw_each(parameters.into_iter().zip(grads).map(update).collect());
        }
        parameters.into_iter().flat_map(|parameter| values(parameter.value)).collect::<Vec<f64>>()
    };
    near("adamw of several", &several(&wgpu()), &several(&DeviceSpec::Cpu.open().unwrap()));
    let squares = |device: &Device| {
        ops::sums_of_squares_of_each(vectors(9, device)).into_iter().flat_map(values).collect::<Vec<f64>>()
    };
    near("sums of squares of several", &squares(&wgpu()), &squares(&DeviceSpec::Cpu.open().unwrap()));
    // Two whole parts and a rest.
    let squares = |device: &Device| values(ops::sums_of_squares(numbers([129, 1024], 5, device)));
    near("sums of squares", &squares(&wgpu()), &squares(&DeviceSpec::Cpu.open().unwrap()));
}

fn basic(line: Vec<OsString>) -> String {
    run(env!("CARGO_BIN_EXE_basic-under-test"), line).succeeded().stdout
}

#[test]
fn three_training_steps_and_a_generation_are_those_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    basic(args!["data", "shapes", "--out", at("data"), "--train", "12", "--eval", "1", "--seed", "3"]);
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets");
    let recipe = format!(
        "stage = \"finetune\"\n[model]\nvision = \"{assets}/vision\"\nllm = \"{assets}/llm\"\n\
         [data]\npath = \"{}\"\n[objective]\nlambda_das = 0.05\nlambda_sds = 0.02\n\
         [optimizer]\nlr = 2e-4\n[train]\nbatch_size = 4\nsteps = 3\n",
        at("data/finetune.json").display()
    );
    fs::write(at("recipe.toml"), recipe).unwrap();
    let [cpu, wgpu] = ["cpu", "wgpu"].map(|device| {
        basic(args!["train", at("recipe.toml"), "--device", device, "--out", at(device)]);
        let steps = read_jsonl(&at(device).join("metrics.jsonl"));
        let loss = |step: &Value| ["lm", "das", "sds", "total", "grad_norm"].map(|key| number(&step[key]));
        steps.iter().map(loss).collect::<Vec<_>>()
    });
    assert_eq!((cpu.len(), wgpu.len()), (3, 3));
    for (ours, theirs) in wgpu.iter().flatten().zip(cpu.iter().flatten()) {
        assert!((ours - theirs).abs() <= WITHIN * (1.0 + theirs.abs()), "{wgpu:?} is not {cpu:?}");
    }

    let image = fixture("images").join("a.png");
    let answers = ["cpu", "wgpu"].map(|device| {
        let line = args![
            "generate",
            at("cpu"),
            "--image",
            image,
            "--prompt",
            "USER: <image>\nwhat is there? ASSISTANT:",
            "--max-new-tokens",
            "8",
            "--greedy",
            "--json",
            "--device",
            device
        ];
        serde_json::from_str::<Value>(&basic(line)).unwrap()
    });
    assert!(!answers[0]["ids"].as_array().unwrap().is_empty());
    assert_eq!(answers[0]["ids"], answers[1]["ids"]);
}
