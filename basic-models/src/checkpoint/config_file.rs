//! A directory's config.json.

use std::path::Path;

use serde_json::Value;

use super::CheckpointError;
use super::owned::MANIFEST;

/// The text of a file of JSON, within what one may cost.
pub(super) fn read_json_text(path: &Path) -> Result<String, CheckpointError> {
    crate::outside::read_json_text(path).map_err(CheckpointError::io(path))
}

/// A directory's config.json as it is.
pub(super) fn read_config(dir: &Path) -> Result<Value, CheckpointError> {
    check_directory(dir)?;
    let text = read_json_text(&dir.join("config.json"))?;
    serde_json::from_str(&text).map_err(|source| CheckpointError::Config { path: dir.into(), source: source.into() })
}

/// A part's configuration: the file itself, or its section in a combined one (CLIP's `vision_config`).
pub(super) fn part(dir: &Path, section: &str) -> Result<Value, CheckpointError> {
    let mut value = read_config(dir)?;
    Ok(match value.get_mut(section) {
        Some(inner) => inner.take(),
        None => value,
    })
}

/// The error of a path without config.json, where it can be told what it is instead.
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
