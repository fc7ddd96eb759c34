//! The supervision method VIRAL through `basic train`: training, output files, resuming, and refused settings.

use std::fs;
use std::path::{Path, PathBuf};

use tests::fixtures::{fixture, number, read_json, read_jsonl};
use tests::project::Project;
use tests::runs::killed_behind;
use tests::tensors;
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");
const HEAD: &str = "viral_head.safetensors";
/// A small head, for speed.
const COSINE: [&str; 2] = ["--set", "objective.viral.head_width=8"];
const GRAM: [&str; 2] = ["--set", "objective.viral.similarity=gram"];

/// A vision encoder with another size and grid than the fixture's: 6 x 6 patches instead of 4 x 4.
fn other_encoder() -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/vision");
    format!("objective.viral.target={:?}", dir.display().to_string())
}

/// A number from every step.
fn series(out: &Path, key: &str) -> Vec<f64> {
    read_jsonl(&out.join("metrics.jsonl")).iter().map(|step| number(&step[key])).collect()
}

#[test]
fn the_head_is_trained_and_lies_beside_a_checkpoint_that_holds_nothing_of_it() {
    let project = Project::new(BINARY, "finetune", 8);
    let plain = project.train("plain", &[]);
    let more = [&COSINE[..], &["--set", "parts.head.lr=1e-2"]].concat();
    let out = project.train("out", &more);
    let names = |out: &Path| tensors::read(&out.join("model.safetensors")).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&plain), names(&out));
    assert!(!plain.join(HEAD).exists());
    let head = tensors::read(&out.join(HEAD));
    let shapes: Vec<(&str, &[usize])> = head.iter().map(|(name, tensor)| (name.as_str(), &tensor.shape[..])).collect();
    // Sizes 48 (decoder), 8, 8 and 32 (vision encoder), with matrices [out, in] as in PyTorch.
    let expected: [(&str, &[usize]); 6] = [
        ("viral.layers.0.bias", &[8]),
        ("viral.layers.0.weight", &[8, 48]),
        ("viral.layers.1.bias", &[8]),
        ("viral.layers.1.weight", &[8, 8]),
        ("viral.layers.2.bias", &[32]),
        ("viral.layers.2.weight", &[32, 8]),
    ];
    assert_eq!(shapes, expected);
    let step = &read_jsonl(&out.join("metrics.jsonl"))[1];
    assert_eq!(number(&step["lrs"]["head"]), 1e-2);
    assert!(number(&step["grad_norms"]["head"]) > 0.0);
    let viral = series(&out, "viral");
    assert!(viral.iter().all(|value| (-1.0..=1.0).contains(value)), "a mean cosine: {viral:?}");
    assert!(viral[7] < viral[0] - 0.05, "the head has learned something: {viral:?}");
    let total = |step: usize| number(&read_jsonl(&out.join("metrics.jsonl"))[step]["total"]);
    let sum = |key: &str, weight: f64| series(&out, key)[3] * weight;
    let expected = sum("lm", 1.0) + sum("das", 0.5) + sum("sds", 0.1) + sum("viral", 0.5);
    assert!((total(3) - expected).abs() < 1e-5);
    assert!(read_jsonl(&plain.join("metrics.jsonl"))[0].get("viral").is_none(), "absent by default");
    // The recorded recipe has the layer that was chosen by default.
    assert_eq!(number(&read_json(&out.join("run.json"))["recipe"]["objective"]["viral"]["layer"]), 2.0);
    // A run that replaces this one also deletes the head.
    project.train("out", &["--overwrite"]);
    assert!(!out.join(HEAD).exists());
}

