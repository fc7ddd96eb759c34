//! Compares blocks and files with those of the `gguf` Python package (tests/reference/gguf_fixtures.py).

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use half::bf16;
use serde_json::Value;

use super::blocks::{dequantize, quantize};
use super::format::{BLOCK, Kind};
use super::open::GgufDecoder;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    bytes(value).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn quantized_blocks_have_the_bytes_of_the_gguf_package() {
    let fixture = json("blocks.json");
    let values = floats(&fixture["values"]);
    for kind in [Kind::Q8_0, Kind::Q4_0] {
        let mut ours = Vec::new();
        assert!(values.chunks_exact(BLOCK).all(|block| quantize(kind, block, &mut ours)));
        assert_eq!(ours, bytes(&fixture["bytes"][kind.name()]), "{kind:?}");
    }
}

#[test]
fn every_type_is_read_as_the_gguf_package_reads_it_and_within_its_error() {
    let fixture = json("blocks.json");
    let values = floats(&fixture["values"]);
    for kind in [Kind::Q8_0, Kind::Q4_0, Kind::Q4_1] {
        let (packed, theirs) = (bytes(&fixture["bytes"][kind.name()]), floats(&fixture["read"][kind.name()]));
        let mut block = [0.0; BLOCK];
        for (index, packed) in packed.chunks_exact(kind.block().1).enumerate() {
            dequantize(kind, packed, &mut block);
            assert_eq!(block, theirs[index * BLOCK..][..BLOCK], "{kind:?}");
            let original = &values[index * BLOCK..][..BLOCK];
            let largest = original.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            // Half a step of 127, of 8 or of 15 over twice the range; a whole step of 8 where values are cut off at 7.
            let step = match kind {
                Kind::Q8_0 => 0.51 / 127.0,
                Kind::Q4_0 => 1.0 / 8.0,
                _ => 1.01 / 15.0,
            };
            // Half precision rounds the scale by 2^-11, and below 6e-8 to nothing.
            let error = largest * (step + 1e-3) + 1e-6;
            assert!(block.iter().zip(original).all(|(a, b)| (a - b).abs() <= error), "{kind:?} {original:?} {block:?}");
        }
    }
    let rounded: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    assert_eq!(rounded, bytes(&fixture["bytes"]["BF16"]));
}

#[test]
fn a_file_of_the_gguf_package_is_read_with_the_same_values() {
    let decoder = GgufDecoder::open(&fixture("decoder.gguf")).unwrap();
    let expected = json("decoder.json");
    let mut seen = 0;
    for (name, entry) in decoder.files.list() {
        let theirs = floats(&expected[&entry.disk]);
        let mut values = Vec::new();
        let float = match &entry.dtype {
            super::super::source::Stored::Float(float) => *float,
            other => panic!("{name} is {other:?}"),
        };
        // In windows of three values, so that windows end inside blocks.
        decoder
            .files
            .windows(entry, 3 * float.size(), &mut |bytes| {
                let mut part = vec![0.0f32; bytes.len() / float.size()];
                super::super::floats::decode(bytes, float, &mut part);
                values.extend(part);
                Ok(())
            })
            .unwrap();
        assert_eq!(values, theirs, "{name}");
        seen += 1;
    }
    assert_eq!(seen, expected.as_object().unwrap().len());
}
