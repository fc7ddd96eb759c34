//! `basic train` and the use of its output, on a tiny checkpoint: both CPU backends and repeated runs give the same
//! numbers, the right parts are trained, and Hugging Face's tools and ours can read the directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use basic_models::checkpoint::Layout;
use serde_json::json;
use tests::fixtures::{fixture, names, number, read_json, read_jsonl, text, tree};
use tests::project::{LOSSES, Project, losses};
use tests::tensors::{self, Tensor};
use tests::{Ran, args, run};

/// The tolerance of losses on two backends, relative to the larger one (docs/architecture.md, "Contracts").
const BACKENDS: f64 = 1e-3;
const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(args: Vec<OsString>) -> Ran {
    run(BINARY, args)
}

/// The weights by their canonical names, whatever the layout of the directory.
fn weights(dir: &Path) -> BTreeMap<String, Tensor> {
    let named = tensors::read(&dir.join("model.safetensors"));
    named.into_iter().filter_map(|(name, t)| Some((Layout::Llava.canonical(&name)?, t))).collect()
}

/// The parts of the model whose tensors differ from the starting checkpoint's. In such a part all tensors must differ.
fn changed_parts(dir: &Path) -> Vec<&'static str> {
    let (before, after) = (weights(&fixture("plain")), weights(dir));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let mut changed = Vec::new();
    for part in ["vision_tower", "multi_modal_projector", "language_model", "lm_head"] {
        let of_part: Vec<&String> = before.keys().filter(|name| name.starts_with(part)).collect();
        let moved: Vec<&String> = of_part.iter().copied().filter(|name| before[*name] != after[*name]).collect();
        assert!(moved.is_empty() || moved == of_part, "{part}: {moved:?} changed, of {of_part:?}");
        if !moved.is_empty() {
            changed.push(part);
        }
    }
    changed
}

#[test]
fn the_first_20_losses_are_the_same_on_cpu_and_ndarray() {
    for stage in ["pretrain", "finetune"] {
        let project = Project::new(BINARY, stage, 20);
        let cpu = losses(&project.train("cpu", &[]));
        let ndarray = losses(&project.train("ndarray", &["--device", "ndarray"]));
        assert_eq!((cpu.len(), ndarray.len()), (20, 20));
        let mut largest = [0.0_f64; 4];
        for (a, b) in cpu.iter().zip(&ndarray) {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                largest[i] = largest[i].max((a - b).abs() / b.abs().max(1.0));
            }
        }
        println!("{stage}: largest differences of {LOSSES:?}: {largest:?}");
        assert!(largest.iter().all(|x| *x <= BACKENDS), "{stage}: {largest:?}");
        assert!(cpu[19][3] < cpu[0][3], "{stage}: the total falls: {} to {}", cpu[0][3], cpu[19][3]);
        assert!(cpu.iter().all(|step| (step[0] + 0.5 * step[1] + 0.1 * step[2] - step[3]).abs() < 1e-4));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_other_ones() {
    let project = Project::new(BINARY, "finetune", 6);
    // The text of each line before the learning rate, and so without the times.
    let written = |out: &Path| -> Vec<String> {
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        text.lines().map(|line| line.split_once(",\"lr\"").expect("lr follows the losses").0.to_string()).collect()
    };
    let first = project.train("first", &[]);
    let again = project.train("again", &[]);
    assert_eq!(written(&first), written(&again));
    assert!(written(&first)[0].contains("\"total\""));
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&first) == weights(&again), "model.safetensors is the same, byte for byte");
    let other = project.train("other", &["--set", "seed=6"]);
    assert_ne!(written(&first), written(&other));
}

