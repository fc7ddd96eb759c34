//! Compares `basic train --devices` with one device: replicas on the CPU, each with its share of every batch.

use std::fs;
use std::path::{Path, PathBuf};

use tests::fixtures::names;
use tests::project::{LOSSES, Project, losses};
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// The relative tolerance of losses with replicas, which sum in another order than one device.
const ROUNDING: f64 = 1e-5;

fn train(project: &Project, out: &str, more: &[&str]) -> PathBuf {
    project.train(out, &[&["--set", "train.batch_size=4"], more].concat())
}

/// A run's files, without the process and the time in the event file's name.
fn files(out: &Path) -> Vec<String> {
    let plain = |name: String| match name.split_once("events.out.tfevents.") {
        Some((folder, _)) => format!("{folder}events"),
        None => name,
    };
    names(out).into_iter().map(plain).collect()
}

#[test]
fn two_and_four_replicas_give_the_losses_of_one_device_with_the_same_batch() {
    for stage in ["pretrain", "finetune"] {
        // One of the eight samples has no image, so with four replicas one of them has a batch without images.
        let project = Project::new(BINARY, stage, 10);
        let one = train(&project, "one", &[]);
        for devices in ["cpu,cpu", "cpu,cpu,cpu,cpu"] {
            let many = train(&project, devices, &["--devices", devices]);
            let mut largest = [0.0_f64; 4];
            for (one, many) in losses(&one).iter().zip(&losses(&many)) {
                for (i, (one, many)) in one.iter().zip(many).enumerate() {
                    largest[i] = largest[i].max((one - many).abs() / one.abs().max(1e-3));
                }
            }
            println!("{stage} on {devices}: largest differences of {LOSSES:?}: {largest:?}");
            assert_eq!(losses(&many).len(), 10);
            assert!(largest.iter().all(|x| *x <= ROUNDING), "{stage} on {devices}: {largest:?}");
            assert_eq!(files(&many), files(&one), "replicas write the same files, once");
        }
        assert!(losses(&one)[9][3] < losses(&one)[0][3]);
    }
}

#[test]
fn replicas_give_the_same_bits_on_every_run() {
    let project = Project::new(BINARY, "finetune", 4);
    let weights = |out: &str| {
        let out = train(&project, out, &["--devices", "cpu,cpu", "--set", "train.micro_batch=1"]);
        fs::read(out.join("model.safetensors")).unwrap()
    };
    assert!(weights("first") == weights("again"), "model.safetensors is the same, byte for byte");
}

#[test]
fn a_run_goes_on_with_another_number_of_replicas() {
    let project = Project::new(BINARY, "finetune", 6);
    let whole = train(&project, "whole", &["--devices", "cpu,cpu"]);
    let halves = project.path().join("halves");
    let recipe = project.path().join("recipe.toml");
    // A run of six steps whose last two states are removed, as if it had been killed after the fourth step.
    train(
        &project,
        "halves",
        &["--devices", "cpu,cpu", "--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"],
    );
    for step in ["5", "6"] {
        let state = fs::read_dir(halves.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
        let of_step = |path: &PathBuf| {
            path.file_name().unwrap().to_str().unwrap().trim_start_matches("step-").parse() == step.parse::<usize>()
        };
        fs::remove_dir_all(state.into_iter().find(of_step).unwrap()).unwrap();
    }
    let info = fs::read_to_string(halves.join("run.json")).unwrap().replace("\"done\"", "\"running\"");
    fs::write(halves.join("run.json"), info).unwrap();
    assert!(recipe.is_file());
    run(BINARY, args!["train", "--resume", halves, "--devices", "cpu,cpu,cpu,cpu"]).succeeded();
    let (whole, halves) = (losses(&whole), losses(&halves));
    assert_eq!((whole.len(), halves.len()), (6, 6));
    for (a, b) in whole.iter().flatten().zip(halves.iter().flatten()) {
        assert!((a - b).abs() <= ROUNDING * a.abs().max(1e-3), "{a} and {b}");
    }
}

#[test]
fn a_batch_that_has_no_equal_shares_is_trained_too() {
    let project = Project::new(BINARY, "finetune", 4);
    let (one, two) = (project.train("one", &[]), project.train("two", &["--devices", "cpu,cpu"]));
    // The recipe's batches have three samples.
    for (a, b) in losses(&one).iter().flatten().zip(losses(&two).iter().flatten()) {
        assert!((a - b).abs() <= ROUNDING * a.abs().max(1e-3), "{a} and {b}");
    }
}

#[test]
fn devices_that_do_not_fit_are_refused() {
    let project = Project::new(BINARY, "pretrain", 2);
    let refused = |devices: &str, mentions: &[&str]| {
        let (recipe, out) = (project.path().join("recipe.toml"), project.path().join("out"));
        run(BINARY, args!["train", recipe, "--out", out, "--devices", devices]).refused(1, mentions);
        assert!(!out.exists());
    };
    refused("cpu,ndarray", &["cpu,ndarray", "one kind"]);
    refused("auto,auto", &["auto,auto"]);
}

#[test]
fn a_replica_that_fails_ends_the_run_with_its_own_message() {
    let project = Project::new(BINARY, "pretrain", 4);
    let out = project.path().join("out");
    let line = |devices: &str| {
        let recipe = project.path().join("recipe.toml");
        args![
            "train",
            recipe,
            "--out",
            out,
            "--devices",
            devices,
            "--set",
            "train.batch_size=4",
            "--set",
            "optimizer.lr=1e30",
            "--set",
            "train.max_nonfinite=0",
            "--set",
            "train.steps=8"
        ]
    };
    // The message is printed once, and is the same as on one device.
    let on_one = run(BINARY, line("cpu"));
    let on_two = run(BINARY, [line("cpu,cpu"), args!["--overwrite"]].concat());
    assert_eq!((on_one.code, on_two.code), (Some(1), Some(1)), "{on_one:?} {on_two:?}");
    assert_eq!(on_two.stderr.lines().count(), 1, "{}", on_two.stderr);
    assert!(on_two.stderr.starts_with("error: step ") && on_two.stderr.contains("not finite"), "{}", on_two.stderr);
}

#[test]
fn what_devices_do_together_is_checked_and_timed() {
    let told = run(BINARY, args!["devices", "--together", "cpu,cpu,cpu"]).succeeded();
    assert!(told.stdout.contains("3 replicas: all 24 operations give the right values"), "{}", told.stdout);
    let report = run(BINARY, args!["devices", "--together", "cpu", "--json"]).json();
    assert_eq!((report["replicas"].as_u64(), report["failed"].as_u64()), (Some(1), Some(0)));
    run(BINARY, args!["devices", "--together", "cpu,auto"]).refused(1, &["cpu,auto", "of one kind"]);
}
