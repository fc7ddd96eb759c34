//! The language model's loss, fused with the output head.

use basic_core::ops::linear_cross_entropy_within;
use burn::tensor::Tensor;
use proptest::prelude::*;

use crate::compare::*;
use crate::harness::*;
use crate::reference::{self, HeadLayout, some_labels};

const LAYOUTS: [HeadLayout; 2] = [HeadLayout::TokenRows, HeadLayout::TokenColumns];

fn layout() -> impl Strategy<Value = HeadLayout> {
    prop_oneof![Just(HeadLayout::TokenRows), Just(HeadLayout::TokenColumns)]
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn it_is_its_composition_whatever_its_chunks(
        n in 1..10usize, d in 1..10usize, vocabulary in 1..38usize, layout in layout(), chunk in 0..4usize, seed: u64,
    ) {
        let labels = some_labels(n, vocabulary, &mut Random(seed));
        let count = labels.iter().filter(|label| **label >= 0).count();
        // Chunks of one labelled row, of all but the last, of exactly all, and of more than there are.
        let chunk = [1, count.saturating_sub(1), count, count + 1][chunk];
        // The divisor is the global count of an accumulated batch, not this batch's own.
        let divisor = Some(count as f64 + 1.5);
        check_everywhere(&reference::cross_entropy(d, vocabulary, layout, labels, divisor, chunk, seed));
    }

    #[test]
    fn the_default_is_the_mean_over_the_labelled_rows(
        n in 1..10usize, d in 1..10usize, vocabulary in 1..38usize, layout in layout(), seed: u64,
    ) {
        let labels = some_labels(n, vocabulary, &mut Random(seed));
        check_full(&reference::cross_entropy(d, vocabulary, layout, labels, None, 0, seed));
    }

    #[test]
    fn only_what_is_tracked_receives_a_gradient(
        layout in layout(), hidden in 0..3usize, head in 0..3usize, ignored: bool, chunk in 1..6usize, seed: u64,
    ) {
        let mut labels: Vec<i64> = (0..5).map(|i| (i * 2) % 7).collect();
        if ignored {
            labels[2] = -100;
        }
        let pair = reference::cross_entropy(4, 7, layout, labels, Some(3.0), chunk, seed);
        let roles = [Role::Tracked, Role::Constant, Role::Plain];
        for device in devices() {
            for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::F64, Tolerance::F64)] {
                check_as(&pair, &[roles[hidden], roles[head]], &Place::new(&device, dtype), tolerance);
            }
        }
    }

    #[test]
    fn the_order_of_the_rows_does_not_matter(n in 1..10usize, layout in layout(), seed: u64) {
        let mut labels = some_labels(n, 11, &mut Random(seed));
        for device in devices() {
            let place = Place::new(&device, DType::F32);
            let pair = reference::cross_entropy(5, 11, layout, labels.clone(), None, 0, seed);
            let x = leaves(&pair.inputs, &[Role::Plain; 2], &place);
            // Three rows of 11 logits of 4 bytes at a time.
            let loss = |hidden: Tensor<2>, labels: &[i64]| {
                read(linear_cross_entropy_within(hidden, x[1].view(), layout, labels, 2.0, 3 * 11 * 4))
            };
            let plain = loss(x[0].view(), &labels);
            labels.reverse();
            close(&loss(x[0].view::<2>().flip([0]), &labels), &plain, Tolerance::F32, "rows in reverse");
            labels.reverse();
        }
    }
}

#[test]
fn many_rows_and_a_long_vocabulary_are_their_composition() {
    // 70 * 1031 * 33 multiplications: Flex's products spread over threads here (from 2^21 on).
    let labels = || (0..70).map(|i| i * 14).collect::<Vec<i64>>();
    for (layout, chunk) in LAYOUTS.into_iter().zip([69, 70]) {
        check_full(&reference::cross_entropy(33, 1031, layout, labels(), Some(70.0), chunk, 1));
    }
}

#[test]
fn without_a_label_the_loss_is_exactly_zero_and_so_are_the_gradients() {
    for device in devices() {
        for layout in LAYOUTS {
            for labels in [vec![-100; 4], vec![-1; 3], vec![]] {
                for divisor in [None, Some(5.0)] {
                    let pair = reference::cross_entropy(3, 6, layout, labels.clone(), divisor, 2, 0);
                    let outcome = run(&pair.op, &pair.inputs, &[Role::Tracked; 2], &Place::new(&device, DType::F32));
                    assert_eq!(outcome.value, [0.0]);
                    assert!(outcome.grads.iter().flatten().flatten().all(|x| *x == 0.0));
                }
            }
        }
    }
}

#[test]
fn an_unlabelled_row_receives_exactly_nothing() {
    for device in devices() {
        let pair = reference::cross_entropy(3, 6, HeadLayout::TokenRows, vec![2, -100, 5], None, 0, 4);
        let outcome = run(&pair.op, &pair.inputs, &[Role::Tracked; 2], &Place::new(&device, DType::F32));
        let grad = outcome.grads[0].as_ref().unwrap();
        assert_eq!(grad[3..6], [0.0; 3]);
        assert!(grad[..3].iter().chain(&grad[6..]).all(|x| *x != 0.0));
    }
}

#[test]
fn without_width_every_token_is_as_likely_as_any() {
    // On Flex, because NdArray cannot multiply matrices of width 0. From the second chunk on, the block
    // of logits is reused.
    for (layout, chunk) in [(LAYOUTS[0], 1), (LAYOUTS[1], 2), (LAYOUTS[0], 3)] {
        let pair = reference::cross_entropy(0, 4, layout, vec![0, 3, 1], Some(3.0), chunk, 0);
        let outcome = run(&pair.op, &pair.inputs, &[Role::Tracked; 2], &Place::new(&flex(), DType::F32));
        close(&outcome.value, &[4f64.ln()], Tolerance::F32, "the entropy of four tokens");
    }
}

#[test]
fn a_label_outside_the_vocabulary_panics() {
    for device in devices() {
        for layout in LAYOUTS {
            let pair = reference::cross_entropy(3, 6, layout, vec![0, 6], None, 0, 0);
            let place = Place::new(&device, DType::F32);
            let run = std::panic::AssertUnwindSafe(|| run(&pair.op, &pair.inputs, &[Role::Tracked; 2], &place));
            let message = *std::panic::catch_unwind(run).err().expect("a panic").downcast::<String>().unwrap();
            assert!(message.contains("label 6 is not in a vocabulary of 6"), "{message}");
        }
    }
}
