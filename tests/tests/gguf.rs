//! `basic convert --gguf` writes the files that llama.cpp loads, and `basic assemble --llm X.gguf` reads a decoder from one.
//! `.ci/gguf` compares the answers with llama.cpp's own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::fixtures::{copy_of, fixture, read_json};
use tests::tensors::{self, Tensors};
use tests::{Ran, args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// The checkpoints of the families that llama.cpp can express whole.
const FAMILIES: [&str; 8] = [
    "gemma-clip",
    "llama-siglip",
    "mistral-clip",
    "phi3-clip",
    "phi3-siglip",
    "qwen2-clip",
    "qwen2-siglip",
    "qwen3-clip",
];

fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

/// Converts a family's checkpoint, and returns the directory of the two files.
fn converted(family: &str, quant: &str, dir: &Path) -> PathBuf {
    let out = dir.join(quant);
    let ran = basic(args!["convert", fixture(format!("families/{family}")), &out, "--gguf", "--quant", quant]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.stderr.lines().all(|line| line.starts_with("note: ")), "{ran:#?}");
    out
}

/// Assembles the decoder of a GGUF file with the vision encoder of a fixture.
fn assembled(gguf: &Path, out: &Path) -> Ran {
    basic(args!["assemble", "--vision", fixture("original/tower"), "--llm", gguf, "--out", out])
}

/// The decoder's tensors of a checkpoint, in f32.
fn decoder(checkpoint: &Path) -> Tensors {
    let dir = tempfile::tempdir().unwrap();
    let single = dir.path().join("f32");
    basic(args!["convert", checkpoint, &single, "--dtype", "float32"]).succeeded();
    let tensors = tensors::read(&single.join("model.safetensors")).into_iter();
    tensors.filter(|(name, _)| name.starts_with("language_model.")).collect()
}

#[test]
fn a_decoder_that_went_through_f32_gguf_is_the_same_bit_for_bit() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let gguf = converted(family, "f32", dir.path());
        let back = dir.path().join("back");
        let ran = assembled(&gguf.join("model.gguf"), &back);
        assert_eq!(ran.code, Some(0), "{family}: {ran:#?}");
        let (ours, theirs) = (decoder(&back), decoder(&fixture(format!("families/{family}"))));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{family}");
        for (name, tensor) in &theirs {
            if family == "gemma-clip" && name.ends_with("norm.weight") {
                // llama.cpp keeps 1 + weight, whose rounding loses the last bits of a weight.
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= f32::EPSILON;
                assert!(ours[name].values.iter().zip(&tensor.values).all(close), "{family}: {name}");
            } else {
                assert_eq!(ours[name], *tensor, "{family}: {name}");
            }
        }
        let (config, was) =
            (read_json(&back.join("config.json")), read_json(&fixture(format!("families/{family}/config.json"))));
        let (text, was) = (&config["text_config"], &was["text_config"]);
        for key in ["vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"] {
            assert!(was[key].is_null() || text[key] == was[key], "{family}: {key}");
        }
        let tokens = |path: PathBuf| read_json(&path.join("tokenizer.json"))["model"]["vocab"].clone();
        assert_eq!(tokens(back.clone()), tokens(fixture(format!("families/{family}"))), "{family}");
    }
}

