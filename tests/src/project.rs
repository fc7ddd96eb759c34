//! A small training project: eight samples and a recipe over a tiny checkpoint.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{fixture, number, read_jsonl};
use crate::{args, run};

/// The losses that a step reports.
pub const LOSSES: [&str; 4] = ["lm", "das", "sds", "total"];

/// Eight LLaVA samples: captions, a conversation of several turns, a sample with two images, and one without an image.
pub fn llava() -> Value {
    let turns = |texts: &[&str]| -> Value {
        let turn = |(i, text): (usize, &&str)| json!({"from": (["human", "gpt"][i % 2]), "value": text});
        texts.iter().enumerate().map(turn).collect()
    };
    json!([
        {"id": "0", "image": "a.png", "conversations": turns(&["<image>\nwhat is in the picture?", "a small red circle"])},
        {"id": "1", "image": "b.png", "conversations": turns(&["describe the picture.\n<image>", "a large blue square"])},
        {"id": "2", "image": "c.png", "conversations": turns(&[
            "<image>\nwhat is it?", "two green triangles", "how many are there?", "two", "and the star?", "it is yellow"])},
        {"id": "3", "conversations": turns(&["is the grass green?", "it is", "and the dog?", "the dog sits on the grass."])},
        {"id": "4", "image": ["a.png", "d.png"], "conversations": turns(&["<image> and <image>: which is larger?", "the first"])},
        {"id": "5", "image": "d.png", "conversations": turns(&["<image>\nwhere is the star?", "left of a large blue square."])},
        {"id": "6", "image": "b.png", "conversations": turns(&["what is <image>", "grass"])},
        {"id": "7", "image": "c.png", "conversations": turns(&["<image>\ncolour?", "red"])},
    ])
}

/// A folder with the data and a recipe that trains on it.
///
/// The learning rate is 1e-4 because the fixture's random weights have large gradients (norms of 9 to 15): at LLaVA's
/// 1e-3, two runs that begin 1e-7 apart are 2e-3 apart after 15 steps, on any two backends; at 1e-4 they stay close.
pub struct Project {
    binary: &'static str,
    dir: TempDir,
}

impl Project {
    /// A project that trains this stage for `steps` steps with the binary at this path.
    pub fn new(binary: &'static str, stage: &str, steps: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data.json"), llava().to_string()).unwrap();
        let (checkpoint, images, data) = (fixture("plain"), fixture("images"), dir.path().join("data.json"));
        let recipe = format!(
            "stage = \"{stage}\"\nseed = 5\ndevice = \"cpu\"\n\n[model]\ncheckpoint = \"{}\"\n\n[data]\npath = \"{}\"\n\
             images = \"{}\"\nconversation = \"vicuna_v1\"\n\n[objective]\nlambda_das = 0.5\nlambda_sds = 0.1\n\n\
             [optimizer]\nlr = 1e-4\n\n[train]\nbatch_size = 3\nsteps = {steps}\n",
            checkpoint.display(),
            data.display(),
            images.display(),
        );
        fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
        Self { binary, dir }
    }

    /// The project's folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Trains into `out` in the project's folder.
    pub fn train(&self, out: &str, more: &[&str]) -> PathBuf {
        let target = self.dir.path().join(out);
        let mut line = args!["train", self.dir.path().join("recipe.toml"), "--out", target];
        line.extend(more.iter().map(OsString::from));
        let ran = run(self.binary, line).succeeded();
        assert!(ran.stdout.contains(&target.display().to_string()), "{}", ran.stdout);
        target
    }
}

/// The losses of each step of a run.
pub fn losses(out: &Path) -> Vec<Vec<f64>> {
    let steps = read_jsonl(&out.join("metrics.jsonl"));
    steps.iter().map(|step| LOSSES.iter().map(|key| number(&step[key])).collect()).collect()
}
