//! `basic report` and its page in a browser. With SHOTS=DIR in the environment, screenshots are saved there.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::benchmarks::folders;
use tests::browser::Page;
use tests::fixtures::{fixture, number};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");
const HOSTILE: &str = "<img src=x onerror=\"document.title='run'\"><script>document.title = 'run'</script>";

/// A training run whose loss ends at `end`, with answers to two questions.
fn training(dir: &Path, steps: usize, end: f64, das: bool, answer: &str) {
    fs::create_dir_all(dir.join("eval")).unwrap();
    let recipe = json!({"stage": "finetune", "seed": 1, "output": dir, "objective": {"das": das, "sds": das, "lambda_das": 0.5}});
    let info = json!({"status": "done", "recipe": recipe, "steps": steps, "samples": 64, "version": "0.1.0", "burn": "0.22.1", "revision": null, "seconds": 9.0});
    fs::write(dir.join("run.json"), info.to_string()).unwrap();
    let line = |step: usize| {
        // The loss is constant at the end, so that the running mean there equals the last value.
        let left = steps.saturating_sub(step + 10) as f64 / steps as f64;
        let lm = end + 3.0 * left + if left > 0.0 { 0.05 * (step % 5) as f64 } else { 0.0 };
        let loss = |value: f64| if das { value } else { 0.0 };
        format!(
            "{}\n",
            json!({"step": step, "lm": lm, "das": loss(0.25), "sds": loss(1.5), "total": lm + loss(0.3), "lr": 1e-3, "grad_norm": 2.5, "seconds": 0.1, "skipped_steps": 0})
        )
    };
    fs::write(dir.join("metrics.jsonl"), (1..=steps).map(line).collect::<String>()).unwrap();
    let held = |step: usize| {
        format!(
            "{}\n",
            json!({"step": step, "lm": end + 0.1, "das": 0.0, "sds": 0.0, "total": end + 0.1, "accuracy": 0.75, "samples": 8, "predictions": []})
        )
    };
    fs::write(dir.join("eval.jsonl"), held(steps / 2) + &held(steps)).unwrap();
    let image = fixture("images").join("a.png");
    let line = |id: usize, answer: &str| json!({"question_id": id, "image": image, "text": "what colour is it?", "expected": "red", "answer": answer, "category": "colour", "correct": answer == "red"});
    fs::write(dir.join("eval/test.predictions.jsonl"), format!("{}\n{}\n", line(0, "red"), line(1, answer))).unwrap();
}

fn report(paths: &[PathBuf], out: &Path) -> Value {
    let mut line = args!["report"];
    line.extend(paths.iter().map(Into::into));
    // The fixtures' images lie neither beside the answers nor in a recorded folder.
    line.extend(args!["--image-root", fixture("images"), "--out", out, "--json"]);
    run(BASIC, line).json()
}

/// The values that a panel displays: each run's name and value.
fn readout(page: &Page, panel: &str) -> Vec<(String, f64)> {
    let script = format!(
        "[...document.querySelectorAll('[data-panel=\"{panel}\"] .value')].map(v => [v.querySelector('.name').textContent, Number(v.querySelector('b').textContent)])"
    );
    let pairs = page.evaluate(&script);
    pairs.as_array().unwrap().iter().map(|pair| (pair[0].as_str().unwrap().into(), number(&pair[1]))).collect()
}

