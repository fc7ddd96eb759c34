//! Failures during a run: changed data, a directory that vanishes, a full disk, and NaN or infinite numbers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::fixtures::{copy_of, read_json, read_jsonl};
use tests::project::{Project, losses};
use tests::{args, run, run_in_shell};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn resume(out: &Path) -> tests::Ran {
    run(BINARY, args!["train", "--resume", out])
}

/// Marks a finished run as one that was killed after `step`.
fn unfinished(out: &Path, step: usize) {
    for entry in fs::read_dir(out.join("checkpoints")).unwrap().flatten() {
        if !entry.file_name().to_str().unwrap().ends_with(&format!("{step:08}")) {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let mut record = read_json(&out.join("run.json"));
    record["status"] = "running".into();
    fs::write(out.join("run.json"), record.to_string()).unwrap();
}

#[test]
fn data_that_changed_since_a_state_was_saved_is_noticed() {
    let project = Project::new(BINARY, "pretrain", 4);
    let out = project.train("out", &["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"]);
    unfinished(&out, 2);
    let data = project.path().join("data.json");
    let text = fs::read_to_string(&data).unwrap();
    fs::write(&data, text.replace("a small red circle", "a small red square")).unwrap();
    resume(&out).refused(1, &["step-00000002", "the data files are not what they were"]);
    fs::write(&data, text).unwrap();
    resume(&out).succeeded();
    assert_eq!(losses(&out).len(), 4);
}

#[test]
fn a_model_that_changed_since_a_state_was_saved_is_noticed() {
    let project = Project::new(BINARY, "pretrain", 4);
    let model = project.path().join("model");
    copy_of("plain", &model);
    let start = format!("model.checkpoint={}", model.display());
    let out =
        project.train("out", &["--set", &start, "--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"]);
    unfinished(&out, 2);
    // The decoder is frozen, so no state contains it.
    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&weights, other).unwrap();
    resume(&out).refused(1, &["step-00000002", "the model's files are not what they were"]);
    fs::write(&weights, whole).unwrap();
    // A run resumes from an older state, which has no record of the model.
    let state = out.join("checkpoints/step-00000002/state.json");
    let mut old = read_json(&state);
    assert!(old.as_object_mut().unwrap().shift_remove("model").is_some());
    fs::write(&state, old.to_string()).unwrap();
    resume(&out).succeeded();
    assert_eq!(losses(&out).len(), 4);
}

#[test]
fn a_directory_that_vanishes_costs_nothing_but_the_run() {
    let project = Project::new(BINARY, "finetune", 40);
    let expected = fs::read(project.train("whole", &[]).join("model.safetensors")).unwrap();
    let out = project.path().join("out");
    let child = Command::new(BINARY)
        .args(args!["train", project.path().join("recipe.toml"), "--out", out])
        .args(["--set", "checkpoint.every=1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !out.join("checkpoints/step-00000001").is_dir() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::rename(&out, project.path().join("elsewhere")).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("has vanished") && said.contains("--resume"), "{said}");
    resume(&out).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected, "the same bytes as a run in peace");
}

#[cfg(unix)]
#[test]
fn a_full_disk_while_saving_leaves_the_states_before() {
    let project = Project::new(BINARY, "finetune", 6);
    let keep = ["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"];
    let out = project.train("out", &keep);
    let expected = fs::read(out.join("model.safetensors")).unwrap();
    unfinished(&out, 2);
    // Limits files to a tenth of the optimizer's state, and ignores the signal for exceeding the limit.
    let state = fs::metadata(out.join("checkpoints/step-00000002/optimizer.safetensors")).unwrap().len();
    let limit = format!("trap '' XFSZ; ulimit -f {}", state / 512 / 10);
    let ran = run_in_shell(&limit, BINARY, args!["train", "--resume", out]);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.contains("step-00000004") && ran.stderr.starts_with("error: "), "{}", ran.stderr);
    let left: Vec<_> = fs::read_dir(out.join("checkpoints")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["step-00000002"], "nothing half-written");
    resume(&out).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected, "and nothing is lost");
}

