//! A run that was stopped, killed or damaged can be resumed and gives the same losses and the same bytes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::fixtures::{read_json, read_jsonl};
use tests::project::Project;
use tests::runs::killed_behind;
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");
const STEPS: usize = 12;

/// The keys of a step that must be the same again, which are all but the times.
const KEYS: [&str; 10] =
    ["step", "lm", "das", "sds", "total", "lr", "grad_norm", "grad_norms", "tokens", "image_samples"];

/// The steps and the weights of a run.
fn result(out: &Path) -> (Vec<String>, Vec<u8>) {
    let clean = |mut step: Value| {
        let step = step.as_object_mut().expect("a step is an object");
        step.retain(|key, _| KEYS.contains(&key.as_str()));
        assert_eq!(step.len(), KEYS.len());
        serde_json::to_string(step).expect("a step is JSON")
    };
    let steps = read_jsonl(&out.join("metrics.jsonl")).into_iter().map(clean).collect();
    (steps, fs::read(out.join("model.safetensors")).expect("the run has written its checkpoint"))
}

#[track_caller]
fn assert_same(out: &Path, expected: &(Vec<String>, Vec<u8>)) {
    let (steps, weights) = result(out);
    steps.iter().zip(&expected.0).for_each(|(step, expected)| assert_eq!(step, expected));
    assert_eq!(steps.len(), expected.0.len());
    assert!(weights == expected.1, "model.safetensors is the same, byte for byte");
}

