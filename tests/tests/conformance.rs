//! Compares the binary with the numbers of `tests/reference/basic_reference.py` (plain PyTorch and transformers) on
//! three checkpoints: one in transformers 5's layout, one in shards whose config leaves out every default, and one in
//! transformers 4's layout. The tolerances are those of docs/architecture.md, "Contracts".
//!
//! `cargo test -p tests --test conformance -- --nocapture` prints the largest deviation of every quantity.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use serde_json::Value;
use tests::fixtures::{cases, fixture, number, numbers, read_json, text};
use tests::tensors::{read, relative, relative_l2};
use tests::{Ran, args, run};

/// The relative tolerance of lm.
const LM: f64 = 1e-4;
/// The relative tolerance of das and sds, and the relative L2 tolerance of every tensor of --grads.
const LOSS: f64 = 1e-3;
/// The absolute tolerance of attention.
const ATTENTION: f64 = 1e-5;
/// The absolute tolerance of the top-5 logits.
const LOGITS: f64 = 1e-3;
/// Token ids may differ from the first step at which the two best logits are closer than this.
const GAP: f64 = 2e-3;
/// The absolute tolerance of pixel values before normalization.
const PIXEL: f64 = 1.0 / 255.0;
/// `CLIPImageProcessor`'s standard deviations: normalization divides by them.
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

/// The largest deviation of each quantity, and all deviations beyond their tolerance.
#[derive(Default)]
struct Deviations {
    largest: BTreeMap<String, (f64, String)>,
    beyond: Vec<String>,
}

impl Deviations {
    fn note(&mut self, quantity: &str, case: &str, deviation: f64, tolerance: f64) {
        // `<=` is false for NaN, so NaN counts as beyond the tolerance.
        let within = deviation <= tolerance;
        if !within {
            self.beyond.push(format!("{case}: {quantity} is off by {deviation:.3e}, allowed {tolerance:.0e}"));
        }
        let largest = self.largest.entry(quantity.into()).or_default();
        if deviation >= largest.0 {
            *largest = (deviation, case.into());
        }
    }

    fn conclude(self, device: &str) {
        for (quantity, (deviation, case)) in &self.largest {
            println!("{device}: {quantity}: {deviation:.2e} ({case})");
        }
        assert!(!self.largest.is_empty(), "nothing was compared");
        assert!(self.beyond.is_empty(), "{device}:\n{}", self.beyond.join("\n"));
    }
}

fn extra(case: &Value) -> Vec<OsString> {
    case["args"].as_array().map(|args| args.iter().map(|arg| text(arg).into()).collect()).unwrap_or_default()
}

fn compare_losses(device: &str) {
    let mut deviations = Deviations::default();
    let out = tempfile::tempdir().unwrap();
    for case in cases("losses") {
        let name = text(&case["name"]);
        let with_grads = case["grads"] == true;
        let grads = out.path().join(format!("{name}.safetensors"));
        let mut line = args!["losses", fixture(text(&case["checkpoint"])), fixture(text(&case["samples"]))];
        line.extend(extra(&case));
        line.extend(args!["--device", device, "--json"]);
        if with_grads {
            line.extend(args!["--grads", grads]);
        }
        let ours = basic(line).json();
        let theirs = read_json(&fixture("expected").join(format!("{name}.json")));
        assert_eq!(keys(&ours), keys(&theirs), "{name}");
        assert_eq!(ours["tokens"], theirs["tokens"], "{name}");
        for (key, tolerance) in [("lm", LM), ("das", LOSS), ("sds", LOSS), ("total", LOSS)] {
            deviations.note(key, name, relative(number(&ours[key]), number(&theirs[key])), tolerance);
        }
        for key in ["lm", "das", "sds"] {
            let deviation = relative(number(&ours["grad_norms"][key]), number(&theirs["grad_norms"][key]));
            deviations.note("grad_norms", name, deviation, LOSS);
        }
        let (rows, expected) = (ours["attention"].as_array().unwrap(), theirs["attention"].as_array().unwrap());
        assert_eq!(rows.len(), expected.len(), "{name}: a list a sample");
        for (row, expected) in rows.iter().zip(expected) {
            let (row, expected) = (numbers(row), numbers(expected));
            assert_eq!(row.len(), expected.len(), "{name}: a weight a patch");
            for (a, b) in row.iter().zip(expected) {
                deviations.note("attention", name, (a - b).abs(), ATTENTION);
            }
        }
        if with_grads {
            let (ours, theirs) = (read(&grads), read(&fixture("expected").join(format!("{name}.safetensors"))));
            let names = |t: &tests::tensors::Tensors| t.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(names(&ours), names(&theirs), "{name}");
            for (tensor, expected) in &theirs {
                assert_eq!(ours[tensor].shape, expected.shape, "{name}: {tensor}");
                let zero = expected.values.iter().all(|x| *x == 0.0);
                let tolerance = if zero { 0.0 } else { LOSS };
                let quantity = format!("gradient of {tensor}");
                deviations.note(&quantity, name, relative_l2(&ours[tensor], expected), tolerance);
            }
        }
    }
    deviations.conclude(device);
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}

