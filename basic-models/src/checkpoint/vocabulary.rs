//! Provides tokenizer files with an `<image>` token: a checkpoint's own files, or a copy to which the token is added;
//! and makes room for its row in the embedding table.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::AddedToken;

use super::CheckpointError;
use super::read::{TensorFiles, VOCABULARY};
use crate::outside::{excerpt, guarded, read_json_text};
use crate::processor::{
    PLACEHOLDER, ProcessorError, TokenIds, Tokenizer, build_tokenizer, copy_tokenizer_files, read_tokenizer_files,
};

/// A directory that contains tokenizer files.
#[derive(Debug)]
pub(super) struct TokenizerFiles {
    dir: PathBuf,
    /// Keeps the copy as long as it is needed.
    _copy: Option<TempDir>,
}

impl TokenizerFiles {
    /// A checkpoint's own files.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.into(), _copy: None }
    }

    /// A checkpoint's files. If their vocabulary lacks `<image>`, a copy in which it is the next special token. If
    /// there is only a tokenizer.model, the copy has the tokenizer.json that it is converted to.
    ///
    /// # Errors
    ///
    /// Returns I/O errors and the errors of the tokenizer's loader, which name the file.
    pub fn with_image_token(dir: &Path) -> Result<Self, CheckpointError> {
        let (path, bytes) = read_tokenizer_files(dir)?;
        let unread = |message: String| ProcessorError::LoadTokenizer { path: path.clone(), message };
        let mut known = build_tokenizer(&path, &bytes)?;
        if known.token_to_id(PLACEHOLDER).is_some() {
            return Ok(Self::of(dir));
        }
        // The library chooses the next id whatever the file says; if the ids have gaps, it cannot be computed as a sum.
        let image = AddedToken::from(PLACEHOLDER, true).normalized(false);
        guarded(|| known.add_special_tokens(&[image])).map_err(unread)?;
        let next = known.token_to_id(PLACEHOLDER).ok_or_else(|| unread("it takes no new token".into()))?;
        let mut tokenizer: Value = serde_json::from_slice(&bytes).map_err(|e| unread(e.to_string()))?;
        let flags = json!({
            "content": PLACEHOLDER, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        });
        let mut entry = json!({ "id": next });
        merge(&mut entry, &flags);
        match &mut tokenizer["added_tokens"] {
            Value::Array(added) => added.push(entry),
            added => *added = json!([entry]),
        }
        let copy = tempfile::Builder::new().prefix("basic-tokenizer-").tempdir();
        let copy = copy.map_err(CheckpointError::io(std::env::temp_dir()))?;
        copy_tokenizer_files(dir, copy.path())?;
        write(copy.path(), "tokenizer.json", &tokenizer)?;
        let config = copy.path().join("tokenizer_config.json");
        let config_of = dir.join("tokenizer_config.json");
        let wrong = |what: String| CheckpointError::Mismatch(format!("{}: {what}", config_of.display()));
        let mut config: Value = match read_json_text(&config) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| wrong(excerpt(&e.to_string())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                json!({ "tokenizer_class": "PreTrainedTokenizerFast" })
            }
            Err(source) => return Err(CheckpointError::io(config_of)(source)),
        };
        if !config.is_object() {
            return Err(wrong("is not a JSON object".into()));
        }
        // transformers 4 also stores the added tokens here.
        if !config["added_tokens_decoder"].is_object() {
            config["added_tokens_decoder"] = added_tokens(&tokenizer);
        }
        config["added_tokens_decoder"][next.to_string()] = flags;
        config["image_token"] = PLACEHOLDER.into();
        config["processor_class"] = "LlavaProcessor".into();
        write(copy.path(), "tokenizer_config.json", &config)?;
        Ok(Self { dir: copy.path().into(), _copy: Some(copy) })
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn write(dir: &Path, name: &str, value: &Value) -> Result<(), CheckpointError> {
    let path = dir.join(name);
    fs::write(&path, format!("{value:#}\n")).map_err(CheckpointError::io(path))
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// `added_tokens` in the form of tokenizer_config.json: by id, without the id in the entry.
fn added_tokens(tokenizer: &Value) -> Value {
    let mut by_id = json!({});
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let mut flags = token.clone();
        if let (Some(id), Some(flags)) = (token["id"].as_u64(), flags.as_object_mut()) {
            flags.shift_remove("id");
            by_id[id.to_string()] = Value::Object(flags.clone());
        }
    }
    by_id
}

/// Sets the image token in a configuration and makes its embedding table large enough for it. Returns the old and the
/// new number of rows if the table must grow.
pub(super) fn room_for(
    tokenizer: &TokenizerFiles,
    files: &TensorFiles,
    config: &mut Value,
    multiple: Option<usize>,
) -> Result<Option<(usize, usize)>, CheckpointError> {
    let image = Tokenizer::load(tokenizer.dir(), &TokenIds::default())?.image_id()?;
    config["image_token_index"] = image.into();
    let mismatch = |what: String| CheckpointError::Mismatch(format!("config.json: {what}"));
    let text = config["text_config"].as_object_mut().ok_or_else(|| mismatch("it is no JSON object".into()))?;
    let given = match text.get("vocab_size").filter(|rows| !rows.is_null()) {
        None => None,
        Some(rows) => {
            let number = rows.as_u64().and_then(|rows| usize::try_from(rows).ok());
            let said = || mismatch(format!("vocab_size is {}, which is no number of rows", excerpt(&rows.to_string())));
            Some(number.ok_or_else(said)?)
        }
    };
    let Some(rows) = given.or(files.shape(VOCABULARY[0]).and_then(|shape| shape.first().copied())) else {
        return Ok(None);
    };
    let needed = rows.max(image as usize + 1);
    // Tokens are added by the dozen; an id far beyond the table means another model's tokenizer, or a damaged one.
    let wanted = needed.checked_next_multiple_of(multiple.unwrap_or(1).max(1));
    let wanted = wanted.filter(|wanted| wanted - rows <= MOST_ADDED).ok_or_else(|| {
        mismatch(format!("the tokenizer's <image> token is {image}, vocab_size {rows}: they don't belong together"))
    })?;
    text.insert("vocab_size".into(), wanted.into());
    Ok((wanted != rows).then_some((rows, wanted)))
}

/// The most rows by which a table may grow.
const MOST_ADDED: usize = 1 << 16;
