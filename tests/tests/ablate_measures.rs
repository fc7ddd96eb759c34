//! The values that `basic ablate` measures equal those that the other commands give for the checkpoints that it keeps.
//! With SHOTS=DIR in the environment, screenshots of the pages are saved there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::benchmarks::pope;
use tests::browser::Page;
use tests::fixtures::{number, read_json, read_jsonl, text};
use tests::{Ran, args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// Two cells with one seed and one stage, whose checkpoint is chosen by a held-out loss.
const STUDY: &str = r#"
name = "Measures"
seeds = [3]
baseline = "none"
keep_checkpoints = true

[world]
train = 12
validation = 4
eval = 4

[[stages]]
name = "pretrain"
measure = ["lens", "benchmarks"]
early_stopping = { every = 2, by = "loss" }

[stages.recipe]
stage = "pretrain"
model = { vision = "world:backbones/vision", llm = "world:backbones/llm" }
data.path = "world:data/pretrain.json"
eval = { path = "world:data/pretrain.json", every = 100, samples = 6, predictions = 0 }
train = { steps = 7, batch_size = 4 }
optimizer.lr = 4e-3
objective.lambda_das = 0.2

[evaluation]
lens = { data = "world:data/eval.jsonl", meaningful = "labels", limit = 4, replace = true }
benchmarks = ["pope"]
root = "ROOT"
max_new_tokens = 4

[[factors]]
name = "losses"
cells = [
    { name = "none", set = { objective.das = false, objective.sds = false } },
    { name = "both" },
]
"#;

fn study(dir: &Path, change: impl Fn(String) -> String) -> PathBuf {
    let path = dir.join("measures.toml");
    let root = dir.join("benchmarks");
    pope(&root, 2);
    fs::write(&path, change(STUDY.replace("ROOT", root.to_str().unwrap()))).unwrap();
    path
}

fn ablate(study: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut line = args!["ablate", study, "--out", out, "--device", "cpu"];
    line.extend(more.iter().map(Into::into));
    run(BINARY, line)
}

/// Runs a study, which must succeed and print only progress on standard error.
fn finishes(study: &Path, out: &Path, more: &[&str]) {
    let ran = ablate(study, out, more);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.stderr.lines().all(|line| line.contains("stages done")), "{}", ran.stderr);
}

/// The checkpoint and the values of a cell's single run.
fn cell(out: &Path, row: usize) -> (PathBuf, Value) {
    let run = read_json(&out.join("results.json"))["groups"][0]["rows"][row]["runs"][0].clone();
    let dir = out.join("cells").join(text(&run["hashes"]["pretrain"])).join("run");
    (dir, run["values"]["pretrain"].clone())
}

fn world(out: &Path) -> PathBuf {
    let found = fs::read_dir(out).unwrap().flatten().map(|entry| entry.path());
    found.into_iter().find(|path| path.join("world.json").is_file()).expect("the study makes its world")
}

