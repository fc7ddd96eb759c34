//! Runs the README's first command (`basic demo`) with few steps.

use serde_json::Value;
use tests::binary::run;

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

#[test]
fn the_demo_trains_both_arms_and_leaves_a_summary_a_report_and_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let out_text = out.to_str().unwrap();
    let args = [
        "demo",
        "--out",
        out_text,
        "--only",
        "few",
        "--pretrain-steps",
        "3",
        "--finetune-steps",
        "2",
        "--device",
        "cpu",
    ];
    let first_run = run(BASIC, args).succeeded();
    assert!(first_run.stdout.contains("report.html"), "{}", first_run.stdout);

    let summary: Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    let arms = summary["settings"][0]["arms"].as_array().unwrap();
    assert_eq!(arms.iter().map(|a| a["name"].as_str().unwrap()).collect::<Vec<_>>(), ["llava", "basic"]);
    for arm in arms {
        let stage = &arm["runs"][0]["pretrain"];
        assert_eq!(stage["curve"].as_array().unwrap().len(), 3);
        assert!(stage["caption_loss"].as_f64().unwrap() > 0.0);
        let accuracy = stage["accuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy));
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
    // A second demo in the same place is refused.
    let again = run(BASIC, args);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("--overwrite"), "{}", again.stderr);
}
