//! Features of frozen vision encoders that runs and studies share on disk (`train.vision_store`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use basic_data::DataSet;
use basic_models::Checkpoint;
use basic_train::recipe::Recipe;
use basic_train::train::{Trainer, prepare_model};
use burn::tensor::DType;
use serde_json::Value;
use tests::fixtures::{fixture, read_json};
use tests::project::Project;
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");
/// Four different images.
const IMAGES: usize = 4;

/// The store's files, and when they were written.
fn files(store: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let folders = fs::read_dir(store).into_iter().flatten().map(|folder| folder.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|file| file.unwrap()));
    files.map(|file| (file.path(), file.metadata().unwrap().modified().unwrap())).collect()
}

fn set(store: &Path) -> String {
    format!("train.vision_store={:?}", store.display().to_string())
}

/// The weights, and the text of each step before the learning rate, and so without the times.
fn trained(out: &Path) -> (Vec<u8>, Vec<String>) {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| line.split_once(",\"lr\"").unwrap().0.to_string()).collect();
    (fs::read(out.join("model.safetensors")).unwrap(), lines)
}

#[test]
fn runs_with_a_store_are_those_without_and_the_second_writes_nothing() {
    let viral = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/vision");
    let viral = format!("objective.viral.target={:?}", viral.display().to_string());
    let rival = ["--set", &viral, "--set", "objective.viral.head_width=8"];
    // Training and evaluation compute with different kernels; the other encoder is the same in both.
    for (stage, more, kept) in [("pretrain", &[][..], 2 * IMAGES), ("finetune", &rival[..], 3 * IMAGES)] {
        let project = Project::new(BINARY, stage, 6);
        let held_out = project.path().join("data.json").display().to_string();
        let held_out =
            [format!("eval.path={held_out:?}"), format!("eval.images={:?}", fixture("images").display().to_string())];
        let [path, images] = &held_out;
        let more = [more, &["--set", path, "--set", images, "--set", "eval.every=3"]].concat();
        let without = project.train("without", &more);
        let store = project.path().join("features");
        let kept_at = set(&store);
        let with = [&more[..], &["--set", &kept_at]].concat();
        let first = project.train("first", &with);
        let written = files(&store);
        assert_eq!(written.len(), kept, "{stage}");
        // Not kept in memory either: every step reads the store.
        let second = project.train("second", &[&with[..], &["--set", "train.vision_cache_mib=0"]].concat());
        assert_eq!(files(&store), written, "{stage}: nothing was encoded again");
        for out in [&first, &second] {
            assert!(trained(out) == trained(&without), "{stage}: {}", out.display());
        }
        let evaluations = |out: &Path| -> Vec<String> {
            let text = fs::read_to_string(out.join("eval.jsonl")).unwrap();
            text.lines().map(|line| line.split_once(",\"seconds\"").unwrap().0.to_string()).collect()
        };
        assert_eq!(evaluations(&second), evaluations(&without));
    }
}

#[test]
fn a_trained_encoder_uses_no_store_and_a_run_does_not_replace_one() {
    let project = Project::new(BINARY, "finetune", 2);
    let store = project.path().join("features");
    project.train("out", &["--set", &set(&store), "--set", "parts.vision.mode=full"]);
    assert!(!store.exists());
    let inside = project.path().join("out/features");
    let line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("out"), "--overwrite"];
    run(BINARY, line.into_iter().chain(args!["--set", set(&inside)])).refused(1, &["features"]);
    let file = project.path().join("data.json");
    let line =
        args!["train", project.path().join("recipe.toml"), "--out", project.path().join("new"), "--set", set(&file)];
    run(BINARY, line).refused(1, &["data.json"]);
}

