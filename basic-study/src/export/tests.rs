//! Exports of a small run, and of runs that are broken.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{ExportError, Format, export};

const STEPS: &str = "{\"step\":1,\"lm\":2.5,\"das\":null,\"lrs\":{\"projector\":0.001},\"seconds\":2.0}\n\
    {\"step\":2,\"lm\":2.25,\"skipped\":true,\"left_out\":[\"x\"],\"seconds\":3.0}\n{\"step\":3,\"l";

fn run() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("align");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("metrics.jsonl"), STEPS).unwrap();
    let eval = "{\"step\":2,\"lm\":3.0,\"predictions\":[{\"prompt\":\"p\"}]}\n";
    fs::write(run.join("eval.jsonl"), eval).unwrap();
    let info =
        r#"{"status":"finished","version":"0.1.0","recipe":{"stage":"pretrain","train":{"steps":2},"out":null}}"#;
    fs::write(run.join("run.json"), info).unwrap();
    (dir, run)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

#[test]
fn a_table_has_a_row_for_each_step_and_a_column_for_each_number() {
    let (dir, run) = run();
    let done = export(&run, Format::Csv, None).unwrap();
    assert_eq!(done.path, dir.path().canonicalize().unwrap().join("align-metrics.csv"));
    assert_eq!((done.steps, done.metrics), (2, 5));
    assert_eq!(read(&done.path), "step,lm,lrs/projector,seconds,skipped,eval/lm\n1,2.5,0.001,2,,\n2,2.25,,3,1,3\n");
    let again = export(&run, Format::Csv, None).unwrap_err();
    assert!(matches!(again, ExportError::Exists(_)), "{again}");
}

#[test]
fn mlflows_store_gets_the_run_once_with_times_that_follow_from_the_seconds() {
    let (dir, run) = run();
    let store = dir.path().join("store");
    let done = export(&run, Format::Mlflow, Some(&store)).unwrap();
    let lines = read(done.path.join("metrics/lm"));
    let fields: Vec<Vec<&str>> = lines.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!((fields[0][1..].join(" "), fields[1][1..].join(" ")), ("2.5 1".into(), "2.25 2".into()));
    let time = |line: usize| fields[line][0].parse::<u64>().unwrap();
    // The second step took three seconds.
    assert!((2_999..=3_001).contains(&(time(1) - time(0))), "{lines}");
    assert_eq!(read(done.path.join("metrics/eval/lm")).lines().count(), 1);
    assert_eq!(read(done.path.join("params/train.steps")), "2");
    assert_eq!(read(done.path.join("tags/mlflow.runName")), "align");
    let meta = read(done.path.join("meta.yaml"));
    assert!(meta.contains("status: 3\n") && meta.contains("run_name: \"align\"\n"), "{meta}");
    assert!(read(store.join("0/meta.yaml")).contains("name: \"Default\"\n"));
    assert!(export(&run, Format::Mlflow, Some(&store)).unwrap_err().to_string().contains("exists already"));
    let other = dir.path().join("finetune");
    fs::rename(&run, &other).unwrap();
    export(&other, Format::Mlflow, Some(&store)).unwrap();
    assert_eq!(fs::read_dir(store.join("0")).unwrap().count(), 3, "two runs and meta.yaml");
}

#[test]
fn the_folder_for_wandb_has_history_configuration_and_a_script() {
    let (_dir, run) = run();
    let done = export(&run, Format::Wandb, None).unwrap();
    let history: Vec<Value> =
        read(done.path.join("history.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&history[1]["_step"], &history[1]["eval/lm"]), (&2.into(), &3.0.into()));
    assert!(history[0]["_timestamp"].as_f64().unwrap() > 1e9);
    let config: Value = serde_json::from_str(&read(done.path.join("config.json"))).unwrap();
    assert_eq!((&config["name"], &config["config"]["recipe"]["stage"]), (&"align".into(), &"pretrain".into()));
    assert!(read(done.path.join("upload.py")).contains("wandb.init"));
}

#[test]
fn what_is_no_run_or_damaged_is_refused_with_its_file_and_line() {
    let said = |change: &dyn Fn(&Path)| {
        let (dir, run) = run();
        change(&run);
        let error = export(&run, Format::Mlflow, None).unwrap_err().to_string();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["align"], "nothing is written");
        error
    };
    let metrics = |text: &'static str| move |run: &Path| fs::write(run.join("metrics.jsonl"), text).unwrap();
    let none = said(&|run| fs::remove_file(run.join("metrics.jsonl")).unwrap());
    assert!(none.contains("no training run"), "{none}");
    for (text, mention) in [
        ("", "no complete step"),
        ("{\"step\":1}", "no complete step"),
        ("{\"step\":1,\"lm\":2}\n[]\n", "metrics.jsonl:2: no record"),
        ("{\"step\":1,\"lm\":2}\nnothing\n", "metrics.jsonl:2: no record"),
        ("{\"step\":-1,\"lm\":2}\n", "metrics.jsonl:1: no record"),
        ("{\"step\":1,\"../../lm\":2}\n", "metrics.jsonl:1: the key \"../../lm\""),
        ("{\"step\":1,\"a\":{\"..\":2}}\n", "metrics.jsonl:1: the key \"..\""),
    ] {
        let error = said(&metrics(text));
        assert!(error.contains(mention), "{mention}: {error}");
    }
    let record = said(&|run| fs::write(run.join("run.json"), "[1]").unwrap());
    assert!(record.contains("run.json:1: not the record of a run"), "{record}");
}
