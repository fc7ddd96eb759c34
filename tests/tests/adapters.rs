//! Compares adapters with transformers and peft (tests/reference/adapters_in_peft.py made the fixtures): values,
//! gradients, files in both directions, merging, and errors for invalid directories.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use basic_core::{Basic, DeviceSpec, Objective};
use basic_eval::losses::read_samples;
use basic_models::adapters::{LoraConfig, attach};
use basic_models::checkpoint::{AdapterFiles, StagedDir, save_adapters};
use basic_models::nn::Llava;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::module::Module;
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use tests::fixtures::{fixture, number, numbers, read_json};
use tests::gradients::gradients;
use tests::project::Project;
use tests::tensors::{self, read, relative, relative_l2, write};
use tests::{Ran, args, run};

const ADAPTERS: [&str; 2] = ["adapters/peft", "adapters/patterns"];

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

fn cpu() -> Device {
    DeviceSpec::Cpu.open().unwrap()
}

/// The base model with unmerged adapters.
fn attached(name: &str, device: &Device) -> Llava {
    let files = AdapterFiles::open(fixture(name)).unwrap();
    let mut model = Checkpoint::open(fixture("plain")).unwrap().load(DType::F32, device).unwrap();
    model = files.overlay(model, DType::F32, device).unwrap();
    if files.adapts("vision_tower") {
        model.vision_tower = files.attach(model.vision_tower, "vision_tower", None, DType::F32).unwrap();
    }
    assert_eq!(files.holds("multi_modal_projector"), name == ADAPTERS[0]);
    model.language_model = files.attach(model.language_model, "language_model", None, DType::F32).unwrap();
    model
}

fn logits(checkpoint: &Checkpoint, model: &Llava, ids: &Value) -> Vec<f32> {
    let ids: Vec<u32> = numbers(ids).into_iter().map(|id| id as u32).collect();
    let places = (0..ids.len()).filter(|i| ids[*i] == checkpoint.config.image_token_index).collect();
    let pixels = checkpoint.pixels(&fixture("images/a.png")).unwrap().data;
    let sample =
        ImageTokens { ids, labels: Vec::new(), images: vec![places], pixels: vec![pixels], ..ImageTokens::default() };
    let batch = Batch::collate(&[sample], checkpoint.pad_id(), checkpoint.image_shape(), &model.device());
    let hidden = model.forward(&batch, &Objective::llava()).unwrap().hidden;
    let [_, t, d] = hidden.dims();
    model.logits(hidden.reshape([t, d])).into_data().try_to_vec().unwrap()
}

#[track_caller]
fn near(ours: &[f32], theirs: &[f32], bound: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours.iter().zip(theirs).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= bound, "{what}: off by {worst:.2e}");
    println!("{what}: {worst:.1e}");
}

#[test]
fn adapters_give_pefts_logits_folded_in_or_beside_the_weights() {
    for name in ADAPTERS {
        let dir = fixture(name);
        let expected = read(&dir.join("expected.safetensors"))["logits"].values.clone();
        let ids = &read_json(&dir.join("expected.json"))["ids"];
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let folded = logits(&checkpoint, &checkpoint.load(DType::F32, &cpu()).unwrap(), ids);
        near(&folded, &expected, 1e-4, &format!("{name}, folded in"));
        near(&logits(&checkpoint, &attached(name, &cpu()), ids), &expected, 1e-4, &format!("{name}, beside"));
        let base = Checkpoint::open(fixture("plain")).unwrap();
        let bare = logits(&base, &base.load(DType::F32, &cpu()).unwrap(), ids);
        let moved = bare.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(moved > 0.1, "the adapters change the logits by {moved}");
    }
}

