//! `basic train` with the settings of `[loader]` and for bad samples, on a tiny checkpoint.

use std::fs;

use serde_json::{Value, json};
use tests::fixtures::{number, read_jsonl};
use tests::project::{Project, llava, losses};
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn project(steps: usize) -> Project {
    Project::new(BINARY, "finetune", steps)
}

/// Trains with these settings; the run may fail.
fn train(project: &Project, out: &str, sets: &[&str]) -> Ran {
    let mut line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join(out)];
    for set in sets {
        line.extend(args!["--set", set]);
    }
    run(BINARY, line)
}

/// The metrics of the steps of a run, which must succeed.
fn metrics(project: &Project, out: &str, sets: &[&str]) -> Vec<Value> {
    let ran = train(project, out, sets);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    read_jsonl(&project.path().join(out).join("metrics.jsonl"))
}

/// Changes one sample of the project's data.
fn break_sample(project: &Project, index: usize, change: impl FnOnce(&mut Value)) {
    let mut data = llava();
    change(&mut data[index]);
    fs::write(project.path().join("data.json"), data.to_string()).unwrap();
}

#[test]
fn the_number_of_data_workers_changes_no_bit_of_a_run() {
    let project = project(5);
    let run = |out: &str, workers: &str, prefetch: &str| {
        metrics(&project, out, &[workers, prefetch]);
        let out = project.path().join(out);
        (losses(&out), fs::read(out.join("model.safetensors")).unwrap())
    };
    let alone = run("alone", "loader.workers=0", "loader.prefetch=2");
    for (out, workers, prefetch) in
        [("one", "loader.workers=1", "loader.prefetch=0"), ("four", "loader.workers=4", "loader.prefetch=3")]
    {
        let many = run(out, workers, prefetch);
        assert_eq!(many.0, alone.0, "{workers}");
        assert!(many.1 == alone.1, "{workers}: the checkpoints differ");
    }
}

#[test]
fn packed_runs_have_the_losses_of_unpacked_ones_within_rounding() {
    let project = project(6);
    metrics(&project, "apart", &["train.batch_size=6"]);
    let packed = metrics(&project, "packed", &["train.batch_size=6", "loader.packing=true", "train.micro_batch=1"]);
    let apart = losses(&project.path().join("apart"));
    for (step, (ours, theirs)) in losses(&project.path().join("packed")).iter().zip(&apart).enumerate() {
        for (a, b) in ours.iter().zip(theirs) {
            // Later steps start from parameters that differ by rounding.
            let bound = if step == 0 { 1e-5 } else { 1e-3 };
            assert!((a - b).abs() <= bound * (1.0 + b.abs()), "step {step}: {ours:?} against {theirs:?}");
        }
    }
    assert!(packed.iter().all(|step| number(&step["samples"]) == 6.0));
}

#[test]
fn grouped_steps_have_images_in_all_samples_or_in_none() {
    let project = project(1);
    let recipe = project.path().join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap().replace("steps = 1", "epochs = 2");
    fs::write(&recipe, text).unwrap();
    let steps = metrics(&project, "run", &["loader.order=grouped"]);
    // Seven samples with images and one without, three per step, make three steps with images and one without.
    let sizes: Vec<(f64, f64)> =
        steps.iter().map(|step| (number(&step["samples"]), number(&step["image_samples"]))).collect();
    let epoch = [(3.0, 3.0), (3.0, 3.0), (1.0, 1.0), (1.0, 0.0)];
    assert_eq!(sizes, [epoch, epoch].concat());
}

#[test]
fn a_broken_sample_ends_the_run_or_is_left_out_up_to_a_limit() {
    let project = project(4);
    break_sample(&project, 5, |sample| sample["image"] = json!("nowhere.png"));
    let ran = train(&project, "error", &[]);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.contains("nowhere.png") && ran.stderr.contains("sample 5"), "{}", ran.stderr);

    // Four steps of 3 samples draw 12 samples, which is one and a half epochs of 8; the bad sample is left out.
    let skip = ["data.on_error=skip", "data.max_skipped=1", "loader.order=sequential"];
    let steps = metrics(&project, "skip", &skip);
    let sizes: Vec<f64> = steps.iter().map(|step| number(&step["samples"])).collect();
    assert_eq!(sizes, [3.0, 2.0, 3.0, 3.0]);
    let left_out = steps[1]["left_out"].to_string();
    assert!(left_out.contains("nowhere.png") && left_out.contains("sample 5"), "{left_out}");

    let mut two = llava();
    two[5]["image"] = json!("nowhere.png");
    two[6]["conversations"][1]["value"] = json!("");
    fs::write(project.path().join("data.json"), two.to_string()).unwrap();
    let ran = train(&project, "limit", &skip);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.contains("data.max_skipped") && ran.stderr.contains("sample 6"), "{}", ran.stderr);
}

#[test]
fn samples_that_are_too_long_are_refused_cut_or_left_out() {
    let project = project(2);
    break_sample(&project, 0, |sample| sample["conversations"][1]["value"] = json!("the dog ".repeat(400)));
    let limit = ["loader.max_length=300", "loader.order=sequential"];
    let ran = train(&project, "error", &limit);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.contains("loader.too_long") && ran.stderr.contains("sample 0"), "{}", ran.stderr);
    let cut = metrics(&project, "cut", &[&limit[..], &["loader.too_long=truncate"]].concat());
    let tokens: Vec<f64> = cut.iter().map(|step| number(&step["tokens"])).collect();
    assert!(number(&cut[0]["samples"]) == 3.0 && tokens[0] > 50.0, "{tokens:?}");
    let left = metrics(&project, "left", &[&limit[..], &["loader.too_long=skip"]].concat());
    assert_eq!(number(&left[0]["samples"]), 2.0);
    assert!(left[0]["left_out"].to_string().contains("sample 0"));
    assert!((0.0..=1.0).contains(&number(&left[0]["data_wait"])), "{}", left[0]);
}

#[test]
fn settings_that_no_loader_can_have_are_refused() {
    let project = project(1);
    for (set, mention) in [
        ("loader.order=random", "shuffle"),
        ("loader.max_length=0", "loader.max_length is 0"),
        ("loader.max_length=1000000", "the model's context"),
        ("loader.speed=3", "speed"),
    ] {
        let ran = train(&project, "run", &[set]);
        assert_eq!(ran.code, Some(1), "{ran:#?}");
        assert!(ran.stderr.contains(mention), "{set}: {}", ran.stderr);
    }
}
