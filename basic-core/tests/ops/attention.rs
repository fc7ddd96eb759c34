//! Attention, its log-sum-exp and its read-out.

use basic_core::ops;
use burn::tensor::{Int, Tensor, TensorData};
use proptest::prelude::*;

use crate::compare::*;
use crate::harness::*;
use crate::reference::{self, First, Sizes};

/// Lengths around Flex's block of 128 queries, and short ones.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![6 => prop::sample::select(vec![1usize, 2, 3, 5, 9]), 1 => 127..=130usize, 1 => Just(257)]
}

/// Sizes with up to eight heads; fewer for long sequences, to keep the test fast.
pub fn sizes() -> impl Strategy<Value = Sizes> {
    let heads = prop_oneof![Just((1, 1)), Just((1, 4)), Just((2, 1)), Just((2, 3)), Just((3, 2)), Just((8, 1))];
    (1..3usize, lengths(), prop_oneof![Just(0), 1..6usize, Just(130)], heads, 1..10usize).prop_map(
        |(batch, queries, past, (kv_heads, group), width)| {
            let (kv_heads, past) = if queries > 100 { (kv_heads.min(2), past.min(5)) } else { (kv_heads, past) };
            Sizes { batch, queries, past, kv_heads, group, width }
        },
    )
}

/// How the first visible keys are chosen.
#[derive(Debug, Clone, Copy)]
pub enum Pattern {
    /// Every earlier key is visible.
    All,
    /// The first real key, which differs from sample to sample; queries before it see themselves.
    LeftPadding,
    /// Several samples in one row: the start of each query's own sample.
    Packed(usize),
    Window(usize),
    /// A key after the query's own position.
    Beyond,
    Any,
}

pub fn pattern() -> impl Strategy<Value = Pattern> {
    use Pattern::*;
    let packed = (1..7usize).prop_map(Packed);
    prop_oneof![Just(All), Just(LeftPadding), packed, (1..7usize).prop_map(Window), Just(Beyond), Just(Any)]
}

pub fn first(sizes: &Sizes, pattern: Pattern, shared: bool, seed: u64) -> First {
    let mut random = Random(seed);
    let padding: Vec<usize> = (0..sizes.batch).map(|_| random.below(sizes.keys())).collect();
    let any: Vec<usize> = (0..sizes.batch * sizes.queries).map(|_| random.below(sizes.keys() + 3)).collect();
    First::of(sizes, if shared { 1 } else { sizes.batch }, |row, t, own| match pattern {
        Pattern::All => 0,
        Pattern::LeftPadding => padding[row],
        Pattern::Packed(length) => own / length * length,
        Pattern::Window(length) => (own + 1).saturating_sub(length),
        Pattern::Beyond => own + 1 + row,
        Pattern::Any => any[row * sizes.queries + t],
    })
}