#[test]
fn a_study_measures_what_analyze_and_eval_say_of_its_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (study(dir.path(), |text| text), dir.path().join("out"));
    finishes(&path, &out, &[]);
    for row in 0..2 {
        let (checkpoint, values) = cell(&out, row);
        let data = world(&out).join("data/eval.jsonl");
        let rule = ["--meaningful", "labels", "--limit", "4", "--replace", "--max-new-tokens", "4", "--json"];
        let mut line = args!["analyze", checkpoint, "--data", data];
        line.extend(rule.iter().map(Into::into));
        let said = run(BINARY, line).json()["checkpoints"][0].clone();
        let layers = said["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 7, "the projector's output and six layers");
        for layer in layers {
            let at = &layer["layer"];
            for (name, key) in [
                ("meaningful", "/meaningful"),
                ("chance", "/chance"),
                ("similarity", "/similarity"),
                ("end_share", "/end_share"),
                ("angle", "/angle"),
                ("anisotropy", "/anisotropy/cosine"),
            ] {
                let measured = number(&values[format!("lens.{name}.{at}")]);
                assert!(
                    (measured - number(layer.pointer(key).unwrap())).abs() < 1e-9,
                    "{name} at layer {at}: {measured}, {layer}"
                );
            }
        }
        let target = number(&said["target_anisotropy"]["cosine"]);
        assert!((number(&values["lens.target_anisotropy"]) - target).abs() < 1e-9, "{target}");
        assert_eq!(number(&values["lens.replaced"]), number(&said["replaced"]["replaced"]["value"]));
        assert_eq!(number(&values["lens.answered"]), number(&said["replaced"]["accuracy"]["value"]));

        let answers = dir.path().join(format!("answers-{row}"));
        let root = dir.path().join("benchmarks");
        let line = args!["eval", checkpoint, "--bench", "pope", "--root", root, "--out", answers, "--json"];
        let report = run(BINARY, line).json();
        for metric in report["benchmarks"][0]["metrics"].as_array().unwrap() {
            let name = text(&metric["name"]);
            assert_eq!(number(&values[format!("pope.{name}")]), number(&metric["value"]), "{name}");
        }

        // The chosen step has the least held-out loss among those with a saved state (2, 4, 6 and the last).
        let looked = read_jsonl(&checkpoint.join("eval.jsonl"));
        let steps: Vec<f64> = looked.iter().map(|line| number(&line["step"])).collect();
        assert_eq!(steps, [2.0, 4.0, 6.0, 7.0]);
        let least = looked.iter().map(|line| number(&line["lm"])).fold(f64::INFINITY, f64::min);
        let first = looked.iter().find(|line| number(&line["lm"]) == least).unwrap();
        assert_eq!((&values["best.step"], number(&values["best.validation"])), (&first["step"].as_f64().into(), least));
        assert!(values["best.pope"].is_number(), "{values}");
    }
    // Values per layer have a table and a figure of their own.
    let markdown = fs::read_to_string(out.join("table.md")).unwrap();
    assert!(markdown.contains("## losses, pretrain: meaningful, %, layer by layer"), "{markdown}");
    assert!(markdown.contains("| | seeds | layer 0 | layer 1 |"), "{markdown}");
    let page = fs::read_to_string(out.join("table.html")).unwrap();
    assert!(page.contains("<figcaption>pretrain: angle to V^, degrees</figcaption>"));
    in_a_browser(&out);

    // A report shows the same tables, also beside a run that the study kept.
    let (report, run_dir) = (dir.path().join("report.html"), cell(&out, 1).0);
    let written = run(BINARY, args!["report", out, run_dir, "--out", report, "--json"]).json();
    assert_eq!((&written["studies"][0], written["runs"].as_array().unwrap().len()), (&"Measures".into(), 1));
    let alone = run(BINARY, args!["report", out, "--out", dir.path().join("alone.html")]).succeeded();
    assert!(alone.stdout.contains("(1 study, "), "{}", alone.stdout);
    if let Some(page) = Page::open(&report) {
        assert_eq!(page.text("#ablations"), "Ablations");
        assert_eq!(page.evaluate("document.querySelectorAll('.study figure svg').length"), 6);
        // The style sheets of the two pages don't interfere: the text below a figure has one or two lines.
        let tallest = "Math.max(...[...document.querySelectorAll('.study .lines')].map(p => p.offsetHeight))";
        assert!(number(&page.evaluate(tallest)) < 60.0);
        let value = number(&cell(&out, 1).1["pope"]) * 100.0;
        assert!(page.text(".study tbody tr:nth-child(2)").contains(&format!("{value:.1}")));
        for (width, height) in [(375, 800), (1280, 900)] {
            page.resize(width, height);
            assert!(!page.scrolls_sideways(), "at {width} pixels");
            photograph(&page, "report", width);
        }
        page.assert_quiet();
    }
    let results = fs::read_to_string(out.join("results.json")).unwrap();
    // A row that lacks the entry of a column.
    let mut short: Value = serde_json::from_str(&results).unwrap();
    short["groups"][0]["rows"][0]["entries"].as_array_mut().unwrap().pop();
    fs::write(out.join("results.json"), short.to_string()).unwrap();
    run(BINARY, args!["report", out, "--out", report]).refused(1, &["results.json:", "entries for"]);
    fs::write(out.join("results.json"), &results[..results.len() / 2]).unwrap();
    run(BINARY, args!["report", out, "--out", report]).refused(1, &["results.json:", "not the results of a study"]);
}

