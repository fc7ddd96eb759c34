//! `basic compare` on the results of `basic eval`, with a tiny checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::benchmarks::{folders, lines, pope, write};
use tests::fixtures::{copy_of, fixture, number, read_jsonl, text};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// Replaces the answers of a benchmark in `out` by others and scores them again.
fn say(model: &Path, root: &Path, out: &Path, name: &str, said: &[&str]) {
    let path = out.join(name).join("answers.jsonl");
    let mut all = read_jsonl(&path);
    assert_eq!(all.len(), said.len(), "{name}");
    all.iter_mut().zip(said).for_each(|(line, said)| line["text"] = json!(said));
    write(&path, lines(&all));
    eval(model, root, out, &[name]);
}

fn eval(model: &Path, root: &Path, out: &Path, names: &[&str]) {
    let mut line = args!["eval", model, "--bench"];
    line.extend(names.iter().map(Into::into));
    line.extend(args!["--root", root, "--out", out, "--max-new-tokens", "2", "--device", "cpu", "--json"]);
    run(BASIC, line).json();
}

/// Two evaluations of three benchmarks.
fn two(dir: &Path) -> (PathBuf, PathBuf) {
    let (model, root) = (copy_of("plain", &dir.join("model")), dir.join("eval"));
    folders(&root);
    pope(&root, 4);
    let (a, b) = (dir.join("a"), dir.join("b"));
    for out in [&a, &b] {
        eval(&model, &root, out, &["pope", "vqav2-val", "mm-vet"]);
    }
    let yes = ["yes"; 12];
    say(&model, &root, &a, "pope", &yes);
    let mut better = yes;
    (better[1], better[3], better[4]) = ("no", "No.", "no");
    say(&model, &root, &b, "pope", &better);
    say(&model, &root, &a, "vqav2-val", &["grey", "no", "3"]);
    say(&model, &root, &b, "vqav2-val", &["white", "no", "2"]);
    (a, b)
}

fn near(value: &Value, expected: f64) -> bool {
    (number(value) - expected).abs() < 1e-9
}

fn measure<'a>(set: &'a Value, name: &str) -> &'a Value {
    let found = set["measures"].as_array().unwrap().iter().find(|measure| measure["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {set}"))
}

