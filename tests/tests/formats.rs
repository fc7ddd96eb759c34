//! Checkpoints in other formats: data types and shards through `basic convert`, LLaVA's own layout, PyTorch files,
//! fused matrices and hub names, and the output of `basic inspect` for valid and broken directories.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture, names, read_json};
use tests::tensors::{self, Tensor};
use tests::{Ran, args, run, run_in_shell};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

fn inspect(dir: &Path) -> Value {
    basic(args!["inspect", dir, "--json"]).json()
}

fn losses(checkpoint: &Path) -> Value {
    basic(args!["losses", checkpoint, fixture("samples.jsonl"), "--device", "cpu", "--json"]).json()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// All tensors of a directory converted to f32, with the data type that they have on disk.
fn all_tensors(dir: &Path) -> BTreeMap<String, (Dtype, Tensor)> {
    let mut all = BTreeMap::new();
    for name in names(dir).iter().filter(|name| name.ends_with(".safetensors")) {
        let bytes = fs::read(dir.join(name)).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let values = match view.dtype() {
                // bf16 is the upper half of f32.
                Dtype::BF16 => view.data().chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
                Dtype::F32 => {
                    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
                }
                other => panic!("{name} is {other:?}"),
            };
            let tensor = Tensor { shape: view.shape().to_vec(), values };
            assert!(all.insert(name.clone(), (view.dtype(), tensor)).is_none(), "{name} is there twice");
        }
    }
    all
}

/// Rounds to bf16 and back, to nearest with ties to even.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[test]
fn convert_writes_the_type_and_the_shards_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bf16");
    basic(args!["convert", fixture("plain"), out, "--dtype", "bf16", "--shard-size", "100KB"]).succeeded();
    let index = read_json(&out.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let before: tensors::Tensors = tensors::read(&fixture("plain/model.safetensors"))
        .into_iter()
        // Written are transformers 4's names, which versions 4 and 5 both read.
        .map(|(name, tensor)| (name.replace("vision_tower.", "vision_tower.vision_model."), tensor))
        .collect();
    let after = all_tensors(&out);
    assert_eq!(map.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, tensor) in &before {
        let (dtype, ours) = &after[name];
        assert_eq!((*dtype, &ours.shape), (Dtype::BF16, &tensor.shape), "{name}");
        assert!(ours.values.iter().zip(&tensor.values).all(|(a, b)| *a == rounded(*b)), "{name}");
    }
    let bytes: usize = before.values().map(|t| t.values.len() * 2).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    let shards: Vec<String> = names(&out).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() >= 4, "{shards:?}");
    assert_eq!(shards[0], format!("model-00001-of-{:05}.safetensors", shards.len()));
    // The bound allows for a header of a few KB. No tensor of the fixture is larger than a shard.
    assert!(shards.iter().all(|shard| fs::metadata(out.join(shard)).unwrap().len() < 110_000));
    assert_eq!(read_json(&out.join("config.json"))["dtype"], "bfloat16");
    let said = inspect(&out);
    assert_eq!((&said["loads"], &said["types"]["BF16"]["bytes"]), (&json!(true), &json!(bytes)));
}

#[test]
fn converting_to_the_same_type_changes_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    for checkpoint in ["plain", "sharded", "transformers4"] {
        let out = dir.path().join(checkpoint);
        basic(args!["convert", fixture(checkpoint), out]).succeeded();
        assert_eq!(losses(&out), losses(&fixture(checkpoint)), "{checkpoint}");
    }
    // An existing directory is refused and left unchanged; with --overwrite it is replaced.
    let out = dir.path().join("plain");
    basic(args!["convert", fixture("plain"), out, "--dtype", "f16"]).refused(1, &["plain", "--overwrite"]);
    basic(args!["convert", fixture("plain"), out, "--dtype", "f16", "--overwrite"]).succeeded();
    assert_eq!(inspect(&out)["types"].as_object().unwrap().keys().collect::<Vec<_>>(), ["F16"]);
}

