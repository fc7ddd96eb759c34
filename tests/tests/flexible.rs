//! A vision encoder whose images have grids of their own (SigLIP 2 NaFlex): compared with PyTorch, trained, and through the
//! commands. tests/reference/flexible_fixtures.py made tests/fixtures/flexible.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use basic_core::{DeviceSpec, Objective};
use basic_eval::losses::read_samples;
use basic_models::checkpoint::Layout;
use basic_models::processor::tokenize_prompt;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::tensor::DType;
use serde_json::{Value, json};
use tests::fixtures::{decoder_of_plain, fixture, number, read_json, read_jsonl};
use tests::gradients::gradients;
use tests::losses::assert_losses;
use tests::project::{Project, losses};
use tests::runs::killed_behind;
use tests::serving::{Serving, data_url, user};
use tests::tensors::{read, relative_l2, write};
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BINARY, args)
}

fn encoder() -> PathBuf {
    fixture("flexible/siglip2")
}

/// The model of the fixture, assembled as a user does.
fn assembled(dir: &Path) -> PathBuf {
    let weights = dir.join("projector.safetensors");
    let all = read(&fixture("flexible/expected.safetensors"));
    write(&weights, &all.into_iter().filter(|(name, _)| name.starts_with("multi_modal_projector.")).collect());
    let out = dir.join("model");
    let line = args!["assemble", "--llm", decoder_of_plain(dir), "--vision", encoder(), "--projector-weights", weights];
    basic([line, args!["--dtype", "f32", "--out", &out]].concat()).succeeded();
    out
}

fn compare(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    let model = assembled(dir.path());
    let grads = dir.path().join("grads.safetensors");
    let samples = fixture("samples_next.jsonl");
    let line = args!["losses", model, samples, "--device", device, "--grads", grads, "--json"];
    let (ours, expected) = (basic(line).json(), read_json(&fixture("flexible/expected.json")));
    assert_losses(&ours, &expected, "flexible");
    let found = read(&grads);
    let wanted = read(&fixture("flexible/expected.safetensors"));
    for (key, wanted) in wanted.iter().filter(|(key, _)| ["lm.", "das.", "sds."].iter().any(|t| key.starts_with(t))) {
        let off = relative_l2(&found[key], wanted);
        assert!(found[key].shape == wanted.shape && off <= 1e-3, "the gradient {key} is off by {off:.2e}");
    }
}

#[test]
fn losses_and_the_projectors_gradients_are_pytorchs_on_cpu() {
    compare("cpu");
}

#[test]
fn losses_and_the_projectors_gradients_are_pytorchs_on_ndarray() {
    compare("ndarray");
}

#[test]
fn the_encoders_gradients_are_pytorchs() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(assembled(dir.path())).unwrap();
    let model = checkpoint.load(DType::F32, &DeviceSpec::Cpu.open().unwrap().autodiff()).unwrap();
    let samples = read_samples(&checkpoint, &fixture("samples_next.jsonl")).unwrap();
    let batch = Batch::collate(&samples, checkpoint.pad_id(), checkpoint.image_shape(), &model.device());
    let objective = Objective::default();
    let forward = model.forward(&batch, &objective).unwrap();
    let found = gradients(&model, &model.losses(&batch, forward, &objective).total().backward());
    let mut compared = 0;
    for (key, wanted) in read(&fixture("flexible/expected.safetensors")) {
        let Some(own) = key.strip_prefix("encoder.").and_then(|name| Layout::Vision.canonical(name)) else { continue };
        // The same added to all keys changes no softmax: the gradient of their bias is rounding alone.
        if own.ends_with("k_proj.bias") {
            continue;
        }
        let found = found.get(&own).unwrap_or_else(|| panic!("{own} has a gradient"));
        let off = relative_l2(found, &wanted);
        assert!(found.shape == wanted.shape && off <= 1e-3, "the gradient {own} is off by {off:.2e}");
        compared += 1;
    }
    // Two of the three layers run, and the embeddings.
    assert_eq!(compared, 2 * 15 + 3);
}

