//! Properties that the gradients of every operation have.

use basic_core::ops;
use burn::tensor::Tensor;

use crate::compare::*;
use crate::harness::*;
use crate::reference::{self, one_of_each};

/// The scalar that [`run`] differentiates.
fn projected(pair: &Pair, inputs: &[Values], place: &Place) -> f64 {
    let value = run(&pair.op, inputs, &vec![Role::Plain; inputs.len()], place).value;
    value.iter().zip(cotangent(value.len())).map(|(x, by)| x * by).sum()
}

#[test]
fn they_are_the_slopes() {
    // Central differences are off by h^2 times the third derivative (about 1e-10) and by the rounding error over h
    // (1e-16 * 100 / 1e-5 = 1e-9).
    let (h, tolerance) = (1e-5, Tolerance { relative: 1e-7, absolute: 1e-8 });
    for device in devices() {
        let place = Place::new(&device, DType::F64);
        for pair in one_of_each(11) {
            let grads = run(&pair.op, &pair.inputs, &vec![Role::Tracked; pair.inputs.len()], &place).grads;
            for (i, grad) in grads.into_iter().enumerate().filter(|(i, _)| pair.differentiable[*i]) {
                let slope = |at: usize| {
                    let moved = |by: f64| {
                        let mut inputs = pair.inputs.clone();
                        inputs[i].values[at] += by;
                        projected(&pair, &inputs, &place)
                    };
                    (moved(h) - moved(-h)) / (2.0 * h)
                };
                let slopes: Vec<f64> = (0..pair.inputs[i].values.len()).map(slope).collect();
                let what = format!("{} on {device:?}: input {i}", pair.name);
                close(&grad.expect(&what), &slopes, tolerance, &what);
            }
        }
    }
}

#[test]
fn transposed_and_narrowed_inputs_give_what_contiguous_ones_give() {
    for layout in [Layout::Transposed, Layout::Narrowed] {
        for device in devices() {
            for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::F64, Tolerance::F64)] {
                for pair in one_of_each(13) {
                    check(&pair, &Place { layout, ..Place::new(&device, dtype) }, tolerance);
                }
            }
        }
        let place = Place { layout, ..Place::new(&flex(), DType::BF16) };
        one_of_each(13).iter().for_each(|pair| check(pair, &place, Tolerance::BF16));
    }
}

#[test]
fn a_device_that_checkpoints_gives_the_same() {
    for device in devices() {
        let place = Place { checkpointing: true, ..Place::new(&device, DType::F32) };
        one_of_each(17).iter().for_each(|pair| check(pair, &place, Tolerance::F32));
    }
}

#[test]
fn the_same_call_gives_the_same_bits() {
    // Large enough for several threads: products from 2^21 multiplications, elementwise passes from 2^14 elements.
    let sizes = reference::Sizes { batch: 2, queries: 140, past: 1, kv_heads: 2, group: 2, width: 8 };
    let labels = (0..70).map(|i| i * 14).collect();
    let mut pairs = one_of_each(19);
    pairs.extend([
        reference::sds(70, 33, 1031, 40, 1),
        reference::cross_entropy(33, 1031, reference::HeadLayout::TokenRows, labels, Some(70.0), 40, 1),
        reference::attention(sizes, reference::First::of(&sizes, 1, |_, _, own| own.saturating_sub(90)), 1),
        reference::swiglu([3, 1, 11_000], 1),
        reference::rms_norm([2, 1500, 11], 1e-5, 1),
        reference::rotate([2, 400, 3, 8], 1, 1),
    ]);
    for device in devices() {
        let place = Place::new(&device, DType::F32);
        for pair in &pairs {
            let roles = vec![Role::Tracked; pair.inputs.len()];
            let bits = || run(&pair.op, &pair.inputs, &roles, &place).bits();
            let once = bits();
            assert!((0..3).all(|_| bits() == once), "{} on {device:?}", pair.name);
        }
    }
}