#[test]
fn a_conversion_that_cannot_be_done_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    basic(args!["convert", dir.path().join("gone"), out]).refused(1, &["gone/config.json"]);
    let model = copy_of("plain", &dir.path().join("model"));
    let path = model.join("model.safetensors");
    let mut all = tensors::read(&path);
    all.retain(|name, _| !name.ends_with("linear_1.weight"));
    tensors::write(&path, &all);
    basic(args!["convert", model, out]).refused(1, &["linear_1.weight", "missing"]);
    basic(args!["convert", fixture("plain"), out, "--shard-size", "large"]).refused(2, &["--shard-size", "5GB"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The values that tests/reference/format_fixtures.py fills the tensor `name` with.
fn made(name: &str, count: usize) -> Vec<f32> {
    let seed: usize = name.bytes().map(usize::from).sum();
    (0..count).map(|i| ((i * 7 + seed) % 23) as f32 / 16.0 - 11.0 / 16.0).collect()
}

/// Whether a tensor has the values that the fixture's script filled the tensor `name` with.
fn is_made(tensor: &Tensor, name: &str) -> bool {
    tensor.values == made(name, tensor.values.len())
}

#[test]
fn a_checkpoint_of_llavas_own_code_is_read_with_its_vision_encoder_and_gets_an_image_token() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    basic(args!["convert", fixture("original"), out, "--dtype", "f32"]).succeeded();
    let all: BTreeMap<String, Tensor> = all_tensors(&out).into_iter().map(|(name, (_, t))| (name, t)).collect();
    let pairs = [
        ("multi_modal_projector.linear_1.weight", "model.mm_projector.0.weight"),
        ("multi_modal_projector.linear_2.bias", "model.mm_projector.2.bias"),
        ("language_model.model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.weight"),
        ("language_model.model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight", "vision_model.encoder.layers.1.mlp.fc1.weight"),
        (
            "vision_tower.vision_model.embeddings.patch_embedding.weight",
            "vision_model.embeddings.patch_embedding.weight",
        ),
    ];
    for (ours, theirs) in pairs {
        assert!(is_made(&all[ours], theirs), "{ours}");
    }
    // The table has 358 tokens and a new row for <image>, which is their mean.
    for (ours, theirs) in [
        ("language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ] {
        let (table, old) = (&all[ours], made(theirs, 358 * 16));
        assert_eq!(table.shape, [359, 16]);
        assert_eq!(table.values[..358 * 16], old);
        for (column, value) in table.values[358 * 16..].iter().enumerate() {
            let mean = old.iter().skip(column).step_by(16).map(|x| f64::from(*x)).sum::<f64>() / 358.0;
            assert!((f64::from(*value) - mean).abs() < 1e-6, "{ours}: {value} is not {mean}");
        }
    }
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["image_token_index"], 358);
    assert_eq!(config["text_config"]["vocab_size"], 359);
    assert_eq!(config["vision_config"]["patch_size"], 14);
    assert_eq!((&config["image_seq_length"], &config["vision_feature_layer"]), (&json!(4), &json!(-2)));
    let said = inspect(&fixture("original"));
    assert_eq!((&said["kind"], &said["loads"]), (&json!("llava_original"), &json!(true)));
    assert_eq!(said["parameters"]["projector"], 2 * (16 * 16 + 16));
    // Both directories give the same model.
    assert_eq!(losses(&out), losses(&fixture("original")));
}

/// The original Vicuna, and so LLaVA's first checkpoints, have only a tokenizer.model.
#[test]
fn a_checkpoint_of_llavas_own_code_may_have_a_tokenizer_model_alone() {
    /// The number of pieces in tokenizer.model, without `<image>`.
    const PIECES: usize = 420;
    let dir = tempfile::tempdir().unwrap();
    let model = copy_tree(&fixture("original"), &dir.path().join("model"));
    // The table and the head need a row for each piece, so the weights are written again, in one file.
    let out = dir.path().join("converted");
    basic(args!["convert", fixture("original"), out, "--dtype", "f32"]).succeeded();
    let mut weights = tests::tensors::Tensors::new();
    for (name, (_, mut tensor)) in all_tensors(&out) {
        let name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0");
        let name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2");
        if name.starts_with("vision_tower.") {
            continue;
        }
        let name = name.trim_start_matches("language_model.");
        if tensor.shape[0] == 359 {
            tensor.shape[0] = PIECES;
            tensor.values = tensor.values[..358 * 16].iter().copied().cycle().take(PIECES * 16).collect();
        }
        weights.insert(name.into(), tensor);
    }
    for name in names(&model).iter().filter(|name| name.starts_with("pytorch_model")) {
        fs::remove_file(model.join(name)).unwrap();
    }
    tensors::write(&model.join("model.safetensors"), &weights);
    let mut config = read_json(&model.join("config.json"));
    config["vocab_size"] = json!(PIECES);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    let pieces = fixture("../../basic-models/tests/fixtures/processor/vicuna/tokenizer.model");
    fs::copy(pieces, model.join("tokenizer.model")).unwrap();

    let out = dir.path().join("out");
    basic(args!["convert", model, out, "--dtype", "f32"]).succeeded();
    let config = read_json(&out.join("config.json"));
    assert_eq!((&config["image_token_index"], &config["text_config"]["vocab_size"]), (&json!(420), &json!(421)));
    let (_, table) = &all_tensors(&out)["language_model.model.embed_tokens.weight"];
    assert_eq!(table.shape, [421, 16]);
    assert_eq!(table.values[358 * 16..PIECES * 16], table.values[..62 * 16]);
    // Both directories give the same answers.
    let ask = |model: &Path| {
        let image = fixture("images/a.png");
        let prompt = "<image> what is it?";
        let line = args![
            "generate",
            model,
            "--image",
            image,
            "--prompt",
            prompt,
            "--max-new-tokens",
            "4",
            "--greedy",
            "--json"
        ];
        basic(line).json()["ids"].clone()
    };
    assert_eq!(ask(&model), ask(&out));
}

#[test]
fn a_setting_of_llavas_own_code_that_is_not_built_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("mm_projector_type", json!("ldp"), "ldp"),
        ("mm_vision_select_feature", json!("mean"), "mean"),
        ("image_aspect_ratio", json!("anyres"), "anyres"),
        ("mm_use_im_start_end", json!(true), "true"),
        ("model_type", json!("llava_mpt"), "llava_mpt"),
        ("mm_hidden_size", json!(32), "32"),
        ("mm_vision_tower", json!("some/where"), "some/where"),
        ("mm_vision_tower", json!(""), "mm_vision_tower"),
    ];
    for (number, (key, value, said)) in cases.into_iter().enumerate() {
        let model = copy_tree(&fixture("original"), &dir.path().join(number.to_string()));
        let mut config = read_json(&model.join("config.json"));
        config[key] = value;
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let line = args!["losses", model, fixture("samples.jsonl")];
        basic(line).refused(1, &["config.json", key, said]);
    }
}

