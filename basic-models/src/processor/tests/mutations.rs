//! Damaged files must give an error or something usable, within bounded memory, and never a panic.

use super::super::*;
use super::fixtures;
use proptest::prelude::*;
use std::path::Path;

/// Bytes that overwrite a file's: the position (as a fraction of its length) and the bytes.
fn damage() -> impl Strategy<Value = Vec<(f64, Vec<u8>)>> {
    let text = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..4),
        "[0-9\\-\"{}\\[\\],:a-z]{1,6}".prop_map(String::into_bytes),
        Just(b"null".to_vec()),
        Just(b"4294967295".to_vec()),
        Just(vec![0xff; 4]),
    ];
    proptest::collection::vec((0.0..1.0, text), 1..4)
}

fn damaged(bytes: &[u8], damage: &[(f64, Vec<u8>)], cut: Option<f64>) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for (at, text) in damage {
        let at = (at * bytes.len() as f64) as usize;
        let end = (at + text.len()).min(out.len());
        out[at..end].copy_from_slice(&text[..end - at]);
    }
    out.truncate(cut.map_or(bytes.len(), |cut| (cut * bytes.len() as f64) as usize));
    out
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

const TEXT: &str = "the  dog </s>🙂\n<|im_start|>é<image> \u{0}";

/// Loads a tokenizer and uses it; any result is fine.
fn use_tokenizer(dir: &Path) {
    if let Ok(tokenizer) = Tokenizer::load(dir, &TokenIds::default()) {
        if let Ok(ids) = tokenizer.encode(TEXT, true) {
            let _ = tokenizer.decode(&ids, false);
        }
        let _ = tokenizer.encode_with_literals(TEXT, &[3..14, 20..30], true);
        let _ = tokenizer.largest_id();
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_damaged_tokenizer_file_never_panics(
        kind in prop::sample::select(vec!["qwen", "llama3", "gemma", "phi3", "llama"]),
        damage in damage(),
        cut in prop::option::weighted(0.1, 0.0..1.0),
        tail in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(fixtures().join(kind).join("tokenizer.json")).unwrap();
        // Half of the damage is in the settings before the vocabulary, which is most of the file.
        let vocabulary = bytes.windows(8).position(|w| w == b"\"vocab\":").unwrap();
        let scale = if tail { 1.0 } else { vocabulary as f64 / bytes.len() as f64 };
        let damage: Vec<_> = damage.into_iter().map(|(at, text)| (at * scale, text)).collect();
        std::fs::write(dir.path().join("tokenizer.json"), damaged(&bytes, &damage, cut)).unwrap();
        use_tokenizer(dir.path());
    }

    #[test]
    fn a_damaged_sentencepiece_model_never_panics(damage in damage(), cut in prop::option::weighted(0.1, 0.0..1.0)) {
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(fixtures().join("vicuna/tokenizer.model")).unwrap();
        std::fs::write(dir.path().join("tokenizer.model"), damaged(&bytes, &damage, cut)).unwrap();
        use_tokenizer(dir.path());
    }

    #[test]
    fn damaged_image_settings_never_panic(
        kind in prop::sample::select(vec!["clip", "siglip", "plain", "pad", "next"]),
        damage in damage(),
        cut in prop::option::weighted(0.1, 0.0..1.0),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(fixtures().join(kind).join("preprocessor_config.json")).unwrap();
        std::fs::write(dir.path().join("preprocessor_config.json"), damaged(&bytes, &damage, cut)).unwrap();
        if let Ok(processor) = ImageProcessor::load(dir.path()) {
            let (rows, columns) = processor.output_size().unwrap_or((1, 1));
            // Settings may require a large image; making one takes long and tests nothing more.
            let small = |[height, width]: &[usize; 2]| height * width < 1 << 16;
            if rows * columns < 1 << 16 && processor.config().pinpoints.iter().all(small) {
                let _ = processor.process(&::image::RgbImage::new(5, 3));
            }
        }
        let _ = ProcessorConfig::load(dir.path(), ProcessorConfig::clip(14));
    }
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn a_damaged_image_never_panics_and_is_never_larger_than_the_limit(
        file in any::<prop::sample::Index>(),
        damage in damage(),
        cut in prop::option::weighted(0.2, 0.0..1.0),
        header in any::<bool>(),
    ) {
        let mut files: Vec<_> =
            std::fs::read_dir(fixtures().join("decode")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let bytes = std::fs::read(file.get(&files)).unwrap();
        let scale = if header { 48.0 / bytes.len() as f64 } else { 1.0 };
        let damage: Vec<_> = damage.into_iter().map(|(at, text)| (at * scale.min(1.0), text)).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, damaged(&bytes, &damage, cut)).unwrap();
        if let Ok(image) = open_image_within(&path, 1 << 16) {
            prop_assert!(image.width() * image.height() <= 1 << 16);
        }
    }
}
