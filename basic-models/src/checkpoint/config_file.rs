//! Reads a directory's config.json.

use std::path::Path;

use serde_json::Value;

use super::CheckpointError;
use super::owned::MANIFEST;

/// Reads a JSON file as text, within the limits for one file.
pub(super) fn read_json_text(path: &Path) -> Result<String, CheckpointError> {
    crate::outside::read_json_text(path).map_err(CheckpointError::io(path))
}

/// Reads a directory's config.json, without checks of its content.
pub(super) fn read_config(dir: &Path) -> Result<Value, CheckpointError> {
    check_directory(dir)?;
    let text = read_json_text(&dir.join("config.json"))?;
    serde_json::from_str(&text).map_err(|source| CheckpointError::Config { path: dir.into(), source: source.into() })
}

/// Reads the configuration of a part: the whole file, or its section in a combined one (CLIP's `vision_config`).
pub(super) fn part(dir: &Path, section: &str) -> Result<Value, CheckpointError> {
    let mut value = read_config(dir)?;
    Ok(match value.get_mut(section) {
        Some(inner) => inner.take(),
        None => value,
    })
}

/// Returns an error for a path without config.json if it can be recognized as something else.
fn check_directory(dir: &Path) -> Result<(), CheckpointError> {
    let wrong = |what: &str| Err(CheckpointError::NotLlava { path: dir.into(), what: what.into() });
    let has = |name: &str| dir.join(name).exists();
    if dir.is_file() {
        return wrong("is a file: give the directory of the checkpoint, with its config.json and tokenizer");
    }
    if !dir.is_dir() || has("config.json") {
        return Ok(());
    }
    if has("run.json") {
        return wrong(
            "holds a run that has no checkpoint yet (no config.json): `basic train --resume` goes on with it",
        );
    }
    if has("state.json") {
        return wrong(
            "holds a training state and no checkpoint (no config.json): `basic train --resume` takes its run",
        );
    }
    if has(MANIFEST) || has("data.json") || has("data.jsonl") || has("pretrain.json") {
        return wrong("holds a data set and no checkpoint: there is no config.json");
    }
    Ok(())
}
