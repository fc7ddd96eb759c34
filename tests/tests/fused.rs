//! Several vision encoders side by side, their features joined by channel: compared with PyTorch, trained in every mode, and
//! through the commands. tests/reference/fused_fixtures.py made tests/fixtures/fused.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use basic_core::{DeviceSpec, Objective};
use basic_models::checkpoint::Layout;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use tests::fixtures::{copy_of, decoder_of_plain, fixture, number, read_json, read_jsonl, text};
use tests::gradients::gradients;
use tests::losses::assert_losses;
use tests::project::{Project, losses};
use tests::runs::killed_behind;
use tests::tensors::{read, relative_l2, write};
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");
const CASES: [&str; 2] = ["two", "three"];

fn basic(args: Vec<OsString>) -> Ran {
    run(BINARY, args)
}

fn encoder(name: &str) -> PathBuf {
    fixture("fused").join(name)
}

fn expected(case: &str) -> (Vec<String>, Value) {
    let found = read_json(&fixture("fused").join(format!("{case}.json")));
    let encoders = found["encoders"].as_array().unwrap().iter().map(|name| text(name).to_string()).collect();
    (encoders, found)
}

/// A case's model, assembled as a user does, with the projector of the fixture.
fn assembled(case: &str, dir: &Path) -> PathBuf {
    let (encoders, found) = expected(case);
    let weights = dir.join(format!("{case}-projector.safetensors"));
    let all = read(&fixture("fused").join(format!("{case}.safetensors")));
    let projector = all.into_iter().filter(|(name, _)| name.starts_with("multi_modal_projector."));
    write(&weights, &projector.collect());
    let out = dir.join(case);
    let mut line = args!["assemble", "--llm", decoder_of_plain(dir), "--projector", text(&found["projector"])];
    encoders.iter().for_each(|name| line.extend(args!["--vision", encoder(name)]));
    line.extend(args!["--projector-weights", weights, "--dtype", "f32", "--out", &out]);
    basic(line).succeeded();
    out
}

/// The name of a vision encoder's tensor in a model, by its name on disk and the encoder's place.
fn name_in_model(place: usize, disk: &str) -> String {
    let own = Layout::Vision.canonical(disk).unwrap();
    match place {
        0 => own,
        _ => own.replacen("vision_tower", &format!("fused_vision_towers.{}", place - 1), 1),
    }
}

fn compare(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let model = assembled(case, dir.path());
        let mut wanted = read(&fixture("fused").join(format!("{case}.safetensors")));
        wanted.retain(|name, _| ["lm.", "das.", "sds."].iter().any(|term| name.starts_with(term)));
        let grads = dir.path().join(format!("{case}-grads.safetensors"));
        let line = args!["losses", model, fixture("samples.jsonl"), "--device", device, "--grads", grads, "--json"];
        let (ours, (_, expected)) = (basic(line).json(), expected(case));
        assert_losses(&ours, &expected, case);
        let found = read(&grads);
        for (key, wanted) in &wanted {
            let off = relative_l2(&found[key], wanted);
            assert!(found[key].shape == wanted.shape && off <= 1e-3, "{case}: the gradient {key} is off by {off:.2e}");
        }
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

fn cpu() -> Device {
    DeviceSpec::Cpu.open().unwrap()
}

#[test]
fn every_encoders_gradients_are_pytorchs() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let checkpoint = Checkpoint::open(assembled(case, dir.path())).unwrap();
        let model = checkpoint.load(DType::F32, &cpu().autodiff()).unwrap();
        let samples = basic_eval::losses::read_samples(&checkpoint, &fixture("samples.jsonl")).unwrap();
        let batch = Batch::collate(&samples, checkpoint.pad_id(), checkpoint.image_shape(), &model.device());
        let objective = Objective::default();
        let forward = model.forward(&batch, &objective).unwrap();
        let grads = model.losses(&batch, forward, &objective).total().backward();
        let found = gradients(&model, &grads);
        let wanted = read(&fixture("fused").join(format!("{case}.safetensors")));
        let (encoders, _) = expected(case);
        let mut compared = 0;
        for (place, name) in encoders.iter().enumerate() {
            for (disk, wanted) in wanted.iter().filter_map(|(key, x)| Some((key.strip_prefix(&format!("{name}."))?, x)))
            {
                let own = name_in_model(place, disk);
                // The same added to all keys changes no softmax: the gradient of their bias is rounding alone.
                if own.ends_with("k_proj.bias") {
                    continue;
                }
                let found = found.get(&own).unwrap_or_else(|| panic!("{case}: {own} has a gradient"));
                let off = relative_l2(found, wanted);
                assert!(found.shape == wanted.shape && off <= 1e-3, "{case}: the gradient {own} is off by {off:.2e}");
                compared += 1;
            }
        }
        assert!(compared > 30 * encoders.len() / 2, "{case}: {compared} gradients");
    }
}

