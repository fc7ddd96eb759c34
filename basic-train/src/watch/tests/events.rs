//! Tests of event files, read by code that shares nothing with the writer: a bitwise checksum, and protobuf decoded
//! from its wire format.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{evaluation_of, metrics};
use crate::watch::{TensorBoard, Watcher};

/// CRC-32C (Castagnoli), one bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The value of a message's field: varints and fixed-size numbers as numbers, everything else as bytes.
#[derive(Debug, Clone, PartialEq)]
enum Field {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Field>> {
    let mut found: BTreeMap<u64, Vec<Field>> = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let take = |bytes: &mut &[u8], n: usize| {
            let (head, rest) = bytes.split_at(n);
            *bytes = rest;
            head.to_vec()
        };
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)),
            1 => Field::Fixed64(take(&mut bytes, 8).try_into().unwrap()),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            5 => Field::Fixed32(take(&mut bytes, 4).try_into().unwrap()),
            other => panic!("wire type {other}"),
        };
        found.entry(key >> 3).or_default().push(field);
    }
    found
}

fn bytes(field: &Field) -> &[u8] {
    match field {
        Field::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

fn text(field: &Field) -> String {
    String::from_utf8(bytes(field).to_vec()).unwrap()
}

/// The events of a file, each as JSON.
fn read(path: &Path) -> Vec<Value> {
    let file = fs::read(path).unwrap();
    let mut rest = &file[..];
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let stated = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        assert_eq!(stated(8), masked(&rest[..8]), "the length's checksum");
        let record = &rest[12..12 + length];
        assert_eq!(stated(12 + length), masked(record), "the record's checksum");
        events.push(event(record));
        rest = &rest[16 + length..];
    }
    events
}

fn event(record: &[u8]) -> Value {
    let event = fields(record);
    let Field::Fixed64(time) = event[&1][0] else { panic!("{event:?}") };
    let time = f64::from_le_bytes(time);
    assert!((1.7e9..1e10).contains(&time), "seconds since 1970: {time}");
    let step = event.get(&2).map_or(0, |step| match step[0] {
        Field::Varint(step) => step,
        _ => panic!("{event:?}"),
    });
    let mut values = BTreeMap::new();
    for value in
        event.get(&5).map(|summary| fields(bytes(&summary[0]))).and_then(|mut s| s.remove(&1)).unwrap_or_default()
    {
        let value = fields(bytes(&value));
        let found = match (value.get(&2), value.get(&8)) {
            (Some(scalar), None) => match scalar[0] {
                Field::Fixed32(x) => json!(f32::from_le_bytes(x)),
                _ => panic!("{scalar:?}"),
            },
            (None, Some(tensor)) => {
                let plugin = fields(bytes(&fields(bytes(&value[&9][0]))[&1][0]));
                assert_eq!(text(&plugin[&1][0]), "text");
                let tensor = fields(bytes(&tensor[0]));
                assert_eq!(tensor[&1][0], Field::Varint(7), "DT_STRING");
                let dim = fields(bytes(&fields(bytes(&tensor[&2][0]))[&2][0]));
                assert_eq!(dim[&1][0], Field::Varint(1), "one string");
                json!(text(&tensor[&8][0]))
            }
            other => panic!("{other:?}"),
        };
        values.insert(text(&value[&1][0]), found);
    }
    let session = event.get(&7).map(|log| match fields(bytes(&log[0]))[&1][0] {
        Field::Varint(status) => status,
        _ => panic!("{log:?}"),
    });
    json!({"step": step, "version": event.get(&3).map(|v| text(&v[0])), "values": values, "session": session})
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_checksum_is_castagnolis() {
    // RFC 3720, B.4: 32 bytes of zeros, and of 0xff.
    assert_eq!((crc(&[0; 32]), crc(&[0xff; 32])), (0x8a91_36aa, 0x62a8_ab43));
}

#[test]
fn every_number_of_a_step_is_a_scalar_and_predictions_are_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::create(dir.path(), 0).unwrap();
    board.text(0, "recipe", "stage: `pretrain` ü").unwrap();
    for step in 1..=300 {
        board.step(&metrics(step)).unwrap();
    }
    board.evaluation(&evaluation_of(300)).unwrap();
    let files = files(dir.path());
    let name = files[0].file_name().unwrap().to_str().unwrap().to_string();
    let mut parts = name.strip_prefix("events.out.tfevents.").unwrap().split('.');
    assert!(parts.next().unwrap().parse::<u64>().unwrap() > 1_700_000_000, "{name}");
    // The file is complete even while the writer is alive, because TensorBoard follows a run while it writes.
    let events = read(&files[0]);
    assert_eq!(events[0]["version"], "brain.Event:2");
    assert_eq!(events[1]["values"], json!({"recipe": "stage: `pretrain` ü"}));
    assert_eq!(events.len(), 303);
    for step in 1..=300 {
        let event = &events[step + 1];
        assert_eq!(event["step"], step);
        let expected = serde_json::to_value(metrics(step)).unwrap();
        let values = event["values"].as_object().unwrap();
        for (tag, key) in
            [("loss/lm", "lm"), ("loss/total", "total"), ("optimizer/lr", "lr"), ("speed/seconds", "seconds")]
        {
            assert_eq!(values[tag].as_f64().unwrap() as f32, expected[key].as_f64().unwrap() as f32, "{tag}");
        }
        assert_eq!((&values["optimizer/grad_norms/projector"], &values["batch/tokens"]), (&json!(2.0), &json!(30.0)));
        assert!(!values.contains_key("step"), "{values:?}");
    }
    let last = &events[302];
    assert_eq!(
        (&last["step"], &last["values"]["eval/lm"], &last["values"]["eval/samples"]),
        (&json!(300), &json!(2.5), &json!(4.0))
    );
    let table = last["values"]["eval/predictions"].as_str().unwrap();
    assert!(table.contains("| a.png | USER: &lt;image> what? ASSISTANT: | red \\| blue | red |"), "{table}");
}

#[test]
fn a_run_that_goes_on_tells_where_and_its_file_comes_after_the_others() {
    let dir = tempfile::tempdir().unwrap();
    // Processes that start within the same second.
    for done in [0, 5, 3] {
        let mut board = TensorBoard::create(dir.path(), done).unwrap();
        (done + 1..=done + 4).for_each(|step| board.step(&metrics(step)).unwrap());
        assert_eq!(files(dir.path()).last().unwrap(), board.path());
    }
    let starts: Vec<Option<Value>> =
        files(dir.path()).iter().map(|path| read(path).into_iter().find(|event| !event["session"].is_null())).collect();
    assert_eq!(starts[0], None, "a new run has no restart");
    for (start, first) in starts[1..].iter().zip([6, 4]) {
        let start = start.as_ref().unwrap();
        assert_eq!((&start["session"], &start["step"]), (&json!(1), &json!(first)));
    }
}
