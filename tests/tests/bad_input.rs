//! What goes wrong, as a user meets it: exit code 2 for a wrong command line and 1 for everything else, one line on
//! standard error that names the file and the place, no panic, and nothing half-written.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{copy_of, fixture, names, read_json, tree};
use tests::{Ran, args, run, run_in_shell, tensors};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

/// A folder with a copy of a fixture checkpoint, to break.
struct Broken {
    dir: TempDir,
}

impl Broken {
    fn copy_of(checkpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_of(checkpoint, &dir.path().join("model"));
        Self { dir }
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.model().join("config.json");
        let mut config = read_json(&path);
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn tensors(&self, change: impl FnOnce(&mut tensors::Tensors)) {
        let path = self.model().join("model.safetensors");
        let mut all = tensors::read(&path);
        change(&mut all);
        tensors::write(&path, &all);
    }

    /// What each command that opens a checkpoint says: the same. Nothing is written.
    fn refused(&self, mentions: &[&str]) {
        let grads = self.dir.path().join("grads.safetensors");
        let line = args!["losses", self.model(), fixture("samples.jsonl"), "--json", "--grads", grads];
        let first = basic(line).refused(1, mentions);
        assert!(!grads.exists());
        let image = fixture("images/a.png");
        let line = args!["generate", self.model(), "--image", image, "--prompt", "<image> hi", "--greedy", "--json"];
        assert_eq!(basic(line).refused(1, mentions), first);
        let run = Run::new(&[good_sample()]);
        fs::write(run.dir.path().join("recipe.toml"), recipe(&self.model(), "data.json")).unwrap();
        assert_eq!(run.train(&[]).refused(1, mentions), first);
        assert!(!run.out().exists() || names(&run.out()).iter().all(|n| n == "run.json" || n == "metrics.jsonl"));
    }
}

/// A recipe, its data, and where its output goes.
struct Run {
    dir: TempDir,
}

fn recipe(checkpoint: &Path, data: &str) -> String {
    let (checkpoint, images) = (checkpoint.display(), fixture("images"));
    let images = images.display();
    format!(
        "stage = \"finetune\"\ndevice = \"cpu\"\n[model]\ncheckpoint = \"{checkpoint}\"\n[data]\npath = \"DIR/{data}\"\n\
         images = \"{images}\"\nconversation = \"vicuna_v1\"\n[train]\nbatch_size = 1\nsteps = 2\n"
    )
}

fn good_sample() -> Value {
    json!({"id": "good", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]})
}

impl Run {
    fn new(samples: &[Value]) -> Self {
        Self::with(&json!(samples).to_string())
    }

    fn with(data: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data.json"), data).unwrap();
        let run = Self { dir };
        run.recipe(&recipe(&fixture("plain"), "data.json"));
        run
    }