fn start(project: &Project, out: &Path, resume: bool) -> Child {
    let mut command = Command::new(BINARY);
    match resume {
        true => command.args(args!["train", "--resume", out]),
        false => command
            .args(args!["train", project.path().join("recipe.toml"), "--out", out])
            .args(["--set", "checkpoint.every=1"]),
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn resume(out: &Path) -> tests::Ran {
    run(BINARY, args!["train", "--resume", out])
}

#[test]
fn a_resumed_run_gives_the_same_bits_from_any_step_on() {
    for (stage, more) in [
        ("pretrain", &["--set", "train.micro_batch=2"][..]),
        ("finetune", &[]),
        ("finetune", &["--set", "train.dtype=bfloat16", "--set", "train.recompute=true"]),
    ] {
        let project = Project::new(BINARY, stage, STEPS);
        let whole = project.train("whole", more);
        let expected = result(&whole);
        let keep = ["--set", "checkpoint.every=1", "--set", "checkpoint.keep_last=20"];
        let out = project.train("out", &[more, &keep].concat());
        assert_same(&out, &expected);
        // Steps 3 and 8 end epochs of eight samples in batches of three; steps 1 and 7 lie within an epoch.
        for step in [11, 8, 7, 3, 1] {
            killed_behind(&out, step);
            resume(&out).succeeded();
            assert_same(&out, &expected);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_after_its_step_and_it_can_go_on() {
    let project = Project::new(BINARY, "finetune", STEPS);
    let expected = result(&project.train("whole", &["--set", "checkpoint.every=1"]));
    for signal in ["INT", "TERM"] {
        let out = project.path().join(signal);
        let child = start(&project, &out, false);
        let metrics = out.join("metrics.jsonl");
        let begun = Instant::now();
        while fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        // On a fast machine the run may finish before the signal arrives.
        if read_json(&out.join("run.json"))["status"] != "done" {
            assert!(said.contains("--resume"), "{said}");
            assert_eq!(read_json(&out.join("run.json"))["status"], "stopped");
            resume(&out).succeeded();
        }
        assert_same(&out, &expected);
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let project = Project::new(BINARY, "finetune", STEPS);
    let begun = Instant::now();
    let expected = result(&project.train("whole", &["--set", "checkpoint.every=1"]));
    let mut whole = begun.elapsed();
    let rounds: u32 = std::env::var("BASIC_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    for round in 0..rounds {
        let out = project.path().join(format!("killed-{round}"));
        let mut kills = 0;
        loop {
            let begun = Instant::now();
            let mut child = start(&project, &out, out.join("run.json").is_file());
            // The delay varies irregularly from 0 to half of a whole run, and grows so that the runs finish at last.
            let share = (round * 7919 + kills * 104_729) % 997;
            std::thread::sleep(whole * share / 2000 + whole * kills / 20);
            let finished = child.try_wait().unwrap();
            if finished.is_none() {
                child.kill().unwrap();
                kills += 1;
            }
            let output = child.wait_with_output().unwrap();
            if finished.is_some() {
                let said = String::from_utf8(output.stderr).unwrap();
                assert!(output.status.success(), "{said}");
                if kills > 0 {
                    break;
                }
                // The machine was busier when the whole run was timed, so this tries again with the time of this run.
                whole = begun.elapsed() / 2;
                fs::remove_dir_all(&out).unwrap();
            }
        }
        println!("round {round}: killed {kills} times");
        assert!(kills > 0, "nothing was killed");
        assert_same(&out, &expected);
        let left: Vec<_> = fs::read_dir(out.join("checkpoints")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 2, "the last two states and nothing half-written: {left:?}");
    }
}

#[test]
fn a_damaged_state_is_noticed_and_the_one_before_is_used() {
    let project = Project::new(BINARY, "finetune", STEPS);
    let out = project.train("out", &["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=3"]);
    let expected = result(&out);
    killed_behind(&out, 10);
    for name in ["trained.safetensors", "optimizer.safetensors"] {
        let file = out.join("checkpoints/step-00000010").join(name);
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let ran = resume(&out);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        let file = file.display().to_string();
        assert!(ran.stderr.starts_with("warning: ") && ran.stderr.contains(&file), "{}", ran.stderr);
        assert_same(&out, &expected);
        killed_behind(&out, 10);
    }
    for entry in fs::read_dir(out.join("checkpoints")).unwrap().flatten() {
        fs::write(entry.path().join("optimizer.safetensors"), "short").unwrap();
    }
    let ran = resume(&out);
    assert_eq!(ran.code, Some(1));
    let last = ran.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("none of its 2 states is whole"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_resumed_is_refused_with_its_reason() {
    let project = Project::new(BINARY, "pretrain", 3);
    let nothing = project.path().join("nothing");
    resume(&nothing).refused(1, &["run.json", "--resume takes the output directory of a run"]);
    let out = project.train("out", &["--set", "checkpoint.every=1"]);
    let ran = resume(&out).succeeded();
    assert!(ran.stdout.contains("was done already"), "{}", ran.stdout);
    // The recipe differs from the one that made the state.
    killed_behind(&out, 2);
    let mut record = read_json(&out.join("run.json"));
    record["recipe"]["parts"]["decoder"]["mode"] = "full".into();
    fs::write(out.join("run.json"), record.to_string()).unwrap();
    resume(&out).refused(1, &["trained.safetensors", "lacks", "was the recipe changed?"]);
    fs::write(out.join("run.json"), "{}").unwrap();
    resume(&out).refused(1, &["run.json", "not the record of a run"]);
    run(BINARY, args!["train"]).refused(2, &[]);
}

#[test]
fn a_record_whose_values_were_changed_is_noticed_and_the_state_before_is_used() {
    let project = Project::new(BINARY, "finetune", STEPS);
    let out = project.train("out", &["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=3"]);
    let expected = result(&out);
    for (from, to) in [
        ("\"step\": 10", "\"step\": 11"),
        ("\"skipped_steps\": 0", "\"skipped_steps\": 1"),
        ("\"nonfinite_in_a_row\": 0", "\"nonfinite_in_a_row\": 4"),
        ("\"trained\": 30", "\"trained\": 38"),
    ] {
        killed_behind(&out, 10);
        let record = out.join("checkpoints/step-00000010/state.json");
        let text = fs::read_to_string(&record).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        fs::write(&record, text.replacen(from, to, 1)).unwrap();
        let ran = resume(&out);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        assert!(
            ran.stderr.contains("state.json is damaged") && ran.stderr.contains("before it is used"),
            "{}",
            ran.stderr
        );
        assert_same(&out, &expected);
    }
    // A state in the folder of another state.
    killed_behind(&out, 10);
    fs::rename(out.join("checkpoints/step-00000010"), out.join("checkpoints/step-00000011")).unwrap();
    let ran = resume(&out);
    assert!(ran.code == Some(0) && ran.stderr.contains("its folder's name another"), "{ran:#?}");
    assert_same(&out, &expected);
    // A run resumes from an older state without a checksum.
    killed_behind(&out, 10);
    let record = out.join("checkpoints/step-00000010/state.json");
    let mut old = read_json(&record);
    ["checksum", "trained", "too_long"]
        .iter()
        .for_each(|key| assert!(old.as_object_mut().unwrap().shift_remove(*key).is_some()));
    fs::write(&record, old.to_string()).unwrap();
    // Older states also lack these values, so they could not match a checksum over all of today's values.
    resume(&out).succeeded();
    assert_same(&out, &expected);
}

#[test]
fn a_recipe_or_a_step_that_was_changed_in_the_records_is_noticed() {
    let project = Project::new(BINARY, "finetune", STEPS);
    let out = project.train("out", &["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"]);
    killed_behind(&out, 6);
    let path = out.join("run.json");
    let whole = fs::read_to_string(&path).unwrap();
    let mut record = read_json(&path);
    record["recipe"]["optimizer"]["lr"] = 0.000_100_1.into();
    fs::write(&path, record.to_string()).unwrap();
    resume(&out).refused(1, &["run.json", "is damaged", "checksum"]);
    fs::write(&path, whole).unwrap();
    let metrics = out.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, text.replacen("{\"step\":3,", "{\"step\":7,", 1)).unwrap();
    let ran = resume(&out);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.stderr.contains("metrics.jsonl") && ran.stderr.contains("the first is step 3"), "{}", ran.stderr);
}

#[test]
fn a_finished_run_that_lost_its_weights_goes_on_from_its_last_state_or_says_that_there_is_none() {
    let project = Project::new(BINARY, "finetune", 4);
    let out = project.train("out", &["--set", "checkpoint.every=2"]);
    let expected = result(&out);
    fs::remove_file(out.join("model.safetensors")).unwrap();
    let ran = resume(&out);
    assert!(ran.code == Some(0) && ran.stderr.contains("goes on from its last state"), "{ran:#?}");
    assert_same(&out, &expected);
    resume(&out).succeeded();
    let out = project.train("stateless", &[]);
    fs::remove_file(out.join("model.safetensors")).unwrap();
    resume(&out).refused(1, &["its checkpoint is not whole any more", "no state", "--overwrite"]);
}

#[test]
fn what_a_kill_inside_the_first_write_leaves_is_no_run_and_in_nobodys_way() {
    let project = Project::new(BINARY, "pretrain", 2);
    for (name, more) in [("fresh", &[][..]), ("over", &["--overwrite"])] {
        let out = project.path().join(name);
        fs::create_dir(&out).unwrap();
        for (left, text) in [(".tmpAbCdEf", "{"), (".basic-4294967295-aB3dE6", "{"), (".lock", "")] {
            fs::write(out.join(left), text).unwrap();
        }
        project.train(name, more);
        let left = fs::read_dir(&out).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let left: Vec<String> = left.filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    // A user's file is not taken for a leftover.
    let out = project.path().join("mine");
    fs::create_dir(&out).unwrap();
    fs::write(out.join(".basic-notes"), "mine").unwrap();
    run(BINARY, args!["train", project.path().join("recipe.toml"), "--out", out]).refused(1, &["mine"]);
    assert_eq!(fs::read(out.join(".basic-notes")).unwrap(), b"mine");
}
