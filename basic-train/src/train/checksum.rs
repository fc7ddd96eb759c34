//! The length and the checksum of a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// A file's length and checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// Length in bytes.
    pub bytes: u64,
    /// XXH3 (64 bits), in hexadecimal digits.
    pub xxh3: String,
}

/// Reads a file for its length and checksum.
pub(super) fn checksum(path: &Path) -> std::io::Result<Checksum> {
    let mut file = File::open(path)?;
    let (mut hasher, mut bytes, mut buffer) = (Xxh3::new(), 0u64, vec![0u8; 1 << 20]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Checksum { bytes, xxh3: format!("{:016x}", hasher.digest()) });
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}
