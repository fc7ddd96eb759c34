//! `basic assemble` combines a vision encoder and a decoder into a LLaVA checkpoint.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{fixture, names, read_json};
use tests::tensors::{self, Tensor, Tensors};
use tests::{Ran, args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

/// The vision encoder and the decoder of the fixture `plain` in directories of their own, with a vocabulary without
/// `<image>`.
struct Parts {
    dir: TempDir,
}

/// The number of tokens of the fixture's tokenizer without `<image>`, which gets the next id.
const TOKENS: usize = 358;

impl Parts {
    fn new() -> Self {
        Self::with_rows(TOKENS)
    }

    /// Parts with a decoder whose embedding table has the first `rows` of the fixture's 359 rows.
    fn with_rows(rows: usize) -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        let (vision, llm) = (this.vision(), this.llm());
        fs::create_dir_all(&vision).unwrap();
        fs::create_dir_all(&llm).unwrap();
        let (mut tower, mut decoder) = (Tensors::new(), Tensors::new());
        for (name, mut tensor) in tensors::read(&fixture("plain/model.safetensors")) {
            if let Some(name) = name.strip_prefix("vision_tower.") {
                tower.insert(name.into(), tensor);
            } else if let Some(name) = name.strip_prefix("language_model.") {
                if tensor.shape[0] == TOKENS + 1 {
                    tensor.shape[0] = rows;
                    tensor.values.truncate(rows * 48);
                }
                decoder.insert(name.into(), tensor);
            }
        }
        tensors::write(&vision.join("model.safetensors"), &tower);
        tensors::write(&llm.join("model.safetensors"), &decoder);
        let mut config = read_json(&fixture("plain/config.json"));
        config["text_config"]["vocab_size"] = json!(rows);
        fs::write(vision.join("config.json"), config["vision_config"].to_string()).unwrap();
        fs::write(llm.join("config.json"), config["text_config"].to_string()).unwrap();
        let processor = read_json(&fixture("plain/processor_config.json"));
        fs::write(vision.join("preprocessor_config.json"), processor["image_processor"].to_string()).unwrap();
        let mut tokenizer = read_json(&fixture("plain/tokenizer.json"));
        tokenizer["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<image>");
        fs::write(llm.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fs::copy(fixture("plain/tokenizer_config.json"), llm.join("tokenizer_config.json")).unwrap();
        this
    }

    fn vision(&self) -> PathBuf {
        self.dir.path().join("vision")
    }

    fn llm(&self) -> PathBuf {
        self.dir.path().join("llm")
    }

    fn line(&self, out: &Path, more: &[&str]) -> Vec<OsString> {
        let mut line = args!["assemble", "--vision", self.vision(), "--llm", self.llm(), "--out", out];
        line.extend(more.iter().map(OsString::from));
        line
    }

    fn assembled(&self, name: &str, more: &[&str]) -> PathBuf {
        let out = self.dir.path().join(name);
        basic(self.line(&out, more)).succeeded();
        out
    }
}

/// The tensors by their names in transformers 5, where those of the vision encoder have no `vision_model.`.
fn weights(dir: &Path) -> Tensors {
    let all = tensors::read(&dir.join("model.safetensors"));
    all.into_iter()
        .map(|(name, tensor)| (name.replace("vision_tower.vision_model.", "vision_tower."), tensor))
        .collect()
}

const TABLES: [&str; 2] = ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"];

/// The mean of the first `rows` rows of a matrix with 48 columns.
fn mean(tensor: &Tensor, rows: usize) -> Vec<f64> {
    (0..48).map(|c| (0..rows).map(|r| f64::from(tensor.values[r * 48 + c])).sum::<f64>() / rows as f64).collect()
}

fn assert_mean_rows(table: &Tensor, old: usize) {
    let mean = mean(table, old);
    for (i, value) in table.values[old * 48..].iter().enumerate() {
        assert!((f64::from(*value) - mean[i % 48]).abs() < 1e-6, "row {}", old + i / 48);
    }
}

#[test]
fn a_decoder_without_an_image_token_gets_one_and_a_row_for_it() {
    let parts = Parts::new();
    let out = parts.assembled("out", &["--projector", "mlp2x_gelu", "--seed", "3"]);
    let (all, before) = (weights(&out), weights(&fixture("plain")));
    assert_eq!(all.keys().collect::<BTreeSet<_>>(), before.keys().collect::<BTreeSet<_>>());
    for (name, tensor) in &before {
        assert_eq!(all[name].shape, tensor.shape, "{name}");
        if TABLES.contains(&name.as_str()) {
            assert_eq!(all[name].values[..TOKENS * 48], tensor.values[..TOKENS * 48]);
            assert_mean_rows(&all[name], TOKENS);
        } else if !name.starts_with("multi_modal_projector") {
            assert_eq!(&all[name], tensor, "{name}");
        }
    }
    let config = read_json(&out.join("config.json"));
    assert_eq!((&config["model_type"], &config["image_token_index"]), (&json!("llava"), &json!(TOKENS)));
    assert_eq!((&config["text_config"]["vocab_size"], &config["image_seq_length"]), (&json!(TOKENS + 1), &json!(16)));
    let tokenizer = read_json(&out.join("tokenizer.json"));
    let image: Vec<&Value> =
        tokenizer["added_tokens"].as_array().unwrap().iter().filter(|t| t["content"] == "<image>").collect();
    assert_eq!(
        image,
        [&json!({"id": TOKENS, "content": "<image>", "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": true})]
    );
    let config = read_json(&out.join("tokenizer_config.json"));
    assert_eq!(config["added_tokens_decoder"]["358"]["content"], "<image>");
    // The tokens that existed before are listed too.
    assert_eq!(config["added_tokens_decoder"]["1"]["content"], "<s>");
    let processor = read_json(&out.join("processor_config.json"));
    assert_eq!((&processor["image_token"], &processor["patch_size"]), (&json!("<image>"), &json!(7)));
    assert!(names(&out).contains(&"preprocessor_config.json".to_string()));
    assert!(fs::read_to_string(out.join("chat_template.jinja")).unwrap().contains("USER: "));

    let said = basic(args!["inspect", out, "--json"]).json();
    assert_eq!((&said["loads"], &said["unexpected"]), (&json!(true), &json!([])), "{said}");
    let line = args![
        "generate",
        out,
        "--image",
        fixture("images/a.png"),
        "--prompt",
        "USER: <image>\\nhi ASSISTANT:",
        "--greedy",
        "--json"
    ];
    assert!(!basic(line).json()["ids"].as_array().unwrap().is_empty());
}

#[test]
fn the_seed_decides_the_projector_and_nothing_else() {
    let parts = Parts::new();
    let first = parts.assembled("first", &["--seed", "3"]);
    let again = parts.assembled("again", &["--seed", "3"]);
    let other = parts.assembled("other", &["--seed", "4"]);
    assert_eq!(weights(&first), weights(&again));
    let (first, other) = (weights(&first), weights(&other));
    for (name, tensor) in &first {
        assert_eq!(other[name] == *tensor, !name.starts_with("multi_modal_projector"), "{name}");
    }
    // PyTorch's nn.Linear initializes with U(-1/sqrt(in), 1/sqrt(in)); the first layer has 32 inputs.
    let bound = 1.0 / 32f32.sqrt();
    let values = &first["multi_modal_projector.linear_1.weight"].values;
    let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
    assert!(largest <= bound && largest > 0.95 * bound, "{largest}");
}

#[test]
fn the_table_can_be_padded_and_spare_rows_are_used_first() {
    let parts = Parts::new();
    let out = parts.assembled("padded", &["--pad-to-multiple-of", "64"]);
    for table in TABLES {
        let table = &weights(&out)[table];
        assert_eq!(table.shape, [384, 48]);
        assert_mean_rows(table, TOKENS);
    }
    assert_eq!(read_json(&out.join("config.json"))["text_config"]["vocab_size"], 384);
    // Many decoders have a table with a spare row, which then stays unchanged.
    let spare = Parts::with_rows(TOKENS + 1);
    let out = spare.assembled("out", &[]);
    let (all, before) = (weights(&out), weights(&fixture("plain")));
    assert!(TABLES.iter().all(|table| all[*table] == before[*table]));
    assert_eq!(read_json(&out.join("config.json"))["image_token_index"], TOKENS);
}

#[test]
fn a_decoder_that_has_the_token_keeps_its_files() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    basic(args!["assemble", "--vision", assets.join("vision"), "--llm", assets.join("llm"), "--out", out]).succeeded();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(assets.join("llm").join(name)).unwrap(), "{name}");
    }
    // The output has the data type that the parts have on disk.
    let said = basic(args!["inspect", out, "--json"]).json();
    assert_eq!(said["types"].as_object().unwrap().keys().collect::<Vec<_>>(), ["F16"]);
}

