//! Models by name: fetched from a server that speaks the Hugging Face hub's protocol, and only where that is allowed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::fixtures::fixture;
use tests::hub::{COMMIT, Faults, Hub, sha256};

/// A home of Hugging Face's tools in a temporary folder.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The model's folder in the cache.
    fn model(&self) -> PathBuf {
        self.path().join("hub/models--org--model")
    }

    fn snapshot(&self) -> PathBuf {
        self.model().join("snapshots").join(COMMIT)
    }

    fn command(&self, hub: &Hub, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_basic-under-test"));
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        command.args(args).env("HF_HOME", self.path()).env("HF_ENDPOINT", &hub.endpoint);
        command
    }

    fn run(&self, hub: &Hub, args: &[&str]) -> Output {
        self.command(hub, args).output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn failure(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap_or_default().to_string();
    assert!(last.starts_with("error: "), "{text}");
    last
}

/// All bytes of the large file's blobs, whole or begun.
fn blobs(home: &Home) -> Vec<(String, u64)> {
    let entries = fs::read_dir(home.model().join("blobs")).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().len())).collect()
}

const INSPECT: [&str; 4] = ["inspect", "org/model", "--json", "--download"];

#[test]
fn a_name_is_fetched_once_in_the_cache_s_layout() {
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults::default()));
    let first = home.run(&hub, &INSPECT);
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(stderr(&first).contains("fetching model.safetensors"), "{}", stderr(&first));
    assert!(hub.asked().len() > 6);
    assert_eq!(fs::read_to_string(home.model().join("refs/main")).unwrap(), COMMIT);
    for entry in fs::read_dir(fixture("plain")).unwrap().flatten() {
        let link = home.snapshot().join(entry.file_name());
        assert!(link.is_symlink() && fs::read_link(&link).unwrap().starts_with("../../blobs"), "{link:?}");
        assert_eq!(sha256(&link), sha256(&entry.path()), "{link:?}");
    }
    let weights = sha256(&fixture("plain/model.safetensors"));
    assert!(home.model().join("blobs").join(weights).is_file());
    // The second time only the list is asked for, and without the flag nothing.
    let second = home.run(&hub, &INSPECT);
    assert_eq!(second.stdout, first.stdout);
    assert_eq!(hub.asked(), ["/api/models/org/model/revision/main"]);
    let third = home.run(&hub, &INSPECT[..3]);
    assert_eq!((stderr(&third), third.stdout), (String::new(), first.stdout));
    assert!(hub.asked().is_empty());
}

#[test]
fn a_model_by_name_answers_as_the_directory_does() {
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults::default()));
    let image = fixture("images/a.png");
    let rest = ["--image", image.to_str().unwrap(), "--prompt", "<image>\\nwhat is it?", "--device", "cpu", "--json"];
    let ask = |model: &str, more: &[&str]| {
        let args: Vec<&str> = ["generate", model].into_iter().chain(rest).chain(more.iter().copied()).collect();
        let output = home.run(&hub, &args);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["ids"].clone()
    };
    let expected = ask(fixture("plain").to_str().unwrap(), &[]);
    assert_eq!(ask("org/model@v1", &["--download"]), expected);
    assert_eq!(fs::read_to_string(home.model().join("refs/v1")).unwrap(), COMMIT);
    assert_eq!(ask(&format!("org/model@{COMMIT}"), &[]), expected);
}

#[test]
fn answers_of_a_model_by_name_go_where_the_user_says() {
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults::default()));
    assert!(home.run(&hub, &INSPECT).status.success());
    let line = r#"{"question_id": 1, "image": "a.png", "text": "what is it?", "answer": "a square"}"#;
    let (questions, out) = (home.path().join("questions.jsonl"), home.path().join("answers.jsonl"));
    fs::write(&questions, line).unwrap();
    let images = fixture("images");
    let asked =
        ["eval", "org/model", questions.to_str().unwrap(), "--images", images.to_str().unwrap(), "--device", "cpu"];
    let mut command = home.command(&hub, &asked);
    let error = failure(&command.current_dir(home.path()).output().unwrap());
    assert!(error.contains("--out"), "{error}");
    assert!(!home.path().join("org").exists());
    let output = home.run(&hub, &[&asked[..], &["--out", out.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 1);
}

#[test]
fn nothing_is_asked_for_unless_the_user_allows_it() {
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults::default()));
    let error = failure(&home.run(&hub, &INSPECT[..3]));
    assert!(error.contains("--download") && error.contains("models--org--model"), "{error}");
    let error = failure(&home.command(&hub, &INSPECT).env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(hub.asked().is_empty());
    assert!(!home.path().join("hub").exists());
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_was() {
    let whole = fs::metadata(fixture("plain/model.safetensors")).unwrap().len();
    let most = whole as usize / 8;
    // More cuts than a download tries again by itself, with the size's request.
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults { cut: Some((most, 100)), ..Faults::default() }));
    let error = failure(&home.run(&hub, &INSPECT));
    assert!(error.contains("model.safetensors"), "{error}");
    let begun = blobs(&home).into_iter().find(|(name, _)| name.ends_with(".part")).expect("what came is kept");
    assert!(begun.1 >= most as u64 && begun.1 < whole, "{begun:?}");
    // The revision's name does not lead to a snapshot without weights.
    assert!(!home.model().join("refs/main").exists());
    hub.set(Faults::default());
    hub.asked();
    let output = home.run(&hub, &INSPECT);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(sha256(&home.snapshot().join("model.safetensors")), sha256(&fixture("plain/model.safetensors")));
    assert!(!blobs(&home).iter().any(|(name, _)| name.ends_with(".part")));
    assert_eq!(fs::read_to_string(home.model().join("refs/main")).unwrap(), COMMIT);
}

