//! Invalid images, samples and questions.

use std::fs;

use serde_json::{Value, json};
use tests::args;
use tests::fixtures::{fixture, names};

use crate::broken::{Run, assert_no_checkpoint, basic, good_sample, recipe, samples};

#[test]
fn a_missing_image_is_named() {
    let line = r#"{"image": "images/gone.png", "prompt": "<image>", "answer": "x"}"#;
    let (dir, path) = samples(line);
    let grads = dir.path().join("grads.safetensors");
    basic(args!["losses", fixture("plain"), path, "--grads", grads]).refused(1, &["images/gone.png", "No such file"]);
    assert!(!grads.exists());
    let gone = dir.path().join("gone.png");
    basic(args!["generate", fixture("plain"), "--image", gone, "--prompt", "<image>"]).refused(1, &["gone.png"]);
    let out = dir.path().join("out.safetensors");
    basic(args!["preprocess", fixture("plain"), gone, out]).refused(1, &["gone.png"]);
    assert!(!out.exists());

    let mut sample = good_sample();
    sample["image"] = json!("gone.png");
    Run::new(&[good_sample(), sample]).refused(&["data.json", "sample 1 (id good)", "gone.png", "does not exist"]);
}

#[test]
fn an_image_beyond_the_limit_on_pixels_is_named_and_the_limit_can_be_set() {
    let question = json!({ "image": "images/a.png", "text": "what is it?", "answer": "red", "category": "color" });
    let (_dir, questions) = samples(&question.to_string());
    // The image has 28 x 28 = 784 pixels.
    for (limit, fits) in [("783", false), ("784", true)] {
        let out = questions.with_extension("out");
        let eval = args!["eval", fixture("plain"), questions, "--out", out, "--json", "--max-pixels", limit];
        let losses = args!["losses", fixture("plain"), fixture("samples.jsonl"), "--json", "--max-pixels", limit];
        for line in [eval, losses] {
            let ran = basic(line);
            match fits {
                true => drop(ran.succeeded()),
                false => drop(ran.refused(1, &["a.png", "28 x 28", "783"])),
            }
        }
    }
    let run = Run::new(&[good_sample()]);
    run.train(&["--set", "model.max_pixels=783"]).refused(1, &["sample 0 (id good)", "a.png", "28 x 28", "783"]);
    run.train(&["--set", "model.max_pixels=784", "--overwrite"]).succeeded();
}

