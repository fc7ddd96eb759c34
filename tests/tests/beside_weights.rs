//! Files beside the weights and unusual weights: generation_config.json, keys of wrong types, patterns of a tokenizer,
//! output heads of models that are configured as tied, and values that overflow in a smaller data type.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture, read_json};
use tests::tensors::{read, write};
use tests::{Ran, args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");
const TABLE: &str = "language_model.model.embed_tokens.weight";
const HEAD: &str = "language_model.lm_head.weight";

fn convert(model: &Path, out: &Path) -> Ran {
    run(BASIC, args!["convert", model, out, "--overwrite"])
}

fn losses(checkpoint: &Path) -> Ran {
    run(BASIC, args!["losses", checkpoint, fixture("samples.jsonl"), "--device", "cpu", "--json"])
}

/// The losses, which depend on the logits.
fn numbers(ran: &Ran) -> [f64; 2] {
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    ["lm", "total"].map(|key| said[key].as_f64().unwrap())
}

fn plain(dir: &Path) -> PathBuf {
    copy_of("plain", &dir.join("model"))
}

#[test]
fn sampling_keys_without_do_sample_are_left_out_of_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (plain(dir.path()), dir.path().join("out"));
    let file = model.join("generation_config.json");
    for (given, wanted) in [
        (
            json!({"bos_token_id": 1, "temperature": 0.9, "top_p": 0.6, "max_length": 4096}),
            json!({"bos_token_id": 1, "max_length": 4096}),
        ),
        (json!({"do_sample": false, "top_k": 7, "typical_p": 0.3}), json!({"do_sample": false})),
        (json!({"do_sample": true, "temperature": 0.9}), json!({"do_sample": true, "temperature": 0.9})),
    ] {
        fs::write(&file, given.to_string()).unwrap();
        convert(&model, &out).succeeded();
        assert_eq!(read_json(&out.join("generation_config.json")), wanted);
    }
}

#[test]
fn a_generation_config_that_cannot_be_read_is_named_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (plain(dir.path()), dir.path().join("out"));
    let file = model.join("generation_config.json");
    for bytes in [&b"{\"temperature\": 0.9,"[..], b"\xff\xfe{\0}\0", b"", b"[]", b"null"] {
        fs::write(&file, bytes).unwrap();
        convert(&model, &out).refused(1, &["generation_config.json", "remove it"]);
        assert!(!out.exists());
    }
    for (key, value) in [
        ("temperature", json!("0.9")),
        ("do_sample", json!("yes")),
        ("max_new_tokens", json!(-4)),
        ("eos_token_id", json!("</s>")),
        ("num_beams", json!(1.5)),
    ] {
        fs::write(&file, json!({ key: value }).to_string()).unwrap();
        convert(&model, &out).refused(1, &["generation_config.json", key]);
        assert!(!out.exists());
    }
}

/// The fixture with tied embeddings by config.json; `head` computes a stored head from the table's values.
fn tied(dir: &Path, head: Option<&dyn Fn(usize, f32) -> f32>) -> PathBuf {
    let model = plain(dir);
    let mut config = read_json(&model.join("config.json"));
    config["tie_word_embeddings"] = json!(true);
    config["text_config"]["tie_word_embeddings"] = json!(true);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let path = model.join("model.safetensors");
    let mut tensors = read(&path);
    let names = |tensors: &tests::tensors::Tensors, end: &str| {
        tensors.keys().find(|name| name.ends_with(end)).expect("it is there").clone()
    };
    let (table, old) = (names(&tensors, "embed_tokens.weight"), names(&tensors, "lm_head.weight"));
    let mut whole = tensors[&table].clone();
    tensors.remove(&old);
    if let Some(head) = head {
        whole.values.iter_mut().enumerate().for_each(|(i, value)| *value = head(i, *value));
        tensors.insert(old, whole);
    }
    write(&path, &tensors);
    model
}

