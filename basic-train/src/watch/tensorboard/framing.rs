//! The framing of event files (TensorFlow's TFRecord): a length, the bytes, and a checksum of each.

/// A record: the length as 8 bytes, its checksum, the bytes, their checksum; all little-endian.
pub(super) fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked_crc(bytes).to_le_bytes());
    record
}

/// CRC-32C, turned by 15 bits and shifted by a constant: the checksum of bytes that hold checksums is no good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
