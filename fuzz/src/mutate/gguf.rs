//! Damages the header of a GGUF file: single counts, lengths, types, dimensions and offsets, with everything around them
//! in its place.

use std::ops::Range;

use rand::{Rng, RngExt};

use super::{bytes, pick};

/// A file with one to three fields of the header changed, or without its end.
pub fn gguf(whole: &[u8], random: &mut impl Rng) -> Vec<u8> {
    let Some(fields) = fields(whole) else { return bytes::damaged(whole, random) };
    let mut out = whole.to_vec();
    for _ in 0..random.random_range(1..=3) {
        let field = fields[random.random_range(0..fields.len())].clone();
        let field = &mut out[field];
        match field.len() {
            4 => {
                let old = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
                let new = [0, 1, 2, 3, 8, 9, 12, 14, 30, 64, 65_537, 1 << 31, u32::MAX, old.wrapping_add(1)];
                field.copy_from_slice(&pick(&new, random).to_le_bytes());
            }
            8 => {
                let mut old = [0; 8];
                old.copy_from_slice(field);
                let old = u64::from_le_bytes(old);
                let near = [old.wrapping_add(1), old.wrapping_sub(1), old << 1, old << 32];
                let new = [0, 1, 7, 33, 65_537, 1 << 31, 1 << 32, 1 << 40, 1 << 62, u64::MAX];
                let new = if random.random() { pick(&near, random) } else { pick(&new, random) };
                field.copy_from_slice(&new.to_le_bytes());
            }
            length => field[random.random_range(0..length)] = random.random(),
        }
    }
    if random.random_ratio(1, 10) {
        out.truncate(random.random_range(0..=out.len()));
    }
    out
}

/// Where the fields of a valid file's header lie: 4 and 8 bytes for numbers, others for texts.
fn fields(whole: &[u8]) -> Option<Vec<Range<usize>>> {
    let mut walk = Walk { whole, at: 4, fields: Vec::new() };
    walk.number(4)?;
    let (tensors, keys) = (walk.number(8)?, walk.number(8)?);
    for _ in 0..keys {
        walk.text()?;
        let kind = walk.number(4)?;
        walk.value(kind)?;
    }
    for _ in 0..tensors {
        walk.text()?;
        for _ in 0..walk.number(4)? {
            walk.number(8)?;
        }
        walk.number(4)?;
        walk.number(8)?;
    }
    Some(walk.fields)
}

struct Walk<'a> {
    whole: &'a [u8],
    at: usize,
    fields: Vec<Range<usize>>,
}

impl Walk<'_> {
    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let range = self.at..self.at.checked_add(length)?;
        let taken = self.whole.get(range.clone())?;
        self.at = range.end;
        if length > 0 {
            self.fields.push(range);
        }
        Some(taken)
    }

    fn number(&mut self, length: usize) -> Option<u64> {
        let mut wide = [0; 8];
        wide[..length].copy_from_slice(self.take(length)?);
        Some(u64::from_le_bytes(wide))
    }

    fn text(&mut self) -> Option<()> {
        let length = self.number(8)?;
        self.take(usize::try_from(length).ok()?).map(drop)
    }

    fn value(&mut self, kind: u64) -> Option<()> {
        match kind {
            0 | 1 | 7 => self.take(1).map(drop),
            2 | 3 => self.take(2).map(drop),
            4..=6 => self.take(4).map(drop),
            10..=12 => self.take(8).map(drop),
            8 => self.text(),
            9 => {
                let (kind, count) = (self.number(4)?, self.number(8)?);
                (0..count).try_for_each(|_| self.value(kind))
            }
            _ => None,
        }
    }
}
