//! The blocks of the quantized types, with the same bits as `ggml-quants.c` and the `gguf` Python package: 32 values
//! share a scale of half precision, and for Q4_1 a minimum.

use half::f16;

use super::format::{BLOCK, Kind};

/// Appends a block of `values`, of which there are 32, all finite. Returns false if its scale does not fit half
/// precision; the bytes are then without meaning.
pub(super) fn quantize(kind: Kind, values: &[f32], bytes: &mut Vec<u8>) -> bool {
    match kind {
        Kind::Q8_0 => quantize_8(values, bytes),
        _ => quantize_4(values, bytes),
    }
}

/// The factor that turns a value into steps of `scale`. A scale of 0 has none, and neither has one so small that its
/// reciprocal overflows; half precision makes it 0 anyway.
fn reciprocal(scale: f32) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    if inverse.is_finite() { inverse } else { 0.0 }
}

fn quantize_8(values: &[f32], bytes: &mut Vec<u8>) -> bool {
    let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = reciprocal(scale);
    let stored = f16::from_f32(scale);
    bytes.extend(stored.to_le_bytes());
    // `round` rounds halves away from zero, as ggml does.
    bytes.extend(values.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
    stored.is_finite()
}

fn quantize_4(values: &[f32], bytes: &mut Vec<u8>) -> bool {
    // The first of the values with the largest magnitude, with its sign: it becomes -8.
    let mut extreme = 0.0f32;
    for value in values {
        if value.abs() > extreme.abs() {
            extreme = *value;
        }
    }
    let scale = extreme / -8.0;
    let inverse = reciprocal(scale);
    let stored = f16::from_f32(scale);
    bytes.extend(stored.to_le_bytes());
    let four = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let (low, high) = values.split_at(BLOCK / 2);
    bytes.extend(low.iter().zip(high).map(|(low, high)| four(*low) | (four(*high) << 4)));
    stored.is_finite()
}

/// The 32 values of a block of a quantized type; `bytes` has the size of one.
pub(super) fn dequantize(kind: Kind, bytes: &[u8], values: &mut [f32; BLOCK]) {
    let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let scale = half(0);
    let mut fours = |bytes: &[u8], value: &dyn Fn(u8) -> f32| {
        for (index, byte) in bytes.iter().enumerate() {
            values[index] = value(byte & 15);
            values[index + BLOCK / 2] = value(byte >> 4);
        }
    };
    match kind {
        Kind::Q4_0 => fours(&bytes[2..], &|four| scale * (f32::from(four) - 8.0)),
        Kind::Q4_1 => {
            let least = half(2);
            fours(&bytes[4..], &|four| scale * f32::from(four) + least);
        }
        _ => {
            for (value, byte) in values.iter_mut().zip(&bytes[2..]) {
                *value = f32::from(byte.cast_signed()) * scale;
            }
        }
    }
}
