//! Invalid checkpoints: files, tensors and configurations.

use std::fs;

use serde_json::{Value, json};
use tests::args;
use tests::fixtures::{fixture, read_json};

use crate::broken::{Broken, basic};

#[test]
fn a_directory_that_is_no_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nothing");
    let line = args!["losses", path, fixture("samples.jsonl")];
    basic(line).refused(1, &["nothing/config.json", "No such file"]);
    let broken = Broken::copy_of("plain");
    fs::remove_file(broken.model().join("model.safetensors")).unwrap();
    broken.refused(&["model.safetensors", "holds neither"]);
    let broken = Broken::copy_of("plain");
    fs::remove_file(broken.model().join("tokenizer.json")).unwrap();
    broken.refused(&["tokenizer.json"]);
}

#[test]
fn a_token_whose_id_has_no_row_in_the_embedding_table_is_named() {
    // There are no more tokens than rows, but one id is larger than the number of rows.
    let broken = Broken::copy_of("plain");
    let path = broken.model().join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    tokenizer["model"]["vocab"]["a"] = json!(5000);
    fs::write(&path, tokenizer.to_string()).unwrap();
    broken.refused(&["tokenizer.json", "\"a\"", "5000", "359"]);
}

#[test]
fn tensors_of_the_wrong_shape_are_listed_with_both_shapes() {
    let broken = Broken::copy_of("plain");
    broken.tensors(|all| {
        for (name, tensor) in all {
            if name.ends_with("linear_1.bias") || name.ends_with("layers.3.mlp.gate_proj.weight") {
                tensor.shape.insert(0, 1);
            }
        }
    });
    // The fixture's projector maps 32 to 48, and its MLP 48 to 96.
    broken.refused(&["linear_1.bias is [1, 48], not [48]", "gate_proj.weight is [1, 96, 48], not [96, 48]"]);
}

#[test]
fn missing_tensors_are_listed_all_at_once() {
    let broken = Broken::copy_of("plain");
    let absent = ["multi_modal_projector.linear_2.weight", "layers.1.self_attn.q_proj.weight", "lm_head.weight"];
    broken.tensors(|all| all.retain(|name, _| !absent.iter().any(|end| name.ends_with(end))));
    // The vision encoder has a layers.1 with a q_proj too, so 4 tensors are missing in all.
    broken.refused(&[&["4 tensors are missing"], &absent[..]].concat());
}

#[test]
fn a_truncated_safetensors_file_is_named() {
    let broken = Broken::copy_of("plain");
    let path = broken.model().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for keep in [bytes.len() - 100, 5000, 8, 3, 0] {
        fs::write(&path, &bytes[..keep]).unwrap();
        broken.refused(&["model.safetensors"]);
    }
}