#[test]
fn a_head_equal_to_the_table_is_tied_and_another_is_used_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let one = losses(&tied(dir.path(), None)).succeeded();
    // An equal head gives the same model without a warning, and one matrix is written.
    let model = tied(dir.path(), Some(&|_, value| value));
    let equal = losses(&model).succeeded();
    assert_eq!(numbers(&one), numbers(&equal));
    convert(&model, &out).succeeded();
    assert_eq!(read_json(&out.join("config.json"))["tie_word_embeddings"], true);
    assert!(!read(&out.join("model.safetensors")).contains_key(HEAD));

    // A different head is used, two matrices are written, and one warning is printed.
    let other = |i: usize, value: f32| if i == 5 { value + 1.0 } else { -value };
    let model = tied(dir.path(), Some(&other));
    let ran = losses(&model);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("warning: ") && lines[0].contains("lm_head.weight"), "{ran:?}");
    assert_ne!(numbers(&ran), numbers(&one));
    let mut config = read_json(&model.join("config.json"));
    let ran_converted = convert(&model, &out);
    assert_eq!(ran_converted.code, Some(0), "{ran_converted:?}");
    assert_eq!(read_json(&out.join("config.json"))["tie_word_embeddings"], false);
    let written = read(&out.join("model.safetensors"));
    assert!(written[HEAD].values.iter().zip(&written[TABLE].values).enumerate().all(|(i, (a, b))| *a == other(i, *b)));
    // The losses equal those of a model that is not configured as tied.
    config["tie_word_embeddings"] = json!(false);
    config["text_config"]["tie_word_embeddings"] = json!(false);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    assert_eq!(numbers(&losses(&model).succeeded()), numbers(&ran));
}

#[test]
fn a_head_that_is_the_table_in_another_type_is_compared_by_its_values() {
    let dir = tempfile::tempdir().unwrap();
    // Values that bf16 represents exactly are the same in both types.
    let short = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
    let model = tied(dir.path(), Some(&|_, value| value));
    let path = model.join("model.safetensors");
    let mut tensors = read(&path);
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("embed_tokens") || name.contains("lm_head"))
    {
        tensor.values.iter_mut().for_each(|value| *value = short(*value));
    }
    let head = tensors.keys().find(|name| name.contains("lm_head")).unwrap().clone();
    let alone = tensors.remove(&head).unwrap();
    write(&path, &tensors);
    // Puts the head into a shard of its own, in bf16.
    let bytes: Vec<u8> = alone.values.iter().flat_map(|value| value.to_le_bytes()[2..].to_vec()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, alone.shape.clone(), &bytes).unwrap();
    let second = model.join("model-00002-of-00002.safetensors");
    fs::write(second, safetensors::serialize([(head.as_str(), view)], None).unwrap()).unwrap();
    fs::rename(&path, model.join("model-00001-of-00002.safetensors")).unwrap();
    let mut map: serde_json::Map<String, Value> =
        tensors.keys().map(|name| (name.clone(), json!("model-00001-of-00002.safetensors"))).collect();
    map.insert(head, json!("model-00002-of-00002.safetensors"));
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    losses(&model).succeeded();
}