pub fn asked(sizes: &Sizes, n: usize, seed: u64) -> Vec<i64> {
    let mut random = Random(seed);
    (0..sizes.batch * n).map(|_| random.below(sizes.queries) as i64).collect()
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn it_is_the_materialized_softmax(sizes in sizes(), pattern in pattern(), shared: bool, seed: u64) {
        let first = first(&sizes, pattern, shared, seed);
        check_full(&reference::attention(sizes, first.clone(), seed));
        check_full(&reference::attention_lse(sizes, first, seed));
    }

    #[test]
    fn to_all_it_is_the_whole_softmax(sizes in sizes(), seed: u64) {
        check_full(&reference::attention_to_all(sizes, seed));
    }

    #[test]
    fn the_read_out_is_that_of_the_materialized_probabilities(
        sizes in sizes(), pattern in pattern(), shared: bool, n in 1..5usize, readouts in 1..4usize, seed: u64,
    ) {
        let first = first(&sizes, pattern, shared, seed);
        check_full(&reference::attention_mass(sizes, first, asked(&sizes, n, seed), readouts, seed));
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn half_types_are_near_the_materialized_softmax(sizes in sizes(), pattern in pattern(), shared: bool, seed: u64) {
        let first = first(&sizes, pattern, shared, seed);
        let pairs = [
            reference::attention(sizes, first.clone(), seed),
            reference::attention_lse(sizes, first.clone(), seed),
            reference::attention_to_all(sizes, seed),
            reference::attention_mass(sizes, first, asked(&sizes, 3, seed), 2, seed),
        ];
        for pair in pairs {
            for (dtype, tolerance) in [(DType::BF16, Tolerance::BF16), (DType::F16, Tolerance::F16)] {
                check(&pair, &Place::new(&flex(), dtype), tolerance);
            }
        }
    }
}

#[test]
fn every_length_about_the_block_is_right_under_every_pattern() {
    let patterns = [Pattern::LeftPadding, Pattern::Packed(50), Pattern::Window(40), Pattern::Beyond];
    for (queries, pattern) in [127, 128, 129, 257].into_iter().zip(patterns) {
        let sizes = Sizes { batch: 2, queries, past: 3, kv_heads: 1, group: 2, width: 4 };
        let first = first(&sizes, pattern, false, 1);
        check_full(&reference::attention(sizes, first.clone(), 1));
        check_full(&reference::attention_lse(sizes, first, 1));
    }
}

#[test]
fn integers_of_any_layout_and_type_say_the_same() {
    let sizes = Sizes { batch: 2, queries: 6, past: 1, kv_heads: 1, group: 2, width: 4 };
    let known = first(&sizes, Pattern::Any, false, 3);
    let pair = reference::attention_mass(sizes, known.clone(), asked(&sizes, 3, 3), 2, 3);
    for device in devices() {
        let place = Place::new(&device, DType::F32);
        let expected = run(&pair.op, &pair.inputs, &[Role::Plain; 4], &place).value;
        let x = leaves(&pair.inputs, &[Role::Tracked; 4], &place);
        let plain = |values: &[i64], dims| {
            Tensor::<2, Int>::from_data(TensorData::new(values.to_vec(), dims), &device) // no autodiff device
        };
        let tables = [plain(&known.values, [2, 6]), plain(&asked(&sizes, 3, 3), [2, 3])];
        // The same positions as a transposed view, as the middle of wider rows, and as 32-bit integers.
        let transposed = |x: Tensor<2, Int>| {
            let [rows, columns] = x.dims();
            let values: Vec<i64> = x.transpose().into_data().iter::<i64>().collect();
            plain(&values, [columns, rows]).transpose()
        };
        let narrowed = |x: Tensor<2, Int>| {
            let [rows, columns] = x.dims();
            let beside = plain(&vec![99; rows], [rows, 1]);
            Tensor::cat(vec![beside.clone(), x, beside], 1).narrow(1, 1, columns)
        };
        let short = |x: Tensor<2, Int>| x.cast(DType::I32);
        let ways: [&dyn Fn(Tensor<2, Int>) -> Tensor<2, Int>; 4] = [&|x| x, &transposed, &narrowed, &short];
        for way in ways {
            let [first, rows] = tables.clone().map(way);
            let lse = ops::attention(x[0].view(), x[1].view(), x[2].view(), first.clone()).lse;
            let mass = ops::attention_mass(x[0].view(), x[1].view(), lse, first, rows, x[3].view(), None);
            assert_eq!(read(mass), expected);
        }
    }
}

#[test]
fn only_what_is_tracked_receives_a_gradient() {
    let sizes = Sizes { batch: 1, queries: 4, past: 1, kv_heads: 1, group: 2, width: 3 };
    for case in 0..27usize {
        let roles = [case % 3, case / 3 % 3, case / 9].map(|i| [Role::Tracked, Role::Constant, Role::Plain][i]);
        let pair = reference::attention(sizes, first(&sizes, Pattern::All, true, 0), case as u64);
        for device in devices() {
            check_as(&pair, &roles, &Place::new(&device, DType::F32), Tolerance::F32);
        }
    }
}

#[test]
fn a_query_that_sees_only_itself_gives_its_own_value() {
    let sizes = Sizes { batch: 1, queries: 3, past: 2, kv_heads: 1, group: 1, width: 2 };
    let pair = reference::attention(sizes, first(&sizes, Pattern::Beyond, true, 0), 5);
    for device in devices() {
        let place = Place::new(&device, DType::F32);
        let outcome = run(&pair.op, &pair.inputs, &[Role::Tracked; 3], &place);
        // The last three of the five values, two numbers each.
        close(&outcome.value, &pair.inputs[2].values[4..], Tolerance::F32, "the output");
        // A softmax over one key is constant.
        assert!(outcome.grads[..2].iter().flatten().flatten().all(|x| *x == 0.0));
    }
}

#[test]
fn without_queries_or_read_outs_the_results_are_empty_or_zero() {
    for device in devices() {
        let sizes = Sizes { batch: 2, queries: 0, past: 3, kv_heads: 1, group: 2, width: 4 };
        let pair = reference::attention(sizes, First { rows: 1, values: vec![] }, 0);
        let outcome = run(&pair.op, &pair.inputs, &[Role::Plain; 3], &Place::new(&device, DType::F32));
        assert!(outcome.value.is_empty());
        let sizes = Sizes { queries: 3, ..sizes };
        let pair = reference::attention(sizes, first(&sizes, Pattern::All, true, 0), 0);
        let x = leaves(&pair.inputs, &[Role::Plain; 3], &Place::new(&device, DType::F32));
        let all = x[0].ints(&[0; 3], [1, 3]);
        let lse = ops::attention(x[0].view(), x[1].view(), x[2].view(), all.clone()).lse;
        let none = Tensor::<3>::zeros([2, 5, 0], &device);
        let mass = ops::attention_mass(x[0].view(), x[1].view(), lse, all, x[0].ints(&[], [2, 0]), none, None);
        assert_eq!(mass.dims(), [2, 5, 6]);
        assert!(read(mass).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn keys_and_values_are_read_where_they_lie_in_a_cache() {
    let device = basic_core::DeviceSpec::Cpu.open().unwrap();
    let random = |dims: [usize; 4]| Tensor::<4>::random(dims, burn::tensor::Distribution::Normal(0.0, 1.0), &device);
    // Caches with room for nine positions, six of them in use; three queries after three earlier ones.
    let (q, keys, values) = (random([2, 3, 4, 8]), random([2, 9, 2, 8]), random([2, 9, 2, 8]));
    let first = Tensor::<2, Int>::from_data(burn::tensor::TensorData::new(vec![0i64, 0, 0, 2, 2, 2], [2, 3]), &device);
    let held = |cache: &Tensor<4>| cache.clone().narrow(1, 0, 6);
    // A sum is a new tensor, whose samples are contiguous.
    let copied = |cache: &Tensor<4>| held(cache) + 0.0;
    let there = ops::attention(q.clone(), held(&keys), held(&values), first.clone());
    let beside = ops::attention(q, copied(&keys), copied(&values), first);
    assert_eq!(there.output.into_data(), beside.output.into_data());
    assert_eq!(there.lse.into_data(), beside.lse.into_data());
}
