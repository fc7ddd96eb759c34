//! Reads and copies the files of a tokenizer.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::read_json_if_exists;
use super::{ProcessorError, Result, sentencepiece, tokenizer_added, tokenizer_bounds};

const TOKENIZER_FILE: &str = "tokenizer.json";
/// The files that a tokenizer may consist of; `chat_template.json` is copied with them.
pub(crate) const TOKENIZER_FILES: [&str; 8] = [
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// The bytes of tokenizer.json, or of the one that tokenizer.model is converted to, and the file that they come from.
pub(super) fn read_tokenizer(dir: &Path, config: &Value) -> Result<(PathBuf, Vec<u8>)> {
    let path = dir.join(TOKENIZER_FILE);
    match crate::outside::read(&path) {
        Ok(bytes) => {
            let bytes = match bytes.strip_prefix(b"\xEF\xBB\xBF") {
                Some(rest) => rest.to_vec(),
                None => bytes,
            };
            let refused = |message| ProcessorError::LoadTokenizer { path: path.clone(), message };
            tokenizer_bounds::check(&bytes).map_err(refused)?;
            let bytes = tokenizer_added::with_added_tokens(dir, &path, bytes, config)?;
            return Ok((path, bytes));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(ProcessorError::Read { path, source }),
    }
    let names = "tokenizer.json, tokenizer.model";
    let json = sentencepiece::tokenizer_json(dir, config)?;
    let json = json.ok_or_else(|| ProcessorError::MissingFile { dir: dir.into(), names })?;
    Ok((dir.join(sentencepiece::MODEL_FILE), json.to_string().into_bytes()))
}

/// The bytes of a directory's tokenizer.json, or of the one that its tokenizer.model is converted to, and the file
/// that they come from.
///
/// # Errors
/// Returns `MissingFile`, `Read`, `Json`, `LoadTokenizer` or `Unsupported`, which name the file.
pub(crate) fn read_tokenizer_files(dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let config = read_json_if_exists(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    read_tokenizer(dir, &config)
}

/// Copies those of a checkpoint's tokenizer files and chat templates that exist to another checkpoint. If there is only
/// a tokenizer.model, a tokenizer.json is written beside it, because without one transformers would mistake the
/// tokenizer.model of a LLaVA checkpoint for another kind of tokenizer.
///
/// # Errors
/// Returns `Read` or `Write`, which name the file, and the errors of [`Tokenizer::load`](super::Tokenizer::load)
/// for a tokenizer.model.
pub fn copy_tokenizer_files(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES.into_iter().chain(["chat_template.json"]) {
        let path = from.join(name);
        match crate::outside::read(&path) {
            Ok(bytes) => {
                let path = to.join(name);
                std::fs::write(&path, bytes).map_err(|source| ProcessorError::Write { path, source })?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ProcessorError::Read { path, source }),
        }
    }
    if !from.join(TOKENIZER_FILE).exists() && from.join(sentencepiece::MODEL_FILE).exists() {
        let (_, bytes) = read_tokenizer_files(from)?;
        let path = to.join(TOKENIZER_FILE);
        std::fs::write(&path, bytes).map_err(|source| ProcessorError::Write { path, source })?;
    }
    Ok(())
}
