//! Data sets in every format: all formats give the same samples and losses, also as Python's libraries write them, and
//! errors name the file and the sample.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use basic_data::{DataConfig, DataSet, ImageSource, Sample, Samples, SetConfig};
use basic_models::processor::Message;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{fixture, names, read_json, text};
use tests::{Ran, args, run};

fn basic(args: Vec<OsString>) -> Ran {
    run(env!("CARGO_BIN_EXE_basic-under-test"), args)
}

fn open(path: impl Into<PathBuf>) -> DataSet {
    DataSet::open(&DataConfig::new(path), 0).unwrap()
}

/// The content of a sample: its messages and the bytes of its images.
fn plain(sample: &Sample) -> (Vec<Message>, Vec<Vec<u8>>) {
    (sample.messages.clone(), sample.images.iter().map(|image| image.bytes().unwrap().to_vec()).collect())
}

fn all(data: &dyn Samples) -> Vec<(Vec<Message>, Vec<Vec<u8>>)> {
    (0..data.len()).map(|index| plain(&data.sample(index).unwrap())).collect()
}

/// Writes a recipe with `data`, lines of its `[data]` table.
fn recipe(dir: &Path, data: &str) -> PathBuf {
    let checkpoint = fixture("plain");
    let text = format!(
        "stage = \"finetune\"\ndevice = \"cpu\"\n[model]\ncheckpoint = \"{}\"\n[data]\nconversation = \"vicuna_v1\"\n{data}\n\
         [train]\nbatch_size = 2\nsteps = 3\n",
        checkpoint.display()
    );
    let path = dir.join("recipe.toml");
    fs::write(&path, text).unwrap();
    path
}

fn train(dir: &Path, data: &str) -> Ran {
    let out = dir.join("out");
    basic(args!["train", recipe(dir, data), "--out", out, "--overwrite"])
}

/// The losses of a run of three steps, as text from its metrics.
fn losses(dir: &Path, data: &str) -> Vec<String> {
    train(dir, data).succeeded();
    let metrics = fs::read_to_string(dir.join("out/metrics.jsonl")).unwrap();
    let before_lr = |line: &str| line.split_once(",\"lr\"").expect("lr follows the losses").0.to_string();
    metrics.lines().map(before_lr).collect()
}

fn path_line(path: &Path) -> String {
    format!("path = {:?}", path.display().to_string())
}

#[test]
fn the_same_set_in_every_format_gives_the_same_samples_and_losses() {
    let dir = tempfile::tempdir().unwrap();
    let shapes = dir.path().join("shapes");
    let line = args!["data", "shapes", "--out", shapes, "--train", "12", "--validation", "2", "--eval", "2", "--json"];
    basic(line).json();
    let source = shapes.join("finetune.json");
    let expected = all(&open(&source));
    let first = losses(dir.path(), &path_line(&source));
    assert_eq!((expected.len(), first.len()), (12, 3));
    let exports: [(&str, &[&str]); 6] = [
        ("json", &[]),
        ("json", &["--images", "reference"]),
        ("jsonl", &[]),
        ("webdataset", &["--shard", "5"]),
        ("webdataset", &["--gzip"]),
        ("parquet", &["--shard", "7"]),
    ];
    for (number, (format, more)) in exports.into_iter().enumerate() {
        let out = dir.path().join(format!("{number}-{format}"));
        let mut line = args!["data", "export", source, "--format", format, "--out", out, "--json"];
        line.extend(more.iter().map(OsString::from));
        let written = basic(line).json();
        assert_eq!((&written["samples"], &written["images"]), (&json!(12), &json!(12)));
        let path = PathBuf::from(text(&written["path"]));
        let images = written["images_root"].as_str().map(PathBuf::from);
        let config = DataConfig { images: images.clone(), ..DataConfig::new(&path) };
        assert!(all(&DataSet::open(&config, 0).unwrap()) == expected, "{format} {more:?}");
        let images = images.map(|root| format!("\nimages = {:?}", root.display().to_string())).unwrap_or_default();
        assert_eq!(losses(dir.path(), &(path_line(&path) + &images)), first, "{format} {more:?}");
    }
}

/// The turns of the samples that tests/reference/data_fixtures.py wrote.
fn expected() -> Vec<Vec<String>> {
    let all = read_json(&fixture("data/expected.json"));
    let texts = |turns: &Value| turns.as_array().unwrap().iter().map(|t| text(t).to_string()).collect();
    all.as_array().unwrap().iter().map(texts).collect()
}

