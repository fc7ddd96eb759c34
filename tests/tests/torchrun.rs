//! Processes as `torchrun` launches them, on one machine. They exchange host values over sockets, so what needs no
//! tensors of others works on CPUs too; training needs CUDA devices and says so.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::benchmarks::{Place, pope};
use tests::fixtures::{fixture, tree};
use tests::project::Project;
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A process of a launch of two, with the variables that torchrun sets.
fn process(rank: usize, port: u16, line: &[OsString]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(line).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("MASTER_PORT", port.into())] {
        command.env(name, value.to_string());
    }
    command.env("MASTER_ADDR", "127.0.0.1").env("TORCHELASTIC_RUN_ID", "none");
    command
}

/// The exit codes, outputs and errors of both processes.
fn launch(line: impl AsRef<[OsString]>) -> Vec<(Option<i32>, String, String)> {
    let port = port();
    let children: Vec<_> = (0..2).map(|rank| process(rank, port, line.as_ref()).spawn().unwrap()).collect();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ended = children.into_iter().map(|child| child.wait_with_output().unwrap());
    ended.map(|ended| (ended.status.code(), text(ended.stdout), text(ended.stderr))).collect()
}

#[test]
fn the_questions_of_a_file_go_to_the_processes() {
    let dir = tempfile::tempdir().unwrap();
    let question = |i: usize| {
        let (image, text) = (["a.png", "b.png"][i % 2], format!("what is {i}?"));
        json!({"question_id": i, "image": image, "text": text, "answer": "a circle", "category": "x"})
    };
    let questions: Vec<String> = (0..7).map(|i| format!("{}\n", question(i))).collect();
    let data = dir.path().join("questions.jsonl");
    fs::write(&data, questions.concat()).unwrap();
    let (checkpoint, images) = (fixture("plain"), fixture("images"));
    let line = |out: &str| {
        let fixed = args!["eval", checkpoint, data, "--images", images, "--batch-size", "2", "--max-new-tokens", "4"];
        [fixed, args!["--out", dir.path().join(out), "--conversation", "vicuna_v1", "--device", "cpu"]].concat()
    };
    run(BINARY, line("one.jsonl")).succeeded();
    for (code, _, stderr) in launch(line("two.jsonl")) {
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
    }
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("one.jsonl"), read("two.jsonl"));
}

#[test]
fn the_questions_of_benchmarks_go_to_the_processes() {
    let place = Place::new(BINARY);
    pope(&place.root(), 7);
    let line = place.line(&["pope", "scienceqa"], &["--batch-size", "2"]);
    let expected = run(BINARY, line.clone()).json();
    let files = tree(&place.out());
    fs::remove_dir_all(place.out()).unwrap();
    let ended = launch(&line);
    assert_eq!((ended[0].0, ended[1].0), (Some(0), Some(0)), "{ended:?}");
    assert_eq!(serde_json::from_str::<Value>(&ended[0].1).unwrap(), expected);
    assert_eq!((tree(&place.out()), ended[1].1.as_str()), (files, ""));
}

#[test]
fn training_on_cpus_names_the_launcher_for_them() {
    let project = Project::new(BINARY, "pretrain", 2);
    let out = project.path().join("out");
    let ended = launch(args!["train", project.path().join("recipe.toml"), "--out", out, "--device", "cpu"]);
    let errors: Vec<&str> = ended.iter().flat_map(|(_, _, stderr)| stderr.lines()).collect();
    assert_eq!((ended[0].0, ended[1].0, errors.len()), (Some(1), Some(1), 1), "{ended:?}");
    for said in ["by NCCL", "device is cpu", "mpirun -n 2"] {
        assert!(errors[0].contains(said), "{}", errors[0]);
    }
    assert!(!out.exists());
}

#[test]
fn a_process_that_fails_alone_is_named_and_ends_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let line = |data: &str| {
        let question = json!({"question_id": 1, "image": "a.png", "text": "what?", "answer": "a", "category": "x"});
        fs::write(dir.path().join("a.jsonl"), format!("{question}\n")).unwrap();
        let (checkpoint, data) = (fixture("plain"), dir.path().join(data));
        let out = dir.path().join("out.jsonl");
        args!["eval", checkpoint, data, "--images", fixture("images"), "--out", out, "--device", "cpu"]
    };
    let port = port();
    let good = process(0, port, &line("a.jsonl")).spawn().unwrap();
    let bad = process(1, port, &line("missing.jsonl")).spawn().unwrap();
    let ended = [good, bad].map(|child| child.wait_with_output().unwrap());
    assert_eq!(ended.each_ref().map(|ended| ended.status.code()), [Some(1), Some(1)]);
    let [good, bad] = ended.map(|ended| String::from_utf8(ended.stderr).unwrap());
    assert_eq!((good.as_str(), bad.lines().count()), ("", 1), "{bad}");
    assert!(bad.contains("rank 1") && bad.contains("missing.jsonl"), "{bad}");
}

#[test]
fn a_launch_that_cannot_meet_says_why() {
    let line = args!["eval", fixture("plain"), "questions.jsonl", "--device", "cpu"];
    let alone = |name: &str, value: &str| {
        let ended = process(0, port(), &line).env(name, value).output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    let error = alone("MASTER_ADDR", "");
    assert!(error.contains("MASTER_ADDR is \"\"") && error.contains("torchrun"), "{error}");
    let error = alone("MASTER_PORT", "70000");
    assert!(error.contains("MASTER_PORT is \"70000\""), "{error}");
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    let error = alone("MASTER_PORT", &taken);
    assert!(error.contains(&format!("cannot listen on port {taken}")) && error.contains("--master-port"), "{error}");
}
