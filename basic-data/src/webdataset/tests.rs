use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::WebDataset;
use crate::{DataError, ImageSource, Samples};

fn tar(members: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn written(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn open(paths: &[PathBuf]) -> Result<WebDataset, DataError> {
    WebDataset::open(paths, None)
}

fn bytes(image: &ImageSource) -> String {
    match image {
        ImageSource::Bytes { bytes, .. } => String::from_utf8(bytes.to_vec()).unwrap(),
        ImageSource::File(path) => panic!("{}", path.display()),
    }
}

const MEMBERS: [(&str, &str); 8] = [
    ("a/000.jpg", "first"),
    ("a/000.txt", " a cat\n"),
    ("a/001.0.png", "left"),
    ("a/001.10.png", "right"),
    ("a/001.2.png", "middle"),
    ("a/001.json", r#"{"caption": "three"}"#),
    ("README.md", "not a sample"),
    ("a/002.json", r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#),
];

#[test]
fn members_of_one_key_are_one_sample_from_tar_and_from_gz() {
    let dir = tempfile::tempdir().unwrap();
    let plain = written(dir.path(), "a.tar", &tar(&MEMBERS));
    let zipped = written(dir.path(), "b.tar.gz", &gz(&tar(&MEMBERS)));
    let data = open(&[plain.clone(), zipped]).unwrap();
    assert_eq!(data.len(), 6);
    for (first, shard) in [(0, "a.tar"), (3, "b.tar.gz")] {
        let sample = data.sample(first).unwrap();
        assert_eq!(sample.messages[1].content, "a cat");
        assert_eq!(bytes(&sample.images[0]), "first");
        assert_eq!(sample.images[0].name(), dir.path().join(shard).join("a/000.jpg"));
        assert_eq!(sample.place, "0 (id a/000)");
        let sample = data.sample(first + 1).unwrap();
        assert_eq!(sample.images.iter().map(bytes).collect::<Vec<_>>(), ["left", "middle", "right"]);
        assert_eq!(sample.messages[0].content, "<image>\n<image>\n<image>");
        assert!(data.sample(first + 2).unwrap().images.is_empty());
        let outline = data.outline(first + 1).unwrap();
        assert_eq!(outline.images.iter().map(bytes).collect::<Vec<_>>(), ["", "", ""]);
    }
    assert_eq!(WebDataset::open(&[plain], Some(2)).unwrap().len(), 2);
}

#[test]
fn long_names_keep_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let long = "d/".repeat(150);
    let (image, text) = (format!("{long}x.jpg"), format!("{long}x.txt"));
    let path = written(dir.path(), "a.tar", &tar(&[(&image, "pixels"), (&text, "caption")]));
    let sample = open(&[path]).unwrap().sample(0).unwrap();
    assert_eq!((bytes(&sample.images[0]).as_str(), sample.messages[1].content.as_str()), ("pixels", "caption"));
}

#[test]
fn a_sample_without_its_parts_is_told_and_leaves_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let members = [
        ("0.jpg", "x"),
        ("1.txt", "no image"),
        ("2.json", "{"),
        ("3.json", r#"{"image": "x.jpg", "caption": "y"}"#),
        ("4.jpg", "x"),
        ("4.txt", "fine"),
    ];
    let data = open(&[written(dir.path(), "a.tar", &tar(&members))]).unwrap();
    for (index, mention) in [(0, "no .txt"), (1, "no image"), (2, "2.json"), (3, "names an image")] {
        let error = data.sample(index).unwrap_err();
        assert!(error.is_sample() && error.to_string().contains(mention), "{error}");
        assert!(error.to_string().contains(&format!("a.tar: sample {index} (id {index})")), "{error}");
    }
    assert!(data.sample(4).is_ok());
}

/// The same with names as they are, which the writer would refuse.
fn tar_with_names_as_they_are(members: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in members {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(text.len() as u64);
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn images_of_different_shards_and_members_never_have_the_same_name() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str, image: &str| {
        let members = [("/tmp/build/0.jpg", image), ("/tmp/build/0.txt", "a cat")];
        written(dir.path(), name, &tar_with_names_as_they_are(&members))
    };
    let data = open(&[shard("a.tar", "first"), shard("b.tar", "second")]).unwrap();
    let image = |index: usize| data.sample(index).unwrap().images.remove(0);
    assert_eq!([bytes(&image(0)), bytes(&image(1))], ["first", "second"]);
    assert_eq!(image(0).name(), dir.path().join("a.tar/tmp/build/0.jpg"));
    assert_eq!(image(1).name(), dir.path().join("b.tar/tmp/build/0.jpg"));
    // Two names of one path.
    let members = [("0.jpg", "x"), ("0.txt", "a cat"), ("./0.jpg", "y"), ("./0.txt", "a dog")];
    let twice = written(dir.path(), "c.tar", &tar_with_names_as_they_are(&members));
    assert!(open(&[twice]).unwrap_err().to_string().contains("./0.jpg twice"));
}

#[test]
fn a_damaged_archive_is_told_wherever_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tar(&MEMBERS);
    let refused = |name: &str, bytes: &[u8]| {
        let error = open(&[written(dir.path(), name, bytes)]).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        error
    };
    // Two blocks of zeros end the archive. A file without both has lost members, or may have.
    for keep in (1..=whole.len() - 1024).step_by(100) {
        refused("cut.tar", &whole[..keep]);
    }
    let zipped = gz(&whole);
    for keep in (2..zipped.len()).step_by(7) {
        refused("cut.tar.gz", &zipped[..keep]);
    }
    let mut flipped = zipped.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    refused("flipped.tar.gz", &flipped);
    assert!(refused("twice.tar", &tar(&[("0.jpg", "x"), ("1.jpg", "y"), ("0.jpg", "z")])).contains("0.jpg twice"));
    assert!(refused("none.tar", &tar(&[])).contains("no sample"));
    assert!(refused("other.tar", &tar(&[("README.md", "x")])).contains("no sample"));
    refused("text.tar", "not a tar, whatever its name says".repeat(40).as_bytes());
}

#[test]
fn unsorted_members_and_names_with_more_dots_are_told_by_their_cause() {
    let dir = tempfile::tempdir().unwrap();
    let members = [("a.jpg", "x"), ("b.jpg", "x"), ("a.txt", "a cat"), ("b.txt", "a dog")];
    let error = open(&[written(dir.path(), "a.tar", &tar(&members))]).unwrap_err().to_string();
    assert!(error.contains("members of a apart") && error.contains("--sort=name"), "{error}");
    let members =
        [("a.input.jpg", "x"), ("a.outputs.txt", "a cat"), ("b.jpg", "x"), ("b.txt", "fine"), ("b.meta.json", "{}")];
    let data = open(&[written(dir.path(), "b.tar", &tar(&members))]).unwrap();
    let error = data.sample(0).unwrap_err().to_string();
    assert!(error.contains("a.outputs.txt is left out") && error.contains("first dot"), "{error}");
    assert!(data.sample(1).is_ok());
    for (members, mention) in [
        ([("a.jpg", "x"), ("a.cap", "a cat")], "a.cap is left out"),
        ([("v_0.5.jpg", "x"), ("v_0.5.txt", "a cat")], "v_0.5.txt is left out"),
        ([("img/a.jpg", "x"), ("txt/a.txt", "a cat")], "the folder is a part of the key"),
    ] {
        let data = open(&[written(dir.path(), "c.tar", &tar(&members))]).unwrap();
        let error = data.sample(0).unwrap_err().to_string();
        assert!(error.contains(mention), "{error}");
    }
}