#[test]
fn one_cut_costs_no_second_command() {
    let most = fs::metadata(fixture("plain/model.safetensors")).unwrap().len() as usize / 2;
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults { cut: Some((most, 2)), ..Faults::default() }));
    let output = home.run(&hub, &INSPECT);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(sha256(&home.snapshot().join("model.safetensors")), sha256(&fixture("plain/model.safetensors")));
}

#[test]
fn a_closed_model_wants_a_token_of_the_environment_or_of_the_file() {
    let faults = Faults { token: Some("secret".into()), ..Faults::default() };
    let (home, hub) = (Home::new(), Hub::serving("plain", faults));
    let error = failure(&home.run(&hub, &INSPECT));
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
    let wrong = home.command(&hub, &INSPECT).env("HF_TOKEN", "other").output().unwrap();
    let error = failure(&wrong);
    assert!(error.contains("401") && !error.contains("other"), "{error}");
    fs::write(home.path().join("token"), "secret\n").unwrap();
    let output = home.run(&hub, &INSPECT);
    assert!(output.status.success(), "{}", stderr(&output));
    let other = Home::new();
    let output = other.command(&hub, &INSPECT).env("HF_TOKEN", "secret").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_the_hub_lacks_or_gets_wrong_is_said_and_not_kept() {
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults::default()));
    let error = failure(&home.run(&hub, &["inspect", "org/other", "--download"]));
    assert!(error.contains("org/other") && error.contains("404"), "{error}");
    let error = failure(&home.run(&hub, &["inspect", "org/model@v2", "--download"]));
    assert!(error.contains("404"), "{error}");
    let wrong = "0".repeat(64);
    hub.set(Faults { checksum: Some(wrong.clone()), ..Faults::default() });
    let error = failure(&home.run(&hub, &INSPECT));
    assert!(error.contains(&wrong) && error.contains("SHA-256"), "{error}");
    assert!(!home.snapshot().join("model.safetensors").exists());
    assert!(!home.model().join("refs/main").exists());
    hub.set(Faults { checksum: Some("../../../../escaped".into()), ..Faults::default() });
    let error = failure(&home.run(&hub, &INSPECT));
    assert!(error.contains("checksum"), "{error}");
    let nobody = home.command(&hub, &INSPECT).env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap();
    let error = failure(&nobody);
    assert!(error.contains("127.0.0.1:1") && error.contains("without --download"), "{error}");
    hub.set(Faults { names: vec!["../escaped.json".into(), "sub/config.json".into()], ..Faults::default() });
    let output = home.run(&hub, &INSPECT);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!home.path().join("hub/models--org--model/snapshots/escaped.json").exists());
    let empty = Hub::serving("images", Faults::default());
    let error = failure(&Home::new().run(&empty, &INSPECT));
    assert!(error.contains("neither config.json"), "{error}");
}

#[test]
fn commands_at_once_share_one_download() {
    let (home, hub) = (Home::new(), Hub::serving("plain", Faults::default()));
    std::thread::scope(|scope| {
        let runs = [0; 4].map(|_| scope.spawn(|| home.run(&hub, &INSPECT)));
        for run in runs {
            let output = run.join().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
        }
    });
    let cdn = hub.asked().iter().filter(|path| path.starts_with("/cdn/")).count();
    assert_eq!(cdn, 3, "twice for its size (hf-hub asks for it again) and once for its bytes");
}