#[test]
fn a_round_trip_keeps_the_rotary_settings() {
    for (family, key, value) in [
        ("llama-siglip", "original_max_position_embeddings", json!(64)),
        ("llama-siglip", "factor", json!(8.0)),
        ("phi3-clip", "partial_rotary_factor", json!(0.5)),
        ("phi3-clip", "rope_theta", json!(500.0)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let gguf = converted(family, "f16", dir.path());
        let back = dir.path().join("back");
        assert_eq!(assembled(&gguf.join("model.gguf"), &back).code, Some(0));
        assert_eq!(
            read_json(&back.join("config.json"))["text_config"]["rope_parameters"][key],
            value,
            "{family}: {key}"
        );
    }
}

#[test]
fn quantized_decoders_differ_by_no_more_than_the_steps_of_their_types() {
    // Of the largest magnitude of the 32 values of a block: half a step and the rounding of the scale. Q4_0 cuts the
    // largest value of the other sign off at seven eighths.
    for (quant, step) in [("f16", 1.0 / 2048.0), ("q8_0", 0.51 / 127.0), ("q4_0", 1.01 / 8.0)] {
        let dir = tempfile::tempdir().unwrap();
        let gguf = converted("qwen2-clip", quant, dir.path());
        let back = dir.path().join("back");
        let ran = basic(args![
            "assemble",
            "--vision",
            fixture("original/tower"),
            "--llm",
            gguf.join("model.gguf"),
            "--out",
            &back,
            "--dtype",
            "float32"
        ]);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        let (ours, theirs) = (decoder(&back), decoder(&fixture("families/qwen2-clip")));
        let mut apart = 0.0f32;
        for (name, tensor) in &theirs {
            let matrix = tensor.shape.len() == 2;
            // The MLP's inner width of 48 is no multiple of 32, so that one matrix is f16 in quantized files.
            let (step, block) = match tensor.shape.last() {
                Some(width) if !matrix || !width.is_multiple_of(32) || quant == "f16" => (1.0 / 2048.0, 1),
                _ => (step, 32),
            };
            for (ours, theirs) in ours[name].values.chunks(block).zip(tensor.values.chunks(block)) {
                let largest = theirs.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                for (a, b) in ours.iter().zip(theirs) {
                    assert!((a - b).abs() <= largest * (step + 1e-3) + 1e-7, "{quant}: {name}: {a} and {b}");
                    apart = apart.max((a - b).abs());
                }
            }
        }
        // The fixture's own values are bf16, which small halves hold exactly.
        assert!(apart > 0.0 || quant == "f16", "{quant} must differ from f32");
    }
}

#[test]
fn what_llama_cpp_cannot_express_is_refused_by_name_and_leaves_nothing() {
    for (family, mentions) in [
        ("llama-bias", &["vision_feature_layer = [2, 1]"][..]),
        ("llama-dynamic", &["rope_type = dynamic"]),
        ("llama-dinov2", &["model_type = dinov2", "CLIP and SigLIP"]),
        ("qwen3-siglip", &["attention_bias = true", "qwen3"]),
        ("phi4-clip", &["rope_type = longrope"]),
        ("gemma2-clip", &["model_type = gemma2"]),
        ("gemma3-siglip", &["model_type = gemma3_text"]),
        ("olmo2-clip", &["model_type = olmo2"]),
        ("smollm3-clip", &["model_type = smollm3"]),
        ("ministral3-clip", &["model_type = ministral3"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let ran = basic(args!["convert", fixture(format!("families/{family}")), &out, "--gguf"]);
        ran.refused(1, &[&[family, "cannot be written as GGUF"], mentions].concat());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{family}");
    }
    let dir = tempfile::tempdir().unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let model = copy_of("plain", &dir.path().join(name));
        let mut config = read_json(&model.join("config.json"));
        change(&mut config);
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        basic(args!["convert", &model, dir.path().join("out"), "--gguf"])
    };
    changed("act", &|config| config["text_config"]["hidden_act"] = json!("gelu"))
        .refused(1, &["text_config.hidden_act = gelu", "silu"]);
    changed("select", &|config| config["vision_feature_select_strategy"] = json!("full"))
        .refused(1, &["vision_feature_select_strategy = full"]);
    let projector = changed("projector", &|config| config["projector_hidden_act"] = json!("silu"));
    projector.refused(1, &["projector_hidden_act = silu"]);
    let model = copy_of("plain", &dir.path().join("tokenizer"));
    let mut tokenizer = read_json(&model.join("tokenizer.json"));
    tokenizer["pre_tokenizer"] = json!({ "type": "Whitespace" });
    fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let out = dir.path().join("out");
    basic(args!["convert", &model, &out, "--gguf"]).refused(1, &["tokenizer.json", "pre_tokenizer", "Whitespace"]);
    assert!(!out.exists());
}

#[test]
fn a_projector_of_another_kind_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["linear", "mlp3x_gelu", "pixel_shuffle2_mlp2x_gelu"] {
        let (model, out) = (dir.path().join(kind), dir.path().join("out"));
        let llm = fixture("gguf/decoder.gguf");
        let tower = fixture("original/tower");
        let ran = basic(args!["assemble", "--vision", &tower, "--llm", &llm, "--projector", kind, "--out", &model]);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        basic(args!["convert", &model, &out, "--gguf"]).refused(1, &["projector_type", kind, "mlp2x_gelu"]);
        assert!(!out.exists());
    }
}

#[test]
fn values_that_do_not_fit_the_type_are_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_of("plain", &dir.path().join("model"));
    let mut weights = tensors::read(&model.join("model.safetensors"));
    let name = weights.keys().find(|name| name.ends_with("layers.0.mlp.up_proj.weight")).unwrap().clone();
    weights.get_mut(&name).unwrap().values[5] = 1e30;
    tensors::write(&model.join("model.safetensors"), &weights);
    for quant in ["f16", "q8_0", "q4_0"] {
        let out = dir.path().join(quant);
        let ran = basic(args!["convert", &model, &out, "--gguf", "--quant", quant]);
        ran.refused(1, &["1 values of 1 tensors", "blk.0.ffn_up.weight", "--quant f32"]);
        assert!(!out.exists());
    }
    basic(args!["convert", &model, dir.path().join("f32"), "--gguf", "--quant", "f32"]).succeeded();
}