#[test]
fn what_pythons_libraries_write_is_read() {
    let images = [fs::read(fixture("images/a.png")).unwrap(), fs::read(fixture("images/b.png")).unwrap()];
    for name in ["llava.parquet", "cauldron.parquet", "chat.parquet", "llava.tar", "llava.tar.gz"] {
        let data = open(fixture("data").join(name));
        assert_eq!(data.len(), 3, "{name}");
        for (index, turns) in expected().iter().enumerate() {
            let (messages, found) = plain(&data.sample(index).unwrap());
            assert_eq!(messages.iter().map(|m| m.content.clone()).collect::<Vec<_>>(), *turns, "{name}");
            assert!(found == images[index.min(2)..(index + 1).min(2)], "{name}: the images of sample {index}");
            assert_eq!(data.outline(index).unwrap().messages, messages);
            assert_eq!(data.outline(index).unwrap().images.len(), found.len());
        }
    }
    let caption = open(fixture("data/caption.parquet")).sample(0).unwrap();
    let member = open(fixture("data/captions.tar")).sample(0).unwrap();
    for sample in [&caption, &member] {
        assert_eq!(sample.messages[1].content, "a caption");
        assert!(sample.images[0].decode().unwrap().width() > 1);
    }
    assert_eq!(plain(&caption), plain(&member));
    let twelve = open(fixture("data/captions.tar")).sample(1).unwrap();
    let widths: Vec<u32> = twelve.images.iter().map(|image| image.decode().unwrap().width()).collect();
    assert_eq!(widths, (1..=12).collect::<Vec<_>>(), "in the order of their numbers");
}

#[test]
fn a_folder_of_images_takes_its_captions_from_files_or_from_metadata() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        fs::copy(fixture(format!("images/{name}.png")), dir.path().join(format!("{name}.png"))).unwrap();
        fs::write(dir.path().join(format!("{name}.txt")), format!("the letter {name}\n")).unwrap();
    }
    let files = open(dir.path());
    let metadata = r#"{"file_name": "a.png", "text": "the letter a"}
{"file_name": "b.png", "text": "the letter b"}"#;
    let from_files = all(&files);
    let before = files.fingerprint().unwrap();
    fs::write(dir.path().join("metadata.jsonl"), metadata).unwrap();
    assert_eq!(all(&open(dir.path())), from_files);
    assert_eq!(from_files[1].0[1].content, "the letter b");
    assert_ne!(open(dir.path()).fingerprint().unwrap(), before);
    let report = basic(args!["data", "check", dir.path(), "--json"]).json();
    assert_eq!((&report["samples"], &report["unusable"]), (&json!(2), &json!(0)));
    assert_eq!(report["sets"][0]["format"], "folder");
}