#[test]
fn a_full_or_unusable_store_does_not_end_a_run() {
    let project = Project::new(BINARY, "pretrain", 2);
    let store = project.path().join("features");
    project.train("full", &["--set", &set(&store), "--set", "train.vision_store_mib=0"]);
    assert!(!store.exists());
    // Where the files' folders should be there are files.
    fs::create_dir(&store).unwrap();
    (0..256).for_each(|n| fs::write(store.join(format!("{n:02x}")), "").unwrap());
    let out = project.path().join("out");
    let line = args!["train", project.path().join("recipe.toml"), "--out", out, "--set", set(&store)];
    let ran = run(BINARY, line);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.stderr.contains("no more features are kept"), "{}", ran.stderr);
}

#[test]
fn a_second_run_encodes_no_image() {
    let project = Project::new(BINARY, "pretrain", 3);
    let text = fs::read_to_string(project.path().join("recipe.toml")).unwrap();
    let store = project.path().join("features");
    let path = project.path().join("with.toml");
    fs::write(&path, format!("{text}vision_store = {:?}\n", store.display().to_string())).unwrap();
    let recipe = Recipe::open(&path, &[]).unwrap();
    let encoded = || {
        let checkpoint = Checkpoint::open(fixture("plain")).unwrap();
        let device = recipe.device.open().unwrap().autodiff();
        let mut model = prepare_model(&recipe, checkpoint.load(DType::F32, &device).unwrap()).unwrap();
        let data = Arc::new(DataSet::open(&recipe.data, recipe.seed).unwrap());
        let mut trainer = Trainer::new(&recipe, &checkpoint, data).unwrap();
        let mut losses = Vec::new();
        while trainer.done() < trainer.steps() {
            let step;
            (model, step) = trainer.step(model).unwrap();
            losses.push(step.total);
        }
        (trainer.encoded_images().unwrap(), losses)
    };
    let (first, second) = (encoded(), encoded());
    assert_eq!((first.0, second.0), (IMAGES as u64, 0));
    assert_eq!(first.1, second.1);
}

const STUDY: &str = r#"
name = "Tiny"
seeds = [0]
baseline = "none"
world = { train = 8, validation = 2, eval = 4 }

[recipe]
train.batch_size = 4
train.steps = 2

[[stages]]
name = "pretrain"
measure = ["accuracy", "caption_loss"]
recipe = { stage = "pretrain", model.vision = "world:backbones/vision", model.llm = "world:backbones/llm", data.path = "world:data/pretrain.json" }

[[stages]]
name = "finetune"
recipe = { stage = "finetune", data.path = "world:data/finetune.json" }

[evaluation]
questions = "world:data/eval.jsonl"
shapes = "world:data"
max_new_tokens = 4
limit = 8

[[factors]]
name = "losses"
cells = [
    { name = "none", set = { objective.das = false, objective.sds = false } },
    { name = "both" },
]
"#;

#[test]
fn a_study_with_a_store_has_the_same_hashes_and_results_and_fills_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let study = dir.path().join("tiny.toml");
    fs::write(&study, STUDY).unwrap();
    let store = dir.path().join("features");
    let results = |out: &str, more: &[&str]| -> BTreeMap<String, Value> {
        let out = dir.path().join(out);
        let line = args!["ablate", study, "--out", out, "--device", "cpu"];
        let ran = run(BINARY, line.into_iter().chain(more.iter().map(OsString::from)));
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        let cells = fs::read_dir(out.join("cells")).unwrap().map(|cell| cell.unwrap());
        let values = |cell: &fs::DirEntry| read_json(&cell.path().join("result.json"))["values"].clone();
        cells.map(|cell| (cell.file_name().to_string_lossy().into_owned(), values(&cell))).collect()
    };
    let without = results("without", &[]);
    assert_eq!(without.len(), 4);
    let set = set(&store);
    assert_eq!(results("first", &["--set", &set]), without);
    let written = files(&store);
    assert!(!written.is_empty());
    assert_eq!(results("second", &["--set", &set]), without);
    assert_eq!(files(&store), written, "neither training nor measuring encodes again");
}