#[test]
fn commands_take_a_directory_of_adapters_as_the_model() {
    for name in ADAPTERS {
        let (dir, expected) = (fixture(name), read_json(&fixture(name).join("expected.json")));
        for device in ["cpu", "ndarray"] {
            let line =
                args!["losses", dir, fixture("samples.jsonl"), "--device", device, "--lambda-sds", "0.1", "--json"];
            let ours = basic(line).json();
            for (key, bound) in [("lm", 1e-4), ("das", 1e-3), ("sds", 1e-3)] {
                let off = relative(number(&ours[key]), number(&expected[key]));
                assert!(off <= bound, "{name} on {device}: {key} is {} and not {}", ours[key], expected[key]);
            }
        }
        let inspected = basic(args!["inspect", dir, "--json"]).json();
        assert_eq!(inspected["kind"], "adapters");
        assert_eq!(inspected["loads"], true, "{inspected}");
        let line =
            args!["generate", dir, "--image", fixture("images/b.png"), "--prompt", "USER: <image>\nhi ASSISTANT:"];
        let line = [line, args!["--max-new-tokens", "4", "--greedy", "--device", "cpu", "--json"]].concat();
        assert_eq!(numbers(&basic(line).json()["ids"]).len(), 4);
    }
}

#[test]
fn the_factors_gradients_are_pefts() {
    let device = cpu().autodiff();
    for name in ADAPTERS {
        let model = attached(name, &device);
        let checkpoint = Checkpoint::open(fixture("plain")).unwrap();
        let samples = read_samples(&checkpoint, &fixture("samples.jsonl")).unwrap();
        let batch = Batch::collate(&samples, checkpoint.pad_id(), checkpoint.image_shape(), &device);
        let objective = Basic { lambda_sds: 0.1, ..Basic::default() }.into();
        let forward = model.forward(&batch, &objective).unwrap();
        let grads = model.losses(&batch, forward, &objective).total().backward();
        let ours = gradients(&model, &grads);
        let mut compared = 0;
        let mut worst = 0f64;
        for (key, theirs) in read(&fixture(name).join("expected.safetensors")) {
            let Some(key) = key.strip_prefix("grad.") else { continue };
            let ours = ours.get(key).unwrap_or_else(|| panic!("{name}: no gradient of {key}"));
            assert_eq!(ours.shape, theirs.shape, "{key}");
            let off = relative_l2(ours, &theirs);
            assert!(off <= 1e-3, "{name}: the gradient of {key} is off by {off:.2e}");
            (compared, worst) = (compared + 1, worst.max(off));
        }
        println!("{name}: {compared} gradients, the worst off by {worst:.1e}");
        assert!(compared >= 16);
        // The weights under the adapters get no gradient.
        assert!(!ours.contains_key("language_model.layers.0.self_attn.q_proj.weight"));
        assert!(!ours.contains_key("language_model.embed_tokens.weight"));
    }
}

#[test]
fn what_is_saved_reads_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for (name, whole) in [(ADAPTERS[0], &["multi_modal_projector"][..]), (ADAPTERS[1], &[])] {
        let (out, model) = (dir.path().join(name), attached(name, &cpu()));
        let staged = StagedDir::new(&out, false).unwrap();
        save_adapters(&model, whole, fixture("plain").to_str().unwrap(), &staged, DType::F32).unwrap();
        staged.commit().unwrap();
        let file = "adapter_model.safetensors";
        assert_eq!(read(&out.join(file)), read(&fixture(name).join(file)), "{name}");
        let config = read_json(&out.join("adapter_config.json"));
        assert_eq!(config["peft_type"], "LORA");
        assert_eq!(config["modules_to_save"], if whole.is_empty() { Value::Null } else { json!(whole) });
        let ids = &read_json(&fixture(name).join("expected.json"))["ids"];
        let (checkpoint, before) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(fixture(name)).unwrap());
        let (again, once) = (checkpoint.load(DType::F32, &cpu()).unwrap(), before.load(DType::F32, &cpu()).unwrap());
        near(&logits(&checkpoint, &again, ids), &logits(&before, &once, ids), 1e-6, name);
    }
    let config = read_json(&dir.path().join(ADAPTERS[0]).join("adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(6)));
    assert_eq!(
        config["target_modules"],
        r"(?:.*\.)?language_model\..*\.(?:down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)"
    );
    // Here each layer has its own scale alpha / sqrt(r), which is written as alpha' / r.
    let config = read_json(&dir.path().join(ADAPTERS[1]).join("adapter_config.json"));
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), 2, "{config}");
    assert_eq!(config["use_rslora"], false);
}

