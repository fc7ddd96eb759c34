//! Tests of the files of captions.

use proptest::prelude::*;

use super::*;
use crate::formats::Format;

fn coco() -> Value {
    json!({"info": {"year": 2017}, "licenses": [], "images": [
        {"license": 1, "file_name": "1.jpg", "id": 391895}, {"license": 1, "file_name": "2.jpg", "id": 522418}],
        "annotations": [{"image_id": 522418, "id": 5, "caption": "A dog. "}, {"image_id": 391895, "id": 6, "caption": "A cat"},
            {"image_id": 522418, "id": 7, "caption": "Not a cat"}, {"image_id": 3, "id": 8, "caption": "x"}]})
}

fn karpathy() -> Value {
    let image = |name: &str, split: &str, texts: &[&str]| {
        let sentences: Vec<Value> =
            texts.iter().map(|text| json!({"tokens": [], "raw": text, "imgid": 0, "sentid": 9})).collect();
        json!({"filepath": "val2014", "sentids": [1], "filename": name, "imgid": 0, "split": split, "sentences": sentences})
    };
    json!({"images": [image("1.jpg", "test", &["one"]), image("2.jpg", "train", &["two", "three"]), image("1.jpg", "restval", &["four"])],
        "dataset": "coco"})
}

/// A folder with the file and two images, in a folder of their own and beside the file.
fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("val2014")).unwrap();
    for name in ["1.jpg", "2.jpg", "val2014/1.jpg", "val2014/2.jpg"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let path = dir.path().join("data.json");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn told(data: &CaptionData) -> Vec<String> {
    let told = |index| {
        let sample = data.sample(index).unwrap();
        format!("{} {}", sample.images[0].name().file_name().unwrap().display(), sample.messages[1].content)
    };
    (0..data.len()).map(told).collect()
}

#[test]
fn each_caption_of_cocos_file_is_a_sample_of_its_image() {
    let (_dir, path) = written(&coco().to_string());
    let data = CaptionData::coco(&path, None, Some(3)).unwrap();
    assert_eq!(told(&data), ["2.jpg A dog.", "1.jpg A cat", "2.jpg Not a cat"]);
    assert_eq!(data.sample(1).unwrap().place, "1 (id 6)");
    let all = CaptionData::coco(&path, None, None).unwrap();
    let error = all.sample(3).unwrap_err();
    assert!(error.is_sample() && error.to_string().contains("image_id is 3"), "{error}");
    assert_ne!(all.hash().unwrap(), 0);
}

#[test]
fn a_split_of_karpathys_file_is_read_and_another_is_named() {
    let (_dir, path) = written(&karpathy().to_string());
    let open = |split: &str, limit| CaptionData::karpathy(&path, split, None, limit);
    assert_eq!(told(&open("train", None).unwrap()), ["2.jpg two", "2.jpg three"]);
    assert_eq!(told(&open("train+restval", None).unwrap()), ["2.jpg two", "2.jpg three", "1.jpg four"]);
    assert_eq!(told(&open("train", Some(1)).unwrap()), ["2.jpg two"]);
    let error = open("dev", None).unwrap_err().to_string();
    assert!(error.contains("no split \"dev\": its splits are restval, test, train"), "{error}");
    let hash = |split| open(split, None).unwrap().hash().unwrap();
    assert_ne!(hash("test"), hash("restval"), "of equal length");
}

#[test]
fn both_are_told_by_their_beginnings_and_llavas_lines_are_neither() {
    let name = |text: &str| {
        let (_dir, path) = written(text);
        Format::of(&path).unwrap().name()
    };
    assert_eq!((name(&coco().to_string()), name(&karpathy().to_string())), ("coco", "karpathy"));
    assert_eq!(name(&json!({"dataset": "flickr30k", "images": [{}]}).to_string()), "karpathy");
    let images = coco()["images"].clone();
    assert_eq!(name(&json!({"images": images, "annotations": []}).to_string()), "coco");
    for lines in [
        json!({"images": ["file_name"], "conversations": []}),
        json!({"info": "x", "image": "a.png"}),
        json!({"images": [{"path": "a.png"}], "messages": []}),
        json!({"dataset": "x", "image": "a.png"}),
        json!({"dataset": "x", "images": ["a.png"]}),
    ] {
        assert_eq!(name(&lines.to_string()), "jsonl", "{lines}");
    }
}

#[test]
fn files_of_another_form_are_refused_with_their_place() {
    let refused = |text: &str, mention: &str| {
        let (_dir, path) = written(text);
        for error in [
            CaptionData::coco(&path, None, None).unwrap_err(),
            CaptionData::karpathy(&path, "train", None, None).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("data.json"), "{error}");
            if error.contains(mention) {
                return;
            }
        }
        panic!("{mention} is in neither message");
    };
    refused("{\"images\": [], \"annotations\": {}}", "column 31: expected '['");
    refused("{\"images\": []}", "without \"annotations\"");
    refused("{\"images\": [{\"id\": 1}], \"annotations\": []}", "images[0] has no \"id\" and \"file_name\"");
    refused("{\"images\": [{\"id\": 1}], \"annotations\": []}", "images[0] has no \"split\"");
    refused("{\"images\": [{\"id\": 1, \"file_name\": \"a\"}], \"annotations\": [{\"bbox\": []}]}", "hold no captions");
    refused("{\"images\": [{\"id\": }], \"annotations\": []}", "line 1: no JSON");
    refused("{\"images\": [", "truncated");
    refused("[]", "expected '{'");
}

proptest! {
    #[test]
    fn mutated_bytes_are_an_error_or_a_sample_and_never_a_panic(
        of_coco: bool,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let mut bytes = if of_coco { coco() } else { karpathy() }.to_string().into_bytes();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let (_dir, path) = written("");
        std::fs::write(&path, &bytes).unwrap();
        let data = if of_coco { CaptionData::coco(&path, None, None) } else { CaptionData::karpathy(&path, "train", None, None) };
        match data {
            Ok(data) => {
                for index in 0..data.len() {
                    if let Err(error) = data.sample(index) {
                        prop_assert!(error.is_sample() && error.to_string().contains("data.json"), "{}", error);
                    }
                }
            }
            Err(error) => prop_assert!(error.to_string().contains("data.json"), "{}", error),
        }
    }
}
