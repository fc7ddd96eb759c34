//! What lies beside the weights, or twice among them: generation_config.json, and heads of models whose head is said to be the
//! embedding table.

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

/// The losses, which the logits give.
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

/// The fixture with a head that config.json says is the table; `head` makes it of the table's values.
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
    // Equal: the same model, without a word, and one matrix in what is written.
    let model = tied(dir.path(), Some(&|_, value| value));
    let equal = losses(&model).succeeded();
    assert_eq!(numbers(&one), numbers(&equal));
    convert(&model, &out).succeeded();
    assert_eq!(read_json(&out.join("config.json"))["tie_word_embeddings"], true);
    assert!(!read(&out.join("model.safetensors")).contains_key(HEAD));

    // Another: that head's logits, two matrices, and one line.
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
    // The same as a model that never said it was tied.
    config["tie_word_embeddings"] = json!(false);
    config["text_config"]["tie_word_embeddings"] = json!(false);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    assert_eq!(numbers(&losses(&model).succeeded()), numbers(&ran));
}

#[test]
fn a_head_that_is_the_table_in_another_type_is_compared_by_its_values() {
    let dir = tempfile::tempdir().unwrap();
    // What bf16 holds: the same values in either type.
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
    // The head in bf16, in a shard of its own.
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