#[test]
fn overwrite_replaces_such_files_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let convert = |more: &[&str]| {
        let mut line = args!["convert", fixture("plain"), &out, "--gguf"];
        line.extend(more.iter().map(OsString::from));
        basic(line)
    };
    let said = convert(&[]).succeeded().stdout;
    assert!(said.contains("model.gguf") && said.contains("mmproj.gguf"), "{said}");
    convert(&[]).refused(1, &["exists already", "--overwrite"]);
    let before = fs::metadata(out.join("model.gguf")).unwrap().len();
    convert(&["--overwrite", "--quant", "f32"]).succeeded();
    assert!(fs::metadata(out.join("model.gguf")).unwrap().len() > before);
    fs::write(out.join("notes.txt"), "mine").unwrap();
    convert(&["--overwrite"]).refused(1, &["notes.txt"]);
    convert(&["--dtype", "float16"]).refused(2, &["--gguf", "--dtype"]);
    basic(args!["convert", fixture("plain"), &out, "--quant", "f16"]).refused(2, &["--gguf"]);
}

#[test]
fn a_file_of_the_gguf_package_becomes_a_model_that_answers() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    assembled(&fixture("gguf/decoder.gguf"), &out).succeeded();
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["text_config"]["model_type"], "qwen2");
    assert_eq!(config["text_config"]["rms_norm_eps"], 1e-6);
    // The two rows without a token are there for `<image>`.
    assert_eq!((&config["text_config"]["vocab_size"], &config["image_token_index"]), (&json!(36), &json!(34)));
    let image = fixture("images/a.png");
    let answer =
        basic(args!["generate", &out, "--image", &image, "--prompt", "<image>the", "--max-new-tokens", "4", "--json"]);
    assert!(answer.json()["ids"].as_array().is_some_and(|ids| !ids.is_empty()));
    let template = fs::read_to_string(out.join("chat_template.jinja")).unwrap();
    assert!(template.contains("<|im_end|>"), "{template}");
    let tokenizer = read_json(&out.join("tokenizer.json"));
    assert_eq!(tokenizer["model"]["merges"].as_array().unwrap().len(), 5);
    assert_eq!(tokenizer["normalizer"]["type"], "NFC");
}

