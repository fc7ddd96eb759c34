//! Every operation in bfloat16 on Flex against PyTorch's float64 on the same numbers
//! (`tests/reference/half_fixtures.py`): the elementwise ones within the rounding of their result.

use basic_core::ops::{self, HeadLayout};
use serde_json::Value;

use crate::compare::{Tolerance, close};
use crate::harness::{DType, Function, Leaf, Place, Role, Values, flex, run};

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/half.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
}

/// Checks that each number is within `roundings` roundings to bfloat16 of the truth, each at most 2^-8 of it, plus
/// 2e-6.
fn rounded(ours: &[f64], truth: &[f64], roundings: f64, what: &str) {
    assert_eq!(ours.len(), truth.len(), "{what}");
    for (at, (a, b)) in ours.iter().zip(truth).enumerate() {
        // In the far tail, f32 itself rounds `1 + erf` with an absolute error of 2^-24 times the input.
        let bound = b.abs() * roundings * 2f64.powi(-8) + 2e-6;
        assert!((a - b).abs() <= bound, "{what}: {a:e} at {at} is not {b:e}, within {bound:e}");
    }
}

fn check(name: &str, op: Function, compare: impl Fn(&[f64], &[f64], &str)) {
    let all = fixture();
    let case = &all[name];
    let inputs: Vec<Values> = case["inputs"].as_array().unwrap().iter().map(input).collect();
    let grads = case["grads"].as_array().unwrap();
    let roles: Vec<Role> = grads.iter().map(|g| if g.is_null() { Role::Constant } else { Role::Tracked }).collect();
    let outcome = run(&op, &inputs, &roles, &Place::new(&flex(), DType::BF16));
    let value = numbers(&case["value"]);
    if !value.is_empty() {
        compare(&outcome.value, &value, name);
    }
    for (i, (ours, truth)) in outcome.grads.iter().zip(grads).enumerate().filter(|(_, (_, truth))| !truth.is_null()) {
        compare(ours.as_ref().expect(name), &numbers(truth), &format!("{name}: the gradient of input {i}"));
    }
}

fn input(value: &Value) -> Values {
    let dims: Vec<usize> = integers(&value["dims"]).into_iter().map(|n| n as usize).collect();
    Values::new(&dims, &numbers(&value["values"]))
}

fn by(roundings: f64) -> impl Fn(&[f64], &[f64], &str) {
    move |ours, truth, what| rounded(ours, truth, roundings, what)
}

#[test]
fn activations_keep_their_tails() {
    check("gelu", Box::new(|x: &[Leaf]| ops::gelu(x[0].view::<1>())), by(1.01));
    check("gelu_tanh", Box::new(|x: &[Leaf]| ops::gelu_tanh(x[0].view::<1>())), by(1.01));
    check("quick_gelu", Box::new(|x: &[Leaf]| ops::quick_gelu(x[0].view::<1>())), by(1.01));
    check("silu", Box::new(|x: &[Leaf]| ops::silu(x[0].view::<1>())), by(1.01));
    check("swiglu", Box::new(|x: &[Leaf]| ops::swiglu(x[0].view::<1>(), x[1].view())), by(1.01));
}

#[test]
fn a_token_that_stands_often_gets_the_whole_of_its_gradient() {
    let ids = integers(&fixture()["embedding"]["ids"]);
    let op = move |x: &[Leaf]| ops::embedding(x[0].view(), x[0].ints(&ids, [ids.len()])).flatten(0, 1);
    check("embedding", Box::new(op), by(1.01));
}

#[test]
fn norms_and_rotations_are_off_by_their_products_roundings() {
    // The normalized row is rounded before gamma multiplies it, as in transformers.
    let norm = |x: &[Leaf]| ops::rms_norm(x[0].view::<2>(), x[1].view(), 1e-5).flatten(0, 1);
    check("rms_norm", Box::new(norm), by(3.0));
    // The difference of two rounded products of up to 2.
    let rotate = |x: &[Leaf]| ops::rotate(x[0].view(), x[1].view(), x[2].view()).flatten(0, 3);
    check("rotate", Box::new(rotate), |a, b, what| {
        close(a, b, Tolerance { relative: 3.0 * 2f64.powi(-8), absolute: 0.0 }, what);
    });
}

#[test]
fn products_and_losses_are_near_the_truth() {
    let near = |a: &[f64], b: &[f64], what: &str| close(a, b, Tolerance { relative: 0.02, absolute: 0.005 }, what);
    let attention = |x: &[Leaf]| {
        let first = x[0].ints(&[0; 7], [1, 7]);
        ops::attention(x[0].view(), x[1].view(), x[2].view(), first).output.flatten(0, 3)
    };
    check("attention", Box::new(attention), near);
    check("das", Box::new(|x: &[Leaf]| ops::directional_alignment(x[0].view(), x[1].view(), x[2].view())), near);
    let sds = |x: &[Leaf]| ops::semantic_distribution(x[0].view(), x[1].view(), x[2].view(), x[3].view());
    check("sds", Box::new(sds), near);
    let labels = integers(&fixture()["cross_entropy"]["labels"]);
    let entropy = move |x: &[Leaf]| ops::linear_cross_entropy(x[0].view(), x[1].view(), HeadLayout::TokenRows, &labels);
    check("cross_entropy", Box::new(entropy), near);
}