#[test]
fn a_tokenizer_model_alone_is_enough() {
    /// The number of pieces in basic-models/tests/fixtures/processor/vicuna/tokenizer.model.
    const PIECES: usize = 420;
    let parts = Parts::new();
    let weights = parts.llm().join("model.safetensors");
    let mut decoder = tensors::read(&weights);
    for tensor in decoder.values_mut().filter(|tensor| tensor.shape[0] == TOKENS) {
        tensor.shape[0] = PIECES;
        tensor.values = tensor.values.iter().copied().cycle().take(PIECES * 48).collect();
    }
    tensors::write(&weights, &decoder);
    let mut config = read_json(&parts.llm().join("config.json"));
    config["vocab_size"] = json!(PIECES);
    fs::write(parts.llm().join("config.json"), config.to_string()).unwrap();
    // The original Vicuna has only tokenizer.model and no tokenizer.json.
    fs::remove_file(parts.llm().join("tokenizer.json")).unwrap();
    let model = fixture("../../basic-models/tests/fixtures/processor/vicuna/tokenizer.model");
    fs::copy(model, parts.llm().join("tokenizer.model")).unwrap();
    let tokenizer = json!({ "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "add_bos_token": true, "add_eos_token": false });
    fs::write(parts.llm().join("tokenizer_config.json"), tokenizer.to_string()).unwrap();

    let out = parts.assembled("out", &[]);
    let config = read_json(&out.join("config.json"));
    assert_eq!((&config["image_token_index"], &config["text_config"]["vocab_size"]), (&json!(420), &json!(421)));
    let tokenizer = read_json(&out.join("tokenizer.json"));
    assert_eq!(tokenizer["model"]["vocab"].as_object().unwrap().len(), PIECES);
    let image = tokenizer["added_tokens"].as_array().unwrap().last().unwrap();
    assert_eq!((&image["content"], &image["id"]), (&json!("<image>"), &json!(PIECES)));
    let answer = basic(args![
        "generate",
        out,
        "--image",
        fixture("images/a.png"),
        "--prompt",
        "<image> what is it?",
        "--max-new-tokens",
        "3",
        "--greedy",
        "--json"
    ]);
    assert_eq!(answer.json()["ids"].as_array().unwrap().len(), 3);
}

#[test]
fn trained_projector_weights_take_the_place_of_fresh_ones() {
    let parts = Parts::new();
    let file = parts.dir.path().join("projector.safetensors");
    let trained: Tensors = weights(&fixture("plain"))
        .into_iter()
        .filter(|(name, _)| name.starts_with("multi_modal_projector"))
        .map(|(name, tensor)| {
            // The names in LLaVA's own checkpoints.
            let name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0");
            (name.replace("multi_modal_projector.linear_2", "model.mm_projector.2"), tensor)
        })
        .collect();
    tensors::write(&file, &trained);
    let out = parts.assembled("out", &["--projector-weights", file.to_str().unwrap()]);
    let all = weights(&out);
    for (name, tensor) in weights(&fixture("plain")).iter().filter(|(name, _)| name.starts_with("multi_modal")) {
        assert_eq!(&all[name], tensor, "{name}");
    }
    // A projector file of LLaVA's with other sizes.
    let other = fixture("original/mm_projector.bin");
    let line = parts.line(&parts.dir.path().join("no"), &["--projector-weights", other.to_str().unwrap()]);
    basic(line).refused(1, &["model.mm_projector.0.weight is [16, 16], not [48, 32]"]);
    // A file without a projector.
    let tower = fixture("original/tower/pytorch_model.bin");
    let line = parts.line(&parts.dir.path().join("no"), &["--projector-weights", tower.to_str().unwrap()]);
    basic(line).refused(1, &["pytorch_model.bin", "holds no projector"]);
    assert!(!parts.dir.path().join("no").exists());
}

#[test]
fn parts_of_llavas_own_checkpoint_go_together_again() {
    // The vision encoder is in PyTorch's format, the projector in PyTorch's format before 1.6.
    let dir = tempfile::tempdir().unwrap();
    let (llm, out) = (dir.path().join("llm"), dir.path().join("out"));
    fs::create_dir_all(&llm).unwrap();
    for name in names(&fixture("original")).iter().filter(|name| !name.contains('/')) {
        fs::copy(fixture("original").join(name), llm.join(name)).unwrap();
    }
    let mut config = read_json(&llm.join("config.json"));
    config["model_type"] = json!("llama");
    config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("mm_"));
    fs::write(llm.join("config.json"), config.to_string()).unwrap();
    let line = args![
        "assemble",
        "--vision",
        fixture("original/tower"),
        "--llm",
        llm,
        "--projector-weights",
        fixture("original/mm_projector.bin"),
        "--out",
        out,
        "--dtype",
        "f32"
    ];
    let ran = basic(line);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let losses = |dir: &Path| basic(args!["losses", dir, fixture("samples.jsonl"), "--device", "cpu", "--json"]).json();
    assert_eq!(losses(&out), losses(&fixture("original")));
}

#[test]
fn parts_that_do_not_fit_are_refused_and_leave_nothing() {
    let parts = Parts::new();
    let out = parts.dir.path().join("no");
    basic(parts.line(&out, &["--projector", "resampler"])).refused(1, &["resampler", "mlp{N}x_gelu"]);
    let swapped = args!["assemble", "--vision", parts.llm(), "--llm", parts.vision(), "--out", out];
    basic(swapped).refused(1, &["vision"]);
    fs::write(parts.llm().join("tokenizer.json"), "{\"model\": {}}").unwrap();
    basic(parts.line(&out, &[])).refused(1, &["tokenizer.json", "not a tokenizer"]);
    fs::remove_file(parts.llm().join("tokenizer.json")).unwrap();
    basic(parts.line(&out, &[])).refused(1, &["tokenizer.json"]);
    let far = Parts::new();
    let path = far.llm().join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    tokenizer["model"]["vocab"]["a"] = json!(4_000_000_000u32);
    fs::write(&path, tokenizer.to_string()).unwrap();
    basic(far.line(&out, &[])).refused(1, &["tokenizer.json", "4000000000"]);
    assert!(!out.exists());
}

#[test]
fn every_projector_trains_under_both_losses_and_comes_back() {
    let parts = Parts::new();
    let dir = parts.dir.path();
    let turns = json!([{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]);
    let sample = |image: &str| json!({"id": image, "image": image, "conversations": turns});
    fs::write(dir.join("data.json"), json!([sample("a.png"), sample("b.png")]).to_string()).unwrap();
    for (projector, native, visual) in [
        ("mlp2x_gelu", true, 16),
        ("linear", false, 16),
        ("mlp3x_gelu", false, 16),
        ("pixel_shuffle2_mlp2x_gelu", false, 4),
        ("perceiver_q7_l2", false, 7),
        ("qformer_q20_l2_w64", false, 20),
        ("c_abstractor_q9_l2_w24", false, 9),
        ("ldpv2_q4", false, 4),
    ] {
        let start = parts.assembled(projector, &["--projector", projector]);
        let config = read_json(&start.join("config.json"));
        assert_eq!(config["model_type"], if native { "llava" } else { "basic_llava" });
        assert_eq!(config["projector_type"], if native { Value::Null } else { json!(projector) });
        let losses = basic(args!["losses", start, fixture("samples.jsonl"), "--device", "cpu", "--json"]).json();
        // The fourth sample has one image, for which the reference counted 16 tokens.
        let reference = read_json(&fixture("expected/plain-default.json"));
        let tokens = |value: &Value| value["tokens"][3].as_u64().unwrap();
        assert_eq!(tokens(&losses), tokens(&reference) - 16 + visual, "{projector}");
        let recipe = format!(
            "stage = \"pretrain\"\nseed = 3\n[model]\nvision = \"{}\"\nllm = \"{}\"\nprojector = \"{projector}\"\n\
             [data]\npath = \"{}\"\nimages = \"{}\"\nconversation = \"vicuna_v1\"\n[optimizer]\nlr = 1e-3\n\
             [train]\nbatch_size = 2\nsteps = 2\n",
            parts.vision().display(),
            parts.llm().display(),
            dir.join("data.json").display(),
            fixture("images").display(),
        );
        fs::write(dir.join("recipe.toml"), recipe).unwrap();
        let out = dir.join(format!("{projector}-trained"));
        basic(args!["train", dir.join("recipe.toml"), "--out", out]).succeeded();
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        for loss in ["lm", "das", "sds"] {
            assert!(first[loss].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{projector}: {first}");
        }
        let (before, after) = (weights(&start), weights(&out));
        let projector_names = |all: &Tensors| -> BTreeSet<String> {
            all.keys().filter(|name| name.starts_with("multi_modal_projector.")).cloned().collect()
        };
        assert_eq!(projector_names(&before), projector_names(&after));
        // Another seed and two steps change every tensor of the projector and nothing else.
        for (name, tensor) in &after {
            assert_eq!(*tensor != before[name], name.starts_with("multi_modal_projector."), "{projector}: {name}");
        }
        // VIRAL compares with patches, which queries are not.
        let with_viral = ["--set", "objective.viral.weight=0.5", "--out"];
        let mut line = args!["train", dir.join("recipe.toml")];
        line.extend(with_viral.map(OsString::from));
        line.extend(args![dir.join(format!("{projector}-viral"))]);
        if projector.starts_with("perceiver") || projector.starts_with("qformer") {
            basic(line).refused(1, &["viral", "queries"]);
        } else {
            basic(line).succeeded();
        }
        let line = args!["generate", out, "--image", fixture("images/a.png"), "--prompt", "<image> it is", "--json"];
        assert_eq!(basic(line).json()["top5"].as_array().map(Vec::len), Some(5));
    }
}
