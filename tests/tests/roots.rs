//! Files that name images, and the folders that the images may lie in.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::benchmarks::{edit, pope};
use tests::fixtures::fixture;
use tests::{Ran, args, run};

const BASIC: &str = env!("CARGO_BIN_EXE_basic-under-test");

fn basic(line: Vec<std::ffi::OsString>) -> Ran {
    run(BASIC, line)
}

/// A folder with `own/a.png`, `secret.png` outside `own`, and links and names that lead to it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(place.at("own/up")).unwrap();
        fs::copy(fixture("images").join("a.png"), place.at("own/a.png")).unwrap();
        fs::copy(fixture("images").join("b.png"), place.at("secret.png")).unwrap();
        symlink("../secret.png", place.at("own/link.png")).unwrap();
        symlink(place.dir.path(), place.at("own/up/folder")).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn inside(&self) -> Vec<String> {
        vec!["a.png".into(), "up/../a.png".into(), "../own/a.png".into(), self.at("own/a.png").display().to_string()]
    }

    fn outside(&self) -> Vec<String> {
        let absolute = self.at("secret.png").display().to_string();
        vec!["../secret.png".into(), "up/folder/secret.png".into(), "link.png".into(), absolute]
    }

    fn write(&self, name: &str, line: &Value) -> PathBuf {
        fs::write(self.at(name), format!("{line}\n")).unwrap();
        self.at(name)
    }

    fn question(&self, image: &str) -> PathBuf {
        self.write(
            "own/q.jsonl",
            &json!({"question_id": 71, "image": image, "text": "what is it?", "answer": "x", "category": "k"}),
        )
    }
}

fn pictures(page: &Path) -> usize {
    fs::read_to_string(page).unwrap().matches("src=\"data:image/").count()
}

#[test]
fn questions_show_images_of_their_folder_alone_unless_another_is_allowed() {
    let place = Place::new();
    let (out, page) = (place.at("p.jsonl"), place.at("page.html"));
    let line = |data: &Path| {
        args![
            "eval",
            fixture("plain"),
            data,
            "--max-new-tokens",
            "1",
            "--device",
            "cpu",
            "--out",
            place.at("p.jsonl"),
            "--json"
        ]
    };
    let report = || {
        basic(args!["report", out, "--out", page, "--json"]).json();
        pictures(&page)
    };
    for image in place.outside() {
        let mentions = ["q.jsonl", "question 0 (id 71)", &image, "--image-root"];
        basic(line(&place.question(&image))).refused(1, &mentions);
        assert!(!out.exists());
    }
    for image in place.inside() {
        basic(line(&place.question(&image))).json();
        assert_eq!(report(), 1, "{image}");
    }
    for image in place.outside() {
        let mut line = line(&place.question(&image));
        line.extend(args!["--image-root", place.dir.path()]);
        basic(line).json();
        assert_eq!(report(), 1, "{image}");
    }
    // With --images, the folder that names are relative to is the permitted one.
    let mut line = line(&place.question("secret.png"));
    line.extend(args!["--images", place.dir.path()]);
    basic(line).json();
    assert_eq!(report(), 1);
}

#[test]
fn samples_and_the_lens_show_images_of_their_folder_alone_unless_another_is_allowed() {
    let place = Place::new();
    for image in place.outside() {
        let samples = place.write("own/s.jsonl", &json!({"image": image, "prompt": "<image> x", "answer": "y"}));
        let losses = args!["losses", fixture("plain"), samples, "--device", "cpu", "--json"];
        let analyze = args!["analyze", fixture("plain"), "--data", place.question(&image), "--device", "cpu", "--json"];
        for (line, mention) in [(losses, "s.jsonl:1"), (analyze, "question 0 (id 71)")] {
            basic(line.clone()).refused(1, &[mention, &image, "--image-root"]);
            basic([line, args!["--image-root", place.dir.path()]].concat()).json();
        }
    }
    let samples = place.write("own/s.jsonl", &json!({"image": "a.png", "prompt": "<image> x", "answer": "y"}));
    basic(args!["losses", fixture("plain"), samples, "--image-root", place.at("gone")]).refused(1, &["gone"]);
}

