//! The losses of directional alignment and semantic distribution supervision.

use basic_core::ops::{directional_alignment, semantic_distribution, semantic_distribution_within};
use burn::tensor::Tensor;
use proptest::prelude::*;

use crate::compare::*;
use crate::harness::*;
use crate::reference;

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn das_is_its_composition(m in 0..9usize, d in 1..18usize, seed: u64) {
        check_everywhere(&reference::das(m, d, seed));
    }

    #[test]
    fn sds_is_its_composition_whatever_its_chunks(
        m in 0..9usize, d in 1..10usize, vocabulary in 1..38usize, chunk in 0..4usize, seed: u64,
    ) {
        // Chunks of one row, of all but the last row, of exactly all, and of more than there are.
        let chunk = [1, m.saturating_sub(1), m, m + 1][chunk];
        check_everywhere(&reference::sds(m, d, vocabulary, chunk, seed));
    }
}

#[test]
fn sds_over_many_rows_and_a_long_vocabulary_is_its_composition() {
    // 2 * 70 * 1031 * 33 multiplications: Flex's products spread over threads here (from 2^21 on).
    for chunk in [0, 69, 70] {
        check_full(&reference::sds(70, 33, 1031, chunk, 1));
    }
}

#[test]
fn the_default_budget_gives_what_small_chunks_give() {
    for device in devices() {
        let pair = reference::sds(6, 5, 13, 1, 3);
        let place = Place::new(&device, DType::F32);
        let [v, target, table, weights] = &leaves(&pair.inputs, &[Role::Plain; 4], &place)[..] else { panic!() };
        let whole = semantic_distribution(v.view(), target.view(), table.view(), weights.view());
        let chunked = semantic_distribution_within(v.view(), target.view(), table.view(), weights.view(), 1);
        close(&read(chunked), &read(whole), Tolerance::F32, "one row at a time");
    }
}

#[test]
fn sizes_of_zero_give_zero() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            let place = Place::new(&device, dtype);
            let mut pairs = vec![reference::das(0, 3, 0), reference::das(3, 0, 0), reference::sds(0, 3, 4, 1, 0)];
            // Without width, all logits are zero and both distributions uniform; without a vocabulary
            // there are no logits.
            pairs.extend([1, 2, 3].map(|chunk| reference::sds(3, 0, 4, chunk, 0)));
            pairs.push(reference::sds(3, 2, 0, 1, 0));
            for pair in pairs {
                let outcome = run(&pair.op, &pair.inputs, &vec![Role::Tracked; pair.inputs.len()], &place);
                close(&outcome.value, &[0.0], Tolerance::F64, pair.name);
                assert!(outcome.grads[0].iter().flatten().all(|x| *x == 0.0));
            }
        }
    }
}

#[test]
fn the_loss_has_the_accumulators_type() {
    for (dtype, expected) in [(DType::BF16, DType::F32), (DType::F16, DType::F32), (DType::F64, DType::F64)] {
        for m in [0, 2] {
            for pair in [reference::das(m, 3, 0), reference::sds(m, 3, 4, 1, 0)] {
                let roles = vec![Role::Plain; pair.inputs.len()];
                let loss = (pair.op)(&leaves(&pair.inputs, &roles, &Place::new(&flex(), dtype)));
                assert_eq!(loss.dtype(), expected, "{} of {m} rows in {dtype:?}", pair.name);
            }
        }
    }
}

