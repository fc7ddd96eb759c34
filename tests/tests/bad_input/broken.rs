//! Checkpoints, recipes and samples for tests to break, and the commands that read them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{copy_of, fixture, names, read_json};
use tests::{Ran, args, run, tensors};

pub const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

pub fn basic(args: Vec<OsString>) -> Ran {
    run(BASIC, args)
}

/// A folder with a copy of a fixture checkpoint that a test breaks.
pub struct Broken {
    pub dir: TempDir,
}

impl Broken {
    pub fn copy_of(checkpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_of(checkpoint, &dir.path().join("model"));
        Self { dir }
    }

    pub fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    pub fn config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.model().join("config.json");
        let mut config = read_json(&path);
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    pub fn tensors(&self, change: impl FnOnce(&mut tensors::Tensors)) {
        let path = self.model().join("model.safetensors");
        let mut all = tensors::read(&path);
        change(&mut all);
        tensors::write(&path, &all);
    }

    /// Asserts that every command that opens a checkpoint fails with the same message and writes nothing.
    pub fn refused(&self, mentions: &[&str]) {
        let grads = self.dir.path().join("grads.safetensors");
        let line = args!["losses", self.model(), fixture("samples.jsonl"), "--json", "--grads", grads];
        let first = basic(line).refused(1, mentions);
        assert!(!grads.exists());
        let image = fixture("images/a.png");
        let line = args!["generate", self.model(), "--image", image, "--prompt", "<image> hi", "--greedy", "--json"];
        assert_eq!(basic(line).refused(1, mentions), first);
        let run = Run::new(&[good_sample()]);
        fs::write(run.dir.path().join("recipe.toml"), recipe(&self.model(), "data.json")).unwrap();
        assert_eq!(run.train(&[]).refused(1, mentions), first);
        assert!(!run.out().exists() || names(&run.out()).iter().all(|n| n == "run.json" || n == "metrics.jsonl"));
    }
}

/// A folder with a recipe, its data and its output.
pub struct Run {
    pub dir: TempDir,
}

pub fn recipe(checkpoint: &Path, data: &str) -> String {
    let (checkpoint, images) = (checkpoint.display(), fixture("images"));
    let images = images.display();
    format!(
        "stage = \"finetune\"\ndevice = \"cpu\"\n[model]\ncheckpoint = \"{checkpoint}\"\n[data]\npath = \"DIR/{data}\"\n\
         images = \"{images}\"\nconversation = \"vicuna_v1\"\n[train]\nbatch_size = 1\nsteps = 2\n"
    )
}

pub fn good_sample() -> Value {
    json!({"id": "good", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]})
}

impl Run {
    pub fn new(samples: &[Value]) -> Self {
        Self::with(&json!(samples).to_string())
    }

    pub fn with(data: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data.json"), data).unwrap();
        let run = Self { dir };
        run.recipe(&recipe(&fixture("plain"), "data.json"));
        run
    }

    pub fn recipe(&self, text: &str) {
        let text = text.replace("DIR", &self.dir.path().display().to_string());
        fs::write(self.dir.path().join("recipe.toml"), text).unwrap();
    }

    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    pub fn line(&self, more: &[&str]) -> Vec<OsString> {
        let path = self.dir.path().join("recipe.toml");
        let text = fs::read_to_string(&path).unwrap();
        self.recipe(&text);
        // `--ui bar` keeps progress off standard output.
        let mut line = args!["train", path, "--out", self.out(), "--ui", "bar"];
        line.extend(more.iter().map(OsString::from));
        line
    }

    pub fn train(&self, more: &[&str]) -> Ran {
        basic(self.line(more))
    }

    /// Asserts that training is refused before anything is written.
    #[track_caller]
    pub fn refused(&self, mentions: &[&str]) -> String {
        let said = self.train(&[]).refused(1, mentions);
        assert!(!self.out().exists(), "{:?}", names(&self.out()));
        said
    }
}

/// Writes a file of samples for `basic losses` beside a copy of the fixture images.
pub fn samples(lines: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    copy_of("images", &dir.path().join("images"));
    let path = dir.path().join("samples.jsonl");
    fs::write(&path, lines).unwrap();
    (dir, path)
}

/// Asserts that a failed run has left at most its record and its metrics.
#[track_caller]
pub fn assert_no_checkpoint(out: &Path) {
    if out.exists() {
        let left = names(out);
        assert!(
            left.iter().all(|n| n == "run.json" || n == "metrics.jsonl" || n.starts_with("tensorboard/")),
            "{left:?}"
        );
        if left.contains(&"run.json".to_string()) {
            assert_eq!(read_json(&out.join("run.json"))["status"], "failed");
        }
    }
}