#[test]
fn an_input_that_is_read_twice_receives_both_parts() {
    let sizes = reference::Sizes { batch: 1, queries: 4, past: 0, kv_heads: 2, group: 1, width: 3 };
    let first = || reference::First::of(&sizes, 1, |_, _, _| 0);
    // A function of one input: the pair's function with that input in every place.
    let shared = |pair: Pair, copies: usize| {
        let (op, reference) = (pair.op, pair.reference);
        let spread = move |f: Function| -> Function {
            Box::new(move |x: &[Leaf]| f(&(0..copies).map(|_| x[0].again()).collect::<Vec<_>>()))
        };
        let (op, reference) = (spread(op), spread(reference));
        Pair { name: pair.name, inputs: vec![pair.inputs[0].clone()], differentiable: &[true], op, reference }
    };
    for pair in [shared(reference::swiglu([2, 3, 4], 1), 2), shared(reference::attention(sizes, first(), 1), 3)] {
        check_full(&pair);
    }
}

#[test]
fn a_loss_within_a_larger_sum_passes_on_its_share() {
    for device in devices() {
        let place = Place::new(&device, DType::F64);
        for pair in one_of_each(23) {
            let roles = vec![Role::Tracked; pair.inputs.len()];
            let other = pair.inputs[0].values.clone();
            let alone = run(&pair.op, &pair.inputs, &roles, &place);
            let op = pair.op;
            // f(2 x) + 0.25 x.x: the input of f is not a leaf, and f's cotangent is that of the sum's single entry.
            let sum: Function = Box::new(move |x| {
                let inputs: Vec<Leaf> = x.iter().map(|leaf| leaf.scaled(2.0)).collect();
                let value = op(&inputs);
                let n = value.dims()[0];
                let by = burn::tensor::TensorData::new(cotangent(n), [n]);
                let by = Tensor::<1>::from_data(by, (&value.device(), value.dtype()));
                (value * by).sum() * 0.5 + x[0].flat().square().sum() * 0.25
            });
            let halves: Vec<Values> = pair.inputs.iter().map(halved).collect();
            let ours = run(&sum, &halves, &roles, &place);
            // 3.5 (the cotangent of a scalar) times 0.5 f'(2 x) 2, and 0.25 * 2 x with x half the input.
            let expected: Vec<f64> =
                alone.grads[0].as_ref().unwrap().iter().zip(&other).map(|(g, x)| 3.5 * (g + 0.25 * x)).collect();
            close(ours.grads[0].as_ref().unwrap(), &expected, Tolerance::F64, pair.name);
        }
    }
}

fn halved(input: &Values) -> Values {
    Values::new(&input.dims, &input.values.iter().map(|x| x / 2.0).collect::<Vec<_>>())
}

#[test]
fn what_the_method_does_not_differentiate_stays_outside_the_graph() {
    for device in devices() {
        let place = Place::new(&device, DType::F32);
        for pair in one_of_each(29).into_iter().filter(|pair| pair.differentiable.contains(&false)) {
            // Only inputs that have no gradient are tracked, so that there is nothing to differentiate.
            let roles: Vec<Role> =
                pair.differentiable.iter().map(|yes| if *yes { Role::Constant } else { Role::Tracked }).collect();
            assert!(!(pair.op)(&leaves(&pair.inputs, &roles, &place)).is_tracked(), "{}", pair.name);
        }
        let sizes = reference::Sizes { batch: 1, queries: 3, past: 1, kv_heads: 1, group: 2, width: 4 };
        let pair = reference::attention(sizes, reference::First::of(&sizes, 1, |_, _, _| 0), 1);
        let x = leaves(&pair.inputs, &[Role::Tracked; 3], &place);
        let first = x[0].ints(&[0; 3], [1, 3]);
        let out = ops::attention(x[0].view(), x[1].view(), x[2].view(), first.clone());
        assert!(out.output.is_tracked() && !out.lse.is_tracked());
        let readout = Tensor::<3>::ones([1, 1, 1], &device.clone().autodiff()).require_grad();
        let rows = x[0].ints(&[2], [1, 1]);
        let mass = ops::attention_mass(x[0].view(), x[1].view(), out.lse, first, rows, readout, None);
        assert!(!mass.is_tracked());
    }
}