#[test]
fn a_benchmarks_folder_of_images_may_be_a_link_but_no_image_leads_outside() {
    let place = Place::new();
    let root = place.at("eval");
    pope(&root, 2);
    let line = |out: &str| {
        args![
            "eval",
            fixture("plain"),
            "--bench",
            "pope",
            "--root",
            root,
            "--out",
            place.at(out),
            "--max-new-tokens",
            "1",
            "--device",
            "cpu",
            "--json"
        ]
    };
    fs::rename(root.join("pope/val2014"), place.at("coco")).unwrap();
    symlink(place.at("coco"), root.join("pope/val2014")).unwrap();
    basic(line("linked")).json();
    let page = place.at("page.html");
    basic(args!["report", place.at("linked"), "--out", page, "--json"]).json();
    assert_eq!(pictures(&page), 6);

    for (number, image) in ["../../../secret.png", "away.png"].into_iter().enumerate() {
        symlink(place.at("secret.png"), place.at("coco").join("away.png")).ok();
        for file in [
            "llava_pope_test.jsonl",
            "coco/coco_pope_adversarial.json",
            "coco/coco_pope_popular.json",
            "coco/coco_pope_random.json",
        ] {
            edit(&root.join("pope").join(file), |text| {
                text.replace("COCO_val2014_000000000000.jpg", image).replace("../../../secret.png", image)
            });
        }
        // `..` after a link is relative to the link's target, so three levels above coco/ is outside the test's folder.
        if number == 0 {
            fs::remove_file(root.join("pope/val2014")).unwrap();
            fs::rename(place.at("coco"), root.join("pope/val2014")).unwrap();
            symlink(root.join("pope/val2014"), place.at("coco")).unwrap();
        }
        basic(line("refused")).refused(1, &["question 0 of", "llava_pope_test.jsonl", image, "--image-root"]);
        basic([line(&format!("wide-{number}")), args!["--image-root", place.dir.path()]].concat()).json();
    }
}

#[test]
fn a_page_names_pictures_that_do_not_belong_to_the_evaluation() {
    let place = Place::new();
    let (answers, page) = (place.at("own/x.predictions.jsonl"), place.at("page.html"));
    let shown = |image: &str, record: Option<Value>, more: Vec<std::ffi::OsString>| {
        let line = json!({"question_id": 1, "image": image, "text": "what?", "expected": "x", "answer": "x", "category": "k", "correct": true});
        place.write("own/x.predictions.jsonl", &line);
        let file = place.at("own/x.result.json");
        fs::remove_file(&file).ok();
        if let Some(mut record) = record {
            let rest = json!({"name": "x", "checkpoint": "c", "conversation": "template", "measure": "exact match", "questions": 1, "metrics": []});
            record.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            fs::write(&file, record.to_string()).unwrap();
        }
        basic([args!["report", answers, "--out", page, "--json"], more].concat()).json();
        (pictures(&page), fs::read_to_string(&page).unwrap().contains("is not embedded"))
    };
    for image in place.inside() {
        assert_eq!(shown(&image, None, vec![]), (1, false), "{image}");
    }
    let everything = json!({"images": "/", "image_roots": ["/"]});
    let base = json!({"images": place.dir.path()});
    for image in place.outside() {
        assert_eq!(shown(&image, None, vec![]), (0, true), "{image}");
        assert_eq!(shown(&image, Some(everything.clone()), vec![]).0, 0, "{image}");
        assert_eq!(shown(&image, None, args!["--image-root", place.dir.path()]), (1, false), "{image}");
    }
    assert_eq!(shown("secret.png", Some(base), vec![]), (0, true));
    // A damaged image is named and causes no panic.
    fs::write(place.at("own/broken.png"), &fs::read(place.at("own/a.png")).unwrap()[..60]).unwrap();
    assert_eq!(shown("broken.png", None, vec![]), (0, false));
}

#[test]
fn a_sample_longer_than_the_context_is_named_with_its_line() {
    let place = Place::new();
    let long = json!({"prompt": "two green triangles ".repeat(1500), "answer": "two"});
    let short = json!({"prompt": "what?", "answer": "two"});
    fs::write(place.at("long.jsonl"), format!("{short}\n\n{long}\n")).unwrap();
    let grads = place.at("grads.safetensors");
    let line = args!["losses", fixture("plain"), place.at("long.jsonl"), "--grads", grads, "--device", "cpu"];
    basic(line).refused(1, &["long.jsonl:3", "tokens long", "context is 2048"]);
    assert!(!grads.exists());
    let question = |id: usize, text: String| json!({"question_id": id, "text": text, "answer": "x"}).to_string();
    let questions = [question(5, "what?".into()), question(6, "two green triangles ".repeat(1500))];
    fs::write(place.at("long.jsonl"), questions.join("\n")).unwrap();
    let line = args!["eval", fixture("plain"), place.at("long.jsonl"), "--out", place.at("p.jsonl"), "--device", "cpu"];
    basic(line).refused(1, &["long.jsonl", "question 1 (id 6)", "context of 2048"]);
}