#[test]
fn a_recipe_trains_on_a_decoder_in_a_gguf_file_as_on_the_assembled_model() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = converted("llama-siglip", "f32", dir.path()).join("model.gguf");
    let model = dir.path().join("model");
    assembled(&gguf, &model).succeeded();
    let losses = |name: &str, lines: &str| {
        let recipe = dir.path().join(format!("{name}.toml"));
        let data = fixture("training/captions.json");
        let text = format!(
            "stage = \"pretrain\"\noutput = {:?}\n[model]\n{lines}\n[data]\npath = {data:?}\nimages = {:?}\n[train]\nbatch_size = 2\n\
             steps = 2\n",
            dir.path().join(name),
            fixture("images")
        );
        fs::write(&recipe, text).unwrap();
        basic(args!["train", &recipe, "--device", "cpu", "--ui", "plain"]).succeeded();
        let metrics = fs::read_to_string(dir.path().join(name).join("metrics.jsonl")).unwrap();
        let losses: Vec<_> = metrics
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["lm"].clone())
            .collect();
        assert_eq!(losses.len(), 2, "{metrics}");
        losses
    };
    let parts = format!("vision = {:?}\nllm = {gguf:?}", fixture("original/tower"));
    assert_eq!(losses("parts", &parts), losses("whole", &format!("checkpoint = {model:?}")));
}

#[test]
fn inspect_reads_a_gguf_file_and_says_whether_it_would_load() {
    let dir = tempfile::tempdir().unwrap();
    let found = basic(args!["inspect", fixture("gguf/decoder.gguf"), "--json"]).json();
    assert_eq!((&found["kind"], &found["loads"]), (&json!("decoder"), &json!(true)), "{found}");
    assert_eq!(found["architecture"]["decoder"]["model_type"], "qwen2");
    assert_eq!(found["files"][0]["name"], "decoder.gguf");
    assert!(found["parameters"]["decoder"].as_u64().is_some_and(|count| count > 0), "{found}");
    let cut = dir.path().join("cut.gguf");
    let whole = fs::read(fixture("gguf/decoder.gguf")).unwrap();
    fs::write(&cut, &whole[..whole.len() - 100]).unwrap();
    let found = basic(args!["inspect", &cut, "--json"]).json();
    assert_eq!(found["loads"], false, "{found}");
    assert!(found["problems"][0].as_str().is_some_and(|problem| problem.contains("cut.gguf")), "{found}");
    basic(args!["inspect", dir.path().join("gone.gguf")]).refused(1, &["gone.gguf"]);
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("gguf/decoder.gguf")).unwrap();
    let try_bytes = |bytes: &[u8], mentions: &[&str]| {
        let (path, out) = (dir.path().join("x.gguf"), dir.path().join("out"));
        fs::write(&path, bytes).unwrap();
        assembled(&path, &out).refused(1, &[&["x.gguf"], mentions].concat());
        assert!(!out.exists());
    };
    try_bytes(&whole[..whole.len() - 1000], &["tensor", "cut short"]);
    try_bytes(&whole[..2000], &["not a whole GGUF file"]);
    try_bytes(b"", &["not a whole GGUF file"]);
    let swapped = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    try_bytes(&swapped("general.architecture", "general.architectura"), &["general.architecture", "is missing"]);
    try_bytes(&swapped("qwen2.block_count", "qwen2.block_kount"), &["qwen2.block_count", "is missing"]);
    try_bytes(&swapped("tokenizer.ggml.merges", "tokenizer.ggml.mergez"), &["tokenizer.ggml.merges", "is missing"]);
    try_bytes(&swapped("th e", "thee"), &["tokenizer.ggml.merges", "two parts"]);
    // What the model has no place for is told first.
    let (path, out) = (dir.path().join("x.gguf"), dir.path().join("out"));
    fs::write(&path, swapped("blk.1.attn_norm.weight", "blk.7.attn_norm.weight")).unwrap();
    let said = assembled(&path, &out).stderr;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("x.gguf: tensors") && lines[0].ends_with("blk.7.attn_norm.weight"), "{said}");
    assert!(lines[1].contains("x.gguf: 1 tensors are missing: blk.1.attn_norm.weight"), "{said}");
    let mmproj = converted("qwen2-clip", "f16", dir.path()).join("mmproj.gguf");
    assembled(&mmproj, &dir.path().join("out")).refused(1, &["mmproj.gguf", "general.architecture", "no decoder"]);
    assembled(&dir.path().join("gone.gguf"), &dir.path().join("out")).refused(1, &["gone.gguf"]);
}