fn copy_tree(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
    to.into()
}

#[test]
fn a_damaged_pytorch_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_tree(&fixture("original"), &dir.path().join("model"));
    let shard = model.join("pytorch_model-00001-of-00002.bin");
    let bytes = fs::read(&shard).unwrap();
    for keep in [bytes.len() - 200, bytes.len() / 2, 10, 0] {
        fs::write(&shard, &bytes[..keep]).unwrap();
        let line = args!["losses", model, fixture("samples.jsonl")];
        basic(line).refused(1, &["pytorch_model-00001-of-00002.bin"]);
    }
    // A pickle can call any function. Anything but tensors is refused and not executed.
    let evil = b"cos\nsystem\n(S'touch pwned'\ntR.";
    fs::write(&shard, evil).unwrap();
    basic(args!["losses", model, fixture("samples.jsonl")]).refused(1, &["pytorch_model-00001-of-00002.bin"]);
    assert!(!Path::new("pwned").exists());
}

#[test]
fn fused_matrices_mean_what_their_parts_mean() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_of("plain", &dir.path().join("fused"));
    let path = model.join("model.safetensors");
    let mut all = tensors::read(&path);
    for layer in 0..4 {
        let layer = format!("language_model.model.layers.{layer}");
        for (whole, parts) in [
            ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..]),
            ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"][..]),
        ] {
            let parts: Vec<Tensor> =
                parts.iter().map(|part| all.remove(&format!("{layer}.{part}.weight")).unwrap()).collect();
            let shape = vec![parts.iter().map(|t| t.shape[0]).sum(), 48];
            let values = parts.into_iter().flat_map(|t| t.values).collect();
            all.insert(format!("{layer}.{whole}.weight"), Tensor { shape, values });
        }
    }
    tensors::write(&path, &all);
    assert_eq!(losses(&model), losses(&fixture("plain")));
    let said = inspect(&model);
    assert_eq!((&said["loads"], &said["unexpected"]), (&json!(true), &json!([])));
}