#[test]
fn an_absent_or_truncated_shard_is_named() {
    let broken = Broken::copy_of("sharded");
    let shard = broken.model().join("model-00002-of-00004.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    broken.refused(&["model-00002-of-00004.safetensors"]);
    fs::remove_file(&shard).unwrap();
    broken.refused(&["model-00002-of-00004.safetensors", "absent"]);
}

#[test]
fn a_header_that_lies_is_refused_by_what_is_wrong_with_it() {
    let broken = Broken::copy_of("plain");
    let path = broken.model().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        let header = header.to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat();
        fs::write(&path, file).unwrap();
    };
    // A header that claims two terabytes.
    fs::write(&path, [&(2u64 << 40).to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    broken.refused(&["model.safetensors", "its header claims 2199023255552 bytes"]);
    let name = "language_model.model.norm.weight";
    with(&|h| h[name]["shape"] = json!([1u64 << 40]));
    broken.refused(&["model.safetensors", name, "1099511627776"]);
    with(&|h| {
        let start = h[name]["data_offsets"][0].as_u64().unwrap();
        h[name]["data_offsets"] = json!([start - 4, start + 188]);
    });
    broken.refused(&["model.safetensors", name, "overlap"]);
    with(&|h| h[name]["data_offsets"] = json!([1u64 << 41, (1u64 << 41) + 192]));
    broken.refused(&["model.safetensors", name, "2199023255744"]);
    with(&|h| h[name]["dtype"] = json!("I32"));
    broken.refused(&["model.safetensors", name, "I32"]);
    with(&|h| h[name]["dtype"] = json!("X32"));
    broken.refused(&["model.safetensors", "X32"]);
    // The same parameter under its names in transformers 4 and 5.
    with(&|h| {
        let norm = h.as_object_mut().unwrap().remove("language_model.model.layers.0.input_layernorm.weight").unwrap();
        h["model.language_model.norm.weight"] = norm;
    });
    broken.refused(&["model.safetensors", name, "model.language_model.norm.weight", "both hold"]);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_named() {
    let broken = Broken::copy_of("sharded");
    let path = broken.model().join("model.safetensors.index.json");
    let index = read_json(&path);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut index = index.clone();
        change(&mut index["weight_map"]);
        fs::write(&path, index.to_string()).unwrap();
    };
    with(&|map| map["ghost.weight"] = json!("model-00002-of-00004.safetensors"));
    broken.refused(&["model.safetensors.index.json", "ghost.weight", "model-00002-of-00004.safetensors"]);
    with(&|map| map["ghost.weight"] = json!("model-00009-of-00004.safetensors"));
    broken.refused(&["model.safetensors.index.json", "model-00009-of-00004.safetensors", "absent"]);
    for outside in ["/etc/passwd", "../plain/model.safetensors", "a/b.safetensors", "..", ""] {
        with(&|map| map["ghost.weight"] = json!(outside));
        broken.refused(&["model.safetensors.index.json", "ghost.weight", "not a file name"]);
    }
    with(&|map| map["ghost.weight"] = json!(3));
    broken.refused(&["model.safetensors.index.json", "ghost.weight", "not text"]);
    with(&|map| *map = json!([]));
    broken.refused(&["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn a_config_that_asks_for_what_is_not_built_names_the_key_and_the_value() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str, &str); 6] = [
        (|c| c["text_config"]["rope_parameters"]["rope_type"] = json!("ntk"), "rope", "ntk"),
        (|c| c["text_config"]["hidden_act"] = json!("relu2"), "text_config.hidden_act", "relu2"),
        (|c| c["vision_config"]["hidden_act"] = json!("relu"), "vision_config.hidden_act", "relu"),
        (|c| c["text_config"]["model_type"] = json!("mamba"), "text_config.model_type", "mamba"),
        (|c| c["projector_hidden_act"] = json!("tanh"), "projector_hidden_act", "tanh"),
        (|c| c["text_config"]["attention_dropout"] = json!(0.1), "text_config.attention_dropout", "0.1"),
    ];
    for (change, key, value) in cases {
        let broken = Broken::copy_of("plain");
        broken.config(change);
        broken.refused(&["config.json", key, value]);
    }
    let broken = Broken::copy_of("transformers4");
    broken.config(|c| c["text_config"]["rope_scaling"] = json!({"type": "ntk", "factor": 2.0}));
    broken.refused(&["config.json", "rope_scaling", "ntk"]);
}

#[test]
fn a_config_with_a_wrong_type_or_contradicting_sizes_is_refused() {
    let broken = Broken::copy_of("plain");
    broken.config(|c| c["text_config"]["hidden_size"] = json!("48"));
    broken.refused(&["config.json", "text_config.hidden_size", "invalid type: string \"48\""]);
    let broken = Broken::copy_of("plain");
    broken.config(|c| c["text_config"]["num_key_value_heads"] = json!(3));
    broken.refused(&["config.json", "num_key_value_heads"]);
    let broken = Broken::copy_of("plain");
    broken.config(|c| c["vision_config"]["patch_size"] = json!(0));
    broken.refused(&["config.json", "patch_size"]);
    let broken = Broken::copy_of("plain");
    fs::write(broken.model().join("config.json"), "{").unwrap();
    broken.refused(&["config.json", "line 1"]);
}