#[test]
fn accumulated_and_recomputed_gradients_are_those_of_the_whole_batch_at_once() {
    // The largest relative difference of a loss over 8 steps, because sums in another order differ by rounding.
    let project = Project::new(BINARY, "finetune", 8);
    let all = "train.trainable=[\"vision\", \"projector\", \"decoder\"]";
    for parts in [&[][..], &["--set", all], &["--set", "stage=pretrain"]] {
        let name = |suffix: &str| format!("{suffix}-{}", parts.len() + parts.last().map_or(0, |p| p.len()));
        let whole = losses(&project.train(&name("whole"), parts));
        for (label, more) in [
            ("micro", &["--set", "train.micro_batch=1"][..]),
            ("recompute", &["--set", "train.recompute=true"]),
            ("both", &["--set", "train.micro_batch=2", "--set", "train.recompute=true"]),
        ] {
            let other = losses(&project.train(&name(label), &[parts, more].concat()));
            assert_eq!(whole.len(), other.len());
            for (a, b) in whole.iter().flatten().zip(other.iter().flatten()) {
                assert!((a - b).abs() <= 2e-5 * b.abs().max(0.1), "{label} {parts:?}: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_run_in_bfloat16_follows_the_one_in_float32_and_saves_its_type() {
    let project = Project::new(BINARY, "finetune", 8);
    let whole = losses(&project.train("f32", &[]));
    let out = project.train("bf16", &["--set", "train.dtype=bfloat16"]);
    for (a, b) in whole.iter().zip(losses(&out)) {
        // bf16 has eight bits of mantissa, and the random model has four layers.
        assert!((a[3] - b[3]).abs() <= 0.05 * a[3].abs(), "{a:?} and {b:?}");
    }
    assert_eq!(text(&read_json(&out.join("config.json"))["dtype"]), "bfloat16");
    assert!(losses(&out)[7][3] < losses(&out)[0][3]);
}

#[test]
fn parts_have_learning_rates_of_their_own() {
    let project = Project::new(BINARY, "finetune", 3);
    let out = project.train("out", &["--set", "parts.decoder.lr=0", "--set", "parts.projector.lr=1e-3"]);
    assert_eq!(changed_parts(&out), ["multi_modal_projector"]);
    let step = &read_jsonl(&out.join("metrics.jsonl"))[1];
    assert_eq!(step["lrs"], json!({"decoder": 0.0, "projector": 1e-3}));
    assert!(number(&step["grad_norms"]["decoder"]) > 0.0);
    let line = args!["train", project.path().join("recipe.toml"), "--set", "parts.vision.rank=4", "--out", "x"];
    basic(line).refused(1, &["recipe.toml", "parts.vision.rank needs mode"]);
}

#[test]
fn a_held_out_set_is_looked_at_on_the_way_and_the_best_state_stays() {
    let project = Project::new(BINARY, "finetune", 8);
    let data = format!("eval.path={:?}", project.path().join("data.json").display().to_string());
    let images = format!("eval.images={:?}", fixture("images").display().to_string());
    let set = ["eval.every=2", "eval.samples=5", "eval.predictions=2", "eval.max_new_tokens=3", "checkpoint.every=2"];
    let mut more =
        vec!["--set", &data, "--set", &images, "--set", "checkpoint.keep_last=1", "--set", "optimizer.lr=3e-2"];
    set.iter().for_each(|set| more.extend(["--set", set]));
    let out = project.train("out", &more);
    let evaluations = read_jsonl(&out.join("eval.jsonl"));
    assert_eq!(evaluations.iter().map(|e| e["step"].clone()).collect::<Vec<_>>(), [2, 4, 6, 8]);
    for evaluation in &evaluations {
        assert_eq!((evaluation["samples"].as_u64(), evaluation["predictions"].as_array().unwrap().len()), (Some(5), 2));
    }
    let total = |step: usize| number(&evaluations[step / 2 - 1]["total"]);
    let best = [2, 4, 6, 8].into_iter().min_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap();
    let mut kept = vec![format!("step-{best:08}"), "step-00000008".to_string()];
    kept.dedup();
    let mut left: Vec<String> = fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, kept);
}

#[test]
fn every_step_and_the_run_itself_are_on_record() {
    let project = Project::new(BINARY, "finetune", 4);
    let out = project.train("out", &[]);
    let steps = read_jsonl(&out.join("metrics.jsonl"));
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], index + 1);
        for key in ["lm", "das", "sds", "total", "lr", "grad_norm", "samples_per_s"] {
            assert!(number(&step[key]).is_finite(), "{key}");
        }
    }
    assert_eq!(steps.len(), 4);
    let record = read_json(&out.join("run.json"));
    assert_eq!(record["status"], "done");
    assert_eq!(record["recipe"]["seed"], 5);
    assert_eq!(record["recipe"]["objective"]["k"], 2, "half of the fixture's four layers");
    assert_eq!(record["recipe"]["train"]["trainable"], json!(["projector", "decoder"]));
    assert!(!text(&record["version"]).is_empty() && !text(&record["burn"]).is_empty());
    assert!(record.as_object().unwrap().contains_key("revision"));
}