#[test]
fn a_truncated_image_is_named() {
    let (dir, path) = samples(r#"{"image": "images/a.png", "prompt": "<image>", "answer": "x"}"#);
    let image = dir.path().join("images/a.png");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    basic(args!["losses", fixture("plain"), path]).refused(1, &["images/a.png"]);
    basic(args!["generate", fixture("plain"), "--image", image, "--prompt", "<image>"]).refused(1, &["images/a.png"]);
    let out = dir.path().join("out.safetensors");
    basic(args!["preprocess", fixture("plain"), image, out]).refused(1, &["images/a.png"]);
    assert!(!out.exists());

    let run = Run::new(&[good_sample()]);
    let images = dir.path().join("images").display().to_string();
    let text = recipe(&fixture("plain"), "data.json").replace(&fixture("images").display().to_string(), &images);
    run.recipe(&text);
    run.train(&[]).refused(1, &["images/a.png"]);
    assert_no_checkpoint(&run.out());
}

#[test]
fn samples_of_losses_that_do_not_fit_are_named_by_their_line() {
    let good = r#"{"image": "images/a.png", "prompt": "<image>", "answer": "x"}"#;
    let cases = [
        (r#"{"image": "images/a.png", "prompt": "no place", "answer": "x"}"#, "<image>"),
        (r#"{"prompt": "<image>", "answer": "x"}"#, "<image>"),
        (r#"{"image": ["images/a.png", "images/b.png"], "prompt": "<image>", "answer": "x"}"#, "<image>"),
        (r#"{"image": 3, "prompt": "<image>", "answer": "x"}"#, ""),
        (r#"{"image": "images/a.png", "prompt": "<image>"}"#, "answer"),
        (r#"{"image": "images/a.png", "prompt": "<image>", "#, "EOF"),
        ("not json", "expected"),
    ];
    for (bad, mention) in cases {
        let (_dir, path) = samples(&format!("{good}\n\n{bad}\n"));
        basic(args!["losses", fixture("plain"), path]).refused(1, &["samples.jsonl:3", mention]);
    }
    let (_dir, path) = samples("\n");
    basic(args!["losses", fixture("plain"), path]).refused(1, &["samples.jsonl", "no sample"]);
}

#[test]
fn data_that_is_not_llavas_is_named_by_file_and_sample() {
    Run::with("caption,image\nred,a.png\n").refused(&["data.json", "line 1", "LLaVA"]);
    Run::with("[{\"id\": 1}, ").refused(&["data.json", "line 1", "LLaVA"]);
    Run::with("[]").refused(&["data.json", "no sample"]);
    Run::with("[3]").refused(&["data.json", "sample 0"]);
    Run::with(r#"{"images": [], "annotations": []}"#).refused(&["data.json", "sample 0", "conversations"]);
    Run::new(&[good_sample(), json!({"id": 7, "image": "a.png"})]).refused(&["sample 1 (id 7)", "conversations"]);
    let mut sample = good_sample();
    sample["conversations"][1]["from"] = json!("robot");
    Run::new(&[sample]).refused(&["sample 0 (id good)", "conversations[1].from", "robot"]);
    let mut sample = good_sample();
    sample["conversations"][0]["value"] = json!(["<image>"]);
    Run::new(&[sample]).refused(&["sample 0 (id good)", "conversations[0].value"]);
    let mut sample = good_sample();
    sample["image"] = json!({"path": "a.png"});
    Run::new(&[sample]).refused(&["sample 0 (id good)", "\"image\""]);
}

#[test]
fn an_image_without_its_place_is_refused_and_a_place_without_any_image_is_text() {
    let mut sample = good_sample();
    sample["conversations"][0]["value"] = json!("what is it?");
    Run::new(&[good_sample(), sample]).refused(&["data.json", "sample 1 (id good)", "<image>"]);
    let mut sample = good_sample();
    sample["image"] = json!(["a.png", "a.png"]);
    Run::new(&[sample]).refused(&["data.json", "sample 0 (id good)", "<image>"]);
    // A text about HTML may contain <image> without having an image.
    let mut sample = good_sample();
    sample["image"] = Value::Null;
    Run::new(&[good_sample(), sample]).train(&[]).succeeded();
}

#[test]
fn a_sample_without_an_answer_is_refused() {
    let mut unanswered = good_sample();
    unanswered["conversations"].as_array_mut().unwrap().pop();
    Run::new(&[good_sample(), unanswered]).refused(&["data.json", "sample 1 (id good)", "answer"]);
    let mut empty = good_sample();
    empty["conversations"][1]["value"] = json!("");
    Run::new(&[empty]).refused(&["data.json", "sample 0 (id good)", "empty"]);
    let mut none = good_sample();
    none["conversations"] = json!([]);
    Run::new(&[none]).refused(&["data.json", "sample 0 (id good)"]);
}

#[test]
fn a_sample_longer_than_the_context_is_refused() {
    let mut sample = good_sample();
    sample["conversations"][1]["value"] = json!("x ".repeat(2048));
    // The fixture's max_position_embeddings is 2048.
    Run::new(&[sample]).refused(&["data.json", "sample 0 (id good)", "2048"]);
}

#[test]
fn questions_that_do_not_fit_are_named_by_their_line_and_leave_no_predictions() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("questions.jsonl");
    let out = dir.path().join("predictions.jsonl");
    let good = r#"{"question_id": 1, "text": "what is it?", "answer": "a circle", "category": "shape"}"#;
    for (bad, mention) in [
        (r#"{"question_id": 2, "text": "what is it?"}"#, "questions.jsonl:2"),
        ("[", "questions.jsonl:2"),
        (r#"{"question_id": 2, "image": "gone.png", "text": "what?", "answer": "x"}"#, "gone.png"),
    ] {
        fs::write(&data, format!("{good}\n{bad}\n")).unwrap();
        basic(args!["eval", fixture("plain"), data, "--out", out, "--json"]).refused(1, &[mention]);
        assert!(!out.exists());
    }
}

#[test]
fn a_data_set_is_not_written_into_a_folder_that_holds_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let name = dir.path().display().to_string();
    let line = args!["data", "shapes", "--out", dir.path(), "--train", "4", "--validation", "4", "--eval", "4"];
    basic(line).refused(1, &[&name]);
    assert_eq!(names(dir.path()), ["thesis.tex"]);
}