#[test]
fn two_evaluations_are_compared_question_by_question() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = two(dir.path());
    let told = run(BASIC, args!["compare", a, b, "--json"]).json();
    let sets = told["sets"].as_array().unwrap();
    let names: Vec<&str> = sets.iter().map(|set| text(&set["name"])).collect();
    assert_eq!(names, ["mm-vet", "pope", "vqav2-val"]);
    assert!(sets[0]["measures"].as_array().unwrap().is_empty(), "MM-Vet's answers are hidden");

    let accuracy = measure(&sets[1], "accuracy, adversarial");
    assert_eq!((number(&accuracy["a"]), number(&accuracy["b"]), number(&accuracy["difference"])), (0.5, 1.0, 0.5));
    assert_eq!((&accuracy["better"], &accuracy["worse"], &accuracy["same"]), (&json!(2), &json!(0), &json!(2)));
    // Two fair coins show the same side with probability 1/2.
    assert_eq!((&accuracy["test"], near(&accuracy["p"], 0.5)), (&json!("McNemar, exact"), true));
    let popular = measure(&sets[1], "recall, popular");
    assert_eq!((number(&popular["a"]), number(&popular["b"]), &popular["test"]), (1.0, 0.5, &json!("swaps")));
    let changed = sets[1]["changed"].as_array().unwrap();
    assert_eq!(changed.iter().map(|question| question["question_id"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!((text(&changed[0]["a"]), text(&changed[0]["b"]), text(&changed[0]["expected"])), ("yes", "no", "no"));
    assert!(text(&changed[0]["prompt"]).starts_with("Is there a adversarial thing number 1"));

    let graded = measure(&sets[2], "accuracy");
    assert!((number(&graded["difference"]) - 1.1 / 3.0).abs() < 1e-9, "{graded}");
    // Two differences have the same sign: of their four sign combinations, two are as far from 0.
    assert_eq!((&graded["test"], number(&graded["p"])), (&json!("sign flips"), 0.5));
    assert!(
        number(&graded["low"]) <= number(&graded["difference"])
            && number(&graded["difference"]) <= number(&graded["high"])
    );

    let table = run(BASIC, args!["compare", a, b, "--changed", "1"]).succeeded().stdout;
    for part in [
        "pope: 12 questions",
        "accuracy, adversarial",
        "50.00%",
        "100.00%",
        "+50.00",
        "McNemar, exact",
        "3 with another score, the first 1:",
        "truth \"no\"",
    ] {
        assert!(table.contains(part), "{part:?} is not in:\n{table}");
    }
    assert!(!table.contains("number 3"), "one question is shown:\n{table}");
    let same = run(BASIC, args!["compare", a, a, "--json"]).json();
    let all = same["sets"].as_array().unwrap().iter().flat_map(|set| set["measures"].as_array().unwrap());
    assert!(all.clone().count() > 15);
    all.for_each(|measure| {
        assert_eq!((number(&measure["difference"]), number(&measure["p"])), (0.0, 1.0), "{measure}")
    });
}

#[test]
fn other_benchmarks_and_questions_are_named_and_common_ones_compared_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = two(dir.path());
    fs::remove_dir_all(b.join("mm-vet")).unwrap();
    run(BASIC, args!["compare", a, b]).refused(1, &["only the first has mm-vet", "--common"]);
    let judged = b.join("pope/judged.jsonl");
    let kept: String = fs::read_to_string(&judged).unwrap().lines().skip(1).map(|line| format!("{line}\n")).collect();
    fs::write(&judged, &kept).unwrap();
    run(BASIC, args!["compare", a.join("pope"), b.join("pope")])
        .refused(1, &["only the first answers question 0", "--common", "judged.jsonl"]);
    let told = run(BASIC, args!["compare", a, b, "--common", "--json"]).json();
    assert_eq!(
        (told["sets"].as_array().unwrap().len(), &told["sets"][0]["only_a"], &told["sets"][0]["questions"]),
        (2, &json!(1), &json!(11))
    );
    // A truncated file, and an empty one.
    fs::write(&judged, &kept[..kept.len() - 20]).unwrap();
    run(BASIC, args!["compare", a, b, "--common"]).refused(1, &["judged.jsonl:11", "cut off", "basic eval"]);
    fs::write(&judged, "").unwrap();
    run(BASIC, args!["compare", a, b, "--common"]).refused(1, &["judged.jsonl", "holds no answer"]);
    run(BASIC, args!["compare", a, dir.path().join("none")]).refused(1, &["none", "no such file"]);
    run(BASIC, args!["compare", a, fixture("images")]).refused(1, &["images", "no judged.jsonl"]);
    run(BASIC, args!["compare", a.join("pope/answers.jsonl"), b]).refused(1, &["answers.jsonl:1", "without scores"]);
}

#[test]
fn files_of_predictions_are_compared_too() {
    let dir = tempfile::tempdir().unwrap();
    let question = |i: usize| json!({"question_id": i, "image": "a.png", "text": "what is it?", "answer": "star", "category": (["one", "two"][i % 2])});
    let data = dir.path().join("data.jsonl");
    write(&data, lines(&(0..6).map(question).collect::<Vec<_>>()));
    let model = copy_of("plain", &dir.path().join("model"));
    run(BASIC, args!["eval", model, data, "--images", fixture("images"), "--device", "cpu", "--json"]).json();
    let left = model.join("eval/data.predictions.jsonl");
    assert!(model.join("eval/data.result.json").is_file());
    let mut other = read_jsonl(&left);
    for line in &mut other[..4] {
        line["answer"] = json!("star");
        line["correct"] = json!(true);
    }
    let right = dir.path().join("other.jsonl");
    write(&right, lines(&other));
    // A checkpoint stands for the results in its eval/, and a single file is compared whatever its name.
    let told = run(BASIC, args!["compare", left, right, "--json"]).json();
    let overall = measure(&told["sets"][0], "exact match");
    assert_eq!(
        (&overall["better"], near(&overall["p"], 0.125)),
        (&json!(4), true),
        "four coins on one side, on either: 1/8"
    );
    assert_eq!(number(&measure(&told["sets"][0], "exact match, one")["b"]), 2.0 / 3.0);
    let itself = run(BASIC, args!["compare", model, model, "--json"]).json();
    assert_eq!(itself["sets"][0]["name"], "data");
    fs::write(&right, fs::read_to_string(&right).unwrap().trim_end().strip_suffix('}').unwrap()).unwrap();
    run(BASIC, args!["compare", left, right]).refused(1, &["other.jsonl:6", "cut off"]);
}