#[test]
fn accumulated_and_recomputed_gradients_are_those_of_the_whole_batch_at_once() {
    for stage in ["pretrain", "finetune"] {
        let project = Project::new(BINARY, stage, 6);
        for (name, method) in [("cosine", COSINE), ("gram", GRAM)] {
            let layer = ["--set", "objective.viral.layer=3", "--set", "objective.viral.weight=2.0"];
            let set = [&method[..], &layer].concat();
            let whole = project.train(&format!("{name}-whole"), &set);
            for (label, more) in [
                ("micro", &["--set", "train.micro_batch=1"][..]),
                ("recompute", &["--set", "train.recompute=true"]),
                ("both", &["--set", "train.micro_batch=2", "--set", "train.recompute=true"]),
            ] {
                let other = project.train(&format!("{name}-{label}"), &[&set[..], more].concat());
                for key in ["lm", "das", "sds", "viral", "total", "grad_norm"] {
                    for (a, b) in series(&whole, key).iter().zip(series(&other, key)) {
                        assert!((a - b).abs() <= 2e-5 * b.abs().max(0.1), "{stage} {name} {label}: {key} {a} and {b}");
                    }
                }
            }
        }
    }
}

#[test]
fn two_replicas_and_a_resumed_run_give_what_one_run_gives() {
    let project = Project::new(BINARY, "finetune", 8);
    let keep = ["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=20"];
    let encoder = other_encoder();
    let more = [&COSINE[..], &keep, &["--set", &encoder]].concat();
    let out = project.train("out", &more);
    let files = |out: &Path| ["model.safetensors", HEAD].map(|name| fs::read(out.join(name)).unwrap());
    let (expected, viral) = (files(&out), series(&out, "viral"));
    for step in [5, 1] {
        killed_behind(&out, step);
        run(BINARY, args!["train", "--resume", out]).succeeded();
        assert_eq!(series(&out, "viral"), viral);
        assert!(files(&out) == expected, "the same bytes from step {step} on");
    }
    // A state can only be resumed with the encoder that it was trained against.
    let copy = project.path().join("encoder");
    fs::create_dir(&copy).unwrap();
    for file in ["config.json", "preprocessor_config.json", "model.safetensors"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/vision").join(file), copy.join(file)).unwrap();
    }
    let target = format!("objective.viral.target={:?}", copy.display().to_string());
    let moved = project.train("moved", &[&COSINE[..], &keep, &["--set", &target]].concat());
    killed_behind(&moved, 3);
    let config = fs::read_to_string(copy.join("config.json")).unwrap();
    fs::write(copy.join("config.json"), config.replace("quick_gelu", "gelu")).unwrap();
    run(BINARY, args!["train", "--resume", moved]).refused(1, &["model's files are not what they were"]);
    let both = project.train("both", &[&more[..], &["--devices", "cpu,cpu"]].concat());
    for (a, b) in viral.iter().zip(series(&both, "viral")) {
        assert!((a - b).abs() <= 2e-5, "{a} and {b}");
    }
}

#[test]
fn the_next_stage_goes_on_with_the_head_and_refuses_one_that_does_not_fit() {
    let project = Project::new(BINARY, "pretrain", 4);
    let first = project.train("first", &[&COSINE[..], &["--set", "optimizer.lr=1e-2"]].concat());
    let from = format!("model.checkpoint={:?}", first.display().to_string());
    let next = ["--set", &from, "--set", "stage=finetune", "--set", "optimizer.lr=1e-30"];
    let second = project.train("second", &[&COSINE[..], &next].concat());
    assert!(fs::read(first.join(HEAD)).unwrap() == fs::read(second.join(HEAD)).unwrap());
    let line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("third")];
    let wrong = args!["--set", &from, "--set", "objective.viral.head_width=9"];
    let mentions = [HEAD, "viral.layers.0.weight", "[48, 8]", "[48, 9]", "start a fresh head"];
    run(BINARY, [line, wrong].concat()).refused(1, &mentions);
    assert!(!project.path().join("third").join("run.json").exists());
}

