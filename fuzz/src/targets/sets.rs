//! Targets for data sets.

use std::path::Path;

use super::{RECORD, Target, data};
use crate::mutate::Kind;
use crate::outputs::Leaves;

const JSON: &[&str] = &["data", "check", "data.json", "--checkpoint", "model", "--conversation", "vicuna_v1"];
const PARQUET: &[&str] = &["data", "check", "data.parquet"];
const EXPORT: &[&str] = &["data", "export", "data.parquet", "--format", "json", "--out", "out"];

const COCO: &str = r#"{"info":{"year":2017},"licenses":[{"url":"x"}],"images":[{"id":9,"file_name":"a.png"}],"annotations":[{"image_id":9,"id":1,"caption":"a red circle"},{"image_id":9,"id":2,"caption":"a circle"}]}"#;
const KARPATHY: &str = r#"{"images":[{"sentids":[0,1],"filename":"a.png","imgid":0,"split":"train","sentences":[{"tokens":["a"],"raw":"a red circle","imgid":0,"sentid":0},{"tokens":[],"raw":"a circle","imgid":0,"sentid":1}]}],"dataset":"flickr30k"}"#;

/// The targets of data sets.
pub(super) fn targets(fixtures: &Path) -> Vec<Target> {
    let new = |format, name, kind, damaged, line| {
        Target::new(format, name, kind, damaged, line).with(fixtures.join("images/a.png"), "a.png")
    };
    let of = |format, name, kind, from: &str, damaged, line| {
        new(format, name, kind, damaged, line).with(fixtures.join("data").join(from), damaged)
    };
    let lines = format!("{RECORD}\n").repeat(3);
    let captions = "{\"file_name\":\"a.png\",\"text\":\"a red circle\"}\n";
    vec![
        of("Parquet", "parquet of conversations", Kind::Bytes, "llava.parquet", "data.parquet", PARQUET),
        of("Parquet", "parquet of The Cauldron", Kind::Bytes, "cauldron.parquet", "data.parquet", PARQUET),
        of("Parquet", "parquet of chats", Kind::Bytes, "chat.parquet", "data.parquet", PARQUET),
        of("Parquet", "parquet of captions", Kind::Bytes, "caption.parquet", "data.parquet", PARQUET),
        of("Parquet", "parquet, exported", Kind::Bytes, "chat.parquet", "data.parquet", EXPORT)
            .leaves(Leaves::Folder("out")),
        new("Parquet", "parquet of our own", Kind::Bytes, "set/00000.parquet", &["data", "check", "set/00000.parquet"])
            .text("data.json", data())
            .made(&["data", "export", "data.json", "--format", "parquet", "--out", "set"]),
        of("tar", "tar", Kind::Tar, "llava.tar", "data.tar", &["data", "check", "data.tar"]),
        of("tar", "tar of captions", Kind::Tar, "captions.tar", "data.tar", &["data", "check", "data.tar"]),
        of("tar", "tar.gz", Kind::TarGz, "llava.tar.gz", "data.tar.gz", &["data", "check", "data.tar.gz"]),
        new("JSON", "json", Kind::Json, "data.json", JSON)
            .text("data.json", data())
            .with(fixtures.join("plain"), "model"),
        new(
            "JSON",
            "json, shown",
            Kind::Json,
            "data.json",
            &["data", "show", "data.json", "0", "--checkpoint", "model"],
        )
        .text("data.json", data())
        .with(fixtures.join("plain"), "model"),
        new("JSON", "manifest of an export", Kind::Json, "set/.basic-export.json", &["data", "check", "set"])
            .text("data.json", data())
            .made(&["data", "export", "data.json", "--format", "webdataset", "--out", "set"]),
        new("JSONL", "jsonl", Kind::Lines, "data.jsonl", &["data", "check", "data.jsonl"]).text("data.jsonl", lines),
        new("JSONL", "metadata.jsonl", Kind::Lines, "set/metadata.jsonl", &["data", "check", "set"])
            .with(fixtures.join("images/a.png"), "set/a.png")
            .text("set/metadata.jsonl", captions),
        new(
            "JSONL",
            "captions of a folder",
            Kind::Bytes,
            "set/a.txt",
            &["data", "check", "set", "--checkpoint", "model"],
        )
        .with(fixtures.join("images/a.png"), "set/a.png")
        .with(fixtures.join("plain"), "model")
        .text("set/a.txt", "a red circle\n"),
        new("JSON", "captions of COCO", Kind::Json, "captions.json", &["data", "check", "captions.json"])
            .with(fixtures.join("images/a.png"), "a.png")
            .text("captions.json", COCO),
        new("JSON", "splits of Karpathy", Kind::Json, "dataset.json", &["data", "check", "dataset.json"])
            .with(fixtures.join("images/a.png"), "a.png")
            .text("dataset.json", KARPATHY),
        new("JSONL", "samples of losses", Kind::Lines, "s.jsonl", &["losses", "model", "s.jsonl"])
            .with(fixtures.join("plain"), "model")
            .text("s.jsonl", "{\"image\":\"a.png\",\"prompt\":\"<image> x\",\"answer\":\"a\"}\n".repeat(2)),
    ]
}
