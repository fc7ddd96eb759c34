//! `basic eval --bench` on folders laid out as LLaVA's, made here, with a tiny checkpoint.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::fixtures::{copy_of, fixture, number, read_json, read_jsonl};
use tests::{args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn write(path: &Path, text: String) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn image(folder: &Path, name: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::copy(fixture("images").join(name), folder.join(name)).unwrap();
}

/// POPE with two questions a split, and MM-Vet with one question.
fn folders(root: &Path) {
    let mut questions = Vec::new();
    for split in ["random", "popular", "adversarial"] {
        let labels = [json!({"image": "a.png", "label": "yes"}), json!({"image": "b.png", "label": "no"})];
        write(&root.join(format!("pope/coco/coco_pope_{split}.json")), lines(&labels));
        for name in ["a.png", "b.png"] {
            let text = format!("Is there a star, {split}?\nAnswer the question using a single word or phrase.");
            questions.push(json!({"question_id": questions.len(), "image": name, "text": text, "category": split}));
        }
    }
    write(&root.join("pope/llava_pope_test.jsonl"), lines(&questions));
    ["a.png", "b.png"].iter().for_each(|name| image(&root.join("pope/val2014"), name));
    let question = json!({"question_id": 0, "image": "c.png", "text": "what is it?"});
    write(&root.join("mm-vet/llava-mm-vet.jsonl"), lines(&[question]));
    image(&root.join("mm-vet/images"), "c.png");
}

#[test]
fn benchmarks_are_answered_scored_and_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("eval"), dir.path().join("out"));
    let model = copy_of("plain", &dir.path().join("model"));
    folders(&root);
    let line = args![
        "eval",
        model,
        "--bench",
        "pope",
        "mm-vet",
        "--root",
        root,
        "--out",
        out,
        "--max-new-tokens",
        "3",
        "--device",
        "cpu",
        "--json"
    ];
    let report = run(BASIC, line.clone()).json();
    let metrics = report["benchmarks"][0]["metrics"].as_array().unwrap();
    assert_eq!(metrics.len(), 15, "five rates of three splits");
    assert!(
        metrics.iter().all(|m| number(&m["low"]) <= number(&m["value"]) && number(&m["value"]) <= number(&m["high"]))
    );
    let submitted = read_json(&out.join("mm-vet/mm-vet.json"));
    assert_eq!(submitted["v1_0"], read_jsonl(&out.join("mm-vet/answers.jsonl"))[0]["text"]);

    // Stopped in the middle of the third answer: the first two are kept as they are, and the score is the same.
    let answers = out.join("pope/answers.jsonl");
    let whole = fs::read_to_string(&answers).unwrap();
    let kept: Vec<&str> = whole.lines().take(2).map(|l| l.trim_end()).collect();
    fs::write(&answers, format!("{}\n{}\n{{\"question", kept[0], kept[1])).unwrap();
    assert_eq!(run(BASIC, line.clone()).json(), report);
    assert!(fs::read_to_string(&answers).unwrap().starts_with(&format!("{}\n{}\n", kept[0], kept[1])));
    assert_eq!(read_jsonl(&answers).len(), 6);

    // Of another token limit they are another evaluation's.
    let mut other = line;
    other.push("--max-new-tokens=4".into());
    other.drain(9..11);
    run(BASIC, other).refused(1, &["answers.jsonl", "at most 3 tokens", "--fresh"]);
}

#[test]
fn wrong_folders_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    folders(root);
    let eval = |name: &str| run(BASIC, args!["eval", fixture("plain"), "--bench", name, "--root", root, "--json"]);
    eval("nope").refused(1, &["\"nope\"", "textvqa"]);
    eval("gqa").refused(1, &["llava_gqa_testdev_balanced.jsonl: not there", "eval.zip"]);
    fs::write(root.join("pope/coco/coco_pope_popular.json"), "{\"label\": \"yes\"}\n").unwrap();
    eval("pope").refused(1, &["coco_pope_popular.json", "1 labels, but 2 questions"]);
    fs::remove_file(root.join("mm-vet/images/c.png")).unwrap();
    eval("mm-vet").refused(1, &["c.png: not there", "question 0"]);
    let none = json!({"question_id": 0, "text": "what is it?"});
    fs::write(root.join("mm-vet/llava-mm-vet.jsonl"), lines(&[none])).unwrap();
    eval("mm-vet").refused(1, &["llava-mm-vet.jsonl:1", "no \"image\""]);
}
