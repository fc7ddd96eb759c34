//! Large numbers, degenerate rows and NaN.

use burn::tensor::Tensor;

use basic_core::ops;

use crate::compare::*;
use crate::harness::*;
use crate::reference::{self, First, HeadLayout, Sizes, one_of_each};

/// The pair's functions on other inputs.
fn with(pair: Pair, inputs: Vec<Values>) -> Pair {
    for (ours, theirs) in inputs.iter().zip(&pair.inputs) {
        assert_eq!(ours.dims, theirs.dims);
    }
    Pair { inputs, ..pair }
}

#[test]
fn a_nan_in_any_input_of_a_loss_makes_it_nan() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            // Every row of the cross entropy has a label here.
            let labels = vec![0, 3, 6, 2];
            let mut pairs = vec![reference::das(4, 7, 1), reference::sds(4, 3, 11, 3, 1)];
            let layouts = [HeadLayout::TokenRows, HeadLayout::TokenColumns];
            pairs.extend(layouts.map(|head| reference::cross_entropy(3, 7, head, labels.clone(), None, 0, 1)));
            for pair in pairs {
                for tracked in [Role::Plain, Role::Tracked] {
                    for (i, input) in pair.inputs.iter().enumerate() {
                        for at in 0..input.values.len() {
                            let mut inputs = pair.inputs.clone();
                            inputs[i].values[at] = f64::NAN;
                            let place = Place::new(&device, dtype);
                            let outcome = run(&pair.op, &inputs, &vec![tracked; inputs.len()], &place);
                            assert!(outcome.value[0].is_nan(), "{}: input {i}, entry {at}, {dtype:?}", pair.name);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_nan_shows_where_it_is_read_and_nowhere_else() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            let place = Place::new(&device, dtype);
            for pair in one_of_each(3).into_iter().skip(4) {
                for i in 0..pair.inputs.len() {
                    let mut inputs = pair.inputs.clone();
                    let at = inputs[i].values.len() / 2;
                    inputs[i].values[at] = f64::NAN;
                    let roles = vec![Role::Plain; inputs.len()];
                    let f64_place = Place::new(&device, DType::F64);
                    let ours = run(&pair.op, &inputs, &roles, &place).value;
                    let theirs = run(&pair.reference, &inputs, &roles, &f64_place).value;
                    assert!(theirs.iter().any(|x| x.is_nan()));
                    let places = |x: &[f64]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
                    assert_eq!(places(&ours), places(&theirs), "{}, input {i}, {dtype:?}", pair.name);
                }
            }
        }
    }
}

#[test]
fn logits_of_ten_thousand_give_finite_losses_and_gradients() {
    // Tokens at 1, -1 and 0; v at +-1e4 against a target at -+1e4, and against itself.
    let rows = [1e4, -1e4, 1e4, -1e4];
    let sds = with(
        reference::sds(4, 1, 3, 3, 0),
        vec![
            Values::new(&[4, 1], &rows),
            Values::new(&[4, 1], &[-1e4, 1e4, 1e4, -1e4]),
            Values::new(&[3, 1], &[1.0, -1.0, 0.0]),
            Values::new(&[4], &[1.0, 0.5, 1.0, 0.0]),
        ],
    );
    // The right token, the wrong one, and the middle one.
    let labels = vec![0, 0, 2, 1];
    let entropy = |layout, head: [usize; 2]| {
        with(
            reference::cross_entropy(1, 3, layout, labels.clone(), Some(4.0), 3, 0),
            vec![Values::new(&[4, 1], &rows), Values::new(&head, &[1.0, -1.0, 0.0])],
        )
    };
    for pair in [sds, entropy(HeadLayout::TokenRows, [3, 1]), entropy(HeadLayout::TokenColumns, [1, 3])] {
        check_full(&pair);
    }
    let loss = run(
        &entropy(HeadLayout::TokenRows, [3, 1]).op,
        &[Values::new(&[4, 1], &rows), Values::new(&[3, 1], &[1.0, -1.0, 0.0])],
        &[Role::Plain; 2],
        &Place::new(&flex(), DType::F32),
    );
    // Losses 0, 2e4, 1e4 and 0 of the four rows.
    close(&loss.value, &[3e4 / 4.0], Tolerance::F32, "the mean");
}

#[test]
fn scores_of_ten_thousand_pick_one_key() {
    // Of width 1, so that scores are q k. The first query sees one key; the others +-1e4 and 0, with a
    // tie for the last one.
    let sizes = Sizes { batch: 1, queries: 4, past: 0, kv_heads: 1, group: 1, width: 1 };
    let inputs = vec![
        Values::new(&[1, 4, 1, 1], &[100.0, -100.0, 100.0, 100.0]),
        Values::new(&[1, 4, 1, 1], &[100.0, -100.0, 0.0, 100.0]),
        Values::new(&[1, 4, 1, 1], &[1.0, 2.0, 4.0, 8.0]),
    ];
    let first = || First::of(&sizes, 1, |_, _, _| 0);
    let pair = with(reference::attention(sizes, first(), 0), inputs.clone());
    // A probability is the exponential of a score minus the log-sum-exp. A log-sum-exp of 1e4 (from 2^13 on) is rounded
    // by up to half a unit in its last place; the probabilities are off by as much, and so are the terms of the
    // gradients: at most 100 (a key) times 3.5 (a value minus the output) times 2 (a cotangent). For the tied query
    // these terms cancel.
    let rounding = |digits: i32| {
        let unit = 2f64.powi(13 - digits);
        Tolerance { relative: unit, absolute: unit * 100.0 * 3.5 * 2.0 }
    };
    for device in devices() {
        check(&pair, &Place::new(&device, DType::F32), rounding(24));
        check(&pair, &Place::new(&device, DType::F64), rounding(53));
        let place = Place::new(&device, DType::F32);
        let out = run(&pair.op, &inputs, &[Role::Plain; 3], &place).value;
        close(
            &out,
            &[1.0, 2.0, 1.0, 4.5],
            Tolerance { relative: 2f64.powi(13 - 24), absolute: 0.0 },
            "the picked values",
        );
        let lse = run(&reference::attention_lse(sizes, first(), 0).op, &inputs, &[Role::Plain; 3], &place).value;
        close(&lse, &[1e4, 1e4, 1e4, 1e4 + 2f64.ln()], Tolerance::F32, "the log-sum-exp");
    }
}

#[test]
fn equal_rows_and_zero_weights_cost_nothing() {
    for device in devices() {
        for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::F64, Tolerance::F64)] {
            let place = Place::new(&device, dtype);
            for pair in [reference::das(5, 6, 2), reference::sds(5, 6, 13, 2, 2)] {
                let roles = vec![Role::Tracked; pair.inputs.len()];
                let mut equal = pair.inputs.clone();
                equal[1] = equal[0].clone();
                let outcome = run(&pair.op, &equal, &roles, &place);
                close(&outcome.value, &[0.0], tolerance, pair.name);
                let grad = outcome.grads[0].as_ref().unwrap();
                close(grad, &vec![0.0; grad.len()], tolerance, pair.name);
                let mut unweighted = pair.inputs.clone();
                unweighted.last_mut().unwrap().values.fill(0.0);
                let outcome = run(&pair.op, &unweighted, &roles, &place);
                assert_eq!(outcome.value, [0.0]);
                assert!(outcome.grads[0].as_ref().unwrap().iter().all(|x| *x == 0.0));
            }
        }
    }
}

