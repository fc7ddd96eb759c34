//! Adapters as LLaVA's own train.py writes them (tests/reference/llava_lora_fixture.py made the fixture), on top of a
//! checkpoint of LLaVA's code and of the language model that they were trained on. Each tensor's values follow from its
//! name.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture, read_json};
use tests::tensors::{Tensor, Tensors, read, write};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");
const WIDTH: usize = 16;
const INNER: usize = 24;
const TOKENS: usize = 358;
const RANK: usize = 2;
/// `lora_alpha` over `r`.
const SCALE: f32 = 1.5;

/// The values that the fixtures' scripts fill the tensor `name` with.
fn made(name: &str, count: usize) -> Vec<f32> {
    let seed: usize = name.bytes().map(usize::from).sum();
    (0..count).map(|i| ((i * 7 + seed) % 23) as f32 / 16.0 - 11.0 / 16.0).collect()
}

/// The names of the decoder's matrices, with their numbers of outputs and inputs.
fn layers() -> Vec<(String, usize, usize)> {
    let kinds = [
        ("self_attn.q_proj", WIDTH, WIDTH),
        ("self_attn.k_proj", 8, WIDTH),
        ("self_attn.v_proj", 8, WIDTH),
        ("self_attn.o_proj", WIDTH, WIDTH),
        ("mlp.gate_proj", INNER, WIDTH),
        ("mlp.up_proj", INNER, WIDTH),
        ("mlp.down_proj", WIDTH, INNER),
    ];
    let all = (0..2).flat_map(|i| kinds.map(|(kind, out, inputs)| (format!("model.layers.{i}.{kind}"), out, inputs)));
    all.collect()
}

/// `W + B A alpha / r`.
fn merged(layer: &str, outputs: usize, inputs: usize) -> Vec<f32> {
    let factor = |which: &str, count| made(&format!("base_model.model.{layer}.{which}.weight"), count);
    let (a, b) = (factor("lora_A", RANK * inputs), factor("lora_B", outputs * RANK));
    let base = made(&format!("{layer}.weight"), outputs * inputs);
    let product = |i: usize| {
        let (row, column) = (i / inputs, i % inputs);
        (0..RANK).map(|k| b[row * RANK + k] * a[k * inputs + column]).sum::<f32>()
    };
    base.iter().enumerate().map(|(i, base)| base + product(i) * SCALE).collect()
}

/// Writes the language model that the adapters were trained on, in the layout of Vicuna.
fn language_model(dir: &Path) -> PathBuf {
    let llm = dir.join("vicuna");
    fs::create_dir(&llm).unwrap();
    let mut config = read_json(&fixture("original/config.json"));
    let keys = config.as_object_mut().unwrap();
    keys.retain(|key, _| !key.starts_with("mm_") && !key.contains("mm_mlp") && !key.starts_with("image_"));
    keys.insert("model_type".into(), json!("llama"));
    keys.insert("architectures".into(), json!(["LlamaForCausalLM"]));
    fs::write(llm.join("config.json"), config.to_string()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("original").join(name), llm.join(name)).unwrap();
    }
    let vicuna = r#"{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}"#;
    fs::write(llm.join("generation_config.json"), vicuna).unwrap();
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let values = made(&name, shape.iter().product());
        tensors.insert(name, Tensor { shape, values });
    };
    for (layer, outputs, inputs) in layers() {
        add(format!("{layer}.weight"), vec![outputs, inputs]);
    }
    for i in 0..2 {
        add(format!("model.layers.{i}.input_layernorm.weight"), vec![WIDTH]);
        add(format!("model.layers.{i}.post_attention_layernorm.weight"), vec![WIDTH]);
    }
    add("model.norm.weight".into(), vec![WIDTH]);
    add("model.embed_tokens.weight".into(), vec![TOKENS, WIDTH]);
    add("lm_head.weight".into(), vec![TOKENS, WIDTH]);
    write(&llm.join("model.safetensors"), &tensors);
    llm
}

/// A copy of the adapters whose base is `base`.
fn adapters(dir: &Path, base: &Path) -> PathBuf {
    let lora = copy_of("adapters/llava", &dir.join("lora"));
    change(&lora, "config.json", "mm_vision_tower", json!(fixture("original/tower")));
    change(&lora, "adapter_config.json", "base_model_name_or_path", json!(base));
    lora
}

fn change(dir: &Path, file: &str, key: &str, value: Value) {
    let path = dir.join(file);
    let mut whole = read_json(&path);
    whole[key] = value;
    fs::write(path, whole.to_string()).unwrap();
}