#[test]
fn a_hub_name_is_found_in_the_local_cache() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("hub/models--someone--llava-tiny");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "0a1b2c").unwrap();
    copy_of("plain", &repo.join("snapshots/0a1b2c"));
    let home = format!("unset HF_HUB_CACHE HUGGINGFACE_HUB_CACHE; export HF_HOME='{}'", dir.path().display());
    let line = |name: &str| args!["losses", name, fixture("samples.jsonl"), "--device", "cpu", "--json"];
    let said = run_in_shell(&home, BASIC, line("someone/llava-tiny")).json();
    assert_eq!(said, losses(&fixture("plain")));
    let hub = dir.path().join("hub/models--someone--else").display().to_string();
    run_in_shell(&home, BASIC, line("someone/else")).refused(1, &["someone/else", &hub, "HF_HOME"]);
    let said = run_in_shell(&home, BASIC, args!["inspect", "someone/llava-tiny", "--json"]).json();
    assert_eq!(said["loads"], true);
}

#[test]
fn inspect_says_what_a_good_checkpoint_holds() {
    let said = inspect(&fixture("plain"));
    assert_eq!((&said["kind"], &said["loads"], &said["problems"]), (&json!("llava"), &json!(true), &json!([])));
    // The expected counts are from the fixture's file, by the prefixes of the names.
    let mut counts = BTreeMap::new();
    for (name, tensor) in tensors::read(&fixture("plain/model.safetensors")) {
        let part = match name {
            n if n.starts_with("vision_tower") => "vision",
            n if n.starts_with("multi_modal") => "projector",
            n if n.contains("lm_head") => "head",
            _ => "decoder",
        };
        *counts.entry(part).or_insert(0) += tensor.values.len();
        *counts.entry("total").or_insert(0) += tensor.values.len();
    }
    for (part, count) in counts {
        assert_eq!(said["parameters"][part], count, "{part}");
    }
    assert_eq!(said["types"]["F32"]["parameters"], said["parameters"]["total"]);
    assert_eq!(said["files"][0]["name"], "model.safetensors");
    assert_eq!(said["files"][0]["bytes"], fs::metadata(fixture("plain/model.safetensors")).unwrap().len());
    assert_eq!(said["architecture"]["decoder"]["vocab_size"], 359);
    assert_eq!(said["architecture"]["vision"]["image_size"], 28);
    let text = basic(args!["inspect", fixture("plain")]).succeeded().stdout;
    assert!(text.contains("it would load") && text.contains("projector"), "{text}");
}

