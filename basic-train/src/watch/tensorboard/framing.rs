//! The record framing of event files (TensorFlow's TFRecord): a length and the data, each followed by a checksum.

/// A record: the length in 8 bytes, its checksum, the bytes, their checksum; all little-endian.
pub(super) fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked_crc(bytes).to_le_bytes());
    record
}

/// The masked checksum of TFRecord: CRC-32C, rotated by 15 bits plus a constant. The masking is needed because a CRC of
/// data that contains CRCs is a weak checksum.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