#[test]
fn merging_gives_the_model_that_the_adapters_made() {
    let dir = tempfile::tempdir().unwrap();
    for name in ADAPTERS {
        let (merged, converted, saved) =
            (dir.path().join("merged"), dir.path().join("converted"), dir.path().join("saved"));
        basic(args!["merge", fixture("plain"), fixture(name), merged, "--overwrite"]).succeeded();
        basic(args!["convert", fixture(name), converted, "--overwrite"]).succeeded();
        let checkpoint = Checkpoint::open(fixture("plain")).unwrap();
        let model = attached(name, &cpu());
        checkpoint.save(&model, &saved, DType::F32, true).unwrap();
        let file = "model.safetensors";
        let tensors = read(&merged.join(file));
        assert_eq!(tensors, read(&converted.join(file)), "{name}: convert and merge differ");
        assert_eq!(tensors.len(), read(&fixture("plain").join(file)).len());
        for (key, tensor) in &tensors {
            let off = relative_l2(&read(&saved.join(file))[key], tensor);
            assert!(off <= 1e-6, "{name}: {key} is off by {off:.1e} where a model is saved with its adapters");
        }
        let ids = &read_json(&fixture(name).join("expected.json"))["ids"];
        let expected = read(&fixture(name).join("expected.safetensors"))["logits"].values.clone();
        let merged = Checkpoint::open(&merged).unwrap();
        near(&logits(&merged, &merged.load(DType::F32, &cpu()).unwrap(), ids), &expected, 1e-4, name);
    }
    let half = dir.path().join("half");
    let line = args!["merge", fixture("plain"), fixture(ADAPTERS[0]), half, "--dtype", "bf16", "--shard-size", "100KB"];
    basic(line).succeeded();
    assert!(half.join("model.safetensors.index.json").is_file());
    assert_eq!(basic(args!["inspect", half, "--json"]).json()["loads"], true);
}