#[test]
fn the_page_shows_each_runs_curves_and_their_ends_and_works_by_mouse_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("llava"), dir.path().join("basic"));
    training(&a, 200, 0.5, false, "blue");
    training(&b, 150, 0.25, true, "red");
    let out = dir.path().join("report.html");
    let written = report(&[a, b], &out);
    assert_eq!(
        (&written["runs"], written["bytes"].as_u64()),
        (&json!(["llava", "basic"]), Some(fs::metadata(&out).unwrap().len()))
    );
    let Some(page) = Page::open(&out) else { return };

    // The last values are 0.5 for llava and 0.25 for basic; only the run with das and sds shows them.
    let of = |a: f64, b: f64| vec![("llava".to_string(), a), ("basic".to_string(), b)];
    assert_eq!(readout(&page, "train-lm"), of(0.5, 0.25));
    assert_eq!(readout(&page, "train-das"), [("basic".to_string(), 0.25)]);
    assert_eq!(readout(&page, "train-total"), of(0.5, 0.55));
    assert_eq!(readout(&page, "train-lr"), of(0.001, 0.001));
    assert_eq!(readout(&page, "held-out-accuracy"), of(0.75, 0.75));
    // The curve ends at the position of its last value, 0.5, on an axis that begins at 0.
    let end = page.evaluate(
        "(() => { const c = document.querySelector('[data-panel=\"train-lm\"] .chart'); const p = c.querySelector('.curve[data-run=\"0\"]'); \
         const e = p.getPointAtLength(p.getTotalLength()); return [e.x, (182 - e.y) / 172 * c.dataset.high]; })()",
    );
    assert!((number(&end[0]) - 332.0).abs() < 0.2 && (number(&end[1]) - 0.5).abs() < 0.02, "{end}");

    // The mouse reads off a value in the middle, and leaves.
    let plot = "[data-panel=\"train-lm\"] .plot";
    page.hover(plot);
    page.wait("document.querySelector('[data-panel=\"train-lm\"] .at').textContent.startsWith('Step ')");
    let middle = readout(&page, "train-lm");
    assert!((1.6..2.6).contains(&middle[0].1), "half of the way down from 3.5: {middle:?}");
    page.hover("h1");
    page.wait("document.querySelector('[data-panel=\"train-lm\"] .at').textContent === 'At the end'");
    assert_eq!(readout(&page, "train-lm"), of(0.5, 0.25));
    // The keys go to the first step and to the next one.
    page.evaluate(&format!("document.querySelector('{}').focus() || 1", plot.replace('"', "\\\"")));
    page.press("Home");
    assert_eq!(page.text("[data-panel=\"train-lm\"] .at"), "Step 1");
    page.press("ArrowRight");
    assert_eq!(page.text("[data-panel=\"train-lm\"] .at"), "Step 2");
    // The shorter run has no value at the longer run's last step.
    page.press("End");
    assert_eq!(page.text("[data-panel=\"train-lm\"] .at"), "Step 200");
    assert_eq!(page.text("[data-panel=\"train-lm\"] .value[data-run=\"1\"] b"), "–");
    page.press("Escape");
    assert_eq!(page.text("[data-panel=\"train-lm\"] .at"), "At the end");

    // A run is hidden and shown again, and the axis is switched to logarithmic and back.
    let shown = |selector: &str| {
        page.evaluate(&format!(
            "[...document.querySelectorAll('{selector}')].filter(e => getComputedStyle(e).display !== 'none').length"
        ))
    };
    let before = shown(".curve");
    page.click("[data-toggle=\"0\"]");
    assert_eq!(shown(".curve[data-run=\"0\"]"), 0);
    assert!(number(&shown(".curve")) < number(&before));
    page.click("[data-toggle=\"0\"]");
    assert_eq!(shown(".curve"), before);
    page.click("#logarithmic");
    assert_eq!(shown("[data-panel=\"train-lm\"] [data-scale=\"linear\"]"), 0);
    assert_eq!(shown("[data-panel=\"train-lm\"] [data-scale=\"logarithmic\"]"), 1);
    page.click("#logarithmic");
    assert_eq!(shown("[data-panel=\"train-lm\"] [data-scale=\"linear\"]"), 1);

    // Tables, answers and images are shown, and nothing is wider than the screen of a phone.
    let body = page.text("body");
    for part in ["objective.das", "exact match", "50.0", "100.0", "what colour is it?", "blue"] {
        assert!(body.contains(part), "{part}");
    }
    assert_eq!(
        page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length"),
        2
    );
    for (width, height) in [(375, 800), (1280, 900)] {
        page.resize(width, height);
        assert!(!page.scrolls_sideways(), "at {width} pixels");
    }
    page.assert_quiet();
}