/// Saves a screenshot in the folder SHOTS, if the environment names one.
fn photograph(page: &Page, name: &str, width: u32) {
    if let Some(dir) = std::env::var_os("SHOTS") {
        page.screenshot(&Path::new(&dir).join(format!("{name}-{width}.png")), 1.0);
    }
}

/// The text content of an element that need not be visible.
fn told_by(page: &Page, selector: &str) -> String {
    text(&page.evaluate(&format!("document.querySelector('{selector}').textContent"))).to_string()
}

/// Checks the page of the tables in a browser.
fn in_a_browser(out: &Path) {
    let Some(page) = Page::open(&out.join("table.html")) else { return };
    assert_eq!(page.evaluate("document.querySelectorAll('figure svg').length"), 6, "a figure for each quantity");
    // A point's title has the number in the results, and its position fits the axis.
    let told = |row: usize| number(&cell(out, row).1["lens.meaningful.0"]) * 100.0;
    let point = |line: usize| told_by(&page, &format!("figure g.c{line} circle title"));
    assert_eq!(point(0), format!("none 0: {:.2} ± 0.00", told(0)));
    assert_eq!(point(1), format!("both 0: {:.2} ± 0.00", told(1)));
    // All tables but the first are folded, and open by mouse and by key.
    let open = || page.evaluate("document.querySelectorAll('details[open]').length");
    assert_eq!(open(), 0);
    page.click("details summary");
    assert_eq!(open(), 1);
    page.evaluate("document.querySelectorAll('details summary')[1].focus() || 1");
    page.press("Enter");
    assert_eq!(open(), 2);
    for (width, height) in [(375, 800), (1280, 900)] {
        page.resize(width, height);
        assert!(!page.scrolls_sideways(), "at {width} pixels");
        photograph(&page, "table", width);
    }
    page.assert_quiet();
}

#[test]
fn a_stage_that_keeps_states_goes_on_from_the_latest_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let states = |text: String| {
        let evaluated =
            text.replace("[\"lens\", \"benchmarks\"]", "[\"lens\"]").replace("benchmarks = [\"pope\"]\n", "");
        let rest = "checkpoint.every = 1\n";
        let unstopped = evaluated.replace("early_stopping = { every = 2, by = \"loss\" }\n", "");
        unstopped.replace("optimizer.lr", &format!("{rest}optimizer.lr")).replace("steps = 7", "steps = 40")
    };
    let path = study(dir.path(), states);
    let whole = dir.path().join("whole");
    finishes(&path, &whole, &["--only", "both"]);

    let killed = dir.path().join("killed");
    let mut child = Command::new(BINARY)
        .args(args!["ablate", path, "--out", killed, "--device", "cpu", "--only", "both"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let listed = || ablate(&path, &killed, &["--list", "--json", "--only", "both"]);
    let hash = text(&listed().json()["cells"][0]["stages"][0][1]).to_string();
    let run_dir = killed.join("cells").join(hash).join("run");
    // After the fifth step there is a state of the fourth step or of a later one.
    let steps = || fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap_or_default();
    while steps().lines().count() < 5 && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = steps();
    assert!((5..40).contains(&before.lines().count()), "it was killed too late: {} steps", before.lines().count());
    finishes(&path, &killed, &["--only", "both"]);
    let after = steps();
    // Lines contain times, so unchanged first lines show that these steps were not trained again.
    assert_eq!(before.lines().take(3).collect::<Vec<_>>(), after.lines().take(3).collect::<Vec<_>>());
    assert_eq!(after.lines().count(), 40);
    assert_eq!(cell(&killed, 1).1, cell(&whole, 1).1);
}

#[test]
fn what_is_wrong_with_the_lens_of_a_study_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, mentions) in [
        ("lens = {", "# lens = {", &["measure = [\"lens\"] needs evaluation.lens"][..]),
        ("world:data/eval.jsonl", "nowhere.json", &["nowhere.json"]),
        ("\"labels\"", "\"labelled\"", &["labelled", "caption"]),
        ("limit = 4", "labels = \"none.jsonl\"", &["none.jsonl", "scenes.jsonl"]),
    ] {
        assert!(STUDY.contains(from), "{from}");
        let path = study(dir.path(), |text| text.replace(from, to));
        ablate(&path, &dir.path().join("out"), &[]).refused(1, mentions);
    }
}