#[test]
fn fresh_adapters_are_saved_with_the_base_they_belong_to() {
    let (dir, device) = (tempfile::tempdir().unwrap(), cpu().autodiff());
    let checkpoint = Checkpoint::open(fixture("plain")).unwrap();
    let mut model = checkpoint.load(DType::F32, &device).unwrap().freeze();
    let config = LoraConfig { rank: 3, alpha: 4.0, targets: vec!["q_proj".into()], quantize: None };
    model.vision_tower = attach(model.vision_tower, "vision_tower", &config, 1, DType::F32).unwrap();
    let out = dir.path().join("adapters");
    let staged = StagedDir::new(&out, false).unwrap();
    save_adapters(&model, &[], fixture("plain").to_str().unwrap(), &staged, DType::BF16).unwrap();
    assert!(!out.exists(), "nothing has its name before all is on disk");
    staged.commit().unwrap();
    let config = read_json(&out.join("adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(4)));
    assert_eq!(config["target_modules"], r"(?:.*\.)?vision_tower\..*encoder\..*\.(?:q_proj)");
    let bytes = fs::read(out.join("adapter_model.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..400]).contains("BF16"));
    assert_eq!(basic(args!["inspect", out, "--json"]).json()["loads"], true);
    let model = model.freeze();
    let staged = StagedDir::new(&dir.path().join("none"), false).unwrap();
    let error = save_adapters(&model, &["vision_tower"], "x", &staged, DType::F32).unwrap_err().to_string();
    assert!(error.contains("has an adapter and is to be saved whole"), "{error}");
    let bare = checkpoint.load(DType::F32, &cpu()).unwrap();
    assert!(save_adapters(&bare, &[], "x", &staged, DType::F32).unwrap_err().to_string().contains("no adapters"));
}

/// Copies a fixture and changes its adapter_config.json.
fn changed(dir: &Path, change: impl Fn(&mut Value)) {
    tests::fixtures::copy_of(ADAPTERS[0], dir);
    let path = dir.join("adapter_config.json");
    let mut config = read_json(&path);
    config["base_model_name_or_path"] = json!(fixture("plain"));
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn what_is_wrong_with_adapters_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("adapters");
    let refused =
        |mentions: &[&str]| basic(args!["losses", at, fixture("samples.jsonl"), "--json"]).refused(1, mentions);
    for (key, value, mention) in [
        ("base_model_name_or_path", json!("gone/away"), "gone"),
        ("base_model_name_or_path", Value::Null, "is not set"),
        ("base_model_name_or_path", json!(fixture(ADAPTERS[1])), "holds adapters itself"),
        ("peft_type", json!("IA3"), "only LORA is read"),
        ("use_dora", json!(true), "is not supported"),
        ("fan_in_fan_out", json!(true), "is not supported"),
        ("bias", json!("all"), "only none is"),
        ("init_lora_weights", json!("pissa_niter_4"), "changes the weights below"),
        ("init_lora_weights", json!("lora_ga"), "changes the weights below"),
        ("lora_alpha", json!("much"), "is not a number"),
        ("alpha_pattern", json!({"q_proj(": 3}), "alpha_pattern.q_proj("),
        ("layer_replication", json!([[0, 4]]), "is not supported"),
    ] {
        changed(&at, |config| config[key] = value.clone());
        refused(&["adapter_config.json", key, mention]);
    }
    changed(&at, |_| ());
    fs::write(at.join("adapter_config.json"), "{").unwrap();
    refused(&["adapter_config.json", "not JSON"]);

    let file = at.join("adapter_model.safetensors");
    let tensors = read(&fixture(ADAPTERS[0]).join("adapter_model.safetensors"));
    let layer = "base_model.model.model.language_model.layers.2.mlp.up_proj";
    let damaged = |change: &dyn Fn(&mut tensors::Tensors)| {
        changed(&at, |_| ());
        let mut tensors = tensors.clone();
        change(&mut tensors);
        write(&file, &tensors);
    };
    damaged(&|t| drop(t.remove(&format!("{layer}.lora_A.weight"))));
    refused(&["lack their counterpart", "up_proj.lora_B"]);
    damaged(&|t| {
        let a = t[&format!("{layer}.lora_A.weight")].clone();
        t.insert(format!("{layer}.lora_B.weight"), a);
    });
    refused(&["wrong shapes", "up_proj.lora_B.weight is [2, 48], not [96, 2]"]);
    damaged(&|t| {
        let a = t[&format!("{layer}.lora_A.weight")].clone();
        t.insert(format!("{}.lora_A.weight", layer.replace("layers.2", "layers.9")), a);
    });
    refused(&["no place", "layers.9"]);
    damaged(&|t| {
        let a = t[&format!("{layer}.lora_A.weight")].clone();
        t.insert(format!("{layer}.lora_magnitude_vector"), a);
    });
    refused(&["no place", "lora_magnitude_vector"]);
    fs::remove_file(&file).unwrap();
    refused(&["adapter_model.safetensors", "is not there"]);
    changed(&at, |_| ());
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(&["adapter_model.safetensors"]);
    let inspected = basic(args!["inspect", at, "--json"]).json();
    assert_eq!(inspected["loads"], false);

    // A merge fails with the same message and leaves nothing.
    let out = dir.path().join("out");
    basic(args!["merge", fixture("plain"), at, out]).refused(1, &["adapter_model.safetensors"]);
    basic(args!["merge", fixture(ADAPTERS[0]), fixture(ADAPTERS[1]), out])
        .refused(1, &["has adapters over it already"]);
    assert!(!out.exists());
}

#[test]
fn adapters_of_every_vision_encoder_have_its_modules_names_and_merge() {
    for (name, layer) in [
        ("llama-siglip", "vision_tower.encoder.layers.0.self_attn.q_proj"),
        ("llama-dinov2", "vision_tower.encoder.layer.0.attention.q_proj"),
        ("llama-dinov3", "vision_tower.model.layer.0.attention.q_proj"),
        ("llama-dinov3-gated", "vision_tower.model.layer.1.mlp.gate_proj"),
        ("llama-aimv2", "vision_tower.encoder.layers.1.ffn.gate_proj"),
    ] {
        let base = fixture("families").join(name);
        let project = Project::new(env!("CARGO_BIN_EXE_basic-under-test"), "pretrain", 2);
        let checkpoint = format!("model.checkpoint={:?}", base.display().to_string());
        let out = project.train("out", &["--set", &checkpoint, "--set", "parts.vision.mode=lora"]);
        let adapter = read(&out.join("adapter/adapter_model.safetensors"));
        let name_of = |factor: &str| format!("base_model.model.model.{layer}.{factor}.weight");
        assert!(adapter.contains_key(&name_of("lora_A")), "{name}: {:?}", adapter.keys().collect::<Vec<_>>());
        assert!(adapter.keys().all(|key| !key.contains(".head.")), "{name}: nothing passes through the pooling head");
        let merged = project.path().join("merged");
        basic(args!["merge", base, out.join("adapter"), merged, "--dtype", "f32"]).succeeded();
        let (merged, trained) = (read(&merged.join("model.safetensors")), read(&out.join("model.safetensors")));
        assert!(merged.keys().eq(trained.keys()), "{name}");
        for (key, tensor) in &trained {
            assert!(relative_l2(&merged[key], tensor) < 1e-6, "{name}: {key}");
        }
    }
}

#[test]
fn a_run_that_goes_on_with_adapters_keeps_all_that_came_with_them() {
    let binary = env!("CARGO_BIN_EXE_basic-under-test");
    let project = Project::new(binary, "finetune", 2);
    let lora = ["parts.decoder.mode=lora", "parts.vision.mode=lora", "parts.decoder.rank=2", "parts.vision.rank=2"];
    let sets = |sets: &[&str]| sets.iter().flat_map(|set| ["--set".to_string(), set.to_string()]).collect::<Vec<_>>();
    let train = |out: &str, given: &[&str]| {
        let line = sets(given);
        project.train(out, &line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = |given: &[&str], mentions: &[&str]| {
        let mut line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("none")];
        line.extend(sets(given).into_iter().map(Into::into));
        basic(line).refused(1, mentions);
    };
    // With a supervision method's head, which is no part of a checkpoint.
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/vision").display().to_string();
    let viral = ["objective.viral.head_width=8".into(), format!("objective.viral.target={encoder:?}")];
    let a = train("a", &[&lora[..], &viral.each_ref().map(String::as_str)].concat());
    let saved = |out: &Path| read_json(&out.join("adapter/adapter_config.json"))["modules_to_save"].clone();
    assert_eq!(saved(&a), json!(["multi_modal_projector"]));
    assert_eq!(basic(args!["inspect", a.join("adapter"), "--json"]).json()["loads"], true);

    let adapters = a.join("adapter").display().to_string();
    let (decoder, vision) = (format!("parts.decoder.adapters={adapters}"), format!("parts.vision.adapters={adapters}"));
    refused(&["parts.decoder.mode=lora", &decoder], &["adapters of the vision too", "parts.vision"]);
    let merged = format!("model.checkpoint={}", a.display());
    let both = ["parts.decoder.mode=lora", "parts.vision.mode=lora", &decoder, &vision];
    refused(&[&both[..], &[&merged]].concat(), &["adapter", "already"]);
    basic(args!["merge", a, a.join("adapter"), project.path().join("twice")]).refused(1, &["already"]);

    // The projector that was trained beside the first adapters belongs to those that go on from them.
    let b = train("b", &[&both[..], &["parts.projector.mode=frozen"]].concat());
    assert_eq!(saved(&b), json!(["multi_modal_projector"]));
    let whole = project.path().join("merged");
    basic(args!["merge", fixture("plain"), b.join("adapter"), whole]).succeeded();
    let [ours, theirs] = [&b, &whole].map(|dir| read(&dir.join("model.safetensors")));
    let projector = ours.iter().filter(|(name, _)| name.contains("multi_modal_projector"));
    for (name, tensor) in projector {
        assert_eq!(tensor.values, theirs[name].values, "{name}");
    }
    assert_eq!(ours.keys().filter(|name| name.contains("multi_modal_projector")).count(), 4);
}
