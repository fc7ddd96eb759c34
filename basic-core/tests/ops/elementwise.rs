//! Products, SwiGLU, GELU, the root-mean-square norm and rotary positions.

use proptest::prelude::*;

use crate::compare::*;
use crate::harness::*;
use crate::reference;

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn patches_are_products_of_the_whole_ones(
        n in 1..3usize, channels in 1..4usize, side in 1..4usize, down in 0..7usize, across in 0..7usize,
        out in 1..5usize, seed: u64,
    ) {
        let sizes = [n, channels, side + down, side + across, side, out];
        check_everywhere(&reference::patches(sizes, seed));
    }

    #[test]
    fn a_product_is_its_sums(b in 1..4usize, n in 1..9usize, k in 1..40usize, m in 1..9usize, seed: u64) {
        check_everywhere(&reference::product([b, n, k, m], seed));
        check_everywhere(&reference::linear([b, n, k, m], seed));
    }

    #[test]
    fn swiglu_is_its_composition(a in 0..4usize, b in 1..6usize, c in 1..40usize, seed: u64) {
        check_everywhere(&reference::swiglu([a, b, c], seed));
    }

    #[test]
    fn gelu_is_its_composition(a in 0..4usize, b in 1..6usize, c in 1..40usize, seed: u64) {
        check_everywhere(&reference::gelu([a, b, c], seed));
    }

    #[test]
    fn the_other_activations_are_their_compositions(a in 0..4usize, b in 1..6usize, c in 1..40usize, seed: u64) {
        reference::activations([a, b, c], seed).iter().for_each(check_everywhere);
    }

    #[test]
    fn an_embedding_is_burns_selection(
        vocabulary in 1..9usize, d in 1..20usize, ids in prop::collection::vec(0..9i64, 1..30), seed: u64,
    ) {
        let ids = ids.into_iter().map(|id| id % vocabulary as i64).collect();
        check_everywhere(&reference::embedding(vocabulary, d, ids, seed));
    }

    #[test]
    fn rms_norm_is_its_composition(
        a in 0..4usize, b in 1..6usize, d in 1..40usize, epsilon in prop_oneof![Just(1e-5), Just(1e-2)], seed: u64,
    ) {
        check_everywhere(&reference::rms_norm([a, b, d], epsilon, seed));
    }

    #[test]
    fn rotation_is_its_composition(
        batch in 0..4usize, t in 1..10usize, heads in 1..5usize, half in 1..9usize, shared: bool, seed: u64,
    ) {
        check_everywhere(&reference::rotate([batch, t, heads, 2 * half], if shared { 1 } else { batch }, seed));
    }
}

#[test]
fn empty_tensors_stay_empty() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            for dims in [[0, 2, 4], [2, 0, 4], [2, 3, 0]] {
                let pairs = [
                    reference::swiglu(dims, 0),
                    reference::gelu(dims, 0),
                    reference::rms_norm(dims, 1e-5, 0),
                    reference::rotate([2, dims[0], dims[1], dims[2]], 1, 0),
                ];
                for pair in pairs {
                    let roles = vec![Role::Tracked; pair.inputs.len()];
                    let outcome = run(&pair.op, &pair.inputs, &roles, &Place::new(&device, dtype));
                    assert!(outcome.value.is_empty(), "{}", pair.name);
                    // Gamma is the only input that is not empty.
                    assert!(outcome.grads.iter().flatten().flatten().all(|x| *x == 0.0));
                }
            }
        }
    }
}

#[test]
fn more_than_one_task_of_elements_is_right() {
    // Flex gives its threads 2^14 elements at a time, in whole rows.
    check_full(&reference::swiglu([3, 1, 5463], 1)); // 5 more than a task
    check_full(&reference::swiglu([1, 1, 1 << 14], 1));
    check_full(&reference::rms_norm([1, 1500, 11], 1e-5, 1)); // a task has 1490 rows
    check_full(&reference::rms_norm([1, 1, 20_000], 1e-5, 1));
    for own in [1, 2] {
        check_full(&reference::rotate([2, 400, 3, 8], own, 1)); // a task has 683 of the 800 rows
    }
}

#[test]
fn only_what_is_tracked_receives_a_gradient() {
    for pair in [reference::swiglu([2, 3, 5], 1), reference::rms_norm([2, 3, 5], 1e-5, 1)] {
        for case in 0..9usize {
            let roles = [case % 3, case / 3].map(|i| [Role::Tracked, Role::Constant, Role::Plain][i]);
            for device in devices() {
                check_as(&pair, &roles, &Place::new(&device, DType::F32), Tolerance::F32);
                check_as(&pair, &roles, &Place::new(&device, DType::F64), Tolerance::F64);
            }
        }
    }
}

#[test]
fn rotating_back_gives_the_heads_again() {
    for device in devices() {
        let pair = reference::rotate([2, 5, 3, 8], 1, 4);
        let x = leaves(&pair.inputs, &[Role::Plain; 3], &Place::new(&device, DType::F32));
        let angle = x[1].view::<3>() * 7.0;
        let (heads, cos, sin) = (x[0].view::<4>(), angle.clone().cos(), angle.sin());
        let there = basic_core::ops::rotate(heads.clone(), cos.clone(), sin.clone());
        let lengths = |x: burn::tensor::Tensor<4>| read(x.square().sum_dim(3));
        close(&lengths(there.clone()), &lengths(heads.clone()), Tolerance::F32, "lengths");
        let back = basic_core::ops::rotate(there, cos, sin.neg());
        close(&read(back), &read(heads), Tolerance::F32, "there and back");
    }
}