#[test]
fn pretraining_changes_the_projector_alone() {
    let project = Project::new(BINARY, "pretrain", 3);
    let out = project.train("out", &[]);
    assert_eq!(changed_parts(&out), ["multi_modal_projector"]);
}

#[test]
fn finetuning_changes_the_projector_and_the_decoder_but_not_the_vision_tower() {
    let project = Project::new(BINARY, "finetune", 3);
    let out = project.train("out", &[]);
    // The embedding rows of absent tokens get no gradient, but the tensor as a whole moves.
    assert_eq!(changed_parts(&out), ["multi_modal_projector", "language_model", "lm_head"]);
}

#[test]
fn the_output_is_a_hugging_face_llava_directory_that_generate_reads() {
    let project = Project::new(BINARY, "finetune", 2);
    let out = project.train("out", &[]);
    let expected = [
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "run.json",
        "tensorboard/events",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let plain = |name: String| match name.split_once("events.out.tfevents.") {
        Some((folder, _)) => format!("{folder}events"),
        None => name,
    };
    assert_eq!(names(&out).into_iter().map(plain).collect::<Vec<_>>(), expected);
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["architectures"], json!(["LlavaForConditionalGeneration"]));
    let line = args!["generate", out, "--image", fixture("images/a.png"), "--prompt", "USER: <image>\\nhi ASSISTANT:"];
    let answer = basic([line, args!["--max-new-tokens", "4", "--greedy", "--json", "--device", "cpu"]].concat()).json();
    assert!((1..=4).contains(&answer["ids"].as_array().unwrap().len()));
    let line = args!["losses", out, fixture("samples.jsonl"), "--json", "--device", "cpu"];
    assert!(number(&basic(line).json()["lm"]) > 0.0);
}

#[test]
fn a_run_can_start_from_what_another_one_wrote() {
    let project = Project::new(BINARY, "pretrain", 3);
    let first = project.train("first", &[]);
    let checkpoint = format!("model.checkpoint={:?}", first.display().to_string());
    let second = project.train("second", &["--set", &checkpoint, "--set", "stage=finetune"]);
    assert_eq!(losses(&second).len(), 3);
    assert_eq!(read_json(&second.join("run.json"))["recipe"]["stage"], "finetune");
}