fn compare_generation(device: &str) {
    let mut deviations = Deviations::default();
    for case in cases("generate") {
        let name = text(&case["name"]);
        let mut line = args!["generate", fixture(text(&case["checkpoint"])), "--image", fixture(text(&case["image"]))];
        line.extend(extra(&case));
        line.extend(args!["--greedy", "--json", "--device", device]);
        let ours = basic(line).json();
        let theirs = read_json(&fixture("expected").join(format!("{name}.json")));
        assert_eq!(keys(&ours), [keys(&theirs), vec![&"finish_reason".to_string()]].concat(), "{name}");
        let gaps = numbers(&theirs["gaps"]);
        let sure = gaps.iter().take_while(|gap| **gap >= GAP).count();
        let (ids, expected) = (numbers(&ours["ids"]), numbers(&theirs["ids"]));
        assert_eq!(ids.iter().take(sure).collect::<Vec<_>>(), expected.iter().take(sure).collect::<Vec<_>>(), "{name}");
        if sure == gaps.len() {
            assert_eq!(ids.len(), expected.len(), "{name}");
            assert_eq!(ours["text"], theirs["text"], "{name}");
        }
        for (a, b) in numbers(&ours["gaps"]).iter().zip(&gaps).take(sure) {
            deviations.note("gaps", name, (a - b).abs(), 2.0 * LOGITS);
        }
        let (top, expected) = (ours["top5"].as_array().unwrap(), theirs["top5"].as_array().unwrap());
        assert_eq!(top.len(), 5, "{name}");
        for (rank, pair) in expected.iter().enumerate() {
            deviations.note("top5 by rank", name, (number(&top[rank][1]) - number(&pair[1])).abs(), LOGITS);
            let same = top.iter().find(|ours| ours[0] == pair[0]);
            let same = same.unwrap_or_else(|| panic!("{name}: id {} is not among {top:?}", pair[0]));
            deviations.note("top5 by id", name, (number(&same[1]) - number(&pair[1])).abs(), LOGITS);
        }
    }
    deviations.conclude(device);
}

#[test]
fn losses_and_gradients_agree_with_the_reference_on_cpu() {
    compare_losses("cpu");
}

#[test]
fn losses_and_gradients_agree_with_the_reference_on_ndarray() {
    compare_losses("ndarray");
}

#[test]
fn greedy_generation_agrees_with_the_reference_on_cpu() {
    compare_generation("cpu");
}

#[test]
fn greedy_generation_agrees_with_the_reference_on_ndarray() {
    compare_generation("ndarray");
}

#[test]
fn processed_images_agree_with_the_reference() {
    let mut deviations = Deviations::default();
    let out = tempfile::tempdir().unwrap();
    for case in cases("preprocess") {
        let name = text(&case["name"]);
        let path = out.path().join(format!("{name}.safetensors"));
        let (checkpoint, image) = (fixture(text(&case["checkpoint"])), fixture(text(&case["image"])));
        let ran = basic(args!["preprocess", checkpoint, image, path]).succeeded();
        assert_eq!(ran.stdout, "");
        let (ours, theirs) = (read(&path), read(&fixture("expected").join(format!("{name}.safetensors"))));
        assert_eq!(ours.keys().collect::<Vec<_>>(), ["pixel_values"]);
        let (ours, theirs) = (&ours["pixel_values"], &theirs["pixel_values"]);
        assert_eq!(ours.shape, theirs.shape);
        let plane = ours.values.len() / 3;
        for (i, (a, b)) in ours.values.iter().zip(&theirs.values).enumerate() {
            let deviation = f64::from((a - b).abs()) * CLIP_STD[i / plane];
            // The margin covers the rounding of normalization and its inverse for a difference of exactly 1/255.
            deviations.note("pixel values before normalization", name, deviation, PIXEL + 1e-6);
        }
    }
    deviations.conclude("preprocess");
}

#[test]
fn samples_without_an_image_have_no_visual_loss_and_no_gradient() {
    let out = tempfile::tempdir().unwrap();
    for device in ["cpu", "ndarray"] {
        let grads = out.path().join(format!("{device}.safetensors"));
        let samples = fixture("text_only.jsonl");
        let line = args!["losses", fixture("plain"), samples, "--device", device, "--json", "--grads", grads];
        let report = basic(line).json();
        assert!(number(&report["lm"]) > 0.0);
        assert_eq!((number(&report["das"]), number(&report["sds"])), (0.0, 0.0));
        assert_eq!(report["total"], report["lm"]);
        assert_eq!(report["attention"], serde_json::json!([[], []]));
        for (name, tensor) in read(&grads) {
            assert!(!name.ends_with(".v"), "there is no image, so no visual embedding: {name}");
            assert!(tensor.values.iter().all(|x| *x == 0.0), "{name}");
        }
    }
}

#[test]
fn without_json_the_losses_and_the_answer_are_for_people() {
    let ran = basic(args!["losses", fixture("plain"), fixture("samples.jsonl"), "--device", "cpu"]).succeeded();
    // The expected digits are from plain-default.json, as many as the tolerance allows.
    assert!(ran.stdout.contains("lm    5.910"), "{}", ran.stdout);
    let case = &cases("generate")[0];
    let mut line = args!["generate", fixture(text(&case["checkpoint"])), "--image", fixture(text(&case["image"]))];
    line.extend(extra(case));
    line.extend(args!["--greedy", "--device", "cpu"]);
    let expected = read_json(&fixture("expected").join(format!("{}.json", text(&case["name"]))));
    assert_eq!(basic(line).succeeded().stdout, format!("{}\n", text(&expected["text"])));
}

#[test]
fn the_fixtures_cover_every_checkpoint_with_every_knob() {
    let names: BTreeSet<String> = cases("losses").iter().map(|case| text(&case["name"]).to_string()).collect();
    for checkpoint in ["plain", "sharded", "transformers4"] {
        for knob in ["default", "k1", "k4", "constant", "decreasing", "uniform", "lambdas", "mixed", "text_only"] {
            assert!(names.contains(&format!("{checkpoint}-{knob}")), "{checkpoint}-{knob}");
        }
    }
}
