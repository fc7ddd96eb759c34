//! Compares the fused losses at a vocabulary of 32,000 with PyTorch's (f64, tests/reference/ops_fixtures.py).

use basic_core::ops::{HeadLayout, linear_cross_entropy, semantic_distribution};
use basic_core::{DeviceSpec, directional_alignment};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

const M: usize = 7;
const N: usize = 5;
const D: usize = 24;
const V: usize = 32_000;

/// The same hash of index and seed as in the script, in [-scale, scale).
fn numbers(count: usize, seed: u64, scale: f64) -> Vec<f32> {
    let hash = |i: u64| {
        let mut h = (i * 0x9E37_79B1 + seed * 0x85EB_CA6B) & 0xFFFF_FFFF;
        for (shift, factor) in [(16, 0x85EB_CA6B_u64), (13, 0xC2B2_AE35)] {
            h = ((h ^ (h >> shift)) * factor) & 0xFFFF_FFFF;
        }
        h ^ (h >> 16)
    };
    (0..count as u64).map(|i| (((hash(i) >> 8) as f64 / f64::from(1 << 23) - 1.0) * scale) as f32).collect()
}

fn rows(n: usize, seed: u64, scale: f64, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(numbers(n * D, seed, scale), [n, D]), device)
}

fn devices() -> Vec<Device> {
    [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().flat_map(DeviceSpec::open).map(Device::autodiff).collect()
}

fn expected(fixture: &Value, key: &str) -> Vec<f64> {
    match &fixture[key] {
        Value::Array(values) => values.iter().filter_map(Value::as_f64).collect(),
        one => vec![one.as_f64().unwrap()],
    }
}

fn read<const R: usize>(x: Tensor<R>) -> Vec<f64> {
    x.into_data().try_to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Within 2e-5 of the largest entry, for f32 logits over 24 terms and sums over 32,000.
fn close(ours: Vec<f64>, theirs: Vec<f64>, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(0f64, |top, x| top.max(x.abs()));
    for (ours, theirs) in ours.into_iter().zip(theirs) {
        assert!((ours - theirs).abs() <= 2e-5 * scale, "{what}: {ours} is not {theirs} (largest {scale})");
    }
}

#[test]
fn losses_and_gradients_at_a_real_vocabulary_are_those_of_pytorch() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/vocabulary.json")).unwrap();
    for device in devices() {
        let plain = device.clone().without_autodiff();
        let v = rows(M, 1, 1.0, &device).require_grad();
        let (target, table) = (rows(M, 2, 1.0, &plain), rows(V, 3, 1.5, &plain));
        let weights = Tensor::<1>::from_data(TensorData::new(numbers(M, 4, 0.5), [M]), &plain) + 0.5;
        let das = directional_alignment(v.clone(), target.clone(), weights.clone());
        let sds = semantic_distribution(v.clone(), target, table, weights);
        for (name, loss) in [("das", das), ("sds", sds)] {
            let grad = v.grad(&loss.backward()).unwrap();
            close(read(loss), expected(&fixture, name), name);
            close(read(grad), expected(&fixture, &format!("{name}_grad")), name);
        }

        let labels: Vec<i64> = fixture["labels"].as_array().unwrap().iter().filter_map(Value::as_i64).collect();
        let touched: Vec<usize> = expected(&fixture, "head_rows").into_iter().map(|row| row as usize).collect();
        for layout in [HeadLayout::TokenRows, HeadLayout::TokenColumns] {
            let hidden = rows(N, 5, 1.0, &device).require_grad();
            let head = rows(V, 6, 1.5, &plain);
            let head = if layout == HeadLayout::TokenRows { head } else { head.transpose() };
            let head = Tensor::<2>::from_data(head.into_data(), &device).require_grad();
            let loss = linear_cross_entropy(hidden.clone(), head.clone(), layout, &labels);
            let grads = loss.backward();
            close(read(loss), expected(&fixture, "lm"), "lm");
            close(read(hidden.grad(&grads).unwrap()), expected(&fixture, "hidden_grad"), "hidden");
            let grad = head.grad(&grads).unwrap();
            let grad = read(if layout == HeadLayout::TokenRows { grad } else { grad.transpose() });
            let rows = touched.iter().flat_map(|row| grad[row * D..(row + 1) * D].to_vec()).collect();
            close(rows, expected(&fixture, "head_grad"), "head");
            let direction = numbers(V * D, 7, 1.0);
            let dot = grad.iter().zip(direction).map(|(a, b)| a * f64::from(b)).sum();
            close(vec![dot], expected(&fixture, "head_grad_dot"), "head against a direction");
        }
    }
}
