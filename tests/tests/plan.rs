//! `basic train --plan`: the requirements of a run, computed from configurations without weights.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;
use tests::fixtures::{fixture, names, number, numbers};
use tests::{Ran, args, run};

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

/// A folder with only the config.json of the fixture `plain`, and a recipe that starts from it.
struct Plan {
    dir: TempDir,
}

impl Plan {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::copy(fixture("plain/config.json"), dir.path().join("model/config.json")).unwrap();
        let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
        let sample = json!({ "image": "a.png", "conversations": [turn("human", "<image>"), turn("gpt", "a circle")] });
        fs::write(dir.path().join("data.json"), json!([sample, sample, sample]).to_string()).unwrap();
        fs::copy(fixture("images/a.png"), dir.path().join("a.png")).unwrap();
        let recipe = format!(
            "stage = \"pretrain\"\noutput = \"{0}/out\"\n[model]\ncheckpoint = \"{0}/model\"\n\
             [data]\npath = \"{0}/data.json\"\n[train]\nbatch_size = 2\nepochs = 4.0\n",
            dir.path().display()
        );
        fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
        Self { dir }
    }

    fn line(&self, more: &[&str]) -> Vec<OsString> {
        let recipe: PathBuf = self.dir.path().join("recipe.toml");
        let mut line = args!["train", recipe, "--device", "cpu", "--plan"];
        line.extend(more.iter().map(OsString::from));
        line
    }
}

#[test]
fn a_plan_needs_no_weights_and_writes_nothing() {
    let plan = Plan::new();
    let before = names(plan.dir.path());
    let found = basic(plan.line(&["--json"])).json();
    let parts = found["parts"].as_array().unwrap();
    // The fixture's projector has sizes 32 -> 48 -> 48 with biases; see tests/fixtures/plain/config.json.
    assert_eq!(number(&parts[1]["parameters"]), f64::from(32 * 48 + 48 + 48 * 48 + 48));
    assert_eq!(found["trained"], parts[1]["trained"]);
    // Three samples in four epochs with two per step make six steps.
    assert_eq!((number(&found["steps"]), number(&found["data"]["samples"])), (6.0, 3.0));
    let memory = &found["memory"];
    let sum: f64 = memory.as_object().unwrap().iter().filter(|(key, _)| *key != "total").map(|(_, n)| number(n)).sum();
    assert_eq!(number(&memory["total"]), sum);
    assert_eq!(found["fits"], true, "a tiny model on this machine");
    assert_eq!(names(plan.dir.path()), before);

    let shown = basic(plan.line(&[])).succeeded().stdout;
    assert!(shown.contains("it fits") && shown.contains("projector"), "{shown}");
}

#[test]
fn a_plan_says_what_does_not_fit_and_what_it_had_to_assume() {
    let plan = Plan::new();
    fs::remove_file(plan.dir.path().join("data.json")).unwrap();
    let found = basic(plan.line(&["--json", "--memory", "1MB", "--samples", "100"])).json();
    assert_eq!((&found["fits"], number(&found["steps"])), (&json!(false), 200.0));
    assert_eq!(numbers(&json!([found["budget"]["bytes"]])), [1e6]);
    assert!(found["notes"].to_string().contains("data.json"), "{}", found["notes"]);
    fs::remove_file(plan.dir.path().join("model/config.json")).unwrap();
    basic(plan.line(&[])).refused(1, &["model/config.json"]);
    let recipe = plan.dir.path().join("recipe.toml");
    basic(args!["train", recipe, "--samples", "80"]).refused(2, &["--plan"]);
}

#[test]
fn a_plan_of_the_largest_model_there_may_be_is_counted_and_of_a_larger_one_refused() {
    let plan = Plan::new();
    let path = plan.dir.path().join("model/config.json");
    let mut config = tests::fixtures::read_json(&path);
    for (key, value) in [
        ("num_hidden_layers", 4096),
        ("hidden_size", 131_072),
        ("intermediate_size", 1_048_576),
        ("num_attention_heads", 1024),
        ("num_key_value_heads", 1024),
        ("head_dim", 128),
        ("vocab_size", 16_777_216),
        ("max_position_embeddings", 1 << 30),
    ] {
        config["text_config"][key] = json!(value);
    }
    fs::write(&path, config.to_string()).unwrap();
    let shown = basic(plan.line(&["--set", "train.batch_size=1000000"])).succeeded().stdout;
    assert!(shown.contains("it does not fit"), "{shown}");
    for (key, value) in [("head_dim", 1u64 << 62), ("num_hidden_layers", 1_000_000_000), ("vocab_size", 1 << 40)] {
        let mut more = config.clone();
        more["text_config"][key] = json!(value);
        fs::write(&path, more.to_string()).unwrap();
        basic(plan.line(&[])).refused(1, &["model", key]);
    }
    let cache = ["--set", "train.vision_cache_mib=9223372036854775807"];
    basic(plan.line(&cache)).refused(1, &["vision_cache_mib"]);
}

#[test]
fn ranks_are_planned_for_without_their_devices() {
    let plan = Plan::new();
    let of = |ranks: &str| basic(plan.line(&["--json", "--ranks", ranks])).json();
    let (one, two) = (of("1"), of("2"));
    assert_eq!((number(&two["devices"]), &two["load"]["shard"]), (2.0, &json!("gradients")));
    assert_eq!(number(&one["memory"]["moments"]), 2.0 * number(&two["memory"]["moments"]) - 8.0);
    for ranks in ["0", "1000001", "two"] {
        basic(plan.line(&["--ranks", ranks])).refused(2, &["--ranks"]);
    }
    let recipe: PathBuf = plan.dir.path().join("recipe.toml");
    basic(args!["train", recipe, "--ranks", "2"]).refused(2, &["--plan"]);
}
