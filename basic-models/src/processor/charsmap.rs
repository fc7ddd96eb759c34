//! Checks the table of a `Precompiled` normalizer, which SentencePiece made, before the tokenizers library uses it: the
//! library follows the table's offsets without checking them.
//!
//! The bytes are the length of a double array (u32), the double array (u32 each), and texts that end with a zero byte.
//! A leaf of the array has the position of the text that replaces its key.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// The longest table in bytes; the table of NFKC has 310 KB.
const LONGEST: usize = 16 << 20;

/// The factor by which the table in this base64 text can lengthen a text, or what is wrong with the table.
pub(super) fn growth(base64: &str) -> Result<f64, String> {
    if base64.len() / 4 * 3 > LONGEST {
        return Err(format!("precompiled_charsmap has more than {LONGEST} bytes"));
    }
    let either = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, either).decode(base64);
    let bytes = bytes.map_err(|e| format!("precompiled_charsmap is not base64: {e}"))?;
    growth_of(&bytes)
}

fn growth_of(bytes: &[u8]) -> Result<f64, String> {
    let broken = |what: String| format!("precompiled_charsmap is damaged: {what}");
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| broken("it has no 4 bytes".into()))?;
    let length = u32::from_le_bytes(*length) as usize;
    let units = rest
        .get(..length / 4 * 4)
        .ok_or_else(|| broken(format!("its array is said to have {length} bytes, of {} that follow", rest.len())))?;
    let texts = std::str::from_utf8(&rest[units.len()..]).map_err(|_| broken("its texts are not UTF-8".into()))?;
    let units: Vec<u32> = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let ends: Vec<usize> = texts.bytes().enumerate().filter(|(_, byte)| *byte == 0).map(|(at, _)| at).collect();
    let root = *units.first().ok_or_else(|| broken("its array is empty".into()))?;
    let mut seen = vec![false; units.len()];
    let mut growth: f64 = 1.0;
    let mut level = vec![offset(root)];
    // The library does not look up longer keys: it looks up graphemes.
    for depth in 0..=16 {
        let mut next = Vec::new();
        for node in level {
            // From a node, a byte of a text can lead to any unit of the node's block of 256.
            let Some(block) = units.get(node & !0xFF..(node | 0xFF) + 1) else {
                return Err(broken(format!("its array points to unit {}, of {}", node | 0xFF, units.len())));
            };
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            if depth == 16 {
                continue;
            }
            for label in 1..=0xFFusize {
                let unit = block[(node ^ label) & 0xFF];
                if unit & ((1 << 31) | 0xFF) != label as u32 {
                    continue;
                }
                let child = node ^ label ^ offset(unit);
                if unit >> 8 & 1 == 1 {
                    let leaf = units.get(child).copied();
                    let leaf =
                        leaf.ok_or_else(|| broken(format!("its array points to unit {child}, of {}", units.len())))?;
                    let at = (leaf & !(1 << 31)) as usize;
                    let text = texts.get(at..).ok_or_else(|| {
                        broken(format!("its array points to byte {at} of texts of {} bytes", texts.len()))
                    })?;
                    let end = ends.get(ends.partition_point(|&end| end < at)).copied();
                    let length = end.map_or(text.len(), |end| end - at);
                    growth = growth.max(length as f64 / f64::from(depth + 1));
                }
                next.push(child);
            }
        }
        level = next;
    }
    Ok(growth)
}

/// The position of a unit's children, to be combined with its own.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}

#[cfg(test)]
mod tests {
    use super::{growth, growth_of};

    /// A table that replaces "a" by the text at `at`.
    fn table(units: usize, at: u32, texts: &[u8]) -> Vec<u8> {
        let mut array = vec![0u32; units];
        // The root's children start at the root; "a" is a leaf whose value is at unit 0x61 ^ 0x100.
        array[0x61] = 0x61 | 1 << 8 | 0x100 << 10;
        if let Some(leaf) = array.get_mut(0x161) {
            *leaf = at | 1 << 31;
        }
        let bytes = array.iter().flat_map(|unit| unit.to_le_bytes());
        ((units * 4) as u32).to_le_bytes().into_iter().chain(bytes).chain(texts.iter().copied()).collect()
    }

    #[test]
    fn the_growth_is_that_of_the_longest_text_for_its_key() {
        assert_eq!(growth_of(&table(512, 0, b"b\0")), Ok(1.0));
        assert_eq!(growth_of(&table(512, 2, b"b\0cde\0")), Ok(3.0));
        assert_eq!(growth_of(&table(512, 1, b"bcde")), Ok(3.0), "a text may end with the table");
        assert_eq!(growth_of(&table(512, 2, b"b\0")), Ok(1.0), "the end itself is the empty text");
    }

    #[test]
    fn what_points_outside_is_damaged_and_said_to_be_in_words() {
        let damaged = |bytes: &[u8], what: &str| {
            let said = growth_of(bytes).unwrap_err();
            assert!(said.contains("precompiled_charsmap is damaged") && said.contains(what), "{said}");
        };
        damaged(&table(512, 9, b"b\0"), "byte 9");
        damaged(&table(512, 1, "é\0".as_bytes()), "byte 1");
        damaged(&table(256, 0, b"b\0"), "unit 353");
        damaged(&table(100, 0, b"b\0"), "unit 255");
        damaged(&table(512, 0, b"\xFF"), "UTF-8");
        damaged(&[0, 0], "4 bytes");
        damaged(&[0, 0, 0, 0], "empty");
        damaged(&[0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3], "4294967295");
        assert!(growth("not base64!").unwrap_err().contains("not base64"));
        assert!(growth(&"A".repeat(32 << 20)).unwrap_err().contains("more than"));
    }
}
