//! Compares every decoder family with CLIP and SigLIP encoders, DINOv2, DINOv3 and AIMv2 encoders, and models that cut images into tiles
//! (LLaVA-NeXT) with transformers: losses and their gradients, the logits of every position, and greedy token ids.
//! tests/reference/family_fixtures.py made tests/fixtures/families and says what each checkpoint varies.
//!
//! `cargo test -p tests --test families -- --nocapture` prints the table.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use basic_core::{DeviceSpec, Objective};
use basic_models::config::Tiles;
use basic_models::processor::tokenize_prompt;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::tensor::DType;
use serde_json::Value;
use tests::fixtures::{fixture, number, numbers, read_json, text};
use tests::tensors::{read, relative, relative_l2};
use tests::{Ran, args, run};

/// Tolerances: relative for lm, das and sds; relative L2 for gradients; absolute for attention and logits.
const LM: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;
const LOSS: f64 = 1e-3;
const ATTENTION: f64 = 1e-5;
const LOGITS: f64 = 1e-3;
/// Token ids may differ from the first step at which the two best logits are closer than this.
const GAP: f64 = 2e-3;

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

/// The checkpoints with their names.
fn families() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(fixture("families"))
        .expect("the fixtures are there")
        .map(|entry| entry.expect("the fixtures can be listed").path())
        .map(|path| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    assert_eq!(
        found.len(),
        35,
        "two for each of nine families, two of Phi-4-mini's, two of Mistral's, eleven of Llama's, and two that cut images"
    );
    found
}

/// The images of the prompt that was compared.
fn images(expected: &Value) -> Vec<PathBuf> {
    let names = expected["images"].as_array().map(|names| names.iter().map(text).collect());
    let names: Vec<&str> = names.unwrap_or_else(|| vec!["b.png"]);
    names.into_iter().map(|name| fixture("images").join(name)).collect()
}

/// The largest deviation of a loss; `Err` names a quantity that is beyond its tolerance.
fn losses(dir: &Path, expected: &Value, device: &str) -> Result<f64, String> {
    let out = tempfile::tempdir().map_err(|e| e.to_string())?;
    let grads = out.path().join("grads.safetensors");
    let samples = expected["samples"].as_str().unwrap_or("samples.jsonl");
    let expected = &expected["losses"];
    let line = args!["losses", dir, fixture(samples), "--device", device, "--grads", grads, "--json"];
    let ours = basic(line).json();
    let (found, wanted) = (read(&grads), read(&dir.join("grads.safetensors")));
    if !found.keys().eq(wanted.keys()) {
        return Err(format!("gradients of {:?} and not of {:?}", found.keys(), wanted.keys()));
    }
    for (name, wanted) in &wanted {
        let off = relative_l2(&found[name], wanted);
        let within = found[name].shape == wanted.shape && off <= GRADIENT;
        if !within {
            return Err(format!("the gradient {name} is off by {off:.2e}"));
        }
    }
    let mut worst = 0f64;
    for (key, bound) in [("lm", LM), ("das", LOSS), ("sds", LOSS)] {
        let off = relative(number(&ours[key]), number(&expected[key]));
        // `<=` is false for NaN, so NaN counts as beyond the tolerance.
        let within = off <= bound;
        if !within {
            return Err(format!("{key} is {} and not {}", ours[key], expected[key]));
        }
        worst = worst.max(off);
    }
    if ours["tokens"] != expected["tokens"] {
        return Err(format!("tokens are {} and not {}", ours["tokens"], expected["tokens"]));
    }
    let rows = |value: &Value| -> Vec<f64> { value.as_array().into_iter().flatten().flat_map(numbers).collect() };
    let (a, b) = (rows(&ours["attention"]), rows(&expected["attention"]));
    match a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= ATTENTION) {
        true => Ok(worst),
        false => Err("attention is another".into()),
    }
}

