//! Damages the contents of archives and keeps the archives' checksums right.

use std::io::{Cursor, Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rand::{Rng, RngExt};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{bytes, pick};

/// Opcodes of pickles that build, call or reference objects.
const OPCODES: &[u8] = b"().012]}NRbcdehilpqrstu\x80\x81\x85\x86\x87\x88\x89\x8c\x8d\x8e\x93\x94\x95";

/// A PyTorch zip file with its pickle or its members damaged, stored or deflated.
pub fn zip(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    rewritten(whole, random).unwrap_or_else(|| bytes::damaged(whole, random))
}

fn rewritten(whole: &[u8], random: &mut impl Rng) -> Option<Vec<u8>> {
    let mut archive = ZipArchive::new(Cursor::new(whole)).ok()?;
    let mut members = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).ok()?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).ok()?;
        members.push((entry.name().ok()?.into_owned(), content));
    }
    let pickle = members.iter().position(|(name, _)| name.ends_with("data.pkl"))?;
    match random.random_range(0..10) {
        0 => drop(members.remove(random.random_range(0..members.len()))),
        1 => {
            let (name, _) = &mut members[pickle];
            *name =
                (pick(&["data.pkl", "../data.pkl", "a/b/c/data.pkl", "/data.pkl", "archive/DATA.PKL"], random)).into();
        }
        2 => {
            let at = random.random_range(0..members.len());
            members[at].1 = bytes::damaged(&members[at].1, random);
        }
        3 => {
            let at = random.random_range(0..members.len());
            let most = members[at].1.len() / 2;
            members[at].1.truncate(random.random_range(0..=most));
        }
        _ => {
            let content = &mut members[pickle].1;
            for _ in 0..random.random_range(1..=3) {
                opcode(content, random);
            }
        }
    }
    let deflated = random.random_ratio(1, 3);
    let method = if deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in &members {
        out.start_file(name.as_str(), SimpleFileOptions::default().compression_method(method)).ok()?;
        out.write_all(content).ok()?;
    }
    Some(out.finish().ok()?.into_inner())
}

/// A file of pickles with opcodes and numbers changed, half of the time only near its start, because tensors follow.
pub fn pickles(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let head = if random.random() { whole.len().min(600) } else { whole.len() };
    let (head, data) = whole.split_at(head);
    let mut head = head.to_vec();
    for _ in 0..random.random_range(1..=3) {
        opcode(&mut head, random);
    }
    [&head, data].concat()
}

/// Changes a pickle: an opcode, a short number, a run of opcodes, or bytes.
fn opcode(pickle: &mut Vec<u8>, random: &mut impl Rng) {
    if pickle.is_empty() {
        return pickle.push(b'.');
    }
    let at = random.random_range(0..pickle.len());
    match random.random_range(0..6) {
        0 => pickle[at] = pick(OPCODES, random),
        1 => {
            let run = vec![pick(OPCODES, random); pick(&[1, 100, 200_000, 30_000_000], random)];
            pickle.splice(at..at, run);
        }
        2 => {
            // Replaces the next 1-byte or 2-byte integer by a 4-byte one.
            let number = pickle[at..].iter().position(|byte| matches!(byte, b'K' | b'M')).map(|offset| at + offset);
            let Some(number) = number else { return };
            let end = (number + if pickle[number] == b'K' { 2 } else { 3 }).min(pickle.len());
            let value = pick(&[i32::MAX, -1, 0, 1 << 24, i32::MIN], random);
            pickle.splice(number..end, [b'J'].into_iter().chain(value.to_le_bytes()));
        }
        3 => {
            let end = (at + random.random_range(1..40)).min(pickle.len());
            let copy = pickle[at..end].to_vec();
            let to = random.random_range(0..=pickle.len());
            pickle.splice(to..to, copy);
        }
        _ => *pickle = bytes::damaged(pickle, random),
    }
}

/// A tar archive with a damaged header field or member, and with right checksums in the headers.
pub fn tar(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let headers: Vec<usize> = (0..bytes.len() / 512)
        .map(|block| block * 512)
        .filter(|at| bytes.get(at + 257..at + 262) == Some(b"ustar"))
        .collect();
    if headers.is_empty() {
        return bytes::damaged(whole, random);
    }
    let at = pick(&headers, random);
    match random.random_range(0..7) {
        0 => field(
            &mut bytes[at + 124..at + 136],
            pick(&["77777777777", "0", "-1", "8", "00000000001", "99999999999"], random),
        ),
        1 => bytes[at + 156] = pick(b"0123456789KLSVxg\0", random),
        2 => field(
            &mut bytes[at..at + 100],
            pick(&["../../a.png", "/etc/passwd", "", "a.b.c.json", "é.png", "000000.json", "x"], random),
        ),
        3 => {
            let next = headers.iter().copied().find(|header| *header > at).unwrap_or(bytes.len());
            let member = bytes[at..next].to_vec();
            let to = pick(&headers, random);
            bytes.splice(to..to, member);
        }
        4 => bytes.truncate(at + pick(&[0, 100, 512, 700], random)),
        5 => field(&mut bytes[at + 157..at + 257], pick(&["../../../etc/passwd", "000000.png", "/"], random)),
        _ => {
            // Changes a byte of a member's content.
            let end = (at + 1024).min(bytes.len());
            if at + 512 < end {
                let place = random.random_range(at + 512..end);
                bytes[place] = pick(b"\0\x7f\x80\xff\"{}[,1", random);
            }
        }
    }
    if let Some(header) = bytes.get_mut(at..at + 512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fn field(field: &mut [u8], text: &str) {
    field.fill(0);
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// A gzipped tar archive, damaged before compression.
pub fn tar_gz(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let mut inside = Vec::new();
    if GzDecoder::new(whole).read_to_end(&mut inside).is_err() {
        return bytes::damaged(whole, random);
    }
    let mut inside = tar(&inside, random);
    if random.random_ratio(1, 10) {
        inside.extend(vec![0; pick(&[1 << 10, 1 << 24, 1 << 26], random)]);
    }
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    match out.write_all(&inside).and_then(|()| out.finish()) {
        Ok(bytes) => bytes,
        Err(_) => bytes::damaged(whole, random),
    }
}