#[test]
fn evaluation_keeps_every_prediction_and_scores_exact_match_by_type() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("questions.jsonl");
    let kept = dir.path().join("kept.jsonl");
    let ask = |answers: &[&str]| {
        let questions = [
            json!({"question_id": 1, "image": "a.png", "text": "what is it?", "answer": answers[0], "category": "shape"}),
            json!({"question_id": 2, "image": "b.png", "text": "<image>\nhow many?", "answer": answers[1], "category": "count"}),
            json!({"question_id": 3, "text": "is the grass green?", "answer": answers[2], "category": "count"}),
        ];
        fs::write(&data, questions.map(|q| q.to_string()).join("\n")).unwrap();
        let (checkpoint, images) = (fixture("plain"), fixture("images"));
        let line = args!["eval", checkpoint, data, "--images", images, "--out", kept, "--max-new-tokens", "3"];
        let scores = basic([line, args!["--device", "cpu", "--json"]].concat()).json();
        (scores, read_jsonl(&kept))
    };
    let (scores, predictions) = ask(&["no such answer"; 3]);
    assert_eq!((number(&scores["accuracy"]), &scores["questions"]), (0.0, &json!(3)));
    assert_eq!(predictions.iter().map(|p| p["question_id"].clone()).collect::<Vec<_>>(), [1, 2, 3]);
    // The model's first answers are the true answers of the second evaluation, except for one question.
    let said: Vec<&str> = predictions.iter().map(|p| text(&p["answer"])).collect();
    let (scores, predictions) = ask(&[said[0], said[1], "no such answer"]);
    assert_eq!(predictions.iter().map(|p| p["correct"].clone()).collect::<Vec<_>>(), [true, true, false]);
    assert!((number(&scores["accuracy"]) - 2.0 / 3.0).abs() < 1e-9);
    assert_eq!(scores["per_type"]["shape"], json!({"accuracy": 1.0, "questions": 1}));
    assert_eq!(scores["per_type"]["count"], json!({"accuracy": 0.5, "questions": 2}));
    assert_eq!(text(&scores["predictions"]), kept.display().to_string());
}

#[test]
fn one_question_at_a_time_gets_the_answers_that_a_batch_gets() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("questions.jsonl");
    let question = |i: usize, text: &str| json!({"image": "a.png", "text": text, "answer": "x", "question_id": i});
    let asked = ["what?", "what is in the picture of the dog that sits on the grass?", "how many are there?"];
    let lines: Vec<String> = asked.iter().enumerate().map(|(i, text)| question(i, text).to_string()).collect();
    fs::write(&data, lines.join("\n")).unwrap();
    let answers = |size: &str| {
        let kept = dir.path().join(format!("{size}.jsonl"));
        let line = args!["eval", fixture("plain"), data, "--images", fixture("images"), "--out", kept];
        basic([line, args!["--batch-size", size, "--device", "cpu", "--json"]].concat()).json();
        read_jsonl(&kept)
    };
    assert_eq!(answers("1"), answers("3"));
}

#[test]
fn the_same_seed_makes_the_same_shapes_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, seed: &str| {
        let out = dir.path().join(name);
        let line = args!["data", "shapes", "--out", out, "--train", "12", "--validation", "4", "--eval", "4"];
        let written = basic([line, args!["--seed", seed, "--json"]].concat()).json();
        assert_eq!(written["train"], 12);
        tree(&out)
    };
    let first = make("first", "3");
    assert!(first == make("again", "3"), "same seed, same bytes");
    assert!(first != make("other", "4"), "another seed, another world");
    let files: Vec<String> = first.iter().map(|(name, _)| name.display().to_string()).collect();
    for name in ["pretrain.json", "finetune.json", "eval.jsonl"] {
        assert!(files.contains(&name.to_string()), "{name} is not among {files:?}");
    }
    assert!(files.iter().any(|name| name.starts_with("images/") && name.ends_with(".png")));
}

#[test]
fn devices_lists_both_cpu_backends() {
    let devices = basic(args!["devices", "--json"]).json();
    let listed: Vec<&str> = devices["devices"].as_array().unwrap().iter().map(|d| text(&d["spec"])).collect();
    let compiled = devices["compiled"].as_array().unwrap();
    for device in ["cpu", "ndarray"] {
        assert!(listed.contains(&device) && compiled.contains(&json!(device)), "{devices}");
    }
    assert!(basic(args!["devices"]).succeeded().stdout.contains("ndarray"));
}