#[test]
fn an_assembled_model_holds_each_encoder_and_each_image_processor_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let (model, (encoders, found)) = (assembled(case, dir.path()), expected(case));
        let config = read_json(&model.join("config.json"));
        assert_eq!((&config["model_type"], &config["projector_type"]), (&json!("basic_llava"), &found["projector"]));
        assert_eq!(config["fused_vision_configs"].as_array().unwrap().len(), encoders.len() - 1);
        let (again, all) = (dir.path().join(format!("{case}-again")), read(&model.join("model.safetensors")));
        basic(args!["convert", model, again, "--dtype", "f32"]).succeeded();
        assert_eq!(read(&again.join("model.safetensors")), all);
        for file in ["config.json", "preprocessor_config.json", "processor_config.json"] {
            assert_eq!(read_json(&again.join(file)), read_json(&model.join(file)), "{file}");
        }
        let pixels = dir.path().join("pixels.safetensors");
        basic(args!["preprocess", model, fixture("images/b.png"), pixels]).succeeded();
        let pixels = read(&pixels);
        assert_eq!(pixels.len(), encoders.len());
        for (place, name) in encoders.iter().enumerate() {
            for (disk, tensor) in read(&encoder(name).join("model.safetensors")) {
                let own = name_in_model(place, &disk);
                let held = all.iter().find(|(key, _)| Layout::Llava.canonical(key).as_deref() == Some(&own));
                assert_eq!(held.map(|(_, held)| held), Some(&tensor), "{case}: {own}");
            }
            let alone = dir.path().join("alone.safetensors");
            basic(args!["preprocess", encoder(name), fixture("images/b.png"), alone]).succeeded();
            let key = if place == 0 { "pixel_values".into() } else { format!("fused_pixel_values.{}", place - 1) };
            assert_eq!(pixels[&key], read(&alone)["pixel_values"], "{case}: {key}");
        }
        let inspected = basic(args!["inspect", model, "--json"]).json();
        assert_eq!(inspected["architecture"]["fused_vision"].as_array().unwrap().len(), encoders.len() - 1);
        assert_eq!(inspected["loads"], true);
    }
}

/// A training project on a case's model.
fn project(stage: &str, steps: usize) -> (Project, Vec<String>) {
    let project = Project::new(BINARY, stage, steps);
    let model = assembled("two", project.path());
    let set = format!("model.checkpoint={:?}", model.display().to_string());
    (project, vec!["--set".into(), set])
}

fn with<'a>(set: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    set.iter().map(String::as_str).chain(more.iter().flat_map(|set| ["--set", set])).collect()
}

