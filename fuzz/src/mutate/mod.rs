//! Changes to a file, by what it is: bytes, values of JSON and TOML, members of archives, chunks of images.
//!
//! A change that knows the format keeps checksums and lengths right, so that it gets past a reader's first look.

mod archives;
mod bytes;
mod chunks;
mod values;

pub(crate) use chunks::{palette, split, varint};
use rand::{Rng, RngExt};

/// What is known of a file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: bits, bytes, runs, lengths and words.
    Bytes,
    /// A JSON value.
    Json,
    /// A JSON value on each line.
    Lines,
    /// A TOML document.
    Toml,
    /// A chat template of Jinja.
    Template,
    /// Eight bytes of length, a JSON header, and data.
    Safetensors,
    /// Chunks with their CRC.
    Png,
    /// An archive as PyTorch writes it.
    Zip,
    /// Blocks of 512 bytes, a header with its checksum before each member.
    Tar,
    /// The same, compressed.
    TarGz,
    /// Fields of a protocol buffer, as SentencePiece writes them.
    Fields,
}

/// A damaged copy of `bytes`.
pub fn damaged(kind: Kind, bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    // Also what knows its format is damaged blindly now and then.
    if random.random_ratio(1, 5) {
        return bytes::damaged(bytes, random);
    }
    match kind {
        Kind::Bytes => bytes::damaged(bytes, random),
        Kind::Json => values::json(bytes, random),
        Kind::Lines => values::lines(bytes, random),
        Kind::Toml => values::toml(bytes, random),
        Kind::Template => bytes::template(bytes, random),
        Kind::Safetensors => chunks::safetensors(bytes, random),
        Kind::Png => chunks::png(bytes, random),
        Kind::Zip => archives::zip(bytes, random),
        Kind::Tar => archives::tar(bytes, random),
        Kind::TarGz => archives::tar_gz(bytes, random),
        Kind::Fields => chunks::fields(bytes, random),
    }
}

/// One of a list.
fn pick<T: Copy>(list: &[T], random: &mut impl Rng) -> T {
    list[random.random_range(0..list.len())]
}