/// The largest deviation of a logit at any position of the prompt.
fn logits(dir: &Path, expected: &Value) -> Result<f64, String> {
    let device = DeviceSpec::Cpu.open().map_err(|e| e.to_string())?;
    let checkpoint = Checkpoint::open(dir).map_err(|e| e.to_string())?;
    let model = checkpoint.load(DType::F32, &device).map_err(|e| e.to_string())?;
    let ids: Vec<u32> = numbers(&expected["ids"]).into_iter().map(|id| id as u32).collect();
    let files = images(expected);
    let tiles: Result<Vec<Tiles>, _> = files.iter().map(|file| checkpoint.tiles(file)).collect();
    let prompt = tokenize_prompt(&checkpoint.tokenizer, text(&expected["prompt"]), &tiles.map_err(|e| e.to_string())?);
    let prompt = prompt.map_err(|e| e.to_string())?;
    if prompt.ids != ids {
        return Err(format!("the prompt's ids are {:?} and not {ids:?}", prompt.ids));
    }
    let pixels: Result<Vec<Vec<f32>>, _> =
        files.iter().map(|file| checkpoint.pixels(file).map(|pixels| pixels.data)).collect();
    let sample = ImageTokens { pixels: pixels.map_err(|e| e.to_string())?, ..prompt.into() };
    let batch = Batch::collate(&[sample], checkpoint.pad_id(), checkpoint.image_shape(), &device);
    let forward = model.forward(&batch, &Objective::llava()).map_err(|e| e.to_string())?;
    let [_, t, d] = forward.hidden.dims();
    let ours: Vec<f32> =
        model.logits(forward.hidden.reshape([t, d])).into_data().try_to_vec().map_err(|e| format!("{e:?}"))?;
    let theirs = &read(&dir.join("logits.safetensors"))["logits"].values;
    if ours.len() != theirs.len() {
        return Err(format!("{} logits and not {}", ours.len(), theirs.len()));
    }
    let worst = ours.iter().zip(theirs).fold(0f64, |worst, (a, b)| worst.max(f64::from((a - b).abs())));
    if worst <= LOGITS { Ok(worst) } else { Err(format!("a logit is off by {worst:.2e}")) }
}

/// How many of the 32 greedy token ids were compared. Those after a near tie are not.
fn generated(dir: &Path, expected: &Value, device: &str) -> Result<usize, String> {
    let mut line = args!["generate", dir, "--prompt", text(&expected["prompt"])];
    images(expected).into_iter().for_each(|image| line.extend(args!["--image", image]));
    line.extend(args!["--max-new-tokens", "32", "--greedy", "--device", device, "--json"]);
    let ours = basic(line).json();
    let (ours, theirs) = (numbers(&ours["ids"]), numbers(&expected["generated"]["ids"]));
    let gaps = numbers(&expected["generated"]["gaps"]);
    let sure = gaps.iter().position(|gap| *gap < GAP).unwrap_or(gaps.len());
    match ours.get(..sure) == theirs.get(..sure) && (sure < gaps.len() || ours == theirs) {
        true => Ok(sure),
        false => Err(format!("ids are {ours:?} and not {theirs:?}")),
    }
}

#[test]
fn a_trained_models_checkpoint_has_the_names_and_values_of_a_converted_one() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, source) in families() {
        let (saved, converted) = (dir.path().join(format!("{name}-saved")), dir.path().join(&name));
        let checkpoint = Checkpoint::open(&source).unwrap();
        let model = checkpoint.load(DType::F32, &device).unwrap();
        checkpoint.save(&model, &saved, DType::F32, false).unwrap();
        basic(args!["convert", source, converted, "--dtype", "f32"]).succeeded();
        let file = "model.safetensors";
        assert_eq!(read(&saved.join(file)), read(&converted.join(file)), "{name}");
        assert_eq!(read_json(&saved.join("config.json")), read_json(&converted.join("config.json")), "{name}");
    }
}

fn table(device: &str) {
    let mut wrong = Vec::new();
    for (name, dir) in families() {
        let expected = read_json(&dir.join("reference.json"));
        let mut note = |what: &str, result: Result<String, String>| match result {
            Ok(shown) => print!("{what} {shown}  "),
            Err(error) => wrong.push(format!("{name}: {what}: {error}")),
        };
        print!("{device} {name:<16} ");
        note("losses", losses(&dir, &expected, device).map(|off| format!("{off:.1e}")));
        if device == "cpu" {
            note("logits", logits(&dir, &expected).map(|off| format!("{off:.1e}")));
        }
        note("ids", generated(&dir, &expected, device).map(|sure| format!("{sure}/32")));
        println!();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_family_has_transformers_numbers_on_cpu() {
    table("cpu");
}

#[test]
fn every_family_has_transformers_numbers_on_ndarray() {
    table("ndarray");
}