#[test]
fn what_the_files_hold_against_the_configuration_is_told_once_by_every_command_that_opens_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = tied(dir.path(), Some(&|_, value| -value));
    let data = dir.path().join("data.json");
    let turns = json!([{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a circle"}]);
    fs::write(&data, json!([{"image": "a.png", "conversations": turns}]).to_string()).unwrap();
    fs::copy(fixture("images/a.png"), dir.path().join("a.png")).unwrap();
    let recipe = dir.path().join("recipe.toml");
    let text = format!(
        "stage = \"finetune\"\n[model]\ncheckpoint = {model:?}\n[data]\npath = {data:?}\n[train]\nsteps = 1\nbatch_size = 1\n"
    );
    fs::write(&recipe, text).unwrap();
    let image = fixture("images/a.png");
    for line in [
        args!["data", "check", data, "--checkpoint", model],
        args!["data", "show", data, "0", "--checkpoint", model],
        args!["data", "check", data, "--recipe", recipe],
        args!["losses", model, fixture("samples.jsonl")],
        args!["generate", model, "--image", image, "--prompt", "<image>\n?", "--max-new-tokens", "1"],
        args!["analyze", model, "--image", image, "--prompt", "<image>\n?"],
        args!["train", recipe, "--out", dir.path().join("run"), "--device", "cpu"],
    ] {
        let ran = run(BASIC, &line);
        assert_eq!(ran.code, Some(0), "{line:?}: {ran:?}");
        let told = ran.stderr.lines().filter(|line| line.starts_with("warning: ") && line.contains("lm_head.weight"));
        assert_eq!(told.count(), 1, "{line:?}: {ran:?}");
    }
}

#[test]
fn values_that_float16_makes_infinite_are_counted_when_a_model_is_loaded_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = plain(dir.path());
    let path = model.join("model.safetensors");
    let mut tensors = read(&path);
    let name = tensors.keys().find(|name| name.ends_with("layers.0.mlp.up_proj.weight")).unwrap().clone();
    tensors.get_mut(&name).unwrap().values[..3].copy_from_slice(&[70_000.0, -65_520.0, f32::INFINITY]);
    let bias = tensors.keys().find(|name| name.ends_with("linear_1.bias")).unwrap().clone();
    tensors.get_mut(&bias).unwrap().values[0] = 1e30;
    write(&path, &tensors);
    let line =
        args!["generate", model, "--image", fixture("images/a.png"), "--prompt", "<image>\n?", "--dtype", "float16"];
    run(BASIC, &line).refused(1, &["model: 3 values of 2 tensors", "float16", "bfloat16 or float32"]);
    let out = dir.path().join("out");
    run(BASIC, args!["convert", model, out, "--dtype", "f16"]).refused(1, &["3 values of 2 tensors", "float16"]);
}

#[test]
fn keys_of_another_type_name_their_file_and_are_never_what_an_absent_key_means() {
    let dir = tempfile::tempdir().unwrap();
    for (file, part, key, value) in [
        ("config.json", None, "tie_word_embeddings", json!("true")),
        ("config.json", Some("text_config"), "rope_theta", json!("10000")),
        ("config.json", Some("text_config"), "rms_norm_eps", json!("1e-5")),
        ("processor_config.json", Some("image_processor"), "do_resize", json!("yes")),
        ("processor_config.json", Some("image_processor"), "rescale_factor", json!("1/255")),
        ("processor_config.json", None, "image_token", json!(3)),
        ("tokenizer_config.json", None, "add_bos_token", json!("false")),
        ("tokenizer_config.json", None, "clean_up_tokenization_spaces", json!(1)),
        ("tokenizer_config.json", None, "eos_token", json!(2)),
        ("tokenizer_config.json", None, "added_tokens_decoder", json!([])),
        ("tokenizer_config.json", None, "chat_template", json!({"default": "{{ x }}"})),
    ] {
        let model = plain(dir.path());
        let path = model.join(file);
        let mut whole = read_json(&path);
        match part {
            Some(part) => whole[part][key] = value,
            None => whole[key] = value,
        }
        fs::write(&path, whole.to_string()).unwrap();
        // Messages name the directory instead of config.json.
        let name = if file == "config.json" { "model" } else { file };
        losses(&model).refused(1, &[name, key]);
    }
}

#[test]
fn a_pattern_without_end_in_a_tokenizer_is_an_error_that_names_it_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let model = plain(dir.path());
    let path = model.join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    let pattern = json!({ "Regex": "(a|aa)+$" });
    tokenizer["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false }, tokenizer["pre_tokenizer"],
    ] });
    fs::write(&path, tokenizer.to_string()).unwrap();
    let question = format!("<image>\n{}!", "a".repeat(1000));
    let begun = std::time::Instant::now();
    let line = args!["generate", model, "--image", fixture("images/a.png"), "--prompt", question];
    run(BASIC, &line).refused(1, &["tokenizer.json", "patterns"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(40), "{:?}", begun.elapsed());
}

#[test]
fn json_that_takes_a_hundred_times_its_bytes_is_refused_wherever_a_checkpoint_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for name in ["config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"] {
        let model = copy_of("plain", &dir.path().join(name.replace('.', "-")));
        let file = model.join(name);
        let whole = fs::read_to_string(&file).unwrap_or_else(|_| "{\"eos_token_id\": 2}".into());
        let whole = whole.trim_end().strip_suffix('}').unwrap().to_owned();
        fs::write(&file, format!("{whole}, \"more\": [{}0]}}", "[0],".repeat(1_000_000))).unwrap();
        run(BASIC, args!["convert", &model, &out, "--file-bytes", "128MB"]).refused(1, &[name, "--file-bytes"]);
        assert!(!out.exists(), "{name}");
    }
}