#[cfg(unix)]
#[test]
fn a_rank_whose_disk_is_full_fails_all_with_its_message_and_leaves_the_states_before() {
    let project = Project::new(BINARY, "finetune", 6);
    let keep = ["--devices", "cpu,cpu", "--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"];
    let out = project.train("out", &keep);
    let expected = fs::read(out.join("model.safetensors")).unwrap();
    unfinished(&out, 2);
    // The pieces of all ranks are of about one size, and this is the second rank's, so that either may fail first.
    let piece = fs::metadata(out.join("checkpoints/step-00000002/optimizer-00002-of-00002.safetensors")).unwrap().len();
    let limit = format!("trap '' XFSZ; ulimit -f {}", piece / 512 / 2);
    let resume = args!["train", "--resume", out, "--devices", "cpu,cpu"];
    let ran = run_in_shell(&limit, BINARY, resume.clone());
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("step-00000004/optimizer-0000"), "{}", ran.stderr);
    let left: Vec<_> = fs::read_dir(out.join("checkpoints")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["step-00000002"], "nothing half-written");
    run(BINARY, resume).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected, "and nothing is lost");
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_counted_up_to_a_limit() {
    let project = Project::new(BINARY, "pretrain", 9);
    let never = ["--set", "objective.lambda_das=1e40", "--set", "objective.lambda_sds=1e40"];
    let line = args!["train", project.path().join("recipe.toml"), "--out", project.path().join("nan"), "--ui", "bar"];
    let line = [line, never.iter().map(Into::into).collect()].concat();
    run(BINARY, line).refused(1, &["step 6: ", "not finite, the 6. time in a row", "lower optimizer.lr"]);
    let steps = read_jsonl(&project.path().join("nan/metrics.jsonl"));
    assert_eq!(steps.len(), 5);
    for (index, step) in steps.iter().enumerate() {
        assert_eq!((&step["skipped"], &step["skipped_steps"]), (&Value::Bool(true), &Value::from(index + 1)));
        assert_eq!(step["total"], Value::Null, "JSON has no infinity");
    }
}

#[test]
fn a_run_that_cannot_fit_is_refused_unless_forced() {
    let project = Project::new(BINARY, "pretrain", 2);
    let line = |out: &str| args!["train", project.path().join("recipe.toml"), "--out", project.path().join(out)];
    let small = ["--memory", "1MB", "--ui", "bar"].map(Into::into).to_vec();
    let said =
        run(BINARY, [line("refused"), small.clone()].concat()).refused(1, &["needs about", "GiB", "--plan", "--force"]);
    assert!(!project.path().join("refused").exists(), "{said}");
    run(BINARY, [line("forced"), small, vec!["--force".into()]].concat()).succeeded();
}

