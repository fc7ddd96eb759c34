//! Files that are cut short, lie about sizes, or have values of the wrong type; and any bytes at all.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::format::value;
use super::read::{Header, read, read_within};
use crate::checkpoint::CheckpointError;
use crate::outside::{Budget, FileLimits};

/// A file under construction.
#[derive(Clone)]
struct File {
    bytes: Vec<u8>,
}

impl File {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut file = Self { bytes: b"GGUF".to_vec() };
        file.u32(3).u64(tensors).u64(keys);
        file
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.bytes.extend(number.to_le_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes.extend(number.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64).bytes.extend(text.as_bytes());
        self
    }

    /// A tensor's description: dimensions in the file's order, fastest first.
    fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.text(name).u32(dimensions.len() as u32);
        for size in dimensions {
            self.u64(*size);
        }
        self.u32(kind).u64(offset)
    }

    /// Room for `bytes` bytes of tensors.
    fn data(&mut self, bytes: usize) -> &mut Self {
        let begin = self.bytes.len().next_multiple_of(32);
        self.bytes.resize(begin + bytes, 0);
        self
    }

    fn read(&self) -> Result<Header, CheckpointError> {
        read(Path::new("x.gguf"), &self.bytes)
    }

    #[track_caller]
    fn refused(&self, mentions: &[&str]) {
        let said = self.read().unwrap_err().to_string();
        for mention in ["x.gguf"].iter().chain(mentions) {
            assert!(said.contains(mention), "{mention:?} is not in: {said}");
        }
        assert!(said.len() < 600 && !said.contains('\n'), "{said}");
    }
}

#[test]
fn a_header_is_read_with_keys_and_tensors_in_hugging_faces_order() {
    let mut file = File::new(2, 3);
    file.text("a.count").u32(value::U8).bytes.push(7);
    file.text("a.negative").u32(value::I16).bytes.extend((-2i16).to_le_bytes());
    file.text("a.list").u32(value::ARRAY).u32(value::STRING).u64(2).text("x").text("é");
    file.tensor("one", &[32, 3], 8, 0).tensor("two", &[5], 0, 128).data(128 + 20);
    let Header { metadata, tensors } = file.read().unwrap();
    assert_eq!(metadata.needed("a.count").unwrap(), 7);
    assert_eq!(metadata.texts("a.list").unwrap().unwrap(), ["x", "é"]);
    let negative = metadata.count("a.negative").unwrap_err().to_string();
    assert!(negative.contains("x.gguf: a.negative: is an integer"), "{negative}");
    assert_eq!((tensors[0].shape.as_slice(), tensors[0].bytes), (&[3, 32][..], 3 * 34));
    assert_eq!(tensors[1].start - tensors[0].start, 128);
    // A number in single precision is taken with its own digits.
    let mut file = File::new(0, 1);
    file.text("eps").u32(value::F32).bytes.extend(1e-5f32.to_le_bytes());
    assert_eq!(file.read().unwrap().metadata.number("eps").unwrap(), Some(1e-5));
}

#[test]
fn what_is_no_whole_file_is_refused_wherever_it_ends() {
    let mut file = File::new(1, 2);
    file.text("general.name").u32(value::STRING).text("tiny");
    file.text("list").u32(value::ARRAY).u32(value::F32).u64(2).u64(0);
    file.tensor("t", &[32], 2, 0).data(18);
    file.read().unwrap();
    for length in 0..file.bytes.len() {
        let cut = File { bytes: file.bytes[..length].to_vec() };
        cut.refused(&[]);
    }
    File { bytes: b"PK\x03\x04 and more that is no GGUF".to_vec() }.refused(&["does not begin with GGUF"]);
    let mut version = file.clone();
    version.bytes[4] = 1;
    version.refused(&["version 1"]);
    version.bytes[4..8].copy_from_slice(&[0, 0, 0, 3]);
    version.refused(&["big-endian"]);
}

