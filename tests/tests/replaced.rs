//! Runs that replace an earlier run in their output directory, and what they leave there if they fail.

use std::fs;
use std::path::Path;

use tests::fixtures::{entries, fixture, names, read_json, read_jsonl};
use tests::project::Project;
use tests::runs::{change_record, killed};
use tests::{Ran, args, run, run_in_shell};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// Settings that make every loss infinite.
const NEVER: [&str; 4] = ["--set", "objective.lambda_das=3e38", "--set", "objective.lambda_sds=3e38"];

fn train(project: &Project, more: &[&str]) -> Ran {
    let line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("out")];
    run(BINARY, [line, more.iter().map(Into::into).collect()].concat())
}

fn resume(out: &Path) -> Ran {
    run(BINARY, args!["train", "--resume", out])
}

fn states(out: &Path) -> Vec<String> {
    entries(&out.join("checkpoints"))
}

/// Adds `[eval]` to the recipe.
fn held_out(project: &Project, path: &Path, more: &str) {
    let (path, images) = (path.display().to_string(), fixture("images").display().to_string());
    let recipe = project.path().join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    fs::write(recipe, format!("{text}[eval]\npath = {path:?}\nimages = {images:?}\n{more}\n")).unwrap();
}

/// A directory in which a run of six steps was killed while it replaced a finished run of two steps.
fn replacing() -> Project {
    let project = Project::new(BINARY, "pretrain", 2);
    let (first, out) = (project.train("first", &[]), project.path().join("out"));
    let states = ["checkpoint.every=2", "checkpoint.keep_last=9", "train.steps=6"];
    train(&project, &states.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>()).succeeded();
    fs::rename(first, out.join(".replaced")).unwrap();
    project
}

#[test]
fn the_states_of_an_unfinished_run_are_not_taken_for_those_of_the_next() {
    let project = replacing();
    let out = project.path().join("out");
    killed(&out);
    let more = ["--set", "train.steps=4", "--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=1"];
    let expected = fs::read(project.train("alone", &more).join("model.safetensors")).unwrap();
    train(&project, &[&more[..], &["--overwrite"]].concat()).succeeded();
    assert_eq!(states(&out), ["step-00000004"]);
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected);
    assert!(!out.join(".replaced").exists());
}

#[test]
fn the_last_whole_run_comes_back() {
    // If the new run is unfinished, the last complete run is the old one. If it is done but was killed before it
    // deleted the old one, it is the new one.
    for (done, steps) in [(false, 2), (true, 6)] {
        let project = replacing();
        let out = project.path().join("out");
        if !done {
            killed(&out);
        }
        train(&project, &[&NEVER[..], &["--overwrite", "--set", "train.max_nonfinite=0"]].concat())
            .refused(1, &["not finite"]);
        let record = read_json(&out.join("run.json"));
        assert_eq!((record["status"].as_str(), record["steps"].as_u64()), (Some("done"), Some(steps)));
        assert!(out.join("model.safetensors").is_file() && out.join("config.json").is_file());
        assert!(!out.join(".replaced").exists());
    }
}

#[test]
fn a_run_that_fails_with_states_can_go_on_and_keeps_what_it_replaces_aside() {
    let project = Project::new(BINARY, "pretrain", 4);
    let out = project.train("out", &[]);
    let before = fs::read(out.join("model.safetensors")).unwrap();
    let more = ["--overwrite", "--set", "checkpoint.every=1", "--set", "train.max_nonfinite=2", "--ui", "bar"];
    train(&project, &[&NEVER[..], &more].concat()).refused(1, &["step 3: "]);
    assert_eq!(states(&out), ["step-00000001", "step-00000002"]);
    assert!(fs::read(out.join(".replaced/model.safetensors")).unwrap() == before);
    // With smaller loss weights the remaining steps succeed.
    change_record(&out, |record| record["recipe"]["objective"]["lambda_das"] = 1.0.into());
    change_record(&out, |record| record["recipe"]["objective"]["lambda_sds"] = 1.0.into());
    resume(&out).succeeded();
    assert_eq!(read_jsonl(&out.join("metrics.jsonl")).len(), 4);
    assert!(!out.join(".replaced").exists());
}

#[test]
fn one_last_step_that_is_not_finite_is_left_out_and_two_of_them_end_the_run() {
    for (whole, ends_well) in [(3, true), (2, false)] {
        let project = Project::new(BINARY, "pretrain", 4);
        let out = project.train("out", &["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"]);
        for step in whole + 1..=4 {
            fs::remove_dir_all(out.join(format!("checkpoints/step-{step:08}"))).unwrap();
        }
        killed(&out);
        change_record(&out, |record| {
            record["recipe"]["objective"]["lambda_das"] = 3e38.into();
            record["recipe"]["objective"]["lambda_sds"] = 3e38.into();
        });
        let ran = resume(&out);
        if ends_well {
            assert_eq!(ran.code, Some(0), "{ran:#?}");
            let steps = read_jsonl(&out.join("metrics.jsonl"));
            let skipped: Vec<bool> = steps.iter().map(|step| step["skipped"] == true).collect();
            assert_eq!(skipped, [false, false, false, true]);
            assert!(out.join("model.safetensors").is_file());
        } else {
            ran.refused(1, &["step 4: ", "not finite"]);
            assert_eq!(states(&out), ["step-00000001", "step-00000002", "step-00000003"]);
        }
    }
}