#[test]
fn sds_multiplies_in_the_tables_type_whatever_the_rows_have() {
    let pair = reference::sds(5, 4, 11, 2, 9);
    for device in devices() {
        let halves = [(DType::F32, DType::BF16, Tolerance::BF16), (DType::BF16, DType::F32, Tolerance::F32)];
        let wide = [(DType::F64, DType::F32, Tolerance::F32), (DType::F32, DType::F64, Tolerance::F32)];
        let flex_only = if device == flex() { &halves[..] } else { &[] };
        for (rows, table, tolerance) in flex_only.iter().chain(&wide) {
            // The table is rounded to both types, so that they hold the same numbers.
            let mut inputs: Vec<Values> = pair.inputs.iter().map(|input| input.rounded(*rows)).collect();
            inputs[2] = inputs[2].rounded(*table);
            let place = Place::new(&device, *rows);
            let narrow = leaves(&inputs, &[Role::Tracked; 4], &place);
            let cast = narrow[2].view::<2>().cast(*table);
            let loss = semantic_distribution(narrow[0].view(), narrow[1].view(), cast, narrow[3].view());
            let expected = if *table == DType::F64 { DType::F64 } else { DType::F32 };
            assert_eq!(loss.dtype(), expected, "rows in {rows:?}, table in {table:?}");
            let ours = narrow[0].grad(&(loss.clone() * 3.5).backward()).unwrap();
            let theirs = run(&pair.reference, &inputs, &[Role::Tracked; 4], &Place::new(&device, DType::F64));
            close(&read(loss), &theirs.value, *tolerance, "the loss");
            // The gradient is rounded to the type of the rows.
            let rounding = if *rows == DType::BF16 { Tolerance::BF16 } else { *tolerance };
            close(&ours, theirs.grads[0].as_ref().unwrap(), rounding, "the gradient");
        }
    }
}

/// v, target, table and weights of a case, in f32 on a device.
fn tensors(m: usize, seed: u64, place: &Place) -> (Tensor<2>, Tensor<2>, Tensor<2>, Tensor<1>) {
    let pair = reference::sds(m, 6, 19, 2, seed);
    let x = leaves(&pair.inputs, &[Role::Plain; 4], place);
    (x[0].view(), x[1].view(), x[2].view(), x[3].view())
}

fn losses(v: Tensor<2>, target: Tensor<2>, table: Tensor<2>, weights: Tensor<1>) -> Vec<f64> {
    let das = directional_alignment(v.clone(), target.clone(), weights.clone());
    // Three rows at a time: two blocks of 19 logits of 4 bytes each.
    let sds = semantic_distribution_within(v, target, table, weights, 3 * 2 * 19 * 4);
    read(Tensor::cat(vec![das, sds], 0))
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn neither_loss_is_negative_and_both_vanish_for_equal_rows(m in 1..9usize, seed: u64) {
        for device in devices() {
            let (v, target, table, weights) = tensors(m, seed, &Place::new(&device, DType::F32));
            // f32 sums of 19 terms p (log p - log q) of either sign.
            prop_assert!(losses(v.clone(), target, table.clone(), weights.clone()).iter().all(|loss| *loss >= -1e-6));
            close(&losses(v.clone(), v, table, weights), &[0.0, 0.0], Tolerance::F32, "equal rows");
        }
    }

    #[test]
    fn das_does_not_see_lengths(m in 1..9usize, by in -20..20i32, seed: u64) {
        for device in devices() {
            let (v, target, _, weights) = tensors(m, seed, &Place::new(&device, DType::F32));
            let plain = directional_alignment(v.clone(), target.clone(), weights.clone());
            // Not a power of two, so that rounding differs.
            let scale = 1.3f64.powi(by);
            let scaled = directional_alignment(v * scale, target / scale, weights);
            close(&read(scaled), &read(plain), Tolerance::F32, "scaled rows");
        }
    }

    #[test]
    fn both_losses_are_linear_in_the_weights(m in 1..9usize, seed: u64) {
        for device in devices() {
            let place = Place::new(&device, DType::F32);
            let (v, target, table, a) = tensors(m, seed, &place);
            let b = tensors(m, !seed, &place).3;
            let of = |weights: Tensor<1>| losses(v.clone(), target.clone(), table.clone(), weights);
            let sum: Vec<f64> = of(a.clone()).iter().zip(of(b.clone())).map(|(a, b)| 3.0 * a - 0.5 * b).collect();
            close(&of(a * 3.0 - b * 0.5), &sum, Tolerance::F32, "3 a - b / 2");
        }
    }

    #[test]
    fn the_order_of_the_rows_does_not_matter(m in 1..9usize, seed: u64) {
        for device in devices() {
            let (v, target, table, weights) = tensors(m, seed, &Place::new(&device, DType::F32));
            let plain = losses(v.clone(), target.clone(), table.clone(), weights.clone());
            let flipped = losses(v.flip([0]), target.flip([0]), table.flip([0]), weights.flip([0]));
            close(&flipped, &plain, Tolerance::F32, "rows and vocabulary in reverse");
        }
    }
}