#[test]
fn sizes_that_lie_are_refused_before_memory_is_reserved() {
    File::new(u64::MAX, 0).refused(&["tensors"]);
    File::new(0, 1 << 40).refused(&["keys"]);
    File::new(0, 1).u64(1 << 40).refused(&["a key has 1099511627776 bytes"]);
    File::new(0, 1).text("s").u32(value::STRING).u64(u64::MAX).refused(&["s takes"]);
    File::new(0, 1).text("s").u32(value::STRING).u64(3 << 30).refused(&["s takes 3221225472 bytes"]);
    File::new(0, 1).text("l").u32(value::ARRAY).u32(value::U8).u64(u64::MAX).refused(&["l: is a list of"]);
    File::new(0, 1).text("l").u32(value::ARRAY).u32(value::STRING).u64(1 << 61).refused(&["l: is a list of"]);
    File::new(0, 1).text("l").u32(value::ARRAY).u32(value::ARRAY).u64(1).u64(0).refused(&["l: ", "type 9"]);
    File::new(1, 0).tensor("t", &[u64::MAX, u64::MAX], 0, 0).refused(&["tensor t", "cannot be F32"]);
    File::new(1, 0).tensor("t", &[1 << 62, 2], 0, 0).refused(&["tensor t"]);
    File::new(1, 0).tensor("t", &[64], 0, u64::MAX - 31).data(64).refused(&["tensor t", "cut short"]);
    File::new(1, 0).tensor("t", &[64], 0, 0).data(64).refused(&["tensor t", "256 bytes", "cut short"]);
    File::new(1, 0).tensor("t", &[2; 5], 0, 0).refused(&["tensor t", "5 dimensions"]);
    File::new(1, 0).tensor("t", &[0, 4], 0, 0).refused(&["tensor t", "no values"]);
    File::new(1, 0).tensor("t", &[33], 8, 0).data(99).refused(&["tensor t", "Q8_0"]);
}

#[test]
fn contradictions_are_refused_by_name() {
    let mut twice = File::new(0, 2);
    twice.text("k").u32(value::U32).u32(1).text("k").u32(value::U32).u32(2).refused(&["key k", "twice"]);
    let mut twice = File::new(2, 0);
    twice.tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64).refused(&["tensor t", "twice"]);
    let mut over = File::new(2, 0);
    over.tensor("a", &[64], 0, 0).tensor("b", &[8], 0, 32).data(512).refused(&["tensor b", "overlaps tensor a"]);
    File::new(1, 0).tensor("t", &[8], 0, 8).data(64).refused(&["tensor t", "alignment"]);
    let mut aligned = File::new(0, 1);
    aligned.text("general.alignment").u32(value::U32).u32(24).refused(&["general.alignment", "power of two"]);
    File::new(0, 1).text("k").u32(77).refused(&["k: ", "type 77"]);
    let mut flag = File::new(0, 1);
    flag.text("k").u32(value::BOOL).bytes.push(2);
    flag.refused(&["k: is neither true nor false"]);
    let mut bytes = File::new(0, 1);
    bytes.text("k").u32(value::STRING).u64(2).bytes.extend([0xFF, 0xFE]);
    bytes.refused(&["k: is not UTF-8"]);
    File::new(1, 0).tensor("t", &[256], 12, 0).data(144).refused(&["tensor t", "Q4_K", "llama-quantize"]);
}

#[test]
fn long_texts_take_no_more_than_the_budget() {
    let mut file = File::new(0, 1);
    file.text("k").u32(value::STRING).text(&"x".repeat(100_000));
    let limits = FileLimits { bytes: 50_000, time: Duration::from_secs(60) };
    let budget = Budget::within("x.gguf", limits);
    let said = read_within(Path::new("x.gguf"), &file.bytes, &budget).unwrap_err().to_string();
    assert!(said.contains("--file-bytes"), "{said}");
}

/// A valid file with every kind of field.
fn whole() -> Vec<u8> {
    let mut file = File::new(2, 4);
    file.text("general.architecture").u32(value::STRING).text("llama");
    file.text("n").u32(value::U64).u64(3);
    file.text("l").u32(value::ARRAY).u32(value::STRING).u64(2).text("a").text("b");
    file.text("f").u32(value::ARRAY).u32(value::F32).u64(2).u64(0);
    file.tensor("one", &[32, 2], 3, 0).tensor("two", &[4, 2], 1, 64).data(80);
    file.bytes
}

proptest! {
    #[test]
    fn any_bytes_behind_the_magic_are_an_error_or_a_header(rest in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = [&b"GGUF\x03\0\0\0"[..], &rest].concat();
        let _ = read(Path::new("x.gguf"), &bytes);
    }

    #[test]
    fn a_changed_file_is_an_error_or_a_header_whose_tensors_lie_in_it(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 1..8),
        kept in 0usize..800,
    ) {
        let mut bytes = whole();
        bytes.truncate(bytes.len().min(kept.max(8)));
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        match read(Path::new("x.gguf"), &bytes) {
            Ok(header) => {
                for tensor in header.tensors {
                    prop_assert!(tensor.start + tensor.bytes <= bytes.len());
                    let values: usize = tensor.shape.iter().product();
                    prop_assert_eq!(tensor.kind.bytes(values as u64), Some(tensor.bytes as u64));
                }
            }
            Err(error) => {
                let said = error.to_string();
                prop_assert!(said.contains("x.gguf") && said.len() < 2000, "{}", said);
            }
        }
    }
}
