//! `basic ablate`: a study needs no other files, continues after a kill, and computes nothing twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::fixtures::{number, read_json, text};
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// Two cells and two seeds in two stages; the cell "again" resolves to the same recipe as "both".
const STUDY: &str = r#"
name = "Tiny"
seeds = [0, 1]
baseline = "none"

[world]
train = 12
validation = 4
eval = 4

[recipe]
train.batch_size = 4
train.steps = 3
objective.lambda_das = 0.2

[[stages]]
name = "pretrain"
measure = ["accuracy", "caption_loss", "grounding", "v_norm", "gradients"]
early_stopping = { every = 2, questions = "world:data/validation.jsonl", limit = 6 }
recipe = { stage = "pretrain", model.vision = "world:backbones/vision", model.llm = "world:backbones/llm", data.path = "world:data/pretrain.json", optimizer.lr = 4e-3 }

[[stages]]
name = "finetune"
recipe = { stage = "finetune", data.path = "world:data/finetune.json", optimizer.lr = 2e-4 }

[evaluation]
questions = "world:data/eval.jsonl"
shapes = "world:data"
batch_size = 64
max_new_tokens = 4
limit = 8

[[factors]]
name = "losses"
cells = [
    { name = "none", set = { objective.das = false, objective.sds = false } },
    { name = "both" },
]

[[factors]]
name = "k"
key = "objective.k"
values = [3]
"#;

fn study(dir: &Path) -> PathBuf {
    let path = dir.join("tiny.toml");
    fs::write(&path, STUDY).unwrap();
    path
}

fn ablate(study: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut line = args!["ablate", study, "--out", out, "--device", "cpu"];
    line.extend(more.iter().map(Into::into));
    run(BINARY, line)
}

/// The results of a study, without times.
fn found(out: &Path) -> Value {
    read_json(&out.join("results.json"))["groups"].clone()
}

fn results(out: &Path) -> usize {
    let cells = fs::read_dir(out.join("cells")).map(|cells| cells.flatten().collect::<Vec<_>>()).unwrap_or_default();
    cells.iter().filter(|cell| cell.path().join("result.json").is_file()).count()
}

