use std::path::Path;

use basic_models::processor::Message;

use super::{ExportOptions, Images, export};
use crate::formats::tests::format;
use crate::{DataConfig, DataSet, Samples};

/// A set with text alone, one image, two images (one of them shared), several turns, and ids.
fn source(dir: &Path) -> DataSet {
    for (name, side) in [("a.png", 3), ("b.png", 5)] {
        image::RgbImage::from_pixel(side, side, image::Rgb([7, 8, 9])).save(dir.join(name)).unwrap();
    }
    let text = r#"[
        {"id": "x/1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a \"square\"\n"}]},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "é"},
            {"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]},
        {"id": 7, "image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "b"}]}
    ]"#;
    let path = dir.join("source.json");
    std::fs::write(&path, text).unwrap();
    DataSet::open(&DataConfig::new(path), 0).unwrap()
}

type Plain = (Vec<Message>, Vec<Vec<u8>>);

fn plain(data: &dyn Samples) -> Vec<Plain> {
    let sample = |index| {
        let sample = data.sample(index).unwrap();
        (sample.messages, sample.images.iter().map(|image| image.bytes().unwrap().to_vec()).collect())
    };
    (0..data.len()).map(sample).collect()
}

#[test]
fn every_format_holds_the_same_samples() {
    let dir = tempfile::tempdir().unwrap();
    let data = source(dir.path());
    let expected = plain(&data);
    for (format, gzip, shard) in [
        (format("json"), false, 10),
        (format("jsonl"), false, 10),
        (format("webdataset"), false, 2),
        (format("webdataset"), true, 10),
        (format("parquet"), false, 2),
    ] {
        let out = dir.path().join(format!("{format}-{gzip}"));
        let options = ExportOptions { gzip, shard, ..ExportOptions::new(format) };
        let mut done = 0;
        let written = export(&data, &out, &options, |more| done += more).unwrap();
        assert_eq!((written.samples, written.images, done), (3, 3, 3));
        assert_eq!(written.files, if shard == 2 { 2 } else { 1 }, "{format}");
        let again = DataSet::open(&DataConfig::new(&written.path), 0).unwrap();
        assert_eq!(again.sets()[0].format(), format);
        assert!(plain(&again) == expected, "{format}");
        assert_eq!(again.sample(0).unwrap().id(), Some("x/1"));
        // An image that occurs twice is written once.
        let files = std::fs::read_dir(out.join("images/00000")).map_or(0, Iterator::count);
        assert_eq!(files, if format.name().starts_with("json") { 2 } else { 0 });
        assert!(export(&data, &out, &options, |_| {}).is_err(), "what is there stays");
    }
}

#[test]
fn references_leave_the_images_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let data = source(dir.path());
    let expected = plain(&data);
    for format in [format("json"), format("parquet")] {
        let out = dir.path().join(format.name());
        let images = Images::Reference(dir.path().into());
        let options = ExportOptions { images, ..ExportOptions::new(format) };
        let written = export(&data, &out, &options, |_| {}).unwrap();
        assert_eq!(written.images_root.as_deref(), Some(dir.path()));
        let config = DataConfig { images: written.images_root, ..DataConfig::new(&written.path) };
        let again = DataSet::open(&config, 0).unwrap();
        assert!(plain(&again) == expected);
        // With image files, an outline checks that the files exist.
        std::fs::rename(dir.path().join("b.png"), dir.path().join("c.png")).unwrap();
        assert!(again.outline(2).unwrap_err().to_string().contains("b.png"));
        std::fs::rename(dir.path().join("c.png"), dir.path().join("b.png")).unwrap();
    }
    let elsewhere =
        ExportOptions { images: Images::Reference(dir.path().join("other")), ..ExportOptions::new(format("json")) };
    assert!(export(&data, &dir.path().join("no"), &elsewhere, |_| {}).unwrap_err().to_string().contains("a.png"));
    assert!(!dir.path().join("no").exists());
    let options =
        ExportOptions { images: Images::Reference(dir.path().into()), ..ExportOptions::new(format("webdataset")) };
    assert!(export(&data, &dir.path().join("no"), &options, |_| {}).is_err());
    assert!(export(&data, &dir.path().join("no"), &ExportOptions::new(format("folder")), |_| {}).is_err());
}
