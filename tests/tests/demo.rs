//! Runs the README's first command (`basic demo`) with few steps.

use std::path::Path;

use serde_json::Value;
use tests::args;
use tests::binary::{run, run_in_shell};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn summary(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap()
}

/// The scores of both arms, seed by seed.
fn scores(summary: &Value) -> Vec<Value> {
    summary["conclusion"]["seeds"].as_array().unwrap().clone()
}

#[test]
fn the_demo_tells_each_seed_and_says_what_the_seeds_show_and_what_not() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let command = |out: &Path| args!["demo", "--seeds", "2", "--pretrain-steps", "3", "--device", "cpu", "--out", out];
    let ran = run(BASIC, command(&out)).succeeded();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].contains("few captions, the pretrain stage, 2 seeds"), "{}", ran.stdout);
    for seed in [0, 1] {
        let line = lines.iter().find(|line| line.starts_with(&format!("seed {seed}: LLaVA "))).unwrap();
        assert!(line.contains(", BASIC ") && line.contains("; so far ") && line.contains("of 2 seeds"), "{line}");
    }
    let found = summary(&out);
    let seeds = scores(&found);
    assert_eq!(seeds.iter().map(|seed| seed["seed"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert!(found["conclusion"]["difference"]["interval"].is_array());
    assert_eq!(found["settings"].as_array().unwrap().len(), 1);
    // Nothing is measured that is not shown.
    let stage = &found["settings"][0]["arms"][1]["runs"][0]["pretrain"];
    assert!(stage["per_kind"].is_object() && stage.get("caption_loss").is_none(), "{stage}");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (said, page) = (words(&ran.stdout), std::fs::read_to_string(out.join("report.html")).unwrap());
    for sentence in ["shown", "not_shown"] {
        let sentence = found["conclusion"][sentence].as_str().unwrap();
        assert!(said.contains(sentence), "{said}");
        assert!(page.contains(&sentence.replace('/', "&#x2f;")), "{sentence}");
    }
    for arm in ["llava", "basic"] {
        let checkpoint = out.join(format!("runs/few-{arm}-seed1/pretrain"));
        for file in ["model.safetensors", "recipe.toml", "run.json", "metrics.jsonl", "result.json"] {
            assert!(checkpoint.join(file).is_file(), "{arm}: {file}");
        }
        assert!(!checkpoint.with_file_name("finetune").exists());
    }
    // A second demo in the same place is refused.
    run(BASIC, command(&out)).refused(1, &["--overwrite"]);
    // On a single core there is one worker, and the numbers are the same; where there is no taskset, there are two again.
    let alone = dir.path().join("alone");
    run_in_shell("taskset -cp 0 $$ >/dev/null 2>&1 || true", BASIC, command(&alone)).succeeded();
    assert_eq!(scores(&summary(&alone)), seeds);
}

#[test]
fn the_whole_demo_has_both_stages_curves_and_every_measure() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let whole = args![
        "demo",
        "--full",
        "--only",
        "few",
        "--seeds",
        "1",
        "--pretrain-steps",
        "3",
        "--finetune-steps",
        "2",
        "--device",
        "cpu",
        "--out",
        out
    ];
    let ran = run(BASIC, whole).succeeded();
    assert!(ran.stdout.contains("report.html") && ran.stdout.contains("after finetune"), "{}", ran.stdout);
    let found = summary(&out);
    let arms = found["settings"][0]["arms"].as_array().unwrap();
    assert_eq!(arms.iter().map(|a| a["name"].as_str().unwrap()).collect::<Vec<_>>(), ["llava", "basic"]);
    for arm in arms {
        let stage = &arm["runs"][0]["pretrain"];
        assert_eq!(stage["curve"].as_array().unwrap().len(), 3);
        assert!(stage["caption_loss"].as_f64().unwrap() > 0.0);
        let accuracy = stage["accuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy));
        assert!(arm["runs"][0]["finetune"]["curve"].is_array() && arm["runs"][0]["best"]["step"].is_number());
    }
    // Same seed, same projector, same data: the first step's language-model loss is the same in both arms.
    let first = |arm: usize| arms[arm]["runs"][0]["pretrain"]["curve"][0]["lm"].as_f64().unwrap();
    assert!((first(0) - first(1)).abs() < 1e-6);

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(!page.contains("http://") || page.contains("http://www.w3.org"), "the page must not load anything");
    for arm in ["llava", "basic"] {
        let checkpoint = out.join(format!("runs/few-{arm}-seed0/pretrain"));
        for file in ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "recipe.toml"] {
            assert!(checkpoint.join(file).is_file(), "{arm}: {file}");
        }
        // The folder of a stage is like that of `basic train`, plus measured values and without intermediate states.
        for file in ["run.json", "metrics.jsonl", "result.json"] {
            assert!(checkpoint.join(file).is_file(), "{arm}: {file}");
        }
        assert!(!checkpoint.join("checkpoints").exists());
    }
}

#[test]
fn options_that_have_no_effect_are_refused() {
    for (options, code, mentions) in [
        (&["--seeds", "0"][..], 2, "--seeds"),
        (&["--seeds", "65536"], 2, "--seeds"),
        (&["--seeds", "5001"], 1, "at most 10000"),
        (&["--finetune-steps", "3"], 2, "--full"),
        (&["--validate-every", "3"], 1, "--full"),
        (&["--full", "--only", "few", "--sweep", "0:0"], 2, "--sweep"),
        (&["--only", "none"], 1, "few and many"),
        (&["--real", "/nowhere"], 1, "/nowhere: has no vision/config.json: `bash studies/real/packages/make.sh"),
        (&["--real", "/nowhere", "--full"], 2, "--full"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("demo");
        let ran = run(BASIC, [args!["demo", "--out", out], options.iter().map(Into::into).collect()].concat());
        ran.refused(code, &[mentions]);
        assert!(!out.exists(), "{options:?}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_shows_the_seeds_so_far() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let command = args!["demo", "--seeds", "500", "--pretrain-steps", "2", "--device", "cpu", "--out", out];
    let mut child = Command::new(BASIC).args(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.lines().any(|line| line.starts_with("seed ")) {
        assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
    }
    // What a seed has shown is there before the next is done.
    assert!(out.join("report.html").is_file() && !scores(&summary(&out)).is_empty());
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    lines.read_to_string(&mut said).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert!(String::from_utf8(ended.stderr).unwrap().contains("once more ends at once"));
    let done = scores(&summary(&out)).len();
    assert!((1..500).contains(&done), "{done}");
    let count = if done == 1 { "the first of 500 seeds".to_owned() } else { format!("{done} of 500 seeds") };
    assert!(said.contains(&format!("stopped with {done} of 500 seeds done")), "{said}");
    assert!(said.split_whitespace().collect::<Vec<_>>().join(" ").contains(&count), "{said}");
    // Another demo may take its place.
    let again = args!["demo", "--overwrite", "--seeds", "1", "--pretrain-steps", "2", "--device", "cpu", "--out", out];
    run(BASIC, again).succeeded();
    assert_eq!(scores(&summary(&out)).len(), 1);
}
