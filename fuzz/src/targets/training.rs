//! Targets for recipes, studies and unfinished runs.

use std::fs;
use std::io;
use std::path::Path;

use super::{Target, data};
use crate::mutate::Kind;
use crate::outputs::Leaves;

const RECIPE: &str = "stage = \"pretrain\"\ndevice = \"cpu\"\noutput = \"run\"\n[model]\ncheckpoint = \"model\"\n[data]\n\
    path = \"data.json\"\n[optimizer]\nlr = 1e-3\n[train]\nbatch_size = 2\nsteps = 2\n[loader]\nworkers = 1\n\
    [checkpoint]\nevery = 1\n[watch]\ntensorboard = false\n";

const MIXTURE: &str = r#"stage = "finetune"
seed = 3
device = "cpu"
output = "run"

[model]
checkpoint = "model"

[[data.sets]]
path = "data.json"
weight = 2.0

[[data.sets]]
path = "captions"
limit = 1

[data]
conversation = "vicuna_v1"
on_error = "skip"
max_skipped = 3

[objective]
lambda_das = 0.5
lambda_sds = 0.1
k = 2

[optimizer]
lr = 1e-3

[schedule]
kind = "cosine"
warmup_ratio = 0.03

[loader]
workers = 1
packing = true

[parts.decoder]
mode = "lora"
rank = 2
alpha = 4.0

[train]
batch_size = 2
micro_batch = 1
epochs = 1

[eval]
path = "data.json"
every = 1
"#;

const STUDY: &str = r#"name = "Tiny"
seeds = [0, 1]
baseline = "a"

[recipe]
model.checkpoint = "model"
data.path = "data.json"
optimizer.lr = 1e-3
train.batch_size = 2
train.steps = 1

[[stages]]
name = "pretrain"
recipe = { stage = "pretrain" }

[evaluation]
questions = "q.jsonl"
max_new_tokens = 1

[[factors]]
name = "losses"
cells = [{ name = "a", set = { objective.das = false } }, { name = "b" }]

[[factors]]
name = "k"
key = "objective.k"
values = [1, 2]
"#;

const GRID: &str = r#"name = "Grid"
seeds = [0]

[recipe]
model.checkpoint = "model"
data.path = "data.json"
optimizer.lr = 1e-3
train.batch_size = 2
train.steps = 1

[[stages]]
name = "pretrain"
recipe = { stage = "pretrain" }

[evaluation]
questions = "q.jsonl"
max_new_tokens = 1

[grid]
name = "two"
baseline = { arm = "llava" }
axes = [
    { name = "captions", cells = [{ name = "1", x = 1, set = { data.limit = 1 } }, { name = "2", x = 2, set = { data.limit = 2 } }] },
    { name = "arm", cells = [{ name = "llava", set = { objective.das = false } }, { name = "basic" }] },
]
"#;

const QUESTION: &str =
    "{\"question_id\":0,\"image\":\"a.png\",\"text\":\"what?\",\"answer\":\"a\",\"category\":\"c\"}\n";
const RESUME: &[&str] = &["train", "--resume", "run"];
const STUDIED: &[&str] = &["ablate", "study.toml", "--out", "st", "--device", "cpu", "--set", "train.steps=1"];

/// The targets of training.
pub(super) fn targets(fixtures: &Path) -> Vec<Target> {
    let new = |format, name, kind, damaged, line| {
        let target = Target::new(format, name, kind, damaged, line);
        let target = target.with(fixtures.join("images/a.png"), "a.png").with(fixtures.join("plain"), "model");
        target.text("data.json", data()).text("recipe.toml", RECIPE).text("q.jsonl", QUESTION)
    };
    let state = |name, kind, damaged, line| {
        new("run states", name, kind, damaged, line).made(&["train", "recipe.toml"]).adjusted(unfinished)
    };
    // Damage that goes unnoticed would lead to other weights.
    let same = Leaves::Same("run/model.safetensors");
    let mixture = |target: Target| {
        let target = target.text("mixture.toml", MIXTURE).with(fixtures.join("images/a.png"), "captions/a.png");
        target.text("captions/a.txt", "a red circle")
    };
    let studied =
        |name, kind, damaged, line| new("studies", name, kind, damaged, line).text("study.toml", STUDY).made(STUDIED);
    vec![
        new("recipes", "recipe", Kind::Toml, "recipe.toml", &["train", "recipe.toml", "--plan"]),
        new("recipes", "recipe that extends another", Kind::Toml, "more.toml", &["train", "more.toml", "--plan"])
            .text("more.toml", "extends = \"recipe.toml\"\nseed = 3\n[train]\nmicro_batch = 1\n"),
        mixture(new(
            "recipes",
            "recipe of a mixture",
            Kind::Toml,
            "mixture.toml",
            &["train", "mixture.toml", "--plan"],
        )),
        mixture(new(
            "recipes",
            "recipe, checked",
            Kind::Toml,
            "mixture.toml",
            &["data", "check", "data.json", "--recipe", "mixture.toml"],
        )),
        new("studies", "study", Kind::Toml, "study.toml", &["ablate", "study.toml", "--out", "st", "--list"])
            .text("study.toml", STUDY),
        new("studies", "study with a grid", Kind::Toml, "grid.toml", &["ablate", "grid.toml", "--out", "st", "--list"])
            .text("grid.toml", GRID),
        studied("results.json", Kind::Json, "st/results.json", &["report", "st", "--out", "page.html"])
            .leaves(Leaves::File("page.html")),
        studied("result.json of a cell", Kind::Json, "st/cells/*/result.json", STUDIED),
        state("run.json", Kind::Json, "run/run.json", RESUME),
        state("state.json", Kind::Json, "run/checkpoints/step-00000001/state.json", RESUME).leaves(same),
        state("trained.safetensors", Kind::Safetensors, "run/checkpoints/step-00000001/trained.safetensors", RESUME)
            .leaves(same),
        state(
            "optimizer.safetensors",
            Kind::Safetensors,
            "run/checkpoints/step-00000001/optimizer.safetensors",
            RESUME,
        )
        .leaves(same),
        new(
            "run states",
            "a rank's piece of the optimizer's state",
            Kind::Safetensors,
            "run/checkpoints/step-00000001/optimizer-00002-of-00002.safetensors",
            &["train", "--resume", "run", "--devices", "cpu,cpu"],
        )
        .made(&["train", "recipe.toml", "--devices", "cpu,cpu"])
        .adjusted(unfinished)
        .leaves(same),
        state("metrics.jsonl", Kind::Lines, "run/metrics.jsonl", RESUME).leaves(same),
        state("metrics.jsonl, reported", Kind::Lines, "run/metrics.jsonl", &["report", "run", "--out", "page.html"])
            .leaves(Leaves::File("page.html")),
        state("run.json, reported", Kind::Json, "run/run.json", &["report", "run", "--out", "page.html"])
            .leaves(Leaves::File("page.html")),
    ]
}

/// Turns a finished run into one that was killed in its second step.
fn unfinished(folder: &Path) -> io::Result<()> {
    let run = folder.join("run");
    fs::remove_dir_all(run.join("checkpoints/step-00000002"))?;
    for name in ["model.safetensors", "config.json"] {
        fs::remove_file(run.join(name))?;
    }
    let record = fs::read_to_string(run.join("run.json"))?;
    fs::write(run.join("run.json"), record.replacen("\"done\"", "\"running\"", 1))
}
