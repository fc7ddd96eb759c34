//! Runs every operation on a device, forward and backward, and compares the results with committed expectations, to
//! test a new GPU, driver or backend before it is trusted (`basic devices --check`).
//!
//! The inputs are multiples of 1/64 from -1 to 1. Every 16-bit type represents them exactly, so that one set of
//! expectations, computed in f32 on Flex, serves all types. An expectation is a result's Euclidean
//! norm and some elements.

mod cases;
mod rates;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use cases::CASES;
pub use rates::{Rate, RateError, rates};

/// The number of elements of a result that are compared one by one.
const SAMPLES: usize = 12;

/// The result of checking one operation.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// The operation and its variant.
    pub name: &'static str,
    /// The inputs' type.
    pub dtype: &'static str,
    /// The largest difference from the expectation, relative to the root mean square of the result in which it occurs.
    pub difference: Option<f64>,
    /// The largest difference that passes.
    pub tolerance: f64,
    /// Whether it passed.
    pub passed: bool,
    /// What prevented a comparison: a panic's message, or a result of another size.
    pub error: Option<String>,
    /// Seconds, including the compilation of kernels.
    pub seconds: f64,
}

/// A summary of a result or a gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Brief {
    elements: usize,
    norm: f64,
    samples: Vec<f64>,
}

impl Brief {
    fn of(values: &[f64]) -> Self {
        let stride = values.len().div_ceil(SAMPLES).max(1);
        // Counted from the end, so that the last element is among them.
        let samples = values.iter().rev().step_by(stride).copied().collect();
        Self { elements: values.len(), norm: values.iter().map(|x| x * x).sum::<f64>().sqrt(), samples }
    }

    /// The largest difference, relative to the expected root mean square; `None` if the sizes differ.
    fn difference(&self, expected: &Self) -> Option<f64> {
        if self.elements != expected.elements || self.samples.len() != expected.samples.len() {
            return None;
        }
        let scale = (expected.norm / (expected.elements.max(1) as f64).sqrt()).max(1e-6);
        let norm = (self.norm - expected.norm) / expected.norm.max(1e-6);
        let samples = self.samples.iter().zip(&expected.samples).map(|(a, b)| (a - b) / scale);
        // A NaN must not pass, and `f64::max` would drop it.
        Some(samples.chain([norm]).map(f64::abs).fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most }))
    }
}

/// One case: its name, and the expectation for each of its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Expected {
    name: String,
    results: Vec<Brief>,
}

fn expectations() -> Vec<Expected> {
    serde_json::from_str(include_str!("expected.json")).unwrap_or_default()
}

/// Runs every operation on `device` in each of `dtypes` and compares the results. `report` is called after each. If an
/// operation panics, it fails and the others still run.
pub fn check(device: &Device, dtypes: &[DType], report: &mut dyn FnMut(&Checked)) -> Vec<Checked> {
    let expected = expectations();
    let device = device.clone().autodiff();
    let mut all = Vec::new();
    for dtype in dtypes {
        for case in CASES {
            let start = Instant::now();
            let found =
                catch_unwind(AssertUnwindSafe(|| (case.run)(&cases::Place { device: device.clone(), dtype: *dtype })));
            let tolerance = if dtype.size() < 4 { case.loose } else { 2e-4 };
            let (difference, error) = match found {
                Ok(results) => compare(case.name, &results, &expected),
                Err(panic) => (None, Some(message(panic.as_ref()))),
            };
            let checked = Checked {
                name: case.name,
                dtype: dtype.name(),
                difference,
                tolerance,
                passed: difference.is_some_and(|difference| difference <= tolerance),
                error,
                seconds: start.elapsed().as_secs_f64(),
            };
            report(&checked);
            all.push(checked);
        }
    }
    all
}

fn compare(name: &str, results: &[Vec<f64>], expected: &[Expected]) -> (Option<f64>, Option<String>) {
    let Some(expected) = expected.iter().find(|expected| expected.name == name) else {
        return (None, Some("nothing is expected of it: write basic-core/src/check/expected.json anew".into()));
    };
    let pairs = results.iter().map(|values| Brief::of(values)).zip(&expected.results);
    let differences: Option<Vec<f64>> = pairs.map(|(brief, expected)| brief.difference(expected)).collect();
    match differences {
        Some(differences) if results.len() == expected.results.len() => {
            let most = |most: f64, x: f64| if x > most || x.is_nan() { x } else { most };
            (Some(differences.into_iter().fold(0.0, most)), None)
        }
        _ => (None, Some("a result has another size than expected".into())),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // The first line says what went wrong and a later one why; between them can be the whole source of a kernel.
    let lines: Vec<&str> = text.unwrap_or("it panicked").lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let cause = lines.iter().find(|line| line.contains("error:") || line.contains("ERROR"));
    lines.first().into_iter().chain(cause).copied().collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::DeviceSpec;

    fn run(dtype: DType) -> Vec<Expected> {
        let device = DeviceSpec::Cpu.open().unwrap().autodiff();
        let of = |case: &cases::Case| {
            let results = (case.run)(&cases::Place { device: device.clone(), dtype });
            Expected { name: case.name.into(), results: results.iter().map(|values| Brief::of(values)).collect() }
        };
        CASES.iter().map(of).collect()
    }

    /// `BASIC_EXPECTATIONS=write cargo test -p basic-core --lib check` writes the expectations anew.
    #[test]
    fn the_committed_expectations_are_what_flex_computes_in_f32() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/expected.json");
        let now = run(DType::F32);
        if std::env::var("BASIC_EXPECTATIONS").is_ok_and(|value| value == "write") {
            let lines: Vec<String> = now.iter().map(|case| serde_json::to_string(case).unwrap()).collect();
            fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
        }
        let committed: Vec<Expected> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(committed.len(), now.len());
        for (committed, now) in committed.iter().zip(&now) {
            assert_eq!((&committed.name, committed.results.len()), (&now.name, now.results.len()));
            for (committed, now) in committed.results.iter().zip(&now.results) {
                let difference = now.difference(committed);
                assert!(difference.is_some_and(|x| x < 1e-5), "{}: {difference:?}", now_name(committed, now));
                assert!(committed.norm.is_finite() && committed.norm > 0.0, "{committed:?} tests nothing");
            }
        }
    }

    fn now_name(committed: &Brief, now: &Brief) -> String {
        format!("{committed:?} and {now:?}")
    }

    #[test]
    fn flex_passes_in_f32_and_bf16_and_every_case_is_told() {
        let device = DeviceSpec::Cpu.open().unwrap();
        let mut told = 0;
        let all = check(&device, &[DType::F32, DType::BF16], &mut |_| told += 1);
        let failed: Vec<&Checked> = all.iter().filter(|checked| !checked.passed).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!((told, all.len()), (2 * CASES.len(), 2 * CASES.len()));
    }

    #[test]
    fn a_number_that_is_off_or_none_does_not_pass() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i) / 64.0).collect();
        let expected = Brief::of(&values);
        let mut off = values.clone();
        off[99] += 0.5;
        assert!(Brief::of(&off).difference(&expected).unwrap() > 0.1);
        off[99] = f64::NAN;
        assert!(Brief::of(&off).difference(&expected).unwrap().is_nan());
        assert_eq!(Brief::of(&values[1..]).difference(&expected), None);
        assert_eq!(Brief::of(&values).difference(&expected), Some(0.0));
        let zeros = Brief::of(&[0.0; 100]);
        assert!(zeros.difference(&expected).unwrap() > 0.5, "a device that computes nothing fails");
    }
}
