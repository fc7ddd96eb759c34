//! Compares what `basic losses` prints with the reference's numbers.

use serde_json::Value;

use crate::fixtures::{number, numbers};
use crate::tensors::relative;

/// Asserts that the tokens are equal, and that lm (1e-4 relative), das and sds (1e-3 relative) and the attention (1e-5) are
/// within the tolerances of docs/architecture.md; a failure names `what`.
#[track_caller]
pub fn assert_losses(ours: &Value, expected: &Value, what: &str) {
    assert_eq!(ours["tokens"], expected["tokens"], "{what}");
    for (key, bound) in [("lm", 1e-4), ("das", 1e-3), ("sds", 1e-3)] {
        let off = relative(number(&ours[key]), number(&expected[key]));
        assert!(off <= bound, "{what}: {key} is {} and not {}", ours[key], expected[key]);
    }
    let rows = |value: &Value| -> Vec<f64> { value.as_array().into_iter().flatten().flat_map(numbers).collect() };
    let (a, b) = (rows(&ours["attention"]), rows(&expected["attention"]));
    assert!(a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5), "{what}: attention");
}