/// The parameters that training changed, by the first part of their names.
fn changed(before: &Path, after: &Path) -> Vec<String> {
    let (before, after) = (read(&before.join("model.safetensors")), read(&after.join("model.safetensors")));
    assert!(before.keys().eq(after.keys()));
    let mut parts: Vec<String> = Vec::new();
    for (name, _) in before.iter().filter(|(name, tensor)| after[*name] != **tensor) {
        let part = name.split('.').next().unwrap().to_string();
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}

#[test]
fn each_encoder_is_frozen_or_trained_on_its_own() {
    let (project, set) = project("pretrain", 3);
    let start = project.path().join("two");
    let (own, others, projector) = ("vision_tower", "fused_vision_towers", "multi_modal_projector");
    for (name, modes, expected) in [
        ("frozen", &[][..], vec![projector]),
        ("both", &["parts.vision.mode=full"], vec![others, projector, own]),
        ("first", &["parts.vision.mode=full", "parts.fused_vision.mode=frozen"], vec![projector, own]),
        ("second", &["parts.fused_vision.mode=full", "parts.fused_vision.lr=2e-3"], vec![others, projector]),
        ("lora", &["parts.fused_vision.mode=lora", "parts.fused_vision.rank=2"], vec![others, projector]),
        ("loras", &["parts.vision.mode=lora", "parts.vision.targets=[\"q_proj\"]"], vec![others, projector, own]),
        ("mixed", &["parts.vision.mode=lora", "parts.fused_vision.mode=full"], vec![others, projector, own]),
    ] {
        let out = project.train(name, &with(&set, modes));
        assert_eq!(changed(&start, &out), expected, "{name}");
        let steps = read_jsonl(&out.join("metrics.jsonl"));
        assert!(steps.iter().all(|step| number(&step["das"]) > 0.0 && number(&step["sds"]) > 0.0), "{name}");
        let norms = steps[0]["grad_norms"].as_object().unwrap();
        assert_eq!(norms.contains_key("fused_vision"), expected.contains(&others), "{name}: {norms:?}");
        let micro = project.train(&format!("{name}-micro"), &with(&set, &[modes, &["train.micro_batch=1"]].concat()));
        for (a, b) in losses(&out).iter().flatten().zip(losses(&micro).iter().flatten()) {
            assert!((a - b).abs() <= 2e-5 * b.abs().max(0.1), "{name}: {a} and {b}");
        }
        // What was trained is what is loaded.
        basic(args!["losses", out, fixture("samples.jsonl"), "--device", "cpu", "--json"]).succeeded();
    }
    let adapters = project.path().join("lora/adapter");
    let names = read(&adapters.join("adapter_model.safetensors"));
    assert!(names.keys().any(|name| name.contains("fused_vision_towers.0.") && name.ends_with("lora_A.weight")));
    let merged = project.path().join("merged");
    basic(args!["merge", start, adapters, merged, "--dtype", "f32"]).succeeded();
    let (merged, trained) =
        (read(&merged.join("model.safetensors")), read(&project.path().join("lora/model.safetensors")));
    for (name, tensor) in &trained {
        assert!(relative_l2(&merged[name], tensor) < 1e-6, "{name}");
    }
}

#[test]
fn a_cache_a_store_and_a_resumed_run_change_no_bit() {
    let (project, set) = project("finetune", 6);
    let every = ["checkpoint.every=1", "checkpoint.keep_last=20"];
    let kept = format!("train.vision_store={:?}", project.path().join("features").display().to_string());
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    let out = project.train("out", &with(&set, &every));
    for (name, more) in [
        ("uncached", &["train.vision_cache_mib=0"][..]),
        ("stored", &[&*kept]),
        ("from-store", &[&*kept, "train.vision_cache_mib=0"]),
    ] {
        let other = project.train(name, &with(&set, &[&every[..], more].concat()));
        assert!(weights(&other) == weights(&out), "{name}");
    }
    let folders = fs::read_dir(project.path().join("features")).unwrap();
    let files: usize = folders.map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count()).sum();
    assert_eq!(files, 4, "a file for each image, with the features of both encoders");
    let expected = weights(&out);
    killed_behind(&out, 3);
    basic(args!["train", "--resume", out]).succeeded();
    assert!(weights(&out) == expected, "resumed");
    // The other methods compare with the joined features, or with another encoder's.
    let viral = ["objective.viral.head_width=8", "objective.viral.layer=3"];
    let own = project.train("viral", &with(&set, &viral));
    assert!(read_jsonl(&own.join("metrics.jsonl")).iter().all(|step| number(&step["viral"]) != 0.0));
}

