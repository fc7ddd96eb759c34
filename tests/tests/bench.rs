//! `basic bench`: the keys of its JSON output, presets and checkpoints.

use tests::fixtures::{fixture, number};
use tests::{args, run};

#[test]
fn a_checkpoints_sizes_and_weights_are_timed_with_the_presets_text_and_batch() {
    let line = args![
        "bench",
        "--preset",
        "tiny",
        "--checkpoint",
        fixture("plain"),
        "--stage",
        "finetune",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--json"
    ];
    let ran = run(env!("CARGO_BIN_EXE_basic-under-test"), line);
    let report = ran.json();
    assert_eq!(report["preset"], "tiny");
    assert!(report["checkpoint"].as_str().unwrap().ends_with("plain"), "{report}");
    assert_eq!(number(&report["batch"]), 8.0);
    assert!(number(&report["step_s"]) > 0.0);
}

#[test]
fn each_step_is_told_as_it_ends() {
    let line = args!["bench", "--preset", "tiny", "--steps", "2", "--device", "cpu"];
    let ran = run(env!("CARGO_BIN_EXE_basic-under-test"), line);
    // One warm-up step, two timed steps, and the result.
    let told: Vec<&str> = ran.stdout.lines().collect();
    assert!(told.len() == 4 && told[2].starts_with("step 3: "), "{told:?}");
}

#[test]
fn a_checkpoint_that_is_not_there_is_named() {
    let line = args!["bench", "--preset", "tiny", "--checkpoint", fixture("nothing"), "--device", "cpu"];
    let ran = run(env!("CARGO_BIN_EXE_basic-under-test"), line);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("nothing/config.json"), "{}", ran.stderr);
}