#[test]
fn a_row_of_zeros_has_no_direction_and_no_gradient() {
    for device in devices() {
        for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::F64, Tolerance::F64)] {
            // v without a direction, target without one, neither with one, and 1e-13, which is below the 1e-12 of
            // the definition.
            let inputs = [
                Values::new(&[4, 2], &[0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1e-13, 0.0]),
                Values::new(&[4, 2], &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
                Values::new(&[4], &[1.0; 4]),
            ];
            let pair = reference::das(4, 2, 0);
            let outcome = run(&pair.op, &inputs, &[Role::Tracked; 3], &Place::new(&device, dtype));
            // |0 - t|^2 = 1, |u - 0|^2 = 1, 0, and (1e-13 / 1e-12 - 1)^2 = 0.81.
            close(&outcome.value, &[2.81], tolerance, "the loss");
            let grad = outcome.grads[0].as_ref().unwrap();
            assert_eq!((&grad[..2], &grad[4..]), (&[0.0; 2][..], &[0.0; 4][..]));
            // 3.5 * 2 / |v| ((u.t) u - t) with t = 0.
            assert_eq!(grad[2..4], [0.0; 2]);
        }
    }
}

#[test]
fn the_norm_of_a_row_of_zeros_is_zero_with_a_finite_gradient() {
    let pair = reference::rms_norm([1, 3, 4], 1e-5, 6);
    let mut inputs = pair.inputs.clone();
    inputs[0].values[4..8].fill(0.0);
    let pair = with(pair, inputs);
    check_full(&pair);
    for device in devices() {
        let out = run(&pair.op, &pair.inputs, &[Role::Tracked; 2], &Place::new(&device, DType::F32));
        assert_eq!(out.value[4..8], [0.0; 4]);
        // grad gamma / sqrt(epsilon).
        let expected: Vec<f64> =
            (4..8).map(|i| cotangent(12)[i] * pair.inputs[1].values[i - 4] / 1e-5f64.sqrt()).collect();
        close(&out.grads[0].as_ref().unwrap()[4..8], &expected, Tolerance::F32, "the gradient");
    }
}

#[test]
fn gates_of_two_hundred_are_open_or_shut() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            let inputs = [Values::new(&[1, 1, 4], &[200.0, -200.0, 0.0, 90.0]), Values::new(&[1, 1, 4], &[3.0; 4])];
            let pair = reference::swiglu([1, 1, 4], 0);
            let out = run(&pair.op, &inputs, &[Role::Tracked; 2], &Place::new(&device, dtype));
            // e^-200 is 1e-87, which is 0 in f32 and 0 within f64's tolerance.
            close(&out.value, &[600.0, 0.0, 0.0, 270.0], Tolerance::F64, "the value");
            let by = cotangent(4);
            let slopes = [by[0] * 3.0, 0.0, by[2] * 1.5, by[3] * 3.0];
            close(out.grads[0].as_ref().unwrap(), &slopes, Tolerance::F64, "by the gate");
            close(out.grads[1].as_ref().unwrap(), &[by[0] * 200.0, 0.0, 0.0, by[3] * 90.0], Tolerance::F64, "by up");
        }
    }
}

#[test]
fn gelu_far_out_is_its_input_or_zero() {
    for device in devices() {
        let x = Tensor::<1>::from_floats([-1e4, -40.0, 0.0, 40.0, 1e4], &device.clone().autodiff()).require_grad();
        let y = ops::gelu(x.clone());
        close(&read(y.clone()), &[0.0, 0.0, 0.0, 40.0, 1e4], Tolerance::F64, "the value");
        let grad = x.grad(&y.sum().backward()).unwrap();
        close(&read(grad), &[0.0, 0.0, 0.5, 1.0, 1.0], Tolerance::F64, "the slope");
    }
}