#[test]
fn a_recipe_assembles_and_plans_what_assemble_does() {
    let dir = tempfile::tempdir().unwrap();
    let start = assembled("three", dir.path());
    let encoders = ["dinov2", "clip", "siglip"].map(|name| encoder(name).display().to_string());
    let recipe = dir.path().join("recipe.toml");
    let data = dir.path().join("data.json");
    fs::write(&data, tests::project::llava().to_string()).unwrap();
    let model = format!("vision = {encoders:?}\nllm = {:?}\nprojector = \"fused_gelu_mlp\"", dir.path().join("llm"));
    let write = |model: &str, more: &str| {
        let text = format!(
            "stage = \"pretrain\"\n[model]\n{model}\n[data]\npath = {data:?}\nimages = {:?}\nconversation = \"vicuna_v1\"\n\
             [train]\nbatch_size = 2\nsteps = 2\n{more}",
            fixture("images")
        );
        fs::write(&recipe, text).unwrap();
    };
    write(&model, "");
    let plan = basic(args!["train", recipe, "--plan", "--json"]).json();
    let parts = plan["parts"].as_array().unwrap();
    let of = |part: &str| parts.iter().find(|found| found["part"] == part).unwrap();
    let counted = |prefix: &str| -> usize {
        let all = read(&start.join("model.safetensors"));
        all.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, tensor)| tensor.values.len()).sum()
    };
    for (part, prefix) in
        [("vision", "vision_tower."), ("fused_vision", "fused_vision_towers."), ("projector", "multi_modal_projector.")]
    {
        assert_eq!(of(part)["parameters"], json!(counted(prefix)), "{part}");
    }
    assert_eq!((&of("fused_vision")["mode"], plan["visual_tokens"].as_u64()), (&json!("frozen"), Some(16)));
    let frozen = number(&plan["memory"]["vision"]);
    write(&model, "vision_cache_mib = 0\n[parts.fused_vision]\nmode = \"full\"\n");
    let plan = basic(args!["train", recipe, "--plan", "--json"]).json();
    let others = plan["parts"].as_array().unwrap().iter().find(|part| part["part"] == "fused_vision").unwrap();
    assert_eq!(others["trained"], json!(counted("fused_vision_towers.")));
    assert!(number(&plan["memory"]["vision"]) != frozen);
    let out = dir.path().join("out");
    basic(args!["train", recipe, "--out", out]).succeeded();
    let names = |dir: &Path| read(&dir.join("model.safetensors")).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&out), names(&start));
    // One in a list is one.
    write(
        &model.replace(&format!("{encoders:?}"), &format!("[{:?}]", encoders[1])).replace("fused_gelu_mlp", "linear"),
        "",
    );
    basic(args!["train", recipe, "--out", out, "--overwrite"]).succeeded();
    assert!(names(&out).iter().all(|name| !name.starts_with("fused_vision_towers")));
    write("vision = []\nllm = \"llm\"", "");
    basic(args!["train", recipe, "--out", out]).refused(1, &["model.vision", "no vision encoder"]);
    write("vision = 3\nllm = \"llm\"", "");
    basic(args!["train", recipe, "--out", out]).refused(1, &["vision", "a list of them"]);
}

#[test]
fn a_fused_model_answers_is_read_by_the_lens_and_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let model = assembled("two", dir.path());
    let image = fixture("images/b.png");
    let prompt = "USER: <image>\nwhat is it? ASSISTANT:";
    let mut line = args!["generate", model, "--prompt", prompt, "--image", image];
    line.extend(args!["--greedy", "--max-new-tokens", "6", "--device", "cpu", "--json"]);
    let answer = basic(line).json();
    assert_eq!(answer["ids"].as_array().unwrap().len(), 6);
    let out = dir.path().join("lens");
    basic(args!["analyze", model, "--image", image, "--prompt", prompt, "--device", "cpu", "--out", out]).succeeded();
    let lens = read_json(&out.join("lens.json"));
    assert_eq!(lens["checkpoints"][0]["grid"]["side"], 4);
    assert!(fs::read_to_string(out.join("lens.html")).unwrap().contains("data:image/png;base64,"));
    let questions = dir.path().join("questions.jsonl");
    let question = json!({"question_id": 1, "image": "b.png", "text": "what is it?", "answer": "a cat"});
    fs::write(&questions, question.to_string()).unwrap();
    let line = args!["eval", model, questions, "--images", fixture("images"), "--device", "cpu", "--json"];
    assert_eq!(basic(line).json()["questions"], 1);
    // The cache's features of an image are those that generation encodes.
    let checkpoint = Checkpoint::open(&model).unwrap();
    let network = checkpoint.load(DType::F32, &cpu()).unwrap();
    let pixels = checkpoint.pixels(&image).unwrap();
    assert_eq!((pixels.tiles, pixels.data.len()), (1, 3 * (28 * 28 + 24 * 24)));
    let tokens = ImageTokens { pixels: vec![pixels.data], ..ImageTokens::default() };
    let batch = Batch::collate(&[tokens], 0, checkpoint.image_shape(), &cpu());
    assert_eq!(network.features(&batch).unwrap().dims(), [16, 24 + 16]);
}

