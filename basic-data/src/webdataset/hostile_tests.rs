//! Archives with false or damaged headers, and with members that a sample cannot use.

use std::path::{Path, PathBuf};

use super::WebDataset;
use crate::{DataError, ImageSource, Samples};

const TURNS: &str = r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#;

fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.size[..size.len()].copy_from_slice(size);
    old.linkflag = [kind];
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn member(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut member = header(name, kind, format!("{:011o}", bytes.len()).as_bytes());
    member.extend(bytes);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

/// A pax header with these keys and values.
fn pax(fields: &[(&str, &str)]) -> Vec<u8> {
    let line = |(key, value): &(&str, &str)| {
        let len = key.len() + value.len() + 3;
        let digits = (1..9).find(|digits| (len + digits).to_string().len() == *digits).unwrap();
        format!("{} {key}={value}\n", len + digits)
    };
    member("pax", b'x', fields.iter().map(line).collect::<String>().as_bytes())
}

/// The members of a valid sample.
fn right(key: &str) -> Vec<u8> {
    [member(&format!("{key}.jpg"), b'0', b"pixels"), member(&format!("{key}.txt"), b'0', b"a dog")].concat()
}

fn written(dir: &Path, parts: &[Vec<u8>]) -> PathBuf {
    let path = dir.join("a.tar");
    std::fs::write(&path, [parts.concat(), vec![0; 1024]].concat()).unwrap();
    path
}

fn open(parts: &[Vec<u8>]) -> Result<WebDataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), parts);
    WebDataset::open(&[path], None)
}

#[track_caller]
fn refused(parts: &[Vec<u8>], mentions: &[&str]) {
    let said = open(parts).unwrap_err().to_string();
    assert!(said.contains("a.tar") && said.len() < 600, "{said}");
    mentions.iter().for_each(|mention| assert!(said.contains(mention), "{mention}: {said}"));
}

#[test]
fn a_size_that_no_member_has_is_refused_however_it_is_written() {
    let huge = [&[0x80, 0, 0, 0][..], &(1u64 << 62).to_be_bytes()].concat();
    let beyond = [&[0x80, 0, 0, 1][..], &[0; 8]].concat();
    for (size, mention) in [
        (&[0xff; 12][..], "a size that no member has"),
        (&beyond, "a size that no member has"),
        (b"-1", "a size that no member has"),
        (b"many", "a size that no member has"),
        (&huge, "truncated inside its member b.txt"),
        (b"77777777777", "truncated inside its member b.txt"),
    ] {
        refused(&[right("a"), header("b.txt", b'0', size)], &[mention]);
    }
    for size in ["18446744073709551615", "99999999"] {
        refused(
            &[right("a"), pax(&[("size", size)]), member("b.txt", b'0', b"x")],
            &["truncated inside its member b.txt"],
        );
    }
    for size in ["-1", "1e3", "99999999999999999999999"] {
        refused(&[right("a"), pax(&[("size", size)]), member("b.txt", b'0', b"x")], &["pax header"]);
    }
    let five = [&[0x80, 0, 0, 0][..], &5u64.to_be_bytes()].concat();
    let mut named = header("b.txt", b'0', &five);
    named.extend(b"a cat");
    named.resize(1024, 0);
    assert_eq!(open(&[right("a"), member("b.jpg", b'0', b"x"), named]).unwrap().len(), 2);
}

#[test]
fn a_header_of_any_length_is_refused_before_it_is_read() {
    let long = "n".repeat(2 << 20);
    refused(&[member("x", b'L', long.as_bytes()), right("a")], &["more than 1048576"]);
    refused(&[pax(&[("comment", &long)]), right("a")], &["more than 1048576"]);
    refused(&[header("x", b'x', b"77777777777"), right("a")], &["more than 1048576"]);
    refused(&[right("a"), pax(&[("comment", "x")])], &["ends after a header"]);
    for wrong in ["x", "999999999999999999999 a=b\n", "3 a=b\n", "4 ab\n", "7 a=bcd"] {
        refused(&[member("x", b'x', wrong.as_bytes()), right("a")], &["pax header"]);
    }
    // The names of links, and settings for all members, are skipped.
    assert_eq!(open(&[member("x", b'K', long.as_bytes()), member("g", b'g', b"?"), right("a")]).unwrap().len(), 1);
}

#[test]
fn a_pax_name_and_size_count_more_than_the_header_that_follows() {
    let long = "k".repeat(200);
    let dir = tempfile::tempdir().unwrap();
    let (image, text) = (format!("{long}.jpg"), format!("{long}.txt"));
    let mut caption = header("?", b'0', b"0");
    caption.extend(b"a cat");
    caption.resize(1024, 0);
    let parts = [
        pax(&[("mtime", "1.5"), ("path", &image)]),
        member("?", b'0', b"pixels"),
        pax(&[("path", &text), ("size", "5")]),
        caption,
        right("z"),
    ];
    let data = WebDataset::open(&[written(dir.path(), &parts)], None).unwrap();
    assert_eq!(data.len(), 2);
    let sample = data.sample(0).unwrap();
    assert_eq!(sample.messages[1].content, "a cat");
    assert!(matches!(&sample.images[0], ImageSource::Bytes { bytes, .. } if **bytes == *b"pixels"));
}