#[test]
fn overwrite_replaces_runs_and_checkpoints_and_nothing_that_the_run_reads() {
    let project = Project::new(BINARY, "pretrain", 2);
    let out = project.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "years of work").unwrap();
    train(&project, &["--overwrite"]).refused(1, &["out", "neither a run nor a checkpoint"]);
    assert_eq!(names(&out), ["thesis.tex"]);
    fs::remove_file(out.join("thesis.tex")).unwrap();
    train(&project, &[]).succeeded();
    fs::copy(project.path().join("data.json"), out.join("data.json")).unwrap();
    let data = format!("data.path={:?}", out.join("data.json").display().to_string());
    let before = names(&out);
    train(&project, &["--overwrite", "--set", &data]).refused(1, &["data.json", "--overwrite would replace"]);
    assert_eq!(names(&out), before);
}

#[test]
fn damaged_states_do_not_push_whole_ones_out() {
    let project = Project::new(BINARY, "pretrain", 6);
    let out = project.train("out", &["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=1"]);
    fs::rename(out.join("checkpoints/step-00000006"), out.join("checkpoints/step-00000009")).unwrap();
    fs::write(out.join("checkpoints/step-00000009/optimizer.safetensors"), "short").unwrap();
    let other = project.train("other", &["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"]);
    fs::rename(other.join("checkpoints/step-00000002"), out.join("checkpoints/step-00000002")).unwrap();
    killed(&out);
    let ran = resume(&out);
    assert!(ran.code == Some(0) && ran.stderr.contains("is damaged"), "{ran:#?}");
    assert_eq!(states(&out), ["step-00000006"]);
}

#[test]
fn a_state_that_is_saved_again_keeps_its_evaluation() {
    let project = Project::new(BINARY, "pretrain", 4);
    held_out(&project, &project.path().join("data.json"), "every = 2\nsamples = 2\npredictions = 0");
    let out = project.train("out", &["--set", "checkpoint.every=2"]);
    let evaluation = || read_json(&out.join("checkpoints/step-00000004/state.json"))["evaluation"].clone();
    let before = evaluation();
    assert!(before.is_number());
    killed(&out);
    resume(&out).succeeded();
    assert_eq!(evaluation(), before);
}

#[test]
fn a_run_goes_on_with_the_devices_that_it_began_with() {
    let project = Project::new(BINARY, "pretrain", 4);
    let more = ["--devices", "cpu,cpu", "--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"];
    let out = project.train("out", &more);
    let expected = fs::read(out.join("model.safetensors")).unwrap();
    fs::remove_dir_all(out.join("checkpoints/step-00000004")).unwrap();
    killed(&out);
    resume(&out).succeeded();
    assert_eq!(read_json(&out.join("run.json"))["devices"], serde_json::json!(["cpu", "cpu"]));
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected);
}

#[test]
fn a_broken_held_out_sample_is_told_before_the_first_step() {
    let project = Project::new(BINARY, "pretrain", 4);
    let path = project.path().join("held-out.json");
    let turns = r#"[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]"#;
    fs::write(&path, format!(r#"[{{"id": "x", "image": "absent.png", "conversations": {turns}}}]"#)).unwrap();
    held_out(&project, &path, "every = 100");
    train(&project, &[]).refused(1, &["eval: ", "absent.png"]);
    assert!(!project.path().join("out").exists());
}

#[test]
fn quantized_matrices_have_blocks_that_fit_and_recipes_name_them() {
    let project = Project::new(BINARY, "finetune", 3);
    let qlora = ["--set", "parts.decoder.mode=qlora", "--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=9"];
    train(&project, &qlora).refused(1, &["48 outputs", "`block`"]);
    for (block, reason) in [("0", "at least 1"), ("300", "300")] {
        let set = format!("parts.decoder.block={block}");
        train(&project, &[&qlora[..], &["--set", &set]].concat()).refused(1, &["block", reason]);
    }
    train(&project, &["--set", "parts.decoder.block=8"]).refused(1, &["parts.decoder.block needs mode"]);
    for devices in ["cpu", "cpu,cpu"] {
        let more = ["--set", "parts.decoder.block=8", "--devices", devices];
        let out = project.train(devices, &[&qlora[..], &more].concat());
        let expected = fs::read(out.join("model.safetensors")).unwrap();
        fs::remove_dir_all(out.join("checkpoints/step-00000003")).unwrap();
        killed(&out);
        resume(&out).succeeded();
        assert!(fs::read(out.join("model.safetensors")).unwrap() == expected);
    }
}

#[test]
fn settings_that_would_end_in_no_number_are_refused() {
    let project = Project::new(BINARY, "pretrain", 4);
    train(&project, &["--set", "optimizer.epsilon=0"]).refused(1, &["optimizer.epsilon", "above 0"]);
    train(&project, &["--set", "loader.order=grouped", "--ui", "bar"]).refused(1, &["text only", "grouped"]);
}

#[cfg(unix)]
#[test]
fn a_disk_too_full_for_the_checkpoint_costs_no_training() {
    let project = Project::new(BINARY, "pretrain", 3);
    let expected = fs::read(project.train("whole", &[]).join("model.safetensors")).unwrap();
    let out = project.path().join("out");
    // The limit leaves room for the projector's state but not for the whole model.
    let limit = format!("trap '' XFSZ; ulimit -f {}", expected.len() / 512 - 8);
    let ran = run_in_shell(&limit, BINARY, args!["train", project.path().join("recipe.toml"), "--out", out]);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.contains("model.safetensors"), "{}", ran.stderr);
    assert_eq!(states(&out), ["step-00000003"]);
    resume(&out).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected);
}
