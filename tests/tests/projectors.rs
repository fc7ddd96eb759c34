//! Compares the resamplers with PyTorch: the losses of a whole model with each of them, and their gradients.
//! tests/reference/projector_fixtures.py made tests/fixtures/projectors and compares its modules with those of the
//! original projects.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use basic_core::DeviceSpec;
use basic_eval::losses::read_samples;
use basic_models::{Batch, Checkpoint};
use burn::tensor::DType;
use serde_json::json;
use tests::fixtures::{copy_of, fixture, numbers, read_json};
use tests::losses::assert_losses;
use tests::tensors::{Tensors, read, relative_l2, write};
use tests::{Ran, args, run};

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

/// The resamplers with their files, without the ending.
fn projectors() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(fixture("projectors"))
        .unwrap()
        .map(|entry| entry.unwrap().path().with_extension(""))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 5);
    found
}

/// The fixture `plain` with another projector.
fn with_projector(name: &str, weights: &Tensors, dir: &Path) -> PathBuf {
    let model = copy_of("plain", &dir.join(name));
    let mut config = read_json(&model.join("config.json"));
    config["model_type"] = json!("basic_llava");
    config["projector_type"] = json!(name);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let mut all = read(&model.join("model.safetensors"));
    all.retain(|name, _| !name.contains("multi_modal_projector"));
    all.extend(weights.clone());
    write(&model.join("model.safetensors"), &all);
    model
}

fn compare(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    for (name, path) in projectors() {
        let theirs = read(&path.with_extension("safetensors"));
        let (weights, wanted): (Tensors, Tensors) =
            theirs.into_iter().partition(|(name, _)| name.starts_with("multi_modal_projector."));
        let model = with_projector(&name, &weights, dir.path());
        let grads = dir.path().join(format!("{name}-grads.safetensors"));
        let line = args!["losses", model, fixture("samples.jsonl"), "--device", device, "--grads", grads, "--json"];
        let (ours, expected) = (basic(line).json(), read_json(&path.with_extension("json")));
        assert_losses(&ours, &expected, &name);
        let found = read(&grads);
        let of_lm = |all: &Tensors| all.keys().filter(|name| name.starts_with("lm.")).cloned().collect::<Vec<_>>();
        assert_eq!(of_lm(&found), of_lm(&wanted), "{name}");
        for (key, wanted) in &wanted {
            assert_eq!(found[key].shape, wanted.shape, "{name}: {key}");
            // Adding the same to all keys changes no softmax: the gradient of their bias is rounding alone.
            let size = wanted.values.iter().fold(0f32, |most, x| most.max(x.abs()));
            if key.ends_with(".key.bias") && size < 1e-7 {
                assert!(found[key].values.iter().all(|x| x.abs() < 1e-7), "{name}: {key}");
                continue;
            }
            let off = relative_l2(&found[key], wanted);
            assert!(off <= 1e-3, "{name}: the gradient {key} is off by {off:.2e}");
        }
    }
}

#[test]
fn every_resampler_has_pytorchs_losses_and_gradients_on_cpu() {
    compare("cpu");
}

#[test]
fn every_resampler_has_pytorchs_losses_and_gradients_on_ndarray() {
    compare("ndarray");
}

#[test]
fn queries_look_where_pytorchs_look() {
    let (dir, device) = (tempfile::tempdir().unwrap(), DeviceSpec::Cpu.open().unwrap());
    let mut compared = 0;
    for (name, path) in projectors() {
        let mut weights = read(&path.with_extension("safetensors"));
        weights.retain(|name, _| name.starts_with("multi_modal_projector."));
        let model = with_projector(&name, &weights, dir.path());
        let checkpoint = Checkpoint::open(&model).unwrap();
        let network = checkpoint.load(DType::F32, &device).unwrap();
        let samples = read_samples(&checkpoint, &fixture("samples.jsonl")).unwrap();
        let batch = Batch::collate(&samples, checkpoint.pad_id(), checkpoint.image_shape(), &device);
        let reads = network.multi_modal_projector.reads(network.features(&batch).unwrap());
        let expected = &read_json(&path.with_extension("json"))["reads"];
        assert_eq!(reads.is_some(), !expected.is_null(), "{name}");
        let Some(reads) = reads else { continue };
        let expected: Vec<f64> =
            expected.as_array().unwrap().iter().flat_map(|image| image.as_array().unwrap()).flat_map(numbers).collect();
        let found = reads.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-5), "{name}");
        compared += 1;
        // The lens tells them for each image, by patch.
        let out = dir.path().join(format!("{name}-lens"));
        let prompt = "USER: <image>\nwhat is it? ASSISTANT:";
        let line = args!["analyze", model, "--image", fixture("images/a.png"), "--prompt", prompt, "--device", "cpu"];
        basic([line, args!["--out", out]].concat()).succeeded();
        let lens = read_json(&out.join("lens.json"));
        let queries = lens["checkpoints"][0]["images"][0]["queries"].as_array().unwrap();
        assert_eq!(Some(queries.len()), checkpoint.config.projector.queries());
        assert!(
            queries.iter().all(|query| numbers(query).len() == 16 && numbers(query).iter().sum::<f64>() < 1.0 + 1e-5)
        );
    }
    assert_eq!(compared, 2);
}

#[test]
fn a_resampler_comes_back_from_a_converted_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    for (name, path) in projectors() {
        let mut weights = read(&path.with_extension("safetensors"));
        weights.retain(|name, _| name.starts_with("multi_modal_projector."));
        let model = with_projector(&name, &weights, dir.path());
        let out = dir.path().join(format!("{name}-out"));
        basic(args!["convert", model, out, "--dtype", "f32"]).succeeded();
        let all = read(&out.join("model.safetensors"));
        for (key, tensor) in &weights {
            assert_eq!(all[key], *tensor, "{name}: {key}");
        }
        assert_eq!(read_json(&out.join("config.json"))["projector_type"], json!(name));
        basic(args!["convert", &model, dir.path().join("gguf"), "--gguf"]).refused(1, &["projector_type", &name]);
    }
}

#[test]
fn a_grid_that_cannot_be_pooled_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, change, mentions) in [
        ("ldpv2_q25", json!("default"), &["ldpv2_q25", "5 x 5", "4 x 4"][..]),
        ("c_abstractor_q4_l1_w8", json!("full"), &["c_abstractor_q4_l1_w8", "17 positions"]),
        ("perceiver_q0", json!("default"), &["projector_type = perceiver_q0", "perceiver_q{Q}_l{L}"]),
    ] {
        let model = copy_of("plain", &dir.path().join(name));
        let mut config = read_json(&model.join("config.json"));
        config["model_type"] = json!("basic_llava");
        config["projector_type"] = json!(name);
        config["vision_feature_select_strategy"] = change;
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        basic(args!["losses", model, fixture("samples.jsonl"), "--json"]).refused(1, mentions);
    }
}
