//! AdamW against its definition, written out on the host in f64, and the sums of squares.

use basic_core::DeviceSpec;
use basic_core::ops::{
    AdamWParameter, AdamWStep, AdamWUpdate, SQUARES_PART, adamw, adamw_each, adamw_with_master, squares_parts,
    sums_of_squares, sums_of_squares_of_each,
};
use burn::tensor::{DType, Device, Tensor, TensorData};

fn devices() -> Vec<Device> {
    [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().flat_map(DeviceSpec::open).collect()
}

/// A fixed sequence of numbers between -1 and 1.
fn numbers(n: usize, seed: u32) -> Vec<f64> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(values: &[f64], dtype: DType, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / 3, 3]), (device, dtype))
}

fn read<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_to_vec::<f64>().unwrap()
}

/// `torch.optim.AdamW`'s update of one element over the given gradients, each times the step's factor.
fn expected(mut p: f64, grads: &[f64], step: &AdamWStep) -> f64 {
    let (mut m, mut v) = (0.0, 0.0);
    for (t, g) in grads.iter().enumerate() {
        let (t, g) = (t as i32 + 1, g * step.grad_scale);
        p *= 1.0 - step.lr * step.weight_decay;
        m = step.beta1 * m + (1.0 - step.beta1) * g;
        v = step.beta2 * v + (1.0 - step.beta2) * g * g;
        let (mean, spread) = (m / (1.0 - step.beta1.powi(t)), v / (1.0 - step.beta2.powi(t)));
        p -= step.lr * mean / (spread.sqrt() + step.epsilon);
    }
    p
}

const STEP: AdamWStep =
    AdamWStep { lr: 0.03, beta1: 0.9, beta2: 0.99, epsilon: 1e-6, weight_decay: 0.1, grad_scale: 0.3, time: 1 };