/// Checks the error of the first sample; the second one is valid.
#[track_caller]
fn broken(parts: &[Vec<u8>], mentions: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let data = WebDataset::open(&[written(dir.path(), &[parts, &[right("z")]].concat())], None).unwrap();
    assert_eq!(data.len(), 2);
    let error = data.sample(0).unwrap_err();
    assert!(error.is_sample(), "{error}");
    mentions.iter().for_each(|mention| assert!(error.to_string().contains(mention), "{mention}: {error}"));
    assert!(data.outline(0).is_err());
    assert_eq!(data.sample(1).unwrap().messages[1].content, "a dog");
}

#[test]
fn a_sample_with_a_film_a_sound_or_another_image_is_broken_and_not_a_text() {
    for (ending, mention) in [
        ("mp4", "is a video"),
        ("WEBM", "is a video"),
        ("clip.avi", "is a video"),
        ("wav", "is sound"),
        ("0.mp3", "is sound"),
        ("flac", "is sound"),
        ("tiff", "convert it"),
    ] {
        let media = member(&format!("a.{ending}"), b'0', b"x");
        broken(&[media.clone(), member("a.json", b'0', TURNS.as_bytes())], &[&format!("a.{ending}"), mention]);
        broken(&[member("a.jpg", b'0', b"x"), media.clone(), member("a.txt", b'0', b"x")], &[mention]);
        broken(&[media], &["(id a)", mention]);
    }
    // A name that only mentions a video format is still text.
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &[member("mp4.json", b'0', TURNS.as_bytes())]);
    assert_eq!(WebDataset::open(&[path], None).unwrap().sample(0).unwrap().messages[1].content, "a");
}

#[test]
fn a_member_without_its_bytes_breaks_its_sample_alone() {
    let text = || member("a.json", b'0', TURNS.as_bytes());
    broken(&[member("a.jpg", b'1', b""), text()], &["a.jpg", "--hard-dereference"]);
    broken(&[member("a.jpg", b'2', b""), text()], &["a.jpg", "--dereference"]);
    broken(&[member("a.jpg", b'M', b"x"), text()], &["a.jpg", "another archive"]);
    let sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.name", "a.jpg"), ("GNU.sparse.realsize", "9999")];
    broken(&[pax(&sparse), member("GNUSparseFile.0/a.jpg", b'0', b"1\n0\n9\n"), text()], &["a.jpg", "sparse"]);
    // The map of a sparse member continues in blocks before its bytes.
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..5].copy_from_slice(b"a.jpg");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(3);
    header.as_gnu_mut().unwrap().isextended = [1];
    header.set_cksum();
    let mut stored = header.as_bytes().to_vec();
    stored.resize(512 + 1024, 0);
    stored[512 + 504] = 1;
    stored.extend(b"xyz");
    stored.resize(stored.len().next_multiple_of(512), 0);
    broken(&[stored, text()], &["a.jpg", "sparse"]);
    // A link that is not part of a sample is ignored.
    assert_eq!(open(&[member("README", b'2', b""), member("x.md", b'1', b""), right("z")]).unwrap().len(), 1);
}

#[test]
fn texts_lose_their_mark_and_an_empty_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let parts = [
        member("a.jpg", b'0', b"x"),
        member("a.txt", b'0', &marked("a cat\r\n")),
        member("b.json", b'0', &marked(TURNS)),
        member("c.jpg", b'0', b"x"),
        member("c.txt", b'0', &marked("\n")),
        member("d.jpg", b'0', b"x"),
        member("d.txt", b'0', b"\xff\xfea"),
    ];
    let data = WebDataset::open(&[written(dir.path(), &parts)], None).unwrap();
    assert_eq!(data.sample(0).unwrap().messages[1].content, "a cat");
    assert_eq!(data.sample(1).unwrap().messages[0].content, "q");
    for (index, mention) in [(2, ".txt is empty"), (3, "not UTF-8")] {
        let error = data.sample(index).unwrap_err();
        assert!(error.is_sample() && error.to_string().contains(mention), "{error}");
    }
}

#[test]
fn a_json_that_becomes_large_is_the_samples_fault() {
    let lists = format!("[{}0]", "[0],".repeat(2 << 20));
    broken(&[member("a.json", b'0', lists.as_bytes())], &["--file-bytes", "(id a)"]);
    let text = format!("[{:?}]", "a long answer ".repeat(1 << 16));
    broken(&[member("a.json", b'0', text.as_bytes())], &["conversation"]);
}

#[test]
fn an_archive_that_another_one_follows_is_refused() {
    refused(&[right("a"), vec![0; 1024], right("b")], &["goes on after its end marker"]);
    refused(&[right("a"), vec![0; 10240], right("b")], &["goes on after its end marker"]);
    assert_eq!(open(&[right("a"), vec![0; 1024], vec![7; 700]]).unwrap().len(), 1, "what follows is no archive");
}