#[test]
fn images_are_cut_into_transformers_patches_and_the_files_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (model, wanted) = (assembled(dir.path()), read(&fixture("flexible/expected.safetensors")));
    for name in ["wide", "strip"] {
        let out = dir.path().join("pixels.safetensors");
        basic(args!["preprocess", model, fixture("images").join(format!("{name}.png")), out]).succeeded();
        let found = read(&out);
        assert_eq!(found["spatial_shapes"].values, wanted[&format!("{name}.spatial_shapes")].values, "{name}");
        let (found, wanted) = (&found["pixel_values"], &wanted[&format!("{name}.pixel_values")]);
        assert_eq!(found.shape, wanted.shape);
        let worst = found.values.iter().zip(&wanted.values).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-6, "{name}: a pixel value is off by {worst:.1e}");
    }
    let config = read_json(&model.join("config.json"));
    assert_eq!((&config["model_type"], &config["vision_config"]["num_patches"]), (&json!("basic_llava"), &json!(9)));
    assert_eq!(config["vision_config"].get("image_size"), None);
    let images = read_json(&model.join("preprocessor_config.json"));
    assert_eq!(
        (&images["image_processor_type"], &images["max_num_patches"]),
        (&json!("Siglip2ImageProcessor"), &json!(20))
    );
    let again = dir.path().join("again");
    basic(args!["convert", model, again, "--dtype", "f32"]).succeeded();
    let all = read(&again.join("model.safetensors"));
    assert_eq!(all, read(&model.join("model.safetensors")));
    for (name, tensor) in read(&encoder().join("model.safetensors")) {
        let own = Layout::Vision.canonical(&name);
        let held = all.iter().find(|(key, _)| Layout::Llava.canonical(key) == own);
        assert_eq!(held.map(|(_, held)| held), Some(&tensor), "{name}");
    }
    assert_eq!(basic(args!["inspect", model, "--json"]).json()["architecture"]["most_visual_tokens"], 20);
}

/// A training project over images of several aspect ratios.
fn project(stage: &str, steps: usize) -> (Project, Vec<String>) {
    let project = Project::new(BINARY, stage, steps);
    let set = [
        format!("model.checkpoint={:?}", assembled(project.path()).display().to_string()),
        format!("data.path={:?}", fixture("training/sizes.json").display().to_string()),
    ];
    (project, set.into_iter().flat_map(|set| ["--set".to_string(), set]).collect())
}

fn with<'a>(set: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    set.iter().map(String::as_str).chain(more.iter().flat_map(|set| ["--set", set])).collect()
}