fn sample(id: &str, image: &str) -> Value {
    json!({"id": id, "image": image, "conversations": [
        {"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]})
}

/// Writes samples to data.json beside copies of the fixture images.
fn llava(samples: &[Value]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png"] {
        fs::copy(fixture("images").join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("data.json"), json!(samples).to_string()).unwrap();
    dir
}

#[test]
fn sets_are_mixed_by_weight_and_the_seed_alone_chooses() {
    let many: Vec<Value> = (0..40).map(|i| sample(&format!("m{i}"), "a.png")).collect();
    let dir = llava(&many);
    let few = llava(&[sample("f0", "b.png"), sample("f1", "b.png")]);
    let sets = |weight: f64| DataConfig {
        sets: vec![
            SetConfig { weight, ..SetConfig::new(dir.path().join("data.json")) },
            SetConfig { weight: 2.0, ..SetConfig::new(few.path().join("data.json")) },
        ],
        ..DataConfig::default()
    };
    let ids = |weight: f64, seed: u64| -> Vec<String> {
        let data = DataSet::open(&sets(weight), seed).unwrap();
        (0..data.len()).map(|index| data.sample(index).unwrap().id().unwrap().to_string()).collect()
    };
    let drawn = ids(0.25, 7);
    assert_eq!(drawn.len(), 10 + 4);
    assert_eq!(drawn[10..], ["f0", "f1", "f0", "f1"]);
    assert_eq!(drawn, ids(0.25, 7));
    assert_ne!(drawn, ids(0.25, 8));
    let print = |weight, seed| DataSet::open(&sets(weight), seed).unwrap().fingerprint().unwrap();
    assert_eq!(print(0.25, 7), print(0.25, 7));
    assert_ne!(print(0.25, 7), print(0.25, 8), "the seed chooses other samples");
    assert_ne!(print(0.25, 7), print(0.5, 7));
    assert_eq!(print(1.0, 7), print(1.0, 8), "the seed has nothing to choose");

    let line =
        |dir: &TempDir, weight: &str| format!("{{ {}, weight = {weight} }}", path_line(&dir.path().join("data.json")));
    let data = format!("sets = [{}, {}]", line(&dir, "0.25"), line(&few, "2"));
    train(dir.path(), &data).succeeded();
    assert_eq!(read_json(&dir.path().join("out/run.json"))["samples"], 14);
    train(dir.path(), &format!("sets = [{}]", line(&dir, "-1"))).refused(1, &["recipe.toml", "weight", "data.json"]);
    train(dir.path(), "").refused(1, &["recipe.toml", "`path`"]);
}

#[test]
fn a_changed_data_file_changes_the_fingerprint() {
    let dir = llava(&[sample("0", "a.png")]);
    let path = dir.path().join("data.json");
    let print = || open(&path).fingerprint().unwrap();
    let before = print();
    assert_eq!(before.len(), 16);
    assert_eq!(print(), before);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("red", "rod")).unwrap();
    assert_ne!(print(), before);
    fs::write(&path, text).unwrap();
    assert_eq!(print(), before, "when it was written does not count");
}

#[test]
fn an_image_outside_its_folder_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret.png");
    fs::copy(fixture("images/a.png"), &secret).unwrap();
    for name in
        [format!("../{}/secret.png", outside.path().file_name().unwrap().display()), secret.display().to_string()]
    {
        let dir = llava(&[sample("good", "a.png"), sample("bad", &name)]);
        let data = path_line(&dir.path().join("data.json"));
        train(dir.path(), &data).refused(1, &["data.json", "sample 1 (id bad)", "secret.png", "leaves its folder"]);
    }
    #[cfg(unix)]
    {
        let dir = llava(&[sample("bad", "link.png")]);
        std::os::unix::fs::symlink(&secret, dir.path().join("link.png")).unwrap();
        let data = path_line(&dir.path().join("data.json"));
        train(dir.path(), &data).refused(1, &["sample 0 (id bad)", "link.png", "leads outside", "secret.png"]);
        let images = format!("{data}\nimages = {:?}", outside.path().display().to_string());
        train(dir.path(), &images).refused(1, &["link.png", "does not exist"]);
    }
}

#[test]
fn damaged_and_empty_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, mention) in [
        ("llava.tar", "truncated"),
        ("llava.tar.gz", "damaged or truncated"),
        ("llava.parquet", "no Parquet file, or a damaged one"),
    ] {
        let bytes = fs::read(fixture("data").join(name)).unwrap();
        let path = dir.path().join(name);
        for keep in [bytes.len() / 2, bytes.len() / 4, 600] {
            fs::write(&path, &bytes[..keep]).unwrap();
            train(dir.path(), &path_line(&path)).refused(1, &[name, mention]);
        }
    }
    for name in ["none.json", "none.jsonl", "none.tar"] {
        let path = dir.path().join(name);
        fs::write(&path, "").unwrap();
        train(dir.path(), &path_line(&path)).refused(1, &[name, "no sample"]);
    }
    let path = dir.path().join("none.parquet");
    fs::write(&path, "").unwrap();
    train(dir.path(), &path_line(&path)).refused(1, &["none.parquet"]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    train(dir.path(), &path_line(&empty)).refused(1, &["empty", "no .parquet, no .tar and no image"]);
    train(dir.path(), &path_line(&dir.path().join("gone-{0..2}.tar"))).refused(1, &["gone-0.tar", "No such file"]);
    let as_tar = path_line(&fixture("data/llava.parquet")) + "\nformat = \"webdataset\"";
    train(dir.path(), &as_tar).refused(1, &["llava.parquet", "no tar archive"]);
    let elsewhere = path_line(&fixture("data/llava.tar")) + "\nimages = \"/tmp\"";
    train(dir.path(), &elsewhere).refused(1, &["llava.tar", "leave `images` out"]);
    let unknown = path_line(&fixture("data/llava.parquet")) + "\nformat = \"csv\"";
    train(dir.path(), &unknown).refused(1, &["recipe.toml", "csv"]);
}

#[test]
fn check_counts_what_there_is_and_what_training_would_leave_out() {
    let mut long = sample("long", "a.png");
    long["conversations"][1]["value"] = json!("red ".repeat(2100));
    let mut several = sample("several", "a.png");
    several["image"] = json!(["a.png", "b.png"]);
    several["conversations"] = json!([
        {"from": "human", "value": "<image> <image> which?"}, {"from": "gpt", "value": "the first"},
        {"from": "human", "value": "why?"}, {"from": "gpt", "value": "it is red"}]);
    let text_only = json!({"id": "text", "conversations": [
        {"from": "human", "value": "is it?"}, {"from": "gpt", "value": "it is"}]});
    let dir = llava(&[
        sample("good", "a.png"),
        long,
        several,
        text_only,
        sample("gone", "gone.png"),
        sample("broken", "c.png"),
        json!({"id": "odd"}),
    ]);
    let whole = fs::read(fixture("images/a.png")).unwrap();
    fs::write(dir.path().join("c.png"), &whole[..whole.len() / 2]).unwrap();
    let path = dir.path().join("data.json");
    let line = args!["data", "check", path, "--checkpoint", fixture("plain"), "--conversation", "vicuna_v1", "--json"];
    let report = basic(line.clone()).json();
    let set = &report["sets"][0];
    assert_eq!((&report["samples"], &report["unusable"]), (&json!(7), &json!(4)));
    assert_eq!((&set["format"], &set["checked"], &set["text_only"]), (&json!("json"), &json!(7), &json!(1)));
    assert_eq!(set["conversation"], "vicuna_v1");
    let said = basic(line[..line.len() - 1].to_vec()).succeeded().stdout;
    assert!(said.contains("vicuna_v1, one of LLaVA's"), "{said}");
    assert_eq!(set["images_per_sample"], json!({"0": 1, "1": 3, "2": 1}));
    assert_eq!(set["turns_per_sample"], json!({"1": 4, "2": 1}));
    let problems = &set["problems"];
    for (reason, samples, mention) in
        [("broken_image", 2, "gone.png"), ("over_context", 1, "(id long)"), ("invalid", 1, "(id odd)")]
    {
        assert_eq!(problems[reason]["samples"], samples, "{problems:#}");
        assert!(text(&problems[reason]["first"][0]).contains(mention), "{problems:#}");
    }
    let tokens = &set["tokens"];
    // The fixture's max_position_embeddings is 2048.
    assert_eq!(
        (&tokens["context"], &tokens["over_context"], &tokens["without_target"]),
        (&json!(2048), &json!(1), &json!(0))
    );
    let counted: u64 = tokens["histogram"].as_array().unwrap().iter().map(|b| b["samples"].as_u64().unwrap()).sum();
    assert_eq!(counted, 5, "every sample that can be tokenized");
    let printed = basic(args!["data", "check", path, "--sample", "3"]).succeeded().stdout;
    assert!(printed.contains("7 samples, 3 checked"), "{printed}");
    basic(args!["data", "check", dir.path().join("none.json")]).refused(1, &["none.json"]);
}

#[test]
fn show_gives_turns_images_and_the_tokens_that_bear_loss() {
    let dir = llava(&[sample("good", "a.png")]);
    let path = dir.path().join("data.json");
    let png = dir.path().join("shown/x.png");
    let line = args!["data", "show", path, "0", "--checkpoint", fixture("plain"), "--conversation", "vicuna_v1"];
    let shown = basic([line.clone(), args!["--out", png, "--json"]].concat()).json();
    assert_eq!(shown["messages"][1], json!({"role": "assistant", "content": "a red circle"}));
    assert_eq!(shown["place"], "0 (id good)");
    assert_eq!(shown["conversation"], "vicuna_v1");
    let saved = ImageSource::File(png).decode().unwrap();
    assert_eq!(saved, ImageSource::File(fixture("images/a.png")).decode().unwrap());
    assert_eq!(shown["images"][0]["width"], saved.width());
    let tokens = shown["tokens"].as_array().unwrap();
    let image: Vec<&Value> = tokens.iter().filter(|token| token["count"] != 1).collect();
    assert_eq!(image.len(), 1, "the image's tokens are one entry");
    assert_eq!((&image[0]["text"], &image[0]["loss"]), (&json!("<image>"), &json!(false)));
    let with_loss: Vec<&Value> = tokens.iter().filter(|token| token["loss"] == true).collect();
    assert_eq!(shown["targets"], with_loss.len());
    // The answer and the end of the sequence come last, and nothing before them bears loss.
    assert_eq!(with_loss.len(), tokens.iter().rev().take_while(|token| token["loss"] == true).count());
    assert_eq!(with_loss.last().unwrap()["text"], "</s>");
    let printed = basic(line).succeeded().stdout;
    assert!(
        printed.contains("a red circle") && printed.contains("[</s>]") && printed.contains("<image>×"),
        "{printed}"
    );
    basic(args!["data", "show", path, "1"]).refused(1, &["data.json", "1 samples", "no sample 1"]);
}

#[test]
fn an_export_leaves_nothing_when_it_fails_and_replaces_nothing_unasked() {
    let dir = llava(&[sample("good", "a.png"), sample("gone", "gone.png")]);
    let (path, out) = (dir.path().join("data.json"), dir.path().join("out"));
    for format in ["json", "webdataset", "parquet"] {
        let line = args!["data", "export", path, "--format", format, "--out", out];
        basic(line).refused(1, &["data.json", "sample 1 (id gone)", "gone.png"]);
        assert!(!out.exists() && names(dir.path()).len() == 3, "{:?}", names(dir.path()));
    }
    let line = args!["data", "export", path, "--format", "jsonl", "--out", out, "--limit", "1"];
    basic(line.clone()).succeeded();
    basic(line.clone()).refused(1, &["out", "--overwrite"]);
    basic([line, args!["--overwrite"]].concat()).succeeded();
    let other = dir.path().join("other");
    basic(args!["data", "export", path, "--format", "folder", "--out", other])
        .refused(1, &["no place for conversations"]);
    assert!(!other.exists());
    basic(args!["data", "export", path, "--format", "csv", "--out", out]).refused(2, &["csv", "webdataset"]);
}

#[test]
fn captions_of_coco_and_of_karpathys_splits_and_folders_of_classes_are_data_sets() {
    let dir = tempfile::tempdir().unwrap();
    let picture = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(fixture("images/a.png"), path).unwrap();
    };
    for name in ["images/1.png", "images/val2014/1.png", "classes/animal/dog/1.png", "classes/tree/2.png"] {
        picture(name);
    }
    let coco = json!({"info": {"year": 2017}, "licenses": [{"url": "x"}], "images": [{"id": 9, "file_name": "1.png"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "a red circle"}, {"image_id": 9, "id": 2, "caption": "a circle"}]});
    let sentence = |text: &str| json!({"tokens": [], "raw": text, "imgid": 0, "sentid": 0});
    let image = |split: &str, texts: &[&str]| {
        let sentences: Vec<_> = texts.iter().map(|text| sentence(text)).collect();
        json!({"filepath": "val2014", "sentids": [0], "filename": "1.png", "imgid": 0, "split": split, "sentences": sentences})
    };
    let karpathy =
        json!({"images": [image("val", &["one", "two", "three"]), image("train", &["four"])], "dataset": "coco"});
    let write = |name: &str, value: &serde_json::Value| {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
        dir.path().join(name)
    };
    let (coco, karpathy) = (write("captions.json", &coco), write("dataset.json", &karpathy));
    let images = dir.path().join("images");
    let check = |path: &Path, more: &[&str]| {
        let mut line = args!["data", "check", path, "--json"];
        line.extend(more.iter().map(std::ffi::OsString::from));
        if path.is_file() {
            line.extend(args!["--images", images]);
        }
        let report = basic(line).json();
        (text(&report["sets"][0]["format"]).to_string(), report["samples"].as_u64().unwrap())
    };
    assert_eq!(check(&coco, &[]), ("coco".into(), 2));
    assert_eq!(check(&karpathy, &[]), ("karpathy".into(), 1));
    assert_eq!(check(&karpathy, &["--split", "val"]), ("karpathy".into(), 3));
    assert_eq!(check(&karpathy, &["--split", "train+val"]), ("karpathy".into(), 4));
    let classes = dir.path().join("classes");
    assert_eq!(check(&classes, &["--format", "classes"]), ("classes".into(), 2));
    basic(args!["data", "check", karpathy, "--split", "dev"])
        .refused(1, &["dataset.json", "no split \"dev\"", "train, val"]);
    basic(args!["data", "check", coco, "--split", "val"]).refused(1, &["captions.json", "coco", "no splits"]);
    let report = basic(args!["data", "check", classes, "--json"]).json();
    assert_eq!((&report["samples"], &report["unusable"]), (&json!(2), &json!(2)), "a caption may lack by mistake");
    assert!(report.to_string().contains("format = \\\"classes\\\""), "{report}");
    // They are written in another format, and read back.
    let out = dir.path().join("out");
    let line = args![
        "data",
        "export",
        karpathy,
        "--from-images",
        images,
        "--from-split",
        "val",
        "--format",
        "jsonl",
        "--out",
        out
    ];
    assert_eq!(basic(line).code, Some(0));
    let lines = fs::read_to_string(out.join("data.jsonl")).unwrap();
    assert!(lines.lines().count() == 3 && lines.contains("three"), "{lines}");
}