/// Starts a run that is long enough to be interfered with, and waits for its first step.
fn begun(project: &Project, out: &Path, more: &[&str]) -> std::process::Child {
    let child = Command::new(BINARY)
        .args(args!["train", project.path().join("recipe.toml"), "--out", out, "--log-every", "1"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    // Waits until the first step is in the metrics.
    while fs::read(out.join("metrics.jsonl")).unwrap_or_default().is_empty()
        && begun.elapsed() < Duration::from_secs(60)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[track_caller]
fn ended(child: std::process::Child, code: i32) -> String {
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(code), "{said}");
    said
}

#[test]
fn a_directory_that_vanishes_from_a_run_without_states_ends_it_with_an_error_and_a_state() {
    let project = Project::new(BINARY, "finetune", 60);
    let expected = fs::read(project.train("whole", &[]).join("model.safetensors")).unwrap();
    let out = project.path().join("out");
    let child = begun(&project, &out, &[]);
    fs::rename(&out, project.path().join("elsewhere")).unwrap();
    let said = ended(child, 1);
    assert!(said.contains("has vanished") && said.contains("--resume"), "{said}");
    resume(&out).succeeded();
    assert!(fs::read(out.join("model.safetensors")).unwrap() == expected, "the same bytes as a run in peace");
}

#[cfg(unix)]
#[test]
fn a_run_has_its_directory_to_itself() {
    let project = Project::new(BINARY, "finetune", 60);
    let out = project.path().join("out");
    let child = begun(&project, &out, &["--set", "checkpoint.every=5"]);
    resume(&out).refused(1, &["another `basic` is at work there"]);
    let again = args!["train", project.path().join("recipe.toml"), "--out", out, "--overwrite", "--ui", "bar"];
    run(BINARY, again).refused(1, &["another `basic` is at work there"]);
    ended(child, 0);
    assert!(out.join("model.safetensors").is_file() && !out.join(".lock").exists());
}

#[test]
fn data_that_is_replaced_while_it_is_read_from_ends_the_run() {
    let project = Project::new(BINARY, "finetune", 60);
    let out = project.path().join("out");
    let child = begun(&project, &out, &[]);
    let data = project.path().join("data.json");
    // Replaces the file by one of the same length and name.
    let text = fs::read_to_string(&data).unwrap().replace("red", "tan");
    fs::write(project.path().join("other"), text).unwrap();
    fs::rename(project.path().join("other"), &data).unwrap();
    let said = ended(child, 1);
    assert!(said.contains("data.json") && said.contains("was changed while it was read from"), "{said}");
    assert!(!out.join("model.safetensors").exists(), "no checkpoint of a mixture");
}

#[test]
fn data_that_is_written_again_as_it_was_does_not_end_a_run() {
    let project = Project::new(BINARY, "finetune", 60);
    let out = project.path().join("out");
    let child = begun(&project, &out, &[]);
    let data = project.path().join("data.json");
    fs::copy(&data, project.path().join("same")).unwrap();
    fs::rename(project.path().join("same"), &data).unwrap();
    ended(child, 0);
}

#[test]
fn a_run_whose_every_sample_was_left_out_has_learned_nothing_and_says_so() {
    let project = Project::new(BINARY, "pretrain", 3);
    let out = project.path().join("out");
    let line = args![
        "train",
        project.path().join("recipe.toml"),
        "--out",
        out,
        "--ui",
        "bar",
        "--set",
        "loader.max_length=1",
        "--set",
        "loader.too_long=skip"
    ];
    run(BINARY, line).refused(1, &["no sample was trained on", "left out", "basic data check"]);
    assert!(!out.join("config.json").exists() && !out.join("model.safetensors").exists());
}

#[test]
fn what_was_left_out_is_told_at_the_end() {
    let project = Project::new(BINARY, "finetune", 4);
    let data = project.path().join("data.json");
    fs::write(&data, fs::read_to_string(&data).unwrap().replace("d.png", "gone.png")).unwrap();
    let skip = ["--set", "data.on_error=skip", "--set", "data.max_skipped=7", "--set", "train.batch_size=4"];
    let line = [
        args!["train", project.path().join("recipe.toml"), "--out", project.path().join("out")],
        skip.iter().map(Into::into).collect(),
    ]
    .concat();
    let ran = run(BINARY, line).succeeded();
    assert!(ran.stdout.contains("left out: 2 broken samples"), "{}", ran.stdout);
}

#[test]
fn a_run_without_a_learning_rate_says_so() {
    let project = Project::new(BINARY, "pretrain", 2);
    let line = |out: &str, set: &str| {
        run(BINARY, args!["train", project.path().join("recipe.toml"), "--out", project.path().join(out), "--set", set])
    };
    for (out, set) in [("one", "train.steps=1"), ("zero", "optimizer.lr=0")] {
        let ran = line(out, set);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        assert!(ran.stderr.starts_with("warning: the learning rate is 0 in every step"), "{}", ran.stderr);
    }
    line("two", "train.steps=2").succeeded();
}

#[test]
fn an_error_about_a_value_names_the_recipe_or_the_set() {
    let project = Project::new(BINARY, "pretrain", 2);
    let recipe = project.path().join("recipe.toml");
    let set =
        |set: &str| run(BINARY, args!["train", recipe, "--out", project.path().join("o"), "--plan", "--set", set]);
    set("objective.k=99").refused(1, &["recipe.toml", "objective.k=99", "k = 99"]);
    set("optimizer.lr=-1.0").refused(1, &["--set optimizer.lr=-1.0", "optimizer.lr"]);
    set("loader.prefetch=1000000000000").refused(1, &["--set loader.prefetch", "at most"]);
    set(&format!("{}=1", "a.".repeat(50_000))).refused(1, &["--set"]);
    let text = fs::read_to_string(&recipe).unwrap().replace("batch_size = 3", "batch_size = 9223372036854775807");
    fs::write(&recipe, text).unwrap();
    set("seed=1").refused(1, &["recipe.toml", "train.batch_size", "at most"]);
}

#[cfg(unix)]
#[test]
fn a_limit_on_file_sizes_is_a_write_error_and_no_death_by_signal() {
    let project = Project::new(BINARY, "finetune", 3);
    let out = project.path().join("out");
    let line = args!["train", project.path().join("recipe.toml"), "--out", out];
    let ran = run_in_shell("ulimit -f 32", BINARY, line);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("too large"), "{}", ran.stderr);
    let left = fs::read_dir(&out).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.starts_with(".basic-") || name.starts_with(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}
