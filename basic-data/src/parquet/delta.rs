//! Computes how much a page grows when it is decoded from DELTA_BYTE_ARRAY, an encoding that stores shared prefixes
//! once: a page of a megabyte can expand to terabytes.

/// The total size of all prefixes, computed from the prefix lengths at the beginning of a page's values; `None` if
/// these are malformed, which the Parquet library then reports.
pub(super) fn prefix_bytes(values: &[u8]) -> Option<u64> {
    let mut input = values;
    let block = varint(&mut input)?;
    let parts = varint(&mut input)?;
    let count = varint(&mut input)?;
    let first = zigzag(varint(&mut input)?);
    let part = block.checked_div(parts).filter(|part| *part > 0 && part.is_multiple_of(8) && *part <= 1 << 20)?;
    let (mut value, mut left) = (first, count.checked_sub(1)?);
    let mut sum = u64::try_from(first).ok()?;
    while left > 0 {
        let least = zigzag(varint(&mut input)?);
        let widths = input.split_off(..usize::try_from(parts).ok()?)?;
        for width in widths {
            if left == 0 {
                break;
            }
            let packed = input.split_off(..usize::from(*width).checked_mul(part as usize / 8)?)?;
            let mut bits = Bits { bytes: packed, at: 0 };
            for _ in 0..part.min(left) {
                let delta = least.wrapping_add(bits.take(*width)? as i64);
                value = value.wrapping_add(delta);
                sum = sum.checked_add(u64::try_from(value).ok()?)?;
            }
            left = left.saturating_sub(part);
        }
    }
    Some(sum)
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, width: u8) -> Option<u64> {
        let mut number = 0;
        for bit in 0..u32::from(width) {
            let byte = self.bytes.get(self.at / 8)?;
            number |= u64::from(byte >> (self.at % 8) & 1).checked_shl(bit)?;
            self.at += 1;
        }
        Some(number)
    }
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *input.split_off_first()?;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::prefix_bytes;

    #[test]
    fn prefixes_add_up_over_blocks() {
        // Blocks of 128 in 4 parts. The 4 values 0, 5, 5, 7 have the deltas 5, 0, 2, with minimum 0, in 3 bits.
        let bits: u32 = 5 | (2 << 6);
        let mut bytes = vec![0x80, 1, 4, 4, 0, 0, 3, 0, 0, 0];
        bytes.extend(bits.to_le_bytes());
        bytes.extend([0; 8]);
        assert_eq!(prefix_bytes(&bytes), Some(17));
        for keep in 0..10 {
            assert_eq!(prefix_bytes(&bytes[..keep]), None);
        }
        // A single value needs no block, and a part without values takes no bytes.
        assert_eq!(prefix_bytes(&[0x80, 1, 4, 1, 6]), Some(3));
        assert_eq!(prefix_bytes(&[0, 4, 9, 0]), None);
    }
}