#[test]
fn steps_of_adamw_are_those_of_its_definition() {
    for device in devices() {
        // The tolerance is the size of a step (0.03) times the type's rounding, over four steps.
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-12)] {
            // One element, a few, and more than one rayon task (2^14).
            for n in [3, 33, 49_158] {
                let start = numbers(n, 1);
                let grads: Vec<Vec<f64>> = (2..6).map(|seed| numbers(n, seed)).collect();
                let (mut p, mut moments) = (tensor(&start, dtype, &device), None);
                let before = p.clone();
                for (t, grad) in grads.iter().enumerate() {
                    let step = AdamWStep { time: t + 1, ..STEP };
                    let (next, state) = adamw(p, tensor(grad, dtype, &device), moments, step);
                    (p, moments) = (next, Some(state));
                }
                for (i, ours) in read(p).into_iter().enumerate() {
                    let own: Vec<f64> = grads.iter().map(|grad| grad[i]).collect();
                    let theirs = expected(start[i], &own, &STEP);
                    assert!((ours - theirs).abs() < tolerance, "{dtype:?} element {i} of {n}: {ours} is not {theirs}");
                }
                // A clone of the parameter is another tensor: updating in place must not reach it.
                assert!(read(before).iter().zip(&start).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
}

#[test]
fn a_view_is_updated_and_the_tensor_behind_it_stays() {
    for device in devices() {
        let whole = tensor(&numbers(30, 1), DType::F32, &device);
        let before = read(whole.clone());
        for (view, grad) in [
            (whole.clone().narrow(0, 2, 4), whole.clone().narrow(0, 5, 4)),
            (whole.clone().transpose(), whole.clone().transpose()),
        ] {
            let copy = |x: &Tensor<2>| Tensor::<2>::from_data(x.clone().into_data(), &device);
            let (plain, _) = adamw(copy(&view), copy(&grad), None, STEP);
            let (updated, _) = adamw(view, grad, None, STEP);
            assert_eq!(read(updated), read(plain));
        }
        assert_eq!(read(whole), before);
    }
}

#[test]
fn half_parameters_have_moments_in_f32() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let (p, g) = (tensor(&numbers(30, 1), DType::BF16, &device), tensor(&numbers(30, 2), DType::BF16, &device));
    let (updated, moments) = adamw(p.clone(), g, None, STEP);
    assert_eq!((updated.dtype(), moments.first.dtype(), moments.second.dtype()), (DType::BF16, DType::F32, DType::F32));
    assert_ne!(read(updated), read(p));
}

#[test]
fn a_master_is_updated_as_a_parameter_is_and_the_parameter_is_the_master_rounded() {
    let [cpu, ndarray] = [DeviceSpec::Cpu, DeviceSpec::NdArray].map(|spec| spec.open().unwrap());
    for (device, dtype, rounded) in [
        (&cpu, DType::F32, DType::BF16),
        (&cpu, DType::F32, DType::F16),
        (&cpu, DType::F64, DType::F32),
        (&ndarray, DType::F64, DType::F32),
    ] {
        for n in [0, 3, 33, 49_158] {
            let start = tensor(&numbers(n, 1), dtype, device);
            let (mut plain, mut plain_moments) = (start.clone(), None);
            let held = start.clone().cast(rounded);
            let before = read(held.clone());
            let (mut parameter, mut master, mut moments) = (held.clone(), start, None);
            for t in 0..3 {
                let grad = tensor(&numbers(n, 2 + t), rounded, device);
                let step = AdamWStep { time: t as usize + 1, ..STEP };
                let (next, kept) = adamw(plain, grad.clone(), plain_moments, step);
                (plain, plain_moments) = (next, Some(kept));
                let (updated, next, kept) = adamw_with_master(parameter, master, grad, moments, step);
                (parameter, master, moments) = (updated, next, Some(kept));
                assert_eq!((parameter.dtype(), master.dtype()), (rounded, dtype));
                assert_eq!(read(master.clone()), read(plain.clone()), "{dtype:?}, {n} elements, step {t}");
                assert_eq!(
                    read(parameter.clone()),
                    read(plain.clone().cast(rounded)),
                    "{dtype:?}, {n} elements, step {t}"
                );
            }
            // What else held the parameter still has its old values.
            assert_eq!(read(held), before);
            let [plain, kept] = [plain_moments, moments].map(Option::unwrap);
            assert_eq!([read(plain.first), read(plain.second)], [read(kept.first), read(kept.second)]);
        }
    }
}

#[test]
fn updates_together_are_those_of_each_alone() {
    // Neighbours differ in size, type, settings and in whether they have a master; two are empty.
    let sizes = [33, 48, 0, 16, 3, 49_152, 96, 3, 0, 33, 16, 48];
    for device in devices() {
        let vector = |n: usize, seed: u32, dtype: DType| {
            Tensor::<1>::from_data(TensorData::new(numbers(n, seed), [n]), (&device, dtype))
        };
        let parts = |at: usize| {
            let (n, dtype) = (sizes[at], if at % 4 == 3 { DType::F64 } else { DType::F32 });
            let master = (at % 3 == 1).then(|| vector(n, at as u32, DType::F64));
            let step = AdamWStep { lr: if at < 6 { 0.03 } else { 0.01 }, ..STEP };
            (vector(n, at as u32, dtype), master, [0, 1].map(|t| vector(n, 20 + 2 * at as u32 + t, dtype)), step)
        };
        let mut together: Vec<AdamWParameter> = Vec::new();
        for at in 0..sizes.len() {
            let (value, master, ..) = parts(at);
            together.push(AdamWParameter { value, master, moments: None });
        }
        for t in 0..2 {
            let update = |(at, parameter): (usize, AdamWParameter)| {
                let (_, _, grads, step) = parts(at);
                AdamWUpdate { parameter, grad: grads[t].clone(), step: AdamWStep { time: t + 1, ..step } }
            };
            together = adamw_each(together.into_iter().enumerate().map(update).collect());
        }
        assert_eq!(together.len(), sizes.len());
        for (at, AdamWParameter { value, master, moments }) in together.into_iter().enumerate() {
            let (mut alone, mut alone_master, grads, step) = parts(at);
            let mut alone_moments = None;
            for (t, grad) in grads.into_iter().enumerate() {
                let step = AdamWStep { time: t + 1, ..step };
                let kept = match alone_master.take() {
                    Some(master) => {
                        let (next, master, kept) = adamw_with_master(alone, master, grad, alone_moments, step);
                        (alone, alone_master) = (next, Some(master));
                        kept
                    }
                    None => {
                        let (next, kept) = adamw(alone, grad, alone_moments, step);
                        alone = next;
                        kept
                    }
                };
                alone_moments = Some(kept);
            }
            assert_eq!((value.dtype(), read(value)), (alone.dtype(), read(alone)), "parameter {at}");
            assert_eq!(master.map(read), alone_master.map(read), "master {at}");
            let [moments, alone] = [moments, alone_moments].map(Option::unwrap);
            assert_eq!([read(moments.first), read(moments.second)], [read(alone.first), read(alone.second)], "{at}");
        }
    }
    assert!(adamw_each(Vec::new()).is_empty());
}

#[test]
fn sums_of_squares_of_several_are_those_of_each_alone() {
    for device in devices() {
        for sizes in [vec![], vec![0], vec![3, 0, 0, 16, 32, SQUARES_PART, 48, 3 * SQUARES_PART + 16, 1, 2, 16]] {
            let tensor = |(at, n): (usize, &usize)| {
                let dtype = if at % 5 == 4 { DType::F64 } else { DType::F32 };
                Tensor::<1>::from_data(TensorData::new(numbers(*n, at as u32), [*n]), (&device, dtype))
            };
            let tensors: Vec<_> = sizes.iter().enumerate().map(tensor).collect();
            let alone: Vec<f64> = tensors.iter().flat_map(|x| read(sums_of_squares(x.clone()))).collect();
            assert_eq!(alone.len(), sizes.iter().map(|n| squares_parts(*n)).sum::<usize>());
            let together: Vec<f64> = sums_of_squares_of_each(tensors).into_iter().flat_map(read).collect();
            assert_eq!(together, alone, "{sizes:?}");
        }
    }
}

#[test]
fn sums_of_squares_are_the_same_bits_every_time() {
    for device in devices() {
        for n in [0, 3, 99_999, SQUARES_PART * 3, SQUARES_PART * 3 + 3] {
            let values = numbers(n, 7);
            let x = tensor(&values, DType::F32, &device);
            let sums = read(sums_of_squares(x.clone()));
            let theirs: Vec<f64> =
                values.chunks(SQUARES_PART).map(|part| part.iter().map(|x| x * x).sum::<f64>()).collect();
            assert_eq!(sums.len(), theirs.len().max(1));
            for (ours, theirs) in sums.iter().zip(&theirs) {
                assert!((ours - theirs).abs() <= 1e-5 * theirs, "{n}: {ours} is not {theirs}");
            }
            assert!(n > 0 || sums == [0.0]);
            assert_eq!(read(sums_of_squares(x)), sums);
        }
    }
}