#[test]
fn another_encoders_grid_is_resampled_and_held_out_samples_are_looked_at_with_it() {
    let project = Project::new(BINARY, "pretrain", 2);
    let data = format!("eval.path={:?}", project.path().join("data.json").display().to_string());
    let images = format!("eval.images={:?}", fixture("images").display().to_string());
    let set = ["eval.every=1", "eval.samples=8", "eval.predictions=0", "optimizer.lr=1e-30", &data, &images];
    let mut values = Vec::new();
    for method in [COSINE, GRAM] {
        for target in ["objective.viral.target=vision", &other_encoder()] {
            let mut more = method.to_vec();
            set.iter().chain([&target]).for_each(|set| more.extend(["--set", set]));
            let out = project.train(&format!("out{}", values.len()), &more);
            let evaluations = read_jsonl(&out.join("eval.jsonl"));
            let value = number(&evaluations[0]["viral"]);
            assert_eq!(number(&evaluations[1]["viral"]), value, "at this rate the model stays as it is");
            let sum = number(&evaluations[0]["lm"])
                + 0.5 * number(&evaluations[0]["das"])
                + 0.1 * number(&evaluations[0]["sds"])
                + 0.5 * value;
            assert!((number(&evaluations[0]["total"]) - sum).abs() < 1e-9);
            values.push(value);
        }
    }
    // The settings give different values.
    for (i, a) in values.iter().enumerate() {
        assert!(values[..i].iter().all(|b| (a - b).abs() > 1e-4), "{values:?}");
    }
}

#[test]
fn what_does_not_fit_is_said_before_the_first_step() {
    let project = Project::new(BINARY, "finetune", 2);
    let nowhere: PathBuf = project.path().join("nowhere");
    let absent = format!("objective.viral.target={:?}", nowhere.display().to_string());
    let text = format!("objective.viral.target={:?}", fixture("images").display().to_string());
    for (sets, mentions) in [
        (&["objective.viral.layer=5"][..], &["viral.layer = 5", "1 to 4"][..]),
        (&["objective.viral.layer=0"], &["viral.layer is 0"]),
        (&["objective.viral.weight=-1.0"], &["viral.weight", "at least 0"]),
        (&["objective.viral.head_width=0"], &["viral.head_width", "at least 1"]),
        (&["objective.viral.similarity=dot"], &["dot", "cosine", "gram"]),
        (&["objective.viral.depth=2"], &["depth", "unknown field"]),
        (&[&absent], &["nowhere"]),
        (&[&text], &["config.json"]),
        (
            &["objective.viral.layer=2", "parts.vision.mode=full"],
            &["objective.viral.target", "vision encoder", "freeze it"],
        ),
        (&["parts.head.lr=1e-3"], &["parts.head", "no method with a head"]),
        (&["objective.viral.similarity=gram", "parts.head.lr=1e-3"], &["parts.head", "no method with a head"]),
        (&["objective.viral.layer=2", "parts.head.mode=frozen"], &["parts.head.mode"]),
    ] {
        let out = project.path().join("refused");
        let mut line = args!["train", project.path().join("recipe.toml"), "--out", out];
        sets.iter().for_each(|set| line.extend(args!["--set", set]));
        let said = run(BINARY, line).refused(1, mentions);
        assert!(!said.contains("panicked"), "{said}");
        assert!(!out.join("metrics.jsonl").exists(), "{sets:?}");
    }
}

#[test]
fn every_family_trains_under_both_methods_at_once() {
    let mut seen = 0;
    for entry in fs::read_dir(fixture("families")).unwrap() {
        let dir = entry.unwrap().path();
        let project = Project::new(BINARY, "finetune", 2);
        let checkpoint = format!("model.checkpoint={:?}", dir.display().to_string());
        let set = ["--set", &checkpoint, "--set", "objective.viral.head_width=8", "--set", "train.recompute=true"];
        let out = project.train("out", &set);
        for step in read_jsonl(&out.join("metrics.jsonl")) {
            for term in ["lm", "das", "sds", "viral"] {
                let value = number(&step[term]);
                assert!(value.is_finite() && value != 0.0, "{}: {term} {value}", dir.display());
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 35);
}