#[test]
fn benchmarks_stand_in_the_page_with_their_scores_images_and_what_is_hidden() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("eval");
    folders(&root);
    let outs = [("plain", "one"), ("sharded", "two")].map(|(model, out)| {
        let out = dir.path().join(out);
        let line = args![
            "eval",
            fixture(model),
            "--bench",
            "pope",
            "vqav2-val",
            "mm-vet",
            "mmbench",
            "--root",
            root,
            "--out",
            out,
            "--max-new-tokens",
            "2",
            "--device",
            "cpu",
            "--json"
        ];
        run(BASIC, line).json();
        out
    });
    fs::remove_file(outs[1].join("mmbench/judged.jsonl")).unwrap();
    let out = dir.path().join("report.html");
    assert_eq!(report(&outs, &out)["runs"], json!(["one", "two"]));
    let Some(page) = Page::open(&out) else { return };
    let main = page.text("#main");
    for part in [
        "two: the evaluation in",
        "is not finished",
        "accuracy, adversarial",
        "yes ratio, random",
        "yes/no",
        "circular accuracy",
        "2 questions, prompts by vicuna_v1. The true answers are hidden",
        "Is there a popular thing number 1 in the image?",
        "6 questions, prompts by vicuna_v1",
    ] {
        assert!(main.contains(part), "{part:?} is not in {main}");
    }
    assert!(!main.contains("Training") && !main.contains("cannot be read"));
    // Images of six questions of POPE, three of VQAv2 and two of MM-Vet; MMBench's are in its table and not shown.
    assert_eq!(page.evaluate("[...document.images].filter(i => i.naturalWidth === 28).length"), 11);
    page.resize(375, 800);
    assert!(!page.scrolls_sideways());
    page.assert_quiet();
}

#[test]
fn what_comes_from_outside_is_shown_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join(HOSTILE.replace('/', "\u{2215}"));
    training(&run, 5, 0.5, true, HOSTILE);
    let out = dir.path().join("report.html");
    report(&[run], &out);
    let Some(page) = Page::open(&out) else { return };
    assert!(page.text("h1").starts_with("<img src=x"), "{}", page.text("h1"));
    assert!(
        page.text(".answers ul").contains("red")
            && page.text("#main").contains("<script>document.title = 'run'</script>")
    );
    assert_ne!(page.evaluate("document.title"), "run");
    assert_eq!(page.evaluate("document.scripts.length"), 2);
    page.resize(375, 800);
    assert!(!page.scrolls_sideways(), "a long name wraps");
    page.assert_quiet();
}

#[test]
fn what_is_no_run_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report.html");
    run(BASIC, args!["report", dir.path(), "--out", out]).refused(1, &["neither a training run"]);
    run(BASIC, args!["report", dir.path().join("none"), "--out", out]).refused(1, &["none", "no such file"]);
    run(BASIC, args!["report"]).refused(2, &["RUN"]);
    assert!(!out.exists());
}

/// Not a test: saves screenshots of a page for a person to inspect.
#[test]
fn pages_named_in_the_environment_are_photographed() {
    let (Ok(html), Ok(shots)) = (std::env::var("REPORT"), std::env::var("SHOTS")) else { return };
    let shots = Path::new(&shots);
    let Some(page) = Page::open(Path::new(&html)) else { return };
    let tall = |page: &Page, width: u32| {
        page.resize(width, 900);
        let height = page.evaluate("document.documentElement.scrollHeight").as_u64().unwrap();
        page.resize(width, u32::try_from(height).unwrap().min(9000));
    };
    for scheme in ["light", "dark"] {
        page.prefer(scheme);
        for (name, width) in [("desktop", 1280), ("phone", 375)] {
            tall(&page, width);
            page.screenshot(&shots.join(format!("{name}-{scheme}.png")), 1.0);
        }
    }
    page.prefer("light");
    page.resize(1280, 900);
    page.click("#logarithmic");
    page.hover("[data-panel=\"train-lm\"] .plot");
    page.screenshot(&shots.join("hover-log.png"), 1.0);
    page.assert_quiet();
}