    fn recipe(&self, text: &str) {
        let text = text.replace("DIR", &self.dir.path().display().to_string());
        fs::write(self.dir.path().join("recipe.toml"), text).unwrap();
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn line(&self, more: &[&str]) -> Vec<OsString> {
        let path = self.dir.path().join("recipe.toml");
        let text = fs::read_to_string(&path).unwrap();
        self.recipe(&text);
        // Without lines of progress on standard output.
        let mut line = args!["train", path, "--out", self.out(), "--ui", "bar"];
        line.extend(more.iter().map(OsString::from));
        line
    }

    fn train(&self, more: &[&str]) -> Ran {
        basic(self.line(more))
    }

    /// Refused before anything was written.
    #[track_caller]
    fn refused(&self, mentions: &[&str]) -> String {
        let said = self.train(&[]).refused(1, mentions);
        assert!(!self.out().exists(), "{:?}", names(&self.out()));
        said
    }
}

/// A samples file for `basic losses` beside a copy of the fixture images.
fn samples(lines: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    copy_of("images", &dir.path().join("images"));
    let path = dir.path().join("samples.jsonl");
    fs::write(&path, lines).unwrap();
    (dir, path)
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_wrong_in_one_line() {
    let cases: [(Vec<OsString>, &str); 7] = [
        (args!["bogus"], "bogus"),
        (args!["losses", "somewhere"], "SAMPLES"),
        (args!["losses", "a", "b", "--layer-weights", "rising"], "use increasing, constant or decreasing"),
        (args!["losses", "a", "b", "--k", "many"], "--k"),
        (args!["losses", "a", "b", "--device", "gpu"], "use auto, cpu"),
        (args!["train", "r.toml", "--unknown"], "--unknown"),
        (args!["generate", "a", "--prompt", "hi"], "--image"),
    ];
    for (line, mention) in cases {
        basic(line).refused(2, &[mention]);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        assert!(basic(args![flag]).succeeded().stdout.contains("basic"));
    }
}

#[test]
fn a_device_that_was_not_compiled_in_says_how_to_get_it() {
    for (device, feature) in [("cuda", "--features cuda"), ("wgpu:0", "--features wgpu")] {
        if cfg!(feature = "cuda") && device == "cuda" || cfg!(feature = "wgpu") && device == "wgpu:0" {
            continue;
        }
        let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--device", device];
        basic(line).refused(1, &[device, feature]);
        Run::new(&[good_sample()]).train(&["--device", device]).refused(1, &[device, feature]);
    }
}

#[test]
fn a_device_that_lacks_the_type_is_refused() {
    for dtype in ["float16", "bfloat16"] {
        let on = |device: &str| args!["losses", fixture("plain"), fixture("samples.jsonl"), "--device", device];
        basic([on("ndarray"), args!["--dtype", dtype]].concat()).refused(1, &["ndarray", "--dtype"]);
        basic([on("cpu"), args!["--dtype", dtype]].concat()).succeeded();
    }
}

#[test]
fn k_beyond_the_decoders_layers_is_refused_with_the_number_of_layers() {
    for k in ["0", "5"] {
        // The fixture's decoder has 4 layers.
        basic(args!["losses", fixture("plain"), fixture("samples.jsonl"), "--k", k]).refused(1, &["4"]);
    }
}

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
    // No more tokens than rows, but a gap before one id.
    let broken = Broken::copy_of("plain");
    let path = broken.model().join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    tokenizer["model"]["vocab"]["a"] = json!(5000);
    fs::write(&path, tokenizer.to_string()).unwrap();
    broken.refused(&["tokenizer.json", "\"a\"", "5000", "359"]);
}

#[test]
fn a_missing_image_is_named() {
    let line = r#"{"image": "images/gone.png", "prompt": "<image>", "answer": "x"}"#;
    let (dir, path) = samples(line);
    let grads = dir.path().join("grads.safetensors");
    basic(args!["losses", fixture("plain"), path, "--grads", grads]).refused(1, &["images/gone.png", "No such file"]);
    assert!(!grads.exists());
    let gone = dir.path().join("gone.png");
    basic(args!["generate", fixture("plain"), "--image", gone, "--prompt", "<image>"]).refused(1, &["gone.png"]);
    let out = dir.path().join("out.safetensors");
    basic(args!["preprocess", fixture("plain"), gone, out]).refused(1, &["gone.png"]);
    assert!(!out.exists());

    let mut sample = good_sample();
    sample["image"] = json!("gone.png");
    Run::new(&[good_sample(), sample]).refused(&["data.json", "sample 1 (id good)", "gone.png", "does not exist"]);
}

#[test]
fn an_image_beyond_the_limit_on_pixels_is_named_and_the_limit_can_be_set() {
    let question = json!({ "image": "images/a.png", "text": "what is it?", "answer": "red", "category": "color" });
    let (_dir, questions) = samples(&question.to_string());
    // 28 x 28 pixels.
    for (limit, fits) in [("783", false), ("784", true)] {
        let out = questions.with_extension("out");
        let eval = args!["eval", fixture("plain"), questions, "--out", out, "--json", "--max-pixels", limit];
        let losses = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--json", "--max-pixels", limit];
        for line in [eval, losses] {
            let ran = basic(line);
            match fits {
                true => drop(ran.succeeded()),
                false => drop(ran.refused(1, &["a.png", "28 x 28", "783"])),
            }
        }
    }
}

#[test]
fn a_truncated_image_is_named() {
    let (dir, path) = samples(r#"{"image": "images/a.png", "prompt": "<image>", "answer": "x"}"#);
    let image = dir.path().join("images/a.png");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    basic(args!["losses", fixture("plain"), path]).refused(1, &["images/a.png"]);
    basic(args!["generate", fixture("plain"), "--image", image, "--prompt", "<image>"]).refused(1, &["images/a.png"]);
    let out = dir.path().join("out.safetensors");
    basic(args!["preprocess", fixture("plain"), image, out]).refused(1, &["images/a.png"]);
    assert!(!out.exists());

    let run = Run::new(&[good_sample()]);
    let images = dir.path().join("images").display().to_string();
    let text = recipe(&fixture("plain"), "data.json").replace(&fixture("images").display().to_string(), &images);
    run.recipe(&text);
    run.train(&[]).refused(1, &["images/a.png"]);
    assert_no_checkpoint(&run.out());
}

/// A run that failed leaves its record and its metrics at most.
#[track_caller]
fn assert_no_checkpoint(out: &Path) {
    if out.exists() {
        let left = names(out);
        assert!(
            left.iter().all(|n| n == "run.json" || n == "metrics.jsonl" || n.starts_with("tensorboard/")),
            "{left:?}"
        );
        if left.contains(&"run.json".to_string()) {
            assert_eq!(read_json(&out.join("run.json"))["status"], "failed");
        }
    }
}

#[test]
fn samples_of_losses_that_do_not_fit_are_named_by_their_line() {
    let good = r#"{"image": "images/a.png", "prompt": "<image>", "answer": "x"}"#;
    let cases = [
        (r#"{"image": "images/a.png", "prompt": "no place", "answer": "x"}"#, "<image>"),
        (r#"{"prompt": "<image>", "answer": "x"}"#, "<image>"),
        (r#"{"image": ["images/a.png", "images/b.png"], "prompt": "<image>", "answer": "x"}"#, "<image>"),
        (r#"{"image": 3, "prompt": "<image>", "answer": "x"}"#, ""),
        (r#"{"image": "images/a.png", "prompt": "<image>"}"#, "answer"),
        (r#"{"image": "images/a.png", "prompt": "<image>", "#, "EOF"),
        ("not json", "expected"),
    ];
    for (bad, mention) in cases {
        let (_dir, path) = samples(&format!("{good}\n\n{bad}\n"));
        basic(args!["losses", fixture("plain"), path]).refused(1, &["samples.jsonl:3", mention]);
    }
    let (_dir, path) = samples("\n");
    basic(args!["losses", fixture("plain"), path]).refused(1, &["samples.jsonl", "no sample"]);
}

#[test]
fn data_that_is_not_llavas_is_named_by_file_and_sample() {
    Run::with("caption,image\nred,a.png\n").refused(&["data.json", "line 1", "LLaVA"]);
    Run::with("[{\"id\": 1}, ").refused(&["data.json", "line 1", "LLaVA"]);
    Run::with("[]").refused(&["data.json", "no sample"]);
    Run::with("[3]").refused(&["data.json", "sample 0"]);
    Run::with(r#"{"images": [], "annotations": []}"#).refused(&["data.json", "sample 0", "conversations"]);
    Run::new(&[good_sample(), json!({"id": 7, "image": "a.png"})]).refused(&["sample 1 (id 7)", "conversations"]);
    let mut sample = good_sample();
    sample["conversations"][1]["from"] = json!("robot");
    Run::new(&[sample]).refused(&["sample 0 (id good)", "conversations[1].from", "robot"]);
    let mut sample = good_sample();
    sample["conversations"][0]["value"] = json!(["<image>"]);
    Run::new(&[sample]).refused(&["sample 0 (id good)", "conversations[0].value"]);
    let mut sample = good_sample();
    sample["image"] = json!({"path": "a.png"});
    Run::new(&[sample]).refused(&["sample 0 (id good)", "\"image\""]);
}

#[test]
fn an_image_without_its_place_and_a_place_without_its_image_are_refused() {
    let mut sample = good_sample();
    sample["conversations"][0]["value"] = json!("what is it?");
    Run::new(&[good_sample(), sample]).refused(&["data.json", "sample 1 (id good)", "<image>"]);
    let mut sample = good_sample();
    sample["image"] = Value::Null;
    Run::new(&[sample]).refused(&["data.json", "sample 0 (id good)", "<image>"]);
}

#[test]
fn a_sample_without_an_answer_is_refused() {
    let mut unanswered = good_sample();
    unanswered["conversations"].as_array_mut().unwrap().pop();
    Run::new(&[good_sample(), unanswered]).refused(&["data.json", "sample 1 (id good)", "answer"]);
    let mut empty = good_sample();
    empty["conversations"][1]["value"] = json!("");
    Run::new(&[empty]).refused(&["data.json", "sample 0 (id good)", "empty"]);
    let mut none = good_sample();
    none["conversations"] = json!([]);
    Run::new(&[none]).refused(&["data.json", "sample 0 (id good)"]);
}

#[test]
fn a_sample_longer_than_the_context_is_refused() {
    let mut sample = good_sample();
    sample["conversations"][1]["value"] = json!("x ".repeat(2048));
    // max_position_embeddings of the fixture is 2048.
    Run::new(&[sample]).refused(&["data.json", "sample 0 (id good)", "2048"]);
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
    // Sizes of the fixture: projector 32 to 48, MLP 48 to 96.
    broken.refused(&["linear_1.bias is [1, 48], not [48]", "gate_proj.weight is [1, 96, 48], not [96, 48]"]);
}

#[test]
fn missing_tensors_are_listed_all_at_once() {
    let broken = Broken::copy_of("plain");
    let absent = ["multi_modal_projector.linear_2.weight", "layers.1.self_attn.q_proj.weight", "lm_head.weight"];
    broken.tensors(|all| all.retain(|name, _| !absent.iter().any(|end| name.ends_with(end))));
    // 3 layers in the vision tower have a layers.1 too, with q_proj of its own: 4 in all.
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
    // A header of two terabytes.
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
    // The same parameter by its names in both generations.
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
        (|c| c["text_config"]["rope_parameters"]["rope_type"] = json!("yarn"), "rope", "yarn"),
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
    broken.config(|c| c["text_config"]["rope_scaling"] = json!({"type": "longrope", "factor": 2.0}));
    broken.refused(&["config.json", "rope_scaling", "longrope"]);
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

#[test]
fn a_recipe_with_an_unknown_key_names_the_line_and_the_key() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json");
    run.recipe(&text.replace("batch_size = 1", "batch_size = 1\nbatchsize = 2"));
    // Counted in `recipe`: stage, device, [model], checkpoint, [data], path, images, conversation, [train], batch_size.
    run.refused(&["recipe.toml", "line 11", "batchsize"]);
    run.recipe(&format!("{text}[optimiser]\nlr = 0.1\n"));
    run.refused(&["recipe.toml", "line 12", "optimiser"]);
}

#[test]
fn a_recipe_with_a_wrong_type_names_the_line() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json");
    run.recipe(&text.replace("steps = 2", "steps = \"two\""));
    run.refused(&["recipe.toml", "line 11", "string \"two\""]);
    run.recipe(&text.replace("device = \"cpu\"", "device = \"gpu\""));
    run.refused(&["recipe.toml", "line 2", "unknown device 'gpu'"]);
    run.recipe(&text.replace("\"finetune\"", "\"fine-tune\""));
    run.refused(&["recipe.toml", "line 1", "fine-tune"]);
}

#[test]
fn a_recipe_that_contradicts_itself_says_what_to_change() {
    let run = Run::new(&[good_sample()]);
    let text = recipe(&fixture("plain"), "data.json");
    run.recipe(&text.replace("batch_size = 1", "batch_size = 0"));
    run.refused(&["recipe.toml", "batch_size"]);
    run.recipe(&text.replace("steps = 2", "steps = 2\nepochs = 1.0"));
    run.refused(&["recipe.toml", "steps", "epochs"]);
    run.recipe(&text.replace("[data]", "vision = \"x\"\n[data]"));
    run.refused(&["recipe.toml", "checkpoint", "vision"]);
    basic(args!["train", "gone.toml"]).refused(1, &["gone.toml", "No such file"]);
}

#[test]
fn a_set_that_does_not_fit_is_named() {
    let run = Run::new(&[good_sample()]);
    for (set, mention) in [
        ("optimizer.rate=1", "rate"),
        ("nothing=1", "nothing"),
        ("train.steps=many", "many"),
        ("train.steps.more=1", "table"),
        ("steps", "key=value"),
        ("=1", "key"),
    ] {
        run.train(&["--set", set]).refused(1, &[&format!("--set {set}"), mention]);
        assert!(!run.out().exists());
    }
}

#[test]
fn a_directory_that_holds_a_run_is_refused_untouched_and_replaced_with_overwrite() {
    let run = Run::new(&[good_sample()]);
    run.train(&[]).succeeded();
    let before = tree(&run.out());
    run.train(&["--set", "train.steps=3"]).refused(1, &["out", "--overwrite"]);
    assert_eq!(tree(&run.out()), before);
    run.train(&["--set", "train.steps=3", "--overwrite"]).succeeded();
    let lines = fs::read_to_string(run.out().join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
    // An event file's name tells its time.
    let plain = |name: String| name.split_once("events.out").map_or(name.clone(), |(folder, _)| folder.into());
    let left: Vec<String> = names(&run.out()).into_iter().map(plain).collect();
    assert_eq!(left, before.iter().map(|(name, _)| plain(name.display().to_string())).collect::<Vec<_>>());
}

#[test]
fn overwrite_leaves_the_run_that_is_there_when_the_new_one_cannot_start() {
    let run = Run::new(&[good_sample()]);
    run.train(&[]).succeeded();
    let before = tree(&run.out());
    fs::write(run.dir.path().join("data.json"), "[]").unwrap();
    run.train(&["--overwrite"]).refused(1, &["data.json"]);
    assert_eq!(tree(&run.out()), before);
}

#[test]
fn a_folder_of_other_files_is_not_taken_for_an_output() {
    let run = Run::new(&[good_sample()]);
    fs::create_dir(run.out()).unwrap();
    fs::write(run.out().join("thesis.tex"), "years of work").unwrap();
    run.train(&[]).refused(1, &["out", "--overwrite"]);
    assert_eq!(names(&run.out()), ["thesis.tex"]);
}

#[test]
fn a_run_whose_loss_is_no_number_stops_at_that_step_without_a_checkpoint() {
    let run = Run::new(&[good_sample()]);
    run.train(&["--set", "optimizer.lr=1e30", "--set", "train.steps=8"]).refused(1, &["step ", "not finite"]);
    assert_no_checkpoint(&run.out());
}

/// A file system of `kib` KiB at `path`, until dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, said on standard error past the test harness, where mounting is not allowed.
    fn mount(path: &Path, kib: usize) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { path: path.into() });
        }
        let _ = writeln!(std::io::stderr(), "SKIPPED: the full disk: no tmpfs can be mounted here (needs root)");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

#[test]
fn a_full_disk_leaves_no_half_written_checkpoint() {
    // The checkpoint takes 620 KB: the record and the metrics fit, the weights do not.
    let run = Run::new(&[good_sample()]);
    let Some(_disk) = SmallDisk::mount(&run.dir.path().join("small"), 300) else { return };
    let out = run.dir.path().join("small/out");
    let line = args!["train", run.dir.path().join("recipe.toml"), "--out", out, "--ui", "bar"];
    basic(line).refused(1, &["model.safetensors", "No space left on device"]);
    assert_no_checkpoint(&out);

    let grads = run.dir.path().join("small/grads.safetensors");
    fs::write(run.dir.path().join("small/filler"), vec![1; 200 << 10]).unwrap();
    let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--grads", grads];
    basic(line).refused(1, &["grads.safetensors", "No space left on device"]);
    assert!(!grads.exists());
    let left = names(&run.dir.path().join("small"));
    assert!(left.iter().all(|name| name == "filler" || name.starts_with("out/")), "{left:?}");
}

#[test]
fn a_full_disk_does_not_cost_the_checkpoint_that_is_there() {
    let run = Run::new(&[good_sample()]);
    // Room for one checkpoint of 640 KB with its files, not for two.
    let Some(_disk) = SmallDisk::mount(&run.dir.path().join("small"), 900) else { return };
    let grads = run.dir.path().join("small/grads.safetensors");
    let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--grads", grads];
    basic(line.clone()).succeeded();
    let before = fs::read(&grads).unwrap();
    fs::write(run.dir.path().join("small/filler"), vec![1; 740 << 10]).unwrap();
    basic(line).refused(1, &["grads.safetensors", "No space left on device"]);
    assert_eq!(fs::read(&grads).unwrap(), before);
}

#[test]
fn a_write_that_fails_is_an_error_that_names_the_file() {
    // As a full disk, for users who may not mount one: no file may grow beyond 100 blocks of 512 bytes.
    let setup = "trap '' XFSZ; ulimit -f 100";
    let run = Run::new(&[good_sample()]);
    run_in_shell(setup, BASIC, run.line(&[])).refused(1, &["model.safetensors", "File too large"]);
    assert_no_checkpoint(&run.out());
    let grads = run.dir.path().join("grads.safetensors");
    let line = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--grads", grads];
    run_in_shell(setup, BASIC, line).refused(1, &["grads.safetensors", "File too large"]);
    let left = names(run.dir.path());
    assert!(left.iter().all(|n| n == "data.json" || n == "recipe.toml" || n.starts_with("out/")), "{left:?}");
}

#[test]
fn questions_that_do_not_fit_are_named_by_their_line_and_leave_no_predictions() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("questions.jsonl");
    let out = dir.path().join("predictions.jsonl");
    let good = r#"{"question_id": 1, "text": "what is it?", "answer": "a circle", "category": "shape"}"#;
    for (bad, mention) in [
        (r#"{"question_id": 2, "text": "what is it?"}"#, "questions.jsonl:2"),
        ("[", "questions.jsonl:2"),
        (r#"{"question_id": 2, "image": "gone.png", "text": "what?", "answer": "x"}"#, "gone.png"),
    ] {
        fs::write(&data, format!("{good}\n{bad}\n")).unwrap();
        basic(args!["eval", fixture("plain"), data, "--out", out, "--json"]).refused(1, &[mention]);
        assert!(!out.exists());
    }
}

#[test]
fn a_data_set_is_not_written_into_a_folder_that_holds_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let name = dir.path().display().to_string();
    let line = args!["data", "shapes", "--out", dir.path(), "--train", "4", "--validation", "4", "--eval", "4"];
    basic(line).refused(1, &[&name]);
    assert_eq!(names(dir.path()), ["thesis.tex"]);
}