#[test]
fn packed_accumulated_recomputed_and_trained_runs_have_the_losses_of_the_whole_batch() {
    for (stage, encoder) in [("pretrain", "frozen"), ("finetune", "full"), ("finetune", "lora")] {
        let (project, set) = project(stage, 4);
        let mode = format!("parts.vision.mode={encoder}");
        let viral = ["objective.viral.head_width=8", "objective.viral.layer=3"];
        let own = if encoder == "frozen" { &viral[..] } else { &[] };
        let whole = project.train("whole", &with(&set, &[&[mode.as_str()], own].concat()));
        let found = read_jsonl(&whole.join("metrics.jsonl"));
        assert!(found.iter().all(|step| number(&step["das"]) > 0.0 && number(&step["sds"]) > 0.0));
        for (label, more) in [
            ("micro", &["train.micro_batch=1"][..]),
            ("recompute", &["train.recompute=true"]),
            ("packing", &["loader.packing=true", "loader.max_length=250"]),
            ("uncached", &["train.vision_cache_mib=0"]),
        ] {
            let other = project.train(label, &with(&set, &[&[mode.as_str()], own, more].concat()));
            for (a, b) in losses(&whole).iter().flatten().zip(losses(&other).iter().flatten()) {
                assert!((a - b).abs() <= 2e-5 * b.abs().max(0.1), "{stage} {encoder} {label}: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_store_and_a_resumed_run_change_no_bit_and_a_sample_is_cut_before_an_image() {
    let (project, set) = project("finetune", 6);
    let every = ["checkpoint.every=1", "checkpoint.keep_last=20"];
    let kept = format!("train.vision_store={:?}", project.path().join("features").display().to_string());
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    let out = project.train("out", &with(&set, &every));
    for (name, cache) in [("first", "train.vision_cache_mib=16"), ("second", "train.vision_cache_mib=0")] {
        let stored = project.train(name, &with(&set, &[every[0], every[1], &kept, cache]));
        assert!(weights(&stored) == weights(&out), "{name}");
    }
    let expected = weights(&out);
    killed_behind(&out, 3);
    basic(args!["train", "--resume", out]).succeeded();
    assert!(weights(&out) == expected, "resumed");
    let left_out = project.train("left-out", &with(&set, &["loader.max_length=170", "loader.too_long=skip"]));
    assert_eq!(read_jsonl(&left_out.join("metrics.jsonl")).len(), 6);
    let checkpoint = Checkpoint::open(project.path().join("model")).unwrap();
    let tiles = ["strip.png", "wide.png"].map(|name| checkpoint.tiles(&fixture("images").join(name)).unwrap());
    let prompt = tokenize_prompt(&checkpoint.tokenizer, "see <image> and <image> here", &tiles).unwrap();
    let [first, second] = [0, 1].map(|image| prompt.image_positions[image].clone());
    assert_eq!([first.len(), second.len()], tiles.map(|tiles| tiles.patches()));
    for (length, images, left) in [
        (second.end, 2, second.end),
        (second.end - 1, 1, second.start),
        (first.end, 1, first.end),
        (first.end - 1, 0, first.start),
    ] {
        let mut cut = ImageTokens::from(prompt.clone());
        assert_eq!((cut.cut(length), cut.ids.len()), (images, left), "to {length}");
    }
}

#[test]
fn the_model_answers_and_is_evaluated_and_what_needs_one_grid_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = assembled(dir.path());
    let (wide, strip) = (fixture("images/wide.png"), fixture("images/strip.png"));
    let prompt = "USER: <image> and <image>\nwhich is larger? ASSISTANT:";
    let line = args!["generate", model, "--prompt", prompt, "--image", wide, "--image", strip, "--greedy"];
    let line = [line, args!["--max-new-tokens", "6", "--device", "cpu", "--json"]].concat();
    assert_eq!(basic(line).json()["ids"].as_array().unwrap().len(), 6);
    let questions = dir.path().join("questions.jsonl");
    let ask =
        |id: u32, image: &str| json!({"question_id": id, "image": image, "text": "what is it?", "answer": "a cat"});
    fs::write(&questions, format!("{}\n{}\n", ask(1, "wide.png"), ask(2, "strip.png"))).unwrap();
    let line = args!["eval", model, questions, "--images", fixture("images"), "--device", "cpu", "--json"];
    assert_eq!(basic(line).json()["questions"], 2);
    // The server answers as it does alone, whatever an image's number of tokens.
    let server = Serving::start(BINARY, &[&model], &[]);
    let asked = |images: &[&str]| json!({"model": "model", "messages": [user(images, "what?")], "max_tokens": 6, "temperature": 0});
    let alone = server.post("/v1/chat/completions", &asked(&["wide.png"])).ok();
    let two = server.post("/v1/chat/completions", &asked(&["wide.png", "strip.png"])).ok();
    assert!(number(&two["usage"]["prompt_tokens"]) > number(&alone["usage"]["prompt_tokens"]) + 16.0);
    let again = server.post("/v1/chat/completions", &asked(&["wide.png"])).ok();
    assert_eq!(again["choices"], alone["choices"]);
    let look = json!({"model": "model", "image": data_url("wide.png")});
    server.post("/v1/lens", &look).refused(400, Some("model"), "grid of its own");
    let line =
        args!["analyze", model, "--image", wide, "--prompt", "USER: <image> what? ASSISTANT:", "--device", "cpu"];
    basic([line, args!["--out", dir.path().join("lens")]].concat()).refused(1, &["grid of its own", "lens"]);
    basic(args!["convert", model, dir.path().join("gguf"), "--gguf"]).refused(1, &["siglip2_vision_model"]);
    let broken = |name: &str, file: &str, change: &dyn Fn(&mut Value)| -> Ran {
        let copy = dir.path().join(name);
        fs::create_dir_all(&copy).unwrap();
        for path in fs::read_dir(&model).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
        let mut value = read_json(&copy.join(file));
        change(&mut value);
        fs::write(copy.join(file), value.to_string()).unwrap();
        basic(args!["losses", copy, fixture("samples_next.jsonl"), "--device", "cpu"])
    };
    let (config, images) = ("config.json", "preprocessor_config.json");
    broken("shuffle", config, &|c| c["projector_type"] = json!("pixel_shuffle2_mlp2x_gelu"))
        .refused(1, &["siglip2_vision_model", "projector_type"]);
    broken("queries", config, &|c| c["projector_type"] = json!("perceiver_q4_l1")).refused(1, &["projector_type"]);
    broken("fused", config, &|c| c["fused_vision_configs"] = json!([c["vision_config"].clone()]))
        .refused(1, &["fused_vision_configs", "grid"]);
    broken("default", config, &|c| c["vision_feature_select_strategy"] = json!("default"))
        .refused(1, &["vision_feature_select_strategy", "full"]);
    broken("count", config, &|c| c["vision_config"]["num_patches"] = json!(10)).refused(1, &["num_patches", "square"]);
    broken("many", config, &|c| c["vision_config"]["num_patches"] = json!(u64::MAX)).refused(1, &["num_patches"]);
    broken("kind", images, &|p| p["image_processor_type"] = json!("SiglipImageProcessor"))
        .refused(1, &["Siglip2ImageProcessor", "siglip2_vision_model"]);
    broken("patch", images, &|p| p["patch_size"] = json!(4)).refused(1, &["patches of 4 pixels", "takes 8"]);
    broken("most", images, &|p| p["max_num_patches"] = json!(0)).refused(1, &["max_num_patches"]);
}