#[test]
fn what_does_not_go_with_several_encoders_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = assembled("two", dir.path());
    let samples = fixture("samples.jsonl");
    let broken = |name: &str, file: &str, change: &dyn Fn(&mut Value)| -> Ran {
        let copy = dir.path().join(name);
        fs::create_dir_all(&copy).unwrap();
        for entry in fs::read_dir(&model).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
        let mut value = read_json(&copy.join(file));
        change(&mut value);
        fs::write(copy.join(file), value.to_string()).unwrap();
        basic(args!["losses", copy, samples, "--device", "cpu"])
    };
    let (config, images) = ("config.json", "preprocessor_config.json");
    broken("full", config, &|c| c["vision_feature_select_strategy"] = json!("full"))
        .refused(1, &["vision_feature_select_strategy", "fused_vision_configs"]);
    broken("tiles", config, &|c| c["image_grid_pinpoints"] = json!([[28, 56]]))
        .refused(1, &["image_grid_pinpoints", "fused_vision_configs"]);
    broken("many", config, &|c| c["fused_vision_configs"] = json!(vec![c["vision_config"].clone(); 9]))
        .refused(1, &["fused_vision_configs", "9"]);
    broken("layer", config, &|c| c["vision_feature_layer"] = json!(3))
        .refused(1, &["vision_feature_layer 3", "2 layers"]);
    broken("kind", config, &|c| c["fused_vision_configs"] = json!([{"model_type": "vit"}]))
        .refused(1, &["model_type", "vit"]);
    broken("number", config, &|c| c["fused_vision_configs"] = json!(3)).refused(1, &["fused_vision_configs"]);
    broken("alone", images, &|p| drop(p.as_object_mut().unwrap().remove("fused_image_processors")))
        .refused(1, &["fused_image_processors", "1 image processor"]);
    broken("size", images, &|p| p["fused_image_processors"][0]["size"] = json!({"height": 32, "width": 32}))
        .refused(1, &["(32, 32)", "24 x 24"]);
    broken("text", images, &|p| p["fused_image_processors"] = json!("siglip")).refused(1, &["fused_image_processors"]);
    basic(args!["convert", model, dir.path().join("gguf"), "--gguf"]).refused(1, &["fused_vision_configs"]);
    // transformers' classes have no such key: it does not make a model of theirs another one.
    let plain = copy_of("plain", &dir.path().join("plain"));
    let mut value = read_json(&plain.join(config));
    value["fused_vision_configs"] = json!([value["vision_config"].clone()]);
    fs::write(plain.join(config), value.to_string()).unwrap();
    basic(args!["losses", plain, samples, "--device", "cpu"]).succeeded();
    let project = Project::new(BINARY, "pretrain", 1);
    for (set, words) in [
        (&["parts.fused_vision.mode=full"][..], &["parts.fused_vision", "one vision encoder"][..]),
        (&["train.trainable=[\"fused_vision\"]"], &["train.trainable", "parts.fused_vision.mode"]),
        (&["parts.fused_vision.rank=2"], &["parts.fused_vision.rank", "lora"]),
        (&["parts.fused_vision.mode=full", "parts.fused_vision.lr=-1"], &["parts.fused_vision.lr"]),
    ] {
        let mut line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("out")];
        set.iter().for_each(|set| line.extend(args!["--set", set]));
        basic(line).refused(1, words);
    }
}

#[test]
fn a_checkpoint_of_prismatics_code_goes_together_with_its_encoders() {
    let dir = tempfile::tempdir().unwrap();
    let (llm, out, file) = (decoder_of_plain(dir.path()), dir.path().join("out"), fixture("fused/prismatic.pt"));
    let line = |weights: &Path| {
        let mut line = args!["assemble", "--llm", llm, "--projector", "fused_gelu_mlp", "--weights", weights];
        ["dinov2", "clip", "siglip"].into_iter().for_each(|name| line.extend(args!["--vision", encoder(name)]));
        line.extend(args!["--dtype", "f32", "--out", &out]);
        line
    };
    basic(line(&file)).succeeded();
    let all = read(&out.join("model.safetensors"));
    let mut wanted = read(&fixture("plain/model.safetensors"));
    wanted.retain(|name, _| name.starts_with("language_model."));
    let projector = read(&fixture("fused/three.safetensors"));
    wanted.extend(projector.into_iter().filter(|(name, _)| name.starts_with("multi_modal_projector.")));
    for (name, tensor) in &wanted {
        let found = &all[name].values[..tensor.values.len()];
        // At half the weights, in half precision.
        let near = found.iter().zip(&tensor.values).all(|(a, b)| (a - 0.5 * b).abs() <= 1e-3 * b.abs() + 1e-6);
        assert!(near, "{name}");
    }
    assert_eq!(all["language_model.model.embed_tokens.weight"].shape, [384, 48]);
    assert_eq!(read_json(&out.join("config.json"))["text_config"]["vocab_size"], 384);
    for (name, tensor) in read(&encoder("siglip").join("model.safetensors")) {
        assert_eq!(all[&name_in_model(2, &name)], tensor, "{name}");
    }
    basic(args!["losses", out, fixture("samples.jsonl"), "--device", "cpu", "--json"]).succeeded();
    basic([line(&fixture("original/mm_projector.bin")), args!["--overwrite"]].concat())
        .refused(1, &["mm_projector.bin", "no projector and decoder"]);
    basic([line(&dir.path().join("gone.pt")), args!["--overwrite"]].concat()).refused(1, &["gone.pt"]);
}
