//! Tests of the page's content and safety; tests/tests/report.rs opens it in a browser.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;

const HOSTILE: &str = "<script>alert(\"1\")<\u{2f}script> & 'more'";

/// Writes a training run with this many steps and its recipe.
fn training(dir: &Path, steps: usize, das: bool) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let recipe = json!({"stage": "pretrain", "seed": 0, "output": dir, "objective": {"das": das, "lambda_das": 1.0}});
    let info = json!({"status": "done", "recipe": recipe, "steps": steps, "samples": 64, "version": "0.1.0", "burn": "x", "revision": null, "seconds": 1.0});
    fs::write(dir.join("run.json"), info.to_string()).unwrap();
    let line = |step: usize| {
        let lm = 4.0 / (1.0 + step as f64 / 10.0) + 0.01 * (step % 3) as f64;
        let das = if das { 0.5 + 0.1 / step as f64 } else { 0.0 };
        format!(
            "{}\n",
            json!({"step": step, "lm": lm, "das": das, "sds": 0.0, "total": lm + das, "lr": 1e-3, "grad_norm": 2.0, "seconds": 0.5, "skipped_steps": 0})
        )
    };
    fs::write(dir.join("metrics.jsonl"), (1..=steps).map(line).collect::<String>()).unwrap();
    dir.to_path_buf()
}

/// Writes predictions on two questions, one of them with a missing image.
fn evaluated(dir: &Path, answer: &str) {
    fs::create_dir_all(dir.join("eval")).unwrap();
    let line = |id: u64, image: Option<&str>, answer: &str| {
        let correct = answer == "red";
        json!({"question_id": id, "image": image, "text": "what colour?", "expected": "red", "answer": answer, "category": "colour", "correct": correct})
    };
    let lines = format!("{}\n{}\n", line(1, None, answer), line(2, Some("gone.png"), "red"));
    fs::write(dir.join("eval/test.predictions.jsonl"), lines).unwrap();
}

fn page(paths: &[PathBuf], out: &Path) -> String {
    let written = write(paths, out, &Options { samples: 12, image_root: None }).unwrap();
    let html = fs::read_to_string(out).unwrap();
    assert_eq!((written.bytes, written.runs.len()), (html.len(), paths.len()));
    html.replace('\u{a0}', " ")
}

#[test]
fn what_is_there_is_shown_and_what_is_not_leaves_no_section() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (training(&dir.path().join("llava"), 20, false), training(&dir.path().join("basic"), 80, true));
    let html = page(&[a.clone(), b.clone()], &dir.path().join("report.html"));
    for part in [
        "2 runs side by side",
        "objective.das",
        "Language-model loss (lm)",
        "Directional alignment (das)",
        "running means over 1 to 3 steps",
    ] {
        assert!(html.contains(part), "{part}");
    }
    for part in ["Semantic distribution (sds)", "Evaluations</h2>", "Sample answers</h2>", "held-out"] {
        assert!(!html.contains(part), "{part}");
    }
    evaluated(&a, "red");
    evaluated(&b, "blue");
    let html = page(&[a.clone(), b], &dir.path().join("report.html"));
    for part in [
        "Evaluations</h2>",
        "exact match",
        "<tr class=\"part\">",
        "<b>100.0</b>",
        "<b>50.0</b>",
        "blue",
        "gone.png cannot be read",
    ] {
        assert!(html.contains(part), "{part}");
    }
    let alone = page(&[a.join("eval/test.predictions.jsonl")], &dir.path().join("alone.html"));
    assert!(alone.contains("Evaluations</h2>") && !alone.contains("Training</h2>") && !alone.contains("What differs"));
}

#[test]
fn text_from_outside_is_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let run = training(&dir.path().join("<img src=x onerror=alert(1)> & co"), 3, true);
    evaluated(&run, HOSTILE);
    let mut info: serde_json::Value = serde_json::from_str(&fs::read_to_string(run.join("run.json")).unwrap()).unwrap();
    info["recipe"]["data"] = json!({ HOSTILE: HOSTILE });
    info["status"] = json!(HOSTILE);
    info["version"] = json!(HOSTILE);
    fs::write(run.join("run.json"), info.to_string()).unwrap();
    let html = page(&[run], &dir.path().join("report.html"));
    assert!(!html.contains("<script>alert") && !html.contains("<img src=x"));
    assert_eq!(html.matches("<script").count(), 2, "the points and the page's own");
    assert!(html.contains("&lt;script&gt;alert(&quot;1&quot;)"));
}

#[test]
fn the_page_refers_to_nothing_outside_itself() {
    let dir = tempfile::tempdir().unwrap();
    let run = training(&dir.path().join("run"), 5, true);
    let html = page(&[run], &dir.path().join("report.html")).replace("http://www.w3.org/2000/svg", "");
    for reference in
        ["http:", "https:", "url(", "@import", "<link rel=\"stylesheet\"", "src=\"http", "fetch(", "import("]
    {
        assert!(!html.contains(reference), "{reference}");
    }
}

#[test]
fn a_hundred_thousand_steps_make_a_page_of_half_a_megabyte_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let run = training(&dir.path().join("long"), 100_000, true);
    let html = page(&[run], &dir.path().join("report.html"));
    assert!(html.len() < 500_000, "{}", html.len());
    assert!(html.contains("means over 3125 steps") && html.contains("the lowest and the highest of neighbouring ones"));
    assert!(html.contains("100,000"));
}

#[test]
fn values_that_are_not_finite_leave_gaps_and_not_a_broken_page() {
    let dir = tempfile::tempdir().unwrap();
    let run = training(&dir.path().join("run"), 5, true);
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap()
        + "{\"step\":6,\"lm\":null,\"total\":null,\"lr\":0.001}\n{\"step\":7,\"lm\":";
    fs::write(&path, text).unwrap();
    let html = page(&[run], &dir.path().join("report.html"));
    for none in ["NaN", "Minf", "Linf", "null]", "[null"] {
        assert!(!html.contains(none), "{none}");
    }
}

#[test]
fn what_is_no_run_or_is_given_twice_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report.html");
    let refused =
        |paths: &[PathBuf]| write(paths, &out, &Options { samples: 1, image_root: None }).unwrap_err().to_string();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(refused(std::slice::from_ref(&empty)).contains("empty: neither a training run"));
    assert!(refused(&[dir.path().join("none")]).contains("none: "));
    let run = training(&dir.path().join("run"), 2, true);
    assert!(refused(&[run.clone(), run.clone()]).contains("run: given twice"));
    fs::write(run.join("metrics.jsonl"), "{\"step\":1}\nnothing\n").unwrap();
    assert!(refused(std::slice::from_ref(&run)).contains("metrics.jsonl:2"));
    fs::write(run.join("run.json"), "{").unwrap();
    assert!(refused(&[run]).contains("run.json:1"));
    assert!(!out.exists());
}