#[test]
fn inspect_knows_vision_encoders_and_decoders() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    for (name, kind, part) in [("vision", "vision", "vision"), ("llm", "decoder", "decoder")] {
        let said = inspect(&assets.join(name));
        assert_eq!((&said["kind"], &said["loads"]), (&json!(kind), &json!(true)), "{said}");
        assert_eq!(said["parameters"][part], said["parameters"]["total"]);
        assert_eq!((&said["missing"], &said["unexpected"]), (&json!([]), &json!([])));
    }
}

#[test]
fn inspect_says_all_that_is_wrong_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_of("plain", &dir.path().join("model"));
    let path = model.join("model.safetensors");
    let mut all = tensors::read(&path);
    all.remove("multi_modal_projector.linear_1.weight").unwrap();
    let norm = all.get_mut("language_model.model.norm.weight").unwrap();
    norm.shape = vec![1, 48];
    all.insert("stray.weight".into(), Tensor { shape: vec![1], values: vec![0.0] });
    tensors::write(&path, &all);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    let said = inspect(&model);
    assert_eq!(said["loads"], false);
    assert_eq!(strings(&said["missing"]), ["multi_modal_projector.linear_1.weight"]);
    assert_eq!(strings(&said["unexpected"]), ["stray.weight"]);
    assert_eq!(strings(&said["wrong_shapes"]), ["language_model.model.norm.weight is [1, 48], not [48]"]);
    let problems = strings(&said["problems"]).join("\n");
    assert!(problems.contains("tokenizer.json") && problems.contains("missing"), "{problems}");
    let text = basic(args!["inspect", model]).succeeded().stdout;
    assert!(text.contains("it would not load") && text.contains("stray.weight"), "{text}");
}

#[test]
fn inspect_works_on_what_is_hardly_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    basic(args!["inspect", dir.path().join("gone")]).refused(1, &["gone", "No such file"]);
    let empty = inspect(dir.path());
    assert_eq!((&empty["loads"], &empty["kind"], &empty["files"]), (&json!(false), &Value::Null, &json!([])));
    let model = copy_of("sharded", &dir.path().join("model"));
    fs::remove_file(model.join("model-00003-of-00004.safetensors")).unwrap();
    let shard = model.join("model-00001-of-00004.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 9]).unwrap();
    fs::write(model.join("config.json"), "{ not json").unwrap();
    let said = inspect(&model);
    let problems = strings(&said["problems"]).join("\n");
    for mention in ["config.json", "model-00003-of-00004.safetensors", "model-00001-of-00004.safetensors"] {
        assert!(problems.contains(mention), "{mention} is not in {problems}");
    }
    // The files that can be read are counted.
    assert_eq!(said["files"][0]["tensors"], Value::Null);
    assert!(said["files"][1]["tensors"].as_u64().unwrap() > 0);
    assert!(said["parameters"]["total"].as_u64().unwrap() > 10_000);
}

#[test]
fn a_config_with_absurd_sizes_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (section, key, value)) in [
        ("text_config", "num_hidden_layers", json!(4_000_000_000u64)),
        ("vision_config", "num_hidden_layers", json!(4_000_000_000u64)),
        ("text_config", "vocab_size", json!(1u64 << 50)),
        ("text_config", "intermediate_size", json!(1u64 << 40)),
    ]
    .into_iter()
    .enumerate()
    {
        let model = copy_of("plain", &dir.path().join(number.to_string()));
        let mut config = read_json(&model.join("config.json"));
        config[section][key] = value;
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        // The program maps 2 GB itself. The other 2 GB would be enough for a thousand of these models.
        let limit = "ulimit -v 4000000";
        let line = args!["losses", model, fixture("samples.jsonl"), "--device", "cpu"];
        run_in_shell(limit, BASIC, line).refused(1, &[&number.to_string()]);
        let said = run_in_shell(limit, BASIC, args!["inspect", model, "--json"]).json();
        assert_eq!(said["loads"], false);
    }
}
