//! Changes to a file: bytes, runs of bytes, lengths, and the numbers and words of texts.

use rand::{Rng, RngExt};

/// Words that readers of JSON, TOML and templates may stumble over.
const WORDS: [&str; 18] = [
    "null",
    "-1",
    "0",
    "1e309",
    "NaN",
    "18446744073709551616",
    "9223372036854775807",
    "4611686018427387904",
    "\"\"",
    "[]",
    "{}",
    "true",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"\\ud800\"",
    "\"../../../etc/passwd\"",
    "\"\u{0}\"",
    "{% for a in range(9) %}",
    "1e-320",
];

/// A damaged copy of `bytes`: one to four changes.
pub fn damaged(bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..=4) {
        change(&mut bytes, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, random: &mut impl Rng) {
    if bytes.is_empty() {
        bytes.push(random.random());
        return;
    }
    // Half of the changes fall into the first 512 bytes, where headers are.
    let end = if random.random() { bytes.len() } else { bytes.len().min(512) };
    let at = random.random_range(0..end);
    match random.random_range(0..9) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][random.random_range(0..5)],
        2 => bytes.truncate(at),
        3 => {
            let end = (at + random.random_range(1..64)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => {
            let end = (at + random.random_range(1..64)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = random.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
        5 => {
            let width = [2, 4, 8][random.random_range(0..3)];
            let value = [u64::MAX, 1 << 31, 1 << 62, 0, 0x7FFF_FFFF][random.random_range(0..5)].to_le_bytes();
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        6 | 7 => word(bytes, at, random),
        _ => {
            let run = vec![bytes[at]; random.random_range(1..4096)];
            bytes.splice(at..at, run);
        }
    }
}

/// Replaces the next number, text or name of a text by a word.
fn word(bytes: &mut Vec<u8>, at: usize, random: &mut impl Rng) {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'_' | b'"');
    let Some(start) = bytes[at..].iter().position(part).map(|offset| at + offset) else { return };
    let end = bytes[start..].iter().position(|byte| !part(byte)).map_or(bytes.len(), |length| start + length);
    let word = WORDS[random.random_range(0..WORDS.len())];
    bytes.splice(start..end, word.bytes());
}
