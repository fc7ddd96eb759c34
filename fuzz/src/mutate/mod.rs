//! Damages a file according to its format: bytes, values of JSON and TOML, members of archives, chunks of images.
//!
//! Changes that know the format keep checksums and lengths right, so that the damage gets past a reader's first checks.

mod archives;
mod bytes;
mod chunks;
mod gguf;
mod values;

pub(crate) use chunks::{palette, split, varint};
use rand::{Rng, RngExt};

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Unknown: bits, bytes, runs, lengths and words are changed.
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
    /// A GGUF file: counts, lengths and types before the tensors' data.
    Gguf,
    /// A PNG image: chunks with CRCs.
    Png,
    /// Pickles and data, as PyTorch wrote them before it used zip archives.
    Pickles,
    /// A zip archive as PyTorch writes it.
    Zip,
    /// A tar archive: blocks of 512 bytes, with a header and its checksum before each member.
    Tar,
    /// A gzipped tar archive.
    TarGz,
    /// Fields of a protocol buffer, as SentencePiece writes them.
    Fields,
}

/// A damaged copy of `bytes`.
pub fn damaged(kind: Kind, bytes: &[u8], random: &mut impl Rng) -> Vec<u8> {
    // Files of a known format are sometimes damaged without regard to it, too.
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
        Kind::Gguf => gguf::gguf(bytes, random),
        Kind::Png => chunks::png(bytes, random),
        Kind::Pickles => archives::pickles(bytes, random),
        Kind::Zip => archives::zip(bytes, random),
        Kind::Tar => archives::tar(bytes, random),
        Kind::TarGz => archives::tar_gz(bytes, random),
        Kind::Fields => chunks::fields(bytes, random),
    }
}

/// A random element of a list.
fn pick<T: Copy>(list: &[T], random: &mut impl Rng) -> T {
    list[random.random_range(0..list.len())]
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use zip::ZipArchive;

    use super::*;

    fn many(kind: Kind, whole: &[u8]) -> Vec<Vec<u8>> {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        (0..60).map(|_| damaged(kind, whole, &mut random)).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_another_number_another_one() {
        let whole = br#"{"a": [1, 2.5, "x"], "b": {"c": null}}"#;
        assert_eq!(many(Kind::Json, whole), many(Kind::Json, whole));
        let mut different = many(Kind::Json, whole);
        different.sort();
        different.dedup();
        assert!(different.len() > 40, "{}", different.len());
    }

    #[test]
    fn changed_values_are_values_again_most_of_the_time() {
        let whole = br#"{"a": [1, 2.5, "x"], "b": {"c": null}}"#;
        let parses = |bytes: &&Vec<u8>| serde_json::from_slice::<serde_json::Value>(bytes).is_ok();
        assert!(many(Kind::Json, whole).iter().filter(parses).count() > 30);
        let twice = (0..2000u64).any(|seed| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            damaged(Kind::Json, b"{\"key\":1}", &mut random).windows(5).filter(|w| w == b"\"key\"").count() == 2
        });
        assert!(twice, "a key is there twice now and then");
        let document = b"a = 1\n[b]\nc = \"x\"\n";
        let parses =
            |bytes: &&Vec<u8>| std::str::from_utf8(bytes).is_ok_and(|text| toml::from_str::<toml::Table>(text).is_ok());
        assert!(many(Kind::Toml, document).iter().filter(parses).count() > 20);
    }

    #[test]
    fn checksums_are_right_behind_a_change_that_knows_them() {
        let whole = palette();
        assert!(image::load_from_memory(&whole).is_ok());
        let crcs = |bytes: &&Vec<u8>| chunks::png_is_whole(bytes);
        let right = many(Kind::Png, &whole).iter().filter(crcs).count();
        assert!(right > 30, "{right}");

        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures/original/pytorch_model-00002-of-00002.bin");
        let archive = std::fs::read(path).unwrap();
        let opens = |bytes: &&Vec<u8>| ZipArchive::new(Cursor::new(bytes.as_slice())).is_ok();
        assert!(many(Kind::Zip, &archive).iter().filter(opens).count() > 30);
    }
}
