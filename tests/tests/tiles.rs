//! Models that cut images into tiles (LLaVA-NeXT) through `basic`: training, what it may be combined with, evaluation, the
//! lens, and parts that become such a model. tests/tests/families.rs and training_reference.rs compare with transformers.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use basic_models::processor::tokenize_prompt;
use basic_models::{Checkpoint, ImageTokens};
use serde_json::json;
use tests::fixtures::{fixture, number, read_json, read_jsonl};
use tests::project::{Project, losses};
use tests::runs::killed_behind;
use tests::tensors;
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BINARY, args)
}

fn next() -> PathBuf {
    fixture("families/llama-next")
}

/// A training project over images of several aspect ratios, and the settings that make it one.
fn project(stage: &str, steps: usize) -> (Project, Vec<String>) {
    let project = Project::new(BINARY, stage, steps);
    let set = [
        format!("model.checkpoint={:?}", next().display().to_string()),
        format!("data.path={:?}", fixture("training/sizes.json").display().to_string()),
    ];
    (project, set.into_iter().flat_map(|set| ["--set".to_string(), set]).collect())
}

/// The settings with others.
fn with<'a>(set: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    set.iter().map(String::as_str).chain(more.iter().flat_map(|set| ["--set", set])).collect()
}

/// Whether each loss of every step is the same up to rounding.
fn alike(a: &Path, b: &Path, what: &str) {
    let (a, b) = (losses(a), losses(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!((a - b).abs() <= 2e-5 * b.abs().max(0.1), "{what}: {a} and {b}");
    }
}

#[test]
fn packed_accumulated_and_recomputed_runs_have_the_losses_of_the_whole_batch() {
    for stage in ["pretrain", "finetune"] {
        let (project, set) = project(stage, 5);
        // A plain batch keeps both terms and VIRAL's, whose images here have different numbers of patches.
        let viral = ["objective.viral.head_width=8", "objective.viral.layer=3"];
        let gram = ["objective.viral.similarity=gram", "objective.viral.layer=3"];
        for (method, own) in [("basic", &[][..]), ("cosine", &viral), ("gram", &gram)] {
            let whole = project.train(&format!("{method}-whole"), &with(&set, own));
            let found = read_jsonl(&whole.join("metrics.jsonl"));
            assert!(found.iter().all(|step| number(&step["das"]) > 0.0 && number(&step["sds"]) > 0.0));
            for (label, more) in [
                ("micro", &["train.micro_batch=1"][..]),
                ("recompute", &["train.recompute=true"]),
                ("packing", &["loader.packing=true", "loader.max_length=250"]),
                ("uncached", &["train.vision_cache_mib=0"]),
            ] {
                let other = project.train(&format!("{method}-{label}"), &with(&set, &[own, more].concat()));
                alike(&whole, &other, &format!("{stage} {method} {label}"));
                if method != "basic" {
                    let theirs = read_jsonl(&other.join("metrics.jsonl"));
                    for (a, b) in found.iter().zip(&theirs) {
                        let (a, b) = (number(&a["viral"]), number(&b["viral"]));
                        assert!(
                            (a - b).abs() <= 2e-5 * b.abs().max(0.1),
                            "{stage} {method} {label}: viral {a} and {b}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_store_of_features_and_a_resumed_run_change_no_bit() {
    let (project, set) = project("finetune", 6);
    let kept = format!("train.vision_store={:?}", project.path().join("features").display().to_string());
    let every = ["checkpoint.every=1", "checkpoint.keep_last=20"];
    let out = project.train("out", &with(&set, &every));
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    let expected = weights(&out);
    let newline = |dir: &Path| tensors::read(&dir.join("model.safetensors"))["image_newline"].values.clone();
    let before = project.path().join("before");
    basic(args!["convert", next(), before, "--dtype", "f32"]).succeeded();
    assert_ne!(newline(&out), newline(&before), "the newline embedding is trained with the projector");
    for (name, cache) in [("first", "train.vision_cache_mib=16"), ("second", "train.vision_cache_mib=0")] {
        let stored = project.train(name, &with(&set, &[every[0], every[1], &kept, cache]));
        assert!(weights(&stored) == expected, "{name}");
    }
    let count =
        |dir: &Path| fs::read_dir(dir).unwrap().map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count());
    assert_eq!(count(&project.path().join("features")).sum::<usize>(), 5, "a file for each image");
    killed_behind(&out, 3);
    basic(args!["train", "--resume", out]).succeeded();
    assert!(weights(&out) == expected, "resumed");
    let both = project.train("both", &with(&set, &[]).into_iter().chain(["--devices", "cpu,cpu"]).collect::<Vec<_>>());
    alike(&out, &both, "two replicas");
}

#[test]
fn a_sample_is_cut_before_an_image_and_never_inside_one() {
    let checkpoint = Checkpoint::open(next()).unwrap();
    let tiles = ["strip.png", "a.png"].map(|name| checkpoint.tiles(&fixture("images").join(name)).unwrap());
    let [strip, square] = [0, 1].map(|image| tiles[image].tokens());
    assert!(strip != square && tiles[0].newlines().len() > 0);
    let prompt = tokenize_prompt(&checkpoint.tokenizer, "see <image> and <image> here", &tiles).unwrap();
    let [first, second] = [0, 1].map(|image| prompt.image_positions[image].clone());
    let whole = ImageTokens::from(prompt);
    assert_eq!((whole.range(0), whole.range(1)), (first.clone(), second.clone()));
    assert_eq!(whole.newlines().count(), tiles[0].newlines().len() + tiles[1].newlines().len());
    for (length, images, left) in [
        (whole.ids.len(), 2, whole.ids.len()),
        (second.end, 2, second.end),
        // The last position is a newline, which belongs to the image.
        (second.end - 1, 1, second.start),
        (second.start, 1, second.start),
        (first.end, 1, first.end),
        (first.end - 1, 0, first.start),
        (first.start, 0, first.start),
        (1, 0, 1),
    ] {
        let mut cut = whole.clone();
        assert_eq!((cut.cut(length), cut.ids.len()), (images, left), "to {length}");
        assert_eq!((cut.images.len(), cut.tiles.len()), (images, images));
        assert!(cut.images.iter().flatten().chain(&cut.newlines().collect::<Vec<_>>()).all(|place| *place < left));
    }
    let (project, set) = project("finetune", 3);
    let left_out = project.train("skip", &with(&set, &["loader.max_length=205", "loader.too_long=skip"]));
    assert_eq!(read_jsonl(&left_out.join("metrics.jsonl")).len(), 3);
    let line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("refused")];
    let more = with(&set, &["loader.max_length=205"]);
    basic(line.into_iter().chain(more.into_iter().map(OsString::from)).collect()).refused(1, &["209 tokens"]);
}

#[test]
fn held_out_samples_choices_and_answers_use_tiles() {
    let (project, set) = project("pretrain", 2);
    let data = format!("eval.path={:?}", fixture("training/sizes.json").display().to_string());
    let images = format!("eval.images={:?}", fixture("images").display().to_string());
    let more = ["eval.every=1", "eval.samples=6", "eval.predictions=3", &data, &images];
    let out = project.train("out", &with(&set, &more));
    assert_eq!(read_jsonl(&out.join("eval.jsonl")).len(), 2);
    let questions = project.path().join("questions.jsonl");
    let lines: Vec<String> = ["wide.png", "tall.png", "strip.png", "a.png"]
        .iter()
        .map(|image| {
            json!({"image": image, "text": "what is it?", "answer": "red", "choices": ["red", "blue circle"]})
                .to_string()
        })
        .collect();
    fs::write(&questions, lines.join("\n")).unwrap();
    let eval = |more: &[&str]| {
        let line = args!["eval", out, questions, "--images", fixture("images"), "--device", "cpu", "--json"];
        basic(line.into_iter().chain(more.iter().map(OsString::from)).collect()).json()
    };
    let one = eval(&["--batch-size", "1"]);
    assert_eq!(one, eval(&["--batch-size", "4"]), "questions of different lengths in a batch");
    let ranked = eval(&["--choices", "likelihood"]);
    assert!(number(&ranked["rank"]) >= 1.0, "{ranked}");
    // A picture that cannot be read is named before the weights are read.
    fs::write(project.path().join("broken.png"), "no picture").unwrap();
    fs::write(&questions, json!({"image": "broken.png", "text": "what?", "answer": "red"}).to_string()).unwrap();
    basic(args!["eval", out, questions, "--images", project.path(), "--device", "cpu"]).refused(1, &["broken.png"]);
}

#[test]
fn the_lens_shows_the_base_image_and_refuses_to_replace_what_has_newlines() {
    let prompt = "USER: <image>\nwhat is it? ASSISTANT: red";
    let line =
        || args!["analyze", next(), "--image", fixture("images/wide.png"), "--prompt", prompt, "--device", "cpu"];
    let dir = tempfile::tempdir().unwrap();
    let read = basic(line().into_iter().chain(args!["--json", "--out", dir.path()]).collect()).json();
    let checkpoint = &read["checkpoints"][0];
    assert_eq!(checkpoint["grid"]["side"], 4);
    let image = &checkpoint["images"][0];
    assert_eq!(image["attention"].as_array().unwrap().len(), 16, "the base image's patches");
    for layer in image["layers"].as_array().unwrap() {
        assert_eq!(layer["nearest"].as_array().unwrap().len(), 16);
    }
    assert!(dir.path().join("lens.html").exists());
    basic(line().into_iter().chain(args!["--replace"]).collect()).refused(1, &["--replace", "tiles"]);
    let data = dir.path().join("questions.jsonl");
    let question = json!({"image": "a.png", "text": "what?", "answer": "x", "choices": ["x", "y"]});
    fs::write(&data, question.to_string()).unwrap();
    let ranked = args!["eval", next(), data, "--images", fixture("images"), "--choices", "likelihood", "--replace"];
    basic(ranked).refused(1, &["--replace", "tiles"]);
    // A study says so before it trains anything.
    let captions = fixture("training/sizes.json");
    for (measure, evaluation) in [
        ("replaced_choices", format!("choices = {{ data = {data:?}, images = {:?} }}", fixture("images"))),
        ("lens", format!("lens = {{ data = {captions:?}, images = {:?}, replace = true }}", fixture("images"))),
    ] {
        let (study, out) = (dir.path().join(format!("{measure}.toml")), dir.path().join(measure));
        let text = format!(
            r#"
name = "Tiles"
seeds = [0]
[[stages]]
name = "pretrain"
measure = ["{measure}"]
[stages.recipe]
stage = "pretrain"
model.checkpoint = {:?}
data = {{ path = {captions:?}, images = {:?} }}
train = {{ steps = 1, batch_size = 2 }}
[evaluation]
{evaluation}
[[factors]]
name = "losses"
baseline = "both"
cells = [{{ name = "both" }}]
"#,
            next(),
            fixture("images"),
        );
        fs::write(&study, text).unwrap();
        let ran = basic(args!["ablate", study, "--out", out, "--device", "cpu"]);
        assert_eq!(ran.code, Some(1), "{ran:#?}");
        let said = format!("{measure}.toml: {measure} cannot be measured: the model cuts images into tiles");
        assert!(ran.stderr.contains(&said), "{}", ran.stderr);
        let runs = out
            .join("cells")
            .read_dir()
            .map_or(0, |cells| cells.filter(|cell| cell.as_ref().unwrap().path().join("run").exists()).count());
        assert_eq!(runs, 0, "{measure}: nothing was trained");
    }
}

#[test]
fn plan_and_inspect_count_the_most_that_an_image_can_have() {
    let (project, set) = project("finetune", 2);
    let line = args!["train", project.path().join("recipe.toml"), "--plan", "--json"];
    let plan = basic(line.into_iter().chain(with(&set, &[]).into_iter().map(OsString::from)).collect()).json();
    // 16 patches of the base image, and 8 rows of 8 with a newline each.
    assert_eq!(number(&plan["visual_tokens"]), 88.0);
    let inspected = basic(args!["inspect", next(), "--json"]).json();
    assert_eq!(inspected["architecture"]["most_visual_tokens"], 88);
    assert_eq!(inspected["loads"], true);
}

#[test]
fn what_does_not_fit_is_refused_with_its_name() {
    let (project, set) = project("finetune", 2);
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/vision");
    let encoder = format!("objective.viral.target={:?}", encoder.display().to_string());
    for (more, named) in [
        (&[encoder.as_str()][..], &["viral.target", "tiles"][..]),
        (&["model.image_aspect_ratio=\"pad\""], &["image_aspect_ratio", "image_grid_pinpoints"]),
        (&["model.image_grid_pinpoints=[[28, 28]]"], &["image_grid_pinpoints", "leave"]),
    ] {
        let line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("refused")];
        basic(line.into_iter().chain(with(&set, more).into_iter().map(OsString::from)).collect()).refused(1, named);
    }
    let copy = |name: &str| {
        let to = project.path().join(name);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(next()).unwrap().map(|file| file.unwrap().path()) {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
        to
    };
    for (name, change, named) in [
        ("uneven", json!({"image_grid_pinpoints": [[28, 50]]}), "multiples of the vision encoder's image size"),
        ("other", json!({"image_grid_pinpoints": [[28, 56]]}), "preprocessor_config.json"),
        ("none", json!({"image_grid_pinpoints": []}), "image_grid_pinpoints"),
        ("text", json!({"image_grid_pinpoints": "28x28"}), "image_grid_pinpoints"),
        ("many", json!({"image_grid_pinpoints": vec![[28, 28]; 200]}), "image_grid_pinpoints"),
        ("full", json!({"vision_feature_select_strategy": "full"}), "vision_feature_select_strategy"),
        ("newline", json!({"use_image_newline_parameter": false}), "use_image_newline_parameter"),
    ] {
        let dir = copy(name);
        let mut config = read_json(&dir.join("config.json"));
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let line = args!["generate", dir, "--image", fixture("images/a.png"), "--prompt", "<image>", "--device", "cpu"];
        basic(line).refused(1, &[named]);
    }
    let out = project.path().join("gguf");
    basic(args!["convert", next(), out, "--gguf"]).refused(1, &["image_grid_pinpoints"]);
}

#[test]
fn parts_become_a_model_that_cuts_images_and_trains() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let side = number(&read_json(&assets.join("vision/config.json"))["image_size"]) as usize;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("assembled");
    let pinpoints = format!("{side}x{0},{0}x{side},{0}x{0}", 2 * side);
    let line = || args!["assemble", "--vision", assets.join("vision"), "--llm", assets.join("llm"), "--out", out];
    basic(line().into_iter().chain(args!["--image-grid-pinpoints", pinpoints, "--dtype", "f32"]).collect()).succeeded();
    let config = read_json(&out.join("config.json"));
    assert_eq!(
        (config["model_type"].as_str(), config["architectures"][0].as_str()),
        (Some("llava_next"), Some("LlavaNextForConditionalGeneration"))
    );
    assert_eq!(config["image_grid_pinpoints"], json!([[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]));
    let processor = read_json(&out.join("preprocessor_config.json"));
    assert_eq!(processor["image_processor_type"], "LlavaNextImageProcessor");
    assert_eq!(read_json(&out.join("processor_config.json"))["processor_class"], "LlavaNextProcessor");
    let newline = &tensors::read(&out.join("model.safetensors"))["image_newline"];
    let width = newline.values.len() as f32;
    let length = newline.values.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((0.7..1.3).contains(&length), "drawn with a standard deviation of 1/sqrt({width}): length {length}");
    for wrong in ["28", "0x28", "28x-1", "28x"] {
        let line = line().into_iter().chain(args!["--image-grid-pinpoints", wrong]).collect();
        basic(line).refused(2, &["HEIGHTxWIDTH"]);
    }
    let odd = format!("{}x{side}", side + 1);
    let other = args!["assemble", "--vision", assets.join("vision"), "--llm", assets.join("llm"), "--out"];
    let odd = args![dir.path().join("odd"), "--image-grid-pinpoints", odd];
    basic([other, odd].concat()).refused(1, &["image_grid_pinpoints"]);

    // The same from a recipe; both projectors are drawn from the seed.
    let project = Project::new(BINARY, "pretrain", 2);
    let text = fs::read_to_string(project.path().join("recipe.toml")).unwrap();
    let (vision, llm, twice) = (assets.join("vision"), assets.join("llm"), 2 * side);
    let parts =
        format!("vision = {vision:?}\nllm = {llm:?}\nimage_grid_pinpoints = [[{side}, {twice}], [{twice}, {side}]]");
    let checkpoint = format!("checkpoint = \"{}\"", fixture("plain").display());
    assert!(text.contains(&checkpoint));
    fs::write(project.path().join("recipe.toml"), text.replace(&checkpoint, &parts)).unwrap();
    let trained = project.train("out", &[]);
    assert_eq!(read_json(&trained.join("config.json"))["model_type"], "llava_next");
    let plan = basic(args!["train", project.path().join("recipe.toml"), "--plan", "--json"]).json();
    let patches = number(&read_json(&assets.join("vision/config.json"))["patch_size"]) as usize;
    let grid = side / patches;
    assert_eq!(
        number(&plan["visual_tokens"]) as usize,
        (grid * grid + grid * (2 * grid + 1)).max(grid * grid + 2 * grid * (grid + 1))
    );
    // Its own projector names no transformers class.
    let linear = dir.path().join("linear");
    let line = args!["assemble", "--vision", assets.join("vision"), "--llm", assets.join("llm"), "--out", linear];
    let more = args!["--projector", "linear", "--image-grid-pinpoints", format!("{side}x{}", 2 * side)];
    basic([line, more].concat()).succeeded();
    assert_eq!(read_json(&linear.join("config.json"))["model_type"], "basic_llava");
    let line =
        args!["generate", linear, "--image", fixture("images/wide.png"), "--prompt", "<image>", "--device", "cpu"];
    basic([line, args!["--max-new-tokens", "2", "--greedy", "--json"]].concat()).json();
}
