//! Damages formats that consist of chunks with lengths: safetensors, PNG and protocol buffers.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use rand::{Rng, RngExt};

use super::{bytes, pick, values};

/// A safetensors file with damaged header values and, mostly, the right header length.
pub fn safetensors(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let length = whole.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length)) as usize;
    let Some((header, data)) = whole.get(8..).and_then(|rest| rest.split_at_checked(length)) else {
        return bytes::damaged(whole, random);
    };
    let header = values::json(header, random);
    let claimed = match random.random_range(0..12) {
        0 => pick(&[0, 1, u64::MAX, 1 << 40, header.len() as u64 + 1], random),
        _ => header.len() as u64,
    };
    let kept = if random.random_ratio(1, 10) { random.random_range(0..=data.len()) } else { data.len() };
    [&claimed.to_le_bytes()[..], &header, &data[..kept]].concat()
}

/// A PNG with a chunk damaged, moved, removed or added, and with right CRCs.
pub fn png(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let Some(mut chunks) = chunks(whole) else { return bytes::damaged(whole, random) };
    for _ in 0..random.random_range(1..=2) {
        let at = random.random_range(0..chunks.len());
        match random.random_range(0..9) {
            0 | 1 => {
                // A field of the header: width, height, depth, colour type, compression, filter or interlacing.
                let head = &mut chunks[0].1;
                if head.len() >= 13 {
                    let field = random.random_range(0..7);
                    let value = pick(&[0, 1, 2, 3, 4, 6, 8, 16, 255], random);
                    match field {
                        0 | 1 => {
                            let size: u32 = pick(&[0, 1, 27, 29, 65_536, 1 << 20, 1 << 31, u32::MAX], random);
                            head[field * 4..field * 4 + 4].copy_from_slice(&size.to_be_bytes());
                        }
                        _ => head[field + 6] = value,
                    }
                }
            }
            2 => chunks[at].1 = bytes::damaged(&chunks[at].1, random),
            3 if chunks.len() > 1 => drop(chunks.remove(at)),
            4 => chunks.insert(at, chunks[at].clone()),
            5 => {
                let to = random.random_range(0..chunks.len());
                chunks.swap(at, to);
            }
            6 | 7 => {
                let name = pick(
                    &[b"PLTE", b"tRNS", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"eXIf", b"sBIT", b"zTXt"],
                    random,
                );
                let length = pick(&[0, 1, 2, 4, 26, 100, 768, 769, 20_000], random);
                let value = random.random();
                chunks.insert(at, (*name, vec![value; length]));
            }
            _ => {
                // Validly compressed data whose length does not fit the image.
                let plain = vec![random.random(); pick(&[0, 1, 1000, 1 << 24], random)];
                let mut out = ZlibEncoder::new(Vec::new(), Compression::default());
                if let (Ok(data), Some(chunk)) = (
                    out.write_all(&plain).and_then(|()| out.finish()),
                    chunks.iter_mut().find(|(name, _)| name == b"IDAT"),
                ) {
                    chunk.1 = data;
                }
            }
        }
    }
    joined(&chunks)
}

type Chunk = ([u8; 4], Vec<u8>);

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

fn chunks(whole: &[u8]) -> Option<Vec<Chunk>> {
    let mut rest = whole.strip_prefix(SIGNATURE)?;
    let mut chunks = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let (name, more) = more.split_first_chunk::<4>()?;
        let (data, more) = more.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        chunks.push((*name, data.to_vec()));
        rest = more.get(4..)?;
    }
    (!chunks.is_empty()).then_some(chunks)
}

fn joined(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    for (name, data) in chunks {
        out.extend((data.len() as u32).to_be_bytes());
        let start = out.len();
        out.extend(name);
        out.extend(data);
        out.extend(crc(&out[start..]).to_be_bytes());
    }
    out
}

/// Whether all chunks have the right length and CRC.
#[cfg(test)]
pub(super) fn png_is_whole(bytes: &[u8]) -> bool {
    chunks(bytes).is_some_and(|chunks| joined(&chunks) == bytes)
}

/// The CRC of a PNG chunk.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

/// A PNG of four pixels with a palette.
pub fn palette() -> Vec<u8> {
    let mut out = ZlibEncoder::new(Vec::new(), Compression::default());
    let data = out.write_all(&[0, 0b0001_0000, 0, 0b1001_0000]).and_then(|()| out.finish()).unwrap_or_default();
    let header = [0, 0, 0, 2, 0, 0, 0, 2, 2, 3, 0, 0, 0].to_vec();
    joined(&[
        (*b"IHDR", header),
        (*b"PLTE", vec![255, 0, 0, 0, 255, 0, 0, 0, 255]),
        (*b"tRNS", vec![255, 128, 0]),
        (*b"IDAT", data),
        (*b"IEND", Vec::new()),
    ])
}

/// A protocol buffer with fields removed, moved, repeated or changed.
pub fn fields(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let Some(mut fields) = split(whole) else { return bytes::damaged(whole, random) };
    for _ in 0..random.random_range(1..=3) {
        if fields.is_empty() {
            break;
        }
        let at = random.random_range(0..fields.len());
        match random.random_range(0..7) {
            0 => drop(fields.remove(at)),
            1 => {
                let copies = vec![fields[at].clone(); pick(&[1, 50, 20_000], random)];
                fields.splice(at..at, copies);
            }
            2 => {
                let to = random.random_range(0..fields.len());
                fields.swap(at, to);
            }
            3 => fields[at].0 = pick(&[0, 1, 2, 3, 5, 1000], random),
            4 => {
                // A SentencePiece piece: its text (field 1) and its type (field 3).
                let text = pick(&["", "a", "<s>", "▁", "<0x41>", "<0xZZ>", "\u{0}", "図図図"], random);
                let text = text.repeat(pick(&[1, 1, 300, 5000], random));
                let mut piece = vec![0x0A];
                varint(&mut piece, text.len() as u64);
                piece.extend(text.bytes());
                piece.extend([0x18, random.random_range(0..9)]);
                fields[at] = (1, piece);
            }
            _ => fields[at].1 = bytes::damaged(&fields[at].1, random),
        }
    }
    let mut out = Vec::new();
    for (number, data) in fields {
        varint(&mut out, number << 3 | 2);
        varint(&mut out, data.len() as u64);
        out.extend(data);
    }
    out
}

/// The top-level fields of a protocol buffer; `None` unless all are length-delimited.
pub fn split(mut rest: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = read_varint(&mut rest)?;
        let length = read_varint(&mut rest)? as usize;
        let (data, more) = rest.split_at_checked(length).filter(|_| key & 7 == 2)?;
        fields.push((key >> 3, data.to_vec()));
        rest = more;
    }
    Some(fields)
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, more) = rest.split_first()?;
        *rest = more;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends a number in the varint encoding of protocol buffers.
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