#[test]
fn a_study_that_is_killed_goes_on_to_the_same_numbers_and_runs_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = study(dir.path());
    let whole = dir.path().join("whole");
    let ran = ablate(&path, &whole, &["--json"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    // The default k = 3 is half of the decoder's 6 layers, so the two factors share a cell: 2 cells x 2 seeds x 2
    // stages.
    assert_eq!((number(&summary["done"]), number(&summary["of"])), (8.0, 8.0));
    assert_eq!(results(&whole), 8);
    assert_eq!(summary["groups"], found(&whole));
    for cell in fs::read_dir(whole.join("cells")).unwrap().flatten() {
        assert!(!cell.path().join("run").exists(), "the checkpoints of finished cells are deleted");
    }

    // Killed as soon as two stages have results, and again a little later.
    let killed = dir.path().join("killed");
    for wanted in [2, 5] {
        let mut child = Command::new(BINARY)
            .args(args!["ablate", path, "--out", killed, "--devices", "cpu,cpu"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while results(&killed) < wanted && begun.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let partial = read_json(&killed.join("results.json"));
        assert!(number(&partial["done"]) <= number(&partial["of"]));
    }
    let first = results(&killed);
    assert!((5..8).contains(&first), "{first} results: nothing was left to do");
    let ran = ablate(&path, &killed, &[]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(ran.stderr.lines().filter(|line| line.contains("stages done")).count(), 8 - first, "{}", ran.stderr);
    // Neither two workers nor the kills change a number.
    assert_eq!(found(&killed), found(&whole));

    // A finished study runs nothing again.
    let again = ablate(&path, &killed, &[]).succeeded();
    assert!(again.stdout.contains("table.html"), "{}", again.stdout);
    let listed = ablate(&path, &killed, &["--list"]).succeeded();
    assert!(listed.stdout.ends_with("6 of 6 cells and seeds are done\n"), "{}", listed.stdout);

    // The table in every format has all cells.
    for name in ["table.md", "table.csv", "table.html"] {
        let table = fs::read_to_string(killed.join(name)).unwrap();
        for expected in ["none", "both", "pretrain", "finetune"] {
            assert!(table.contains(expected), "{name} lacks {expected}");
        }
    }
    let page = fs::read_to_string(killed.join("table.html")).unwrap();
    assert!(!page.contains("http"), "the page loads nothing");
    let both = &found(&killed)[0]["rows"][1];
    assert_eq!(text(&both["baseline"]), "losses/none");
    let entry = &both["entries"][0];
    let accuracy = |row: usize, seed: usize| {
        number(&found(&killed)[0]["rows"][row]["runs"][seed]["values"]["pretrain"]["accuracy"])
    };
    let mean = (accuracy(1, 0) - accuracy(0, 0) + accuracy(1, 1) - accuracy(0, 1)) / 2.0;
    assert!((number(&entry["difference"]["mean"]) - mean).abs() < 1e-12);

    // With a changed key the recipes differ, so nothing counts as done.
    let changed = ablate(&path, &killed, &["--list", "--set", "pretrain.optimizer.lr=1e-3"]).succeeded();
    assert!(changed.stdout.ends_with("0 of 6 cells and seeds are done\n"), "{}", changed.stdout);
}

#[test]
fn only_the_chosen_cells_are_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = study(dir.path());
    let out = dir.path().join("out");
    let listed = ablate(&path, &out, &["--list", "--only", "losses/both"]).succeeded();
    assert_eq!(listed.stdout.lines().count(), 3, "{}", listed.stdout);
    assert!(!out.exists(), "--list writes nothing");
    let ran = ablate(&path, &out, &["--only", "losses/both"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(results(&out), 4);
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    assert!(table.contains("Partial: 4 of 8"), "{table}");
}

#[test]
fn what_is_wrong_with_a_study_is_told_with_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = study(dir.path());
    let out = dir.path().join("out");
    ablate(&path, &out, &["--only", "neither"]).refused(1, &["--only neither", "--list"]);
    ablate(&path, &out, &["--set", "objective.kk=1"])
        .refused(1, &["tiny.toml", "--set objective.kk=1", "unknown field"]);
    for (from, to, mentions) in [
        ("seeds = [0, 1]", "seeds = [0, 0]", &["seeds", "0 is there twice"][..]),
        ("baseline = \"none\"", "baseline = \"nine\"", &["\"nine\" is no cell"]),
        ("name = \"both\"", "name = \"none\"", &["two cells are called \"none\""]),
        ("objective.sds = false", "objective.sdss = false", &["cell losses/none", "objective.sdss", "unknown field"]),
        ("objective.sds = false", "objectives.sds = false", &["cell losses/none", "\"objectives\" is neither"]),
        ("objective.sds = false", "seed = 3", &["cell losses/none", "cannot set seed"]),
        ("values = [3]", "values = [9]", &["cell k/9", "k = 9 is outside 1 to 6"]),
        ("[world]", "[word]", &["unknown field `word`"]),
        ("world:data/pretrain.json", "nowhere.json", &["nowhere.json"]),
        ("limit = 8", "limit = 8\nbenchmarks = [\"gqa\"]", &["evaluation.root"]),
    ] {
        assert!(STUDY.contains(from), "{from}");
        let path = dir.path().join("wrong.toml");
        fs::write(&path, STUDY.replace(from, to)).unwrap();
        let ran = ablate(&path, &out, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{to}: {ran:#?}");
        let last = ran.stderr.lines().last().unwrap_or_default();
        for mention in mentions {
            assert!(
                last.starts_with("error: ") && last.contains(mention),
                "{to}: {mention:?} is not in: {}",
                ran.stderr
            );
        }
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    ablate(&dir.path().join("none.toml"), &out, &[]).refused(1, &["none.toml"]);
}

#[test]
fn the_studies_resolve_and_the_papers_without_its_data() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../studies");
    let dir = tempfile::tempdir().unwrap();
    let count = |name: &str| {
        let ran = ablate(&path.join(name), dir.path(), &["--list", "--json"]).json();
        ran["cells"].as_array().unwrap().len()
    };
    assert_eq!(count("paper.toml"), 4 + 3 + 2 + 8);
    assert_eq!(count("shapes.toml"), 2 * (4 + 3 + 2 + 6) * 5);
    assert_eq!(count("captions.toml"), 8 * 2 * 5);
    assert_eq!(count("losses.toml"), 2 * 4 * 20);
    assert_eq!(count("lens.toml"), 2 * 4 * 5);
}

#[test]
fn a_study_of_more_runs_than_anybody_waits_for_is_refused_before_it_is_expanded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("study.toml");
    let axis = |name: usize, levels: usize| {
        let levels: Vec<String> = (0..levels).map(|level| level.to_string()).collect();
        format!("{{ name = \"a{name}\", key = \"seed\", values = [{}] }}", levels.join(", "))
    };
    let grid = |axes: usize, levels: usize| {
        let axes: Vec<String> = (0..axes).map(|at| axis(at, levels)).collect();
        format!("[grid]\nbaseline = {{ a0 = 0 }}\naxes = [{}]\n", axes.join(", "))
    };
    let seeds = |count: u32| format!("seeds = {:?}", (0..count).collect::<Vec<_>>());
    let cases = [
        // Counts of 2^64, 2^65 and 3^40 cells would overflow a 64-bit number, the first to 0.
        (seeds(1), grid(64, 2)),
        (seeds(2), grid(64, 2)),
        (seeds(1), grid(40, 3)),
        (seeds(1), grid(6, 10)),
        (seeds(100_000), grid(1, 2)),
        (seeds(101), grid(2, 10)),
    ];
    for (seeds, grid) in cases {
        fs::write(&path, STUDY.replace("seeds = [0, 1]", &seeds) + &grid).unwrap();
        let out = dir.path().join("out");
        run(BINARY, args!["ablate", path, "--list", "--out", out]).refused(1, &["study.toml", "at most 10000"]);
    }
}

#[test]
fn two_processes_do_not_work_in_one_study() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let lock = fs::File::create(out.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    run(BINARY, args!["ablate", study(dir.path()), "--out", out]).refused(1, &["another `basic` is at work there"]);
}
