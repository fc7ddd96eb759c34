//! The pretrained backbones that are embedded in the binary.

use std::path::Path;

use basic_models::atomic_file::write_atomically;

macro_rules! asset {
    ($path:literal) => {
        ($path, include_bytes!(concat!("../../../assets/", $path)))
    };
}

/// Every file of `assets/vision` and `assets/llm`.
const FILES: [(&str, &[u8]); 9] = [
    asset!("vision/config.json"),
    asset!("vision/model.safetensors"),
    asset!("vision/preprocessor_config.json"),
    asset!("llm/config.json"),
    asset!("llm/generation_config.json"),
    asset!("llm/model.safetensors"),
    asset!("llm/tokenizer.json"),
    asset!("llm/tokenizer_config.json"),
    asset!("llm/chat_template.jinja"),
];

/// The embedded files with their names.
pub(crate) fn embedded() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    FILES.into_iter()
}

/// Writes the embedded backbones to `dir/vision` and `dir/llm`, as Hugging Face directories.
///
/// # Errors
///
/// The operating system's error if a file cannot be written.
pub fn write_backbones(dir: &Path) -> std::io::Result<()> {
    FILES.iter().try_for_each(|(name, bytes)| write_atomically(&dir.join(name), bytes))
}
