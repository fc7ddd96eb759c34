//! Encodes numbers and texts for the page's script: compactly, and safely inside a `<script>` element.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// The factor by which similarities and probabilities are multiplied to become 16-bit integers.
pub(super) const SCALE: f32 = 10_000.0;

/// Base64 of little-endian f32 values.
pub(super) fn floats(values: impl Iterator<Item = f32>) -> String {
    STANDARD.encode(values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
}

/// Base64 of little-endian i16 values: `SCALE` times the value.
pub(super) fn shares(values: impl Iterator<Item = f32>) -> String {
    let scaled = |value: f32| (value * SCALE).round().clamp(-SCALE, SCALE) as i16;
    STANDARD.encode(values.flat_map(|value| scaled(value).to_le_bytes()).collect::<Vec<u8>>())
}

/// Base64 of little-endian u16 values: angles in hundredths of a degree.
pub(super) fn degrees(values: impl Iterator<Item = f32>) -> String {
    let scaled = |value: f32| (value * 100.0).round().clamp(0.0, 18_000.0) as u16;
    STANDARD.encode(values.flat_map(|value| scaled(value).to_le_bytes()).collect::<Vec<u8>>())
}

/// Base64 of little-endian u32 values.
pub(super) fn indices(values: impl Iterator<Item = u32>) -> String {
    STANDARD.encode(values.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}

/// Base64 of little-endian u16 values; the values must fit into 16 bits.
pub(super) fn short_indices(values: impl Iterator<Item = u32>) -> String {
    STANDARD.encode(values.flat_map(|value| (value as u16).to_le_bytes()).collect::<Vec<u8>>())
}

/// Base64 of bytes.
pub(super) fn bytes(values: impl Iterator<Item = u8>) -> String {
    STANDARD.encode(values.collect::<Vec<u8>>())
}

/// A PNG as a `data:` URL.
pub(super) fn picture(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// JSON that is safe in a `<script>` element: nothing in it can end the element, begin a comment or break a line.
pub(super) fn script_json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(value)?;
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // In JSON these characters occur only within strings, where an escape is always allowed.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    Ok(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_data_leaves_its_script() {
        let hostile = ["</script><script>alert(1)</script>", "<!--", "]]>", "\u{2028}\u{2029}\0\"'\\&amp;"];
        let json = script_json(&hostile).unwrap();
        assert!(!json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{json}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), hostile);
    }

    #[test]
    fn numbers_are_little_endian_and_within_their_range() {
        let decode = |text: String| STANDARD.decode(text).unwrap();
        assert_eq!(decode(shares([0.1234, -2.0].into_iter())), [0xd2, 0x04, 0xf0, 0xd8]);
        assert_eq!(decode(degrees([90.0].into_iter())), 9000u16.to_le_bytes());
        assert_eq!(decode(floats([1.5].into_iter())), 1.5f32.to_le_bytes());
        assert_eq!(decode(indices([70_000].into_iter())), 70_000u32.to_le_bytes());
        assert_eq!(decode(short_indices([65_535].into_iter())), [255, 255]);
    }
}
