//! Comparison of an operation with its reference.

use crate::harness::{DType, Pair, Place, Role, Values, devices, flex, run};

/// How far a value may be off: a fraction of the largest entry of the expected tensor, and an absolute part.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    pub relative: f64,
    pub absolute: f64,
}

impl Tolerance {
    pub const F32: Self = Self { relative: 1e-5, absolute: 1e-6 };
    pub const F64: Self = Self { relative: 1e-10, absolute: 1e-12 };
    /// [`Self::F32`] for attention, whose gradient of a score is `p (g v - g o)`: two sums of up to 9 products of 1.5 and 2
    /// that may cancel, each rounded by some 2^-24 of 27, times a key.
    pub const ATTENTION_F32: Self = Self { absolute: 5e-6, ..Self::F32 };
    /// Eight bits of mantissa: one rounding changes a number by up to 2^-9 = 0.002 of it. Products are rounded to bf16,
    /// and then exponentiated (an error of 0.008 in a logit of 4 is one of 0.8 % in its probability) or subtracted from
    /// each other (see attention above).
    pub const BF16: Self = Self { relative: 0.05, absolute: 0.04 };
    /// Eleven bits of mantissa: an eighth of bf16's tolerance.
    pub const F16: Self = Self { relative: 0.05 / 8.0, absolute: 0.04 / 8.0 };
}

/// Compares two lists of numbers. A NaN fails.
pub fn close(ours: &[f64], theirs: &[f64], tolerance: Tolerance, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(0f64, |most, x| most.max(x.abs()));
    let bound = tolerance.relative * scale + tolerance.absolute;
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let within = (a - b).abs() <= bound;
        assert!(within, "{what}: {a:e} at {at} is not {b:e}; off by {:e}, within {bound:e}", (a - b).abs());
    }
}

/// Checks that the operation's value and gradients are those of its reference, computed in f64 on the
/// same rounded inputs.
pub fn check(pair: &Pair, place: &Place, tolerance: Tolerance) {
    check_as(pair, &vec![Role::Tracked; pair.inputs.len()], place, tolerance);
}

/// [`check`] with some inputs untracked. Inputs that the method does not differentiate must not get a
/// gradient, tracked or not.
pub fn check_as(pair: &Pair, roles: &[Role], place: &Place, tolerance: Tolerance) {
    let inputs: Vec<Values> = pair.inputs.iter().map(|input| input.rounded(place.dtype)).collect();
    let what = format!("{} in {:?} on {:?}", pair.name, place.dtype, place.device);
    let ours = run(&pair.op, &inputs, roles, place);
    let theirs = run(&pair.reference, &inputs, roles, &Place::new(&place.device, DType::F64));
    close(&ours.value, &theirs.value, tolerance, &what);
    for (i, (ours, theirs)) in ours.grads.iter().zip(&theirs.grads).enumerate() {
        let what = format!("{what}: the gradient of input {i}");
        if !pair.differentiable[i] || roles[i] != Role::Tracked {
            assert!(ours.is_none(), "{what} exists");
            continue;
        }
        // If the result does not depend on the input, a missing gradient is as good as a zero one.
        let n = inputs[i].values.len();
        let zeros = || vec![0.0; n];
        let (ours, theirs) = (ours.clone().unwrap_or_else(zeros), theirs.clone().unwrap_or_else(zeros));
        close(&ours, &theirs, tolerance, &what);
    }
}

/// [`check`] in f32 and f64 on both backends, and in the 16-bit types on Flex.
pub fn check_everywhere(pair: &Pair) {
    check_full(pair);
    for (dtype, tolerance) in [(DType::BF16, Tolerance::BF16), (DType::F16, Tolerance::F16)] {
        check(pair, &Place::new(&flex(), dtype), tolerance);
    }
}

/// [`check`] in f32 and f64 on both backends.
pub fn check_full(pair: &Pair) {
    let single = if pair.name == "attention" { Tolerance::ATTENTION_F32 } else { Tolerance::F32 };
    for device in devices() {
        for (dtype, tolerance) in [(DType::F32, single), (DType::F64, Tolerance::F64)] {
            check(pair, &Place::new(&device, dtype), tolerance);
        }
    }
}
