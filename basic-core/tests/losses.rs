//! Compares the losses with independent references: definitions in f64 on the host, closed-form gradients
//! (docs/method.md), and central differences, on every CPU backend of this build.

use basic_core::ops::{HeadLayout, linear_cross_entropy};
use basic_core::{DeviceSpec, directional_alignment, semantic_distribution};
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;

fn devices() -> Vec<Device> {
    let mut devices = Vec::new();
    for spec in [DeviceSpec::Cpu, DeviceSpec::NdArray] {
        devices.extend(spec.open());
    }
    assert!(!devices.is_empty(), "no CPU backend in this build");
    devices
}

fn matrix(values: &[f64], columns: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let rows = values.len() / columns;
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

fn vector(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().try_to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// The value of a loss on the device, and its gradient with respect to `v`.
fn evaluate(v: &[f64], d: usize, device: &Device, loss: impl Fn(Tensor<2>) -> Tensor<1>) -> (f64, Vec<f64>) {
    let leaf = matrix(v, d, &device.clone().autodiff()).require_grad();
    let value = loss(leaf.clone());
    let grad = leaf.grad(&value.backward()).expect("v receives a gradient");
    (read(value)[0], read(grad))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn unit(row: &[f64]) -> Vec<f64> {
    let length = dot(row, row).sqrt().max(1e-12);
    row.iter().map(|x| x / length).collect()
}

/// `sum a |u - t|^2` and its gradient `2 a / |v| ((u.t) u - t)`: see docs/method.md.
fn das_reference(v: &[f64], t: &[f64], a: &[f64], d: usize) -> (f64, Vec<f64>) {
    let (mut value, mut grad) = (0.0, Vec::new());
    for ((v, t), a) in v.chunks(d).zip(t.chunks(d)).zip(a) {
        let (u, w) = (unit(v), unit(t));
        value += a * u.iter().zip(&w).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        let (length, cosine) = (dot(v, v).sqrt(), dot(&u, &w));
        grad.extend(u.iter().zip(&w).map(|(u, w)| match length <= 1e-12 {
            true => 0.0,
            false => a * 2.0 / length * (cosine * u - w),
        }));
    }
    (value, grad)
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
    logits.iter().map(|x| (x - top).exp() / sum).collect()
}

/// `sum a KL(p || q)` and its gradient `a (q - p) E`: see docs/method.md.
fn sds_reference(v: &[f64], t: &[f64], table: &[f64], a: &[f64], d: usize) -> (f64, Vec<f64>) {
    let logits = |row: &[f64]| -> Vec<f64> { table.chunks(d).map(|e| dot(row, e)).collect() };
    let (mut value, mut grad) = (0.0, Vec::new());
    for ((v, t), a) in v.chunks(d).zip(t.chunks(d)).zip(a) {
        let (p, q) = (softmax(&logits(t)), softmax(&logits(v)));
        value += a * p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        let mut row = vec![0.0; d];
        for ((p, q), e) in p.iter().zip(&q).zip(table.chunks(d)) {
            row.iter_mut().zip(e).for_each(|(g, e)| *g += a * (q - p) * e);
        }
        grad.extend(row);
    }
    (value, grad)
}

fn close(ours: &[f64], theirs: &[f64], what: &str) {
    // The values are f32, the references f64: within 1e-4 of the largest entry and 2e-6 absolute.
    let scale = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= 1e-4 * scale + 2e-6, "{what}: {a} is not {b} (scale {scale})");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

fn numbers(n: usize) -> impl Strategy<Value = Vec<f64>> {
    proptest::collection::vec(-2.0..2.0f64, n)
}

fn case() -> impl Strategy<Value = (usize, Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>)> {
    (1..7usize, 1..17usize, 1..23usize).prop_flat_map(|(m, d, vocabulary)| {
        let weights = proptest::collection::vec(0.0..1.0f64, m);
        (Just(d), numbers(m * d), numbers(m * d), numbers(vocabulary * d), weights)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn both_losses_and_their_gradients_are_those_of_the_method((d, v, t, table, a) in case()) {
        for device in devices() {
            let (target, weights) = (matrix(&t, d, &device), vector(&a, &device));
            let (value, grad) = evaluate(&v, d, &device, |v| directional_alignment(v, target.clone(), weights.clone()));
            let (expected, closed) = das_reference(&v, &t, &a, d);
            close(&[value], &[expected], "das");
            // Near a zero row the gradient grows with 1/|v|: compare only where f32 can represent it.
            if v.chunks(d).all(|row| dot(row, row) > 1e-4) {
                close(&grad, &closed, "das gradient");
            }
            let e = matrix(&table, d, &device);
            let (value, grad) =
                evaluate(&v, d, &device, |v| semantic_distribution(v, target.clone(), e.clone(), weights.clone()));
            let (expected, closed) = sds_reference(&v, &t, &table, &a, d);
            close(&[value], &[expected], "sds");
            close(&grad, &closed, "sds gradient");
            prop_assert!(value >= -1e-5);
        }
    }

    #[test]
    fn the_closed_form_gradients_are_the_slopes_of_the_losses((d, v, t, table, a) in case()) {
        prop_assume!(v.chunks(d).all(|row| dot(row, row) > 1e-2));
        let h = 1e-5;
        let slope = |f: &dyn Fn(&[f64]) -> f64, i: usize| {
            let (mut up, mut down) = (v.clone(), v.clone());
            up[i] += h;
            down[i] -= h;
            (f(&up) - f(&down)) / (2.0 * h)
        };
        for i in 0..v.len() {
            let das = slope(&|v| das_reference(v, &t, &a, d).0, i);
            let sds = slope(&|v| sds_reference(v, &t, &table, &a, d).0, i);
            prop_assert!((das - das_reference(&v, &t, &a, d).1[i]).abs() < 1e-5 * (1.0 + das.abs()));
            prop_assert!((sds - sds_reference(&v, &t, &table, &a, d).1[i]).abs() < 1e-5 * (1.0 + sds.abs()));
        }
    }
}

#[test]
fn the_directional_loss_does_not_see_lengths() {
    for device in devices() {
        let v = matrix(&[0.3, -0.2, 0.9, 1.0, 0.5, -0.7], 3, &device);
        let t = matrix(&[1.0, 0.1, -0.4, 0.2, 0.2, 0.3], 3, &device);
        let a = vector(&[0.4, 0.6], &device);
        let plain = read(directional_alignment(v.clone(), t.clone(), a.clone()))[0];
        let scaled = read(directional_alignment(v * 1000.0, t * 0.001, a))[0];
        assert!((plain - scaled).abs() < 1e-5 * plain);
    }
}

#[test]
fn a_zero_row_has_a_finite_loss_and_a_zero_gradient() {
    for device in devices() {
        let (t, a) = (matrix(&[0.0, 1.0, 1.0, 0.0], 2, &device), vector(&[1.0, 1.0], &device));
        let (value, grad) =
            evaluate(&[0.0, 0.0, 0.0, 2.0], 2, &device, |v| directional_alignment(v, t.clone(), a.clone()));
        // |0 - t|^2 = 1 for the zero row, |u - t|^2 = 2 for the orthogonal one.
        assert!((value - 3.0).abs() < 1e-6);
        assert_eq!(&grad[..2], &[0.0, 0.0]);
        assert!((grad[2] + 1.0).abs() < 1e-6, "2/|v| ((u.t) u - t) = 2/2 (0 - 1)");
    }
}

#[test]
fn equal_distributions_have_no_divergence_and_large_logits_stay_finite() {
    for device in devices() {
        let table = matrix(&[1.0, 0.0, 0.0, 1.0, -1.0, 1.0], 2, &device);
        let a = vector(&[1.0], &device);
        let v = matrix(&[0.3, -0.4], 2, &device);
        let same = read(semantic_distribution(v.clone(), v, table.clone(), a.clone()))[0];
        assert!(same.abs() < 1e-6);
        let (value, grad) = evaluate(&[1e4, -1e4], 2, &device, |v| {
            semantic_distribution(v, matrix(&[-1e4, 1e4], 2, &device), table.clone(), a.clone())
        });
        assert!(value.is_finite() && value > 1e4 && grad.iter().all(|g| g.is_finite()));
    }
}

#[test]
fn no_rows_give_zero() {
    for device in devices() {
        let none = || Tensor::<2>::zeros([0, 3], &device);
        let a = || Tensor::<1>::zeros([0], &device);
        let table = matrix(&[1.0, 2.0, 3.0], 3, &device);
        assert_eq!(read(directional_alignment(none(), none(), a())), vec![0.0]);
        assert_eq!(read(semantic_distribution(none(), none(), table.clone(), a())), vec![0.0]);
        assert_eq!(read(linear_cross_entropy(none(), table, HeadLayout::TokenRows, &[])), vec![0.0]);
    }
}

#[test]
fn nan_in_gives_nan_out() {
    for device in devices() {
        let v = || matrix(&[f64::NAN, 1.0], 2, &device);
        let t = || matrix(&[0.5, 1.0], 2, &device);
        let a = || vector(&[1.0], &device);
        assert!(read(directional_alignment(v(), t(), a()))[0].is_nan());
        assert!(read(semantic_distribution(v(), t(), t(), a()))[0].is_nan());
    }
}

#[test]
fn targets_weights_and_table_receive_no_gradient() {
    for device in devices() {
        let device = device.autodiff();
        let leaf = |values: &[f64]| matrix(values, 2, &device).require_grad();
        let (v, t, table) = (leaf(&[1.0, 2.0]), leaf(&[0.5, -1.0]), leaf(&[1.0, 0.0, 0.0, 1.0]));
        let a = vector(&[0.7], &device).require_grad();
        let loss = directional_alignment(v.clone(), t.clone(), a.clone())
            + semantic_distribution(v.clone(), t.clone(), table.clone(), a.clone());
        let grads = loss.backward();
        assert!(v.grad(&grads).is_some());
        assert!(t.grad(&grads).is_none() && table.grad(&grads).is_none() && a.grad(&grads).is_none());
    }
}