#[track_caller]
fn is_merged(out: &Path) {
    let all = read(&out.join("model.safetensors"));
    for (layer, outputs, inputs) in layers() {
        let ours = &all[&format!("language_model.{layer}.weight")];
        assert_eq!(ours.shape, [outputs, inputs]);
        let wanted = merged(&layer, outputs, inputs);
        let worst = ours.values.iter().zip(&wanted).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= 1e-6, "{layer}: off by {worst:e}");
        assert_ne!(wanted, made(&format!("{layer}.weight"), outputs * inputs), "the adapters change it");
    }
    for (ours, theirs) in [("linear_1", "0"), ("linear_2", "2")] {
        for parameter in ["weight", "bias"] {
            let tensor = &all[&format!("multi_modal_projector.{ours}.{parameter}")];
            let name = format!("trained.model.mm_projector.{theirs}.{parameter}");
            assert_eq!(tensor.values, made(&name, tensor.values.len()), "{name}");
        }
    }
    let tower = &all["vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"];
    assert_eq!(tower.values, made("vision_model.encoder.layers.1.mlp.fc1.weight", INNER * WIDTH));
    assert_eq!(all["language_model.model.embed_tokens.weight"].shape, [TOKENS + 1, WIDTH], "with <image>");
}

fn losses(checkpoint: &Path) -> [f64; 2] {
    let said = run(BASIC, args!["losses", checkpoint, fixture("samples.jsonl"), "--device", "cpu", "--json"]).json();
    ["lm", "total"].map(|key| said[key].as_f64().unwrap())
}

#[test]
fn the_folder_that_llavas_training_leaves_loads_generates_and_merges_over_either_base() {
    let dir = tempfile::tempdir().unwrap();
    let llm = language_model(dir.path());
    let whole = adapters(&dir.path().join("whole"), &fixture("original"));
    let alone = adapters(&dir.path().join("alone"), &llm);
    // The paths in the committed fixture are relative.
    let committed = losses(&fixture("adapters/llava"));
    for (name, lora, base) in [("of-whole", &whole, fixture("original")), ("of-alone", &alone, llm)] {
        let said = run(BASIC, args!["inspect", lora, "--json"]).json();
        assert_eq!(said["loads"], true, "{said}");
        let out = dir.path().join(name);
        run(BASIC, args!["merge", base, lora, out, "--dtype", "f32"]).succeeded();
        is_merged(&out);
        let converted = dir.path().join(format!("{name}-converted"));
        run(BASIC, args!["convert", lora, converted, "--dtype", "f32"]).succeeded();
        is_merged(&converted);
        let beside = losses(lora);
        assert!(beside.iter().all(|loss| loss.is_finite()));
        for other in [losses(&out), committed] {
            let near = beside.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs());
            assert!(near, "{beside:?} {other:?}");
        }
        let line = args!["generate", lora, "--image", fixture("images/a.png"), "--prompt", "<image>\nWhat is it?"];
        run(BASIC, [line, args!["--max-new-tokens", "4", "--device", "cpu", "--json"]].concat()).json();
    }
    // Settings that greedy decoding does not use are dropped, because transformers refuses to save them.
    let generation = read_json(&dir.path().join("of-alone/generation_config.json"));
    assert_eq!((&generation["temperature"], &generation["eos_token_id"]), (&Value::Null, &json!(2)));
}

#[test]
fn adapters_of_a_language_model_alone_say_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let llm = language_model(dir.path());
    let lora = adapters(dir.path(), &llm);
    fs::remove_file(lora.join("config.json")).unwrap();
    let incomplete = ["lora: holds adapters of a language model alone", "and a projector", "config.json"];
    run(BASIC, args!["losses", lora, fixture("samples.jsonl")]).refused(1, &incomplete);
    fs::remove_file(lora.join("non_lora_trainables.bin")).unwrap();
    let mentions = ["lora: holds adapters of a language model alone", "vicuna", "merge_and_unload", "basic assemble"];
    run(BASIC, args!["losses", lora, fixture("samples.jsonl")]).refused(1, &mentions);
    run(BASIC, args!["merge", llm, lora, dir.path().join("out")]).refused(1, &mentions);
    assert!(!dir.path().join("out").exists());
}

#[test]
fn what_the_files_of_a_folder_say_against_each_other_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |file: &str, key: &str, value: Value, mentions: &[&str]| {
        let lora = adapters(dir.path(), &fixture("original"));
        change(&lora, file, key, value);
        run(BASIC, args!["losses", lora, fixture("samples.jsonl")]).refused(1, mentions);
    };
    let config = "adapter_config.json";
    refused(config, "r", json!(8), &[config, "r: is 8", "q_proj.lora_A.weight is [2, 16], of rank 2"]);
    let patterns = json!({ "layers.1.mlp.up_proj": 4 });
    refused(config, "rank_pattern", patterns, &[config, "rank_pattern.layers.1.mlp.up_proj", "is 4", "rank 2"]);
    refused(config, "modules_to_save", json!(["lm_head"]), &[config, "modules_to_save", "names lm_head"]);
    refused(config, "layers_to_transform", json!("all"), &[config, "layers_to_transform"]);
    refused(config, "use_dora", json!(true), &[config, "use_dora", "is not supported"]);
    // With a bare language model as the base, the config.json beside the adapters describes the model.
    let lora = adapters(dir.path(), &language_model(dir.path()));
    change(&lora, "config.json", "mm_projector_type", json!("linear"));
    run(BASIC, args!["losses", lora, fixture("samples.jsonl")]).refused(1, &["no place", "mm_projector.2"]);
}
