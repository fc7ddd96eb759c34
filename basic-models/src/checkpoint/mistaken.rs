//! What a directory is that is given as a LLaVA checkpoint and is none.

use std::path::Path;

use serde_json::Value;

use super::describe::{Kind, kind};
use super::owned::MANIFEST;
use super::{CheckpointError, original};
use crate::outside::excerpt;

/// The error of a configuration that is another model's: a language model's, a vision encoder's.
pub(super) fn check_model(dir: &Path, config: &Value) -> Result<(), CheckpointError> {
    let model = config["model_type"].as_str().unwrap_or_default();
    if original::is_original(config) || matches!(model, "" | "llava" | "basic_llava") {
        return Ok(());
    }
    let name = excerpt(model);
    let what = match kind(config) {
        Kind::Decoder => format!(
            "holds a language model (model_type {name}), which sees no images: `basic assemble --vision DIR --llm {} --out DIR` makes a LLaVA checkpoint of it and a vision encoder",
            dir.display()
        ),
        Kind::Vision => format!(
            "holds a vision encoder (model_type {name}), which says nothing: `basic assemble --vision {} --llm DIR --out DIR` makes a LLaVA checkpoint of it and a language model",
            dir.display()
        ),
        _ => return Ok(()),
    };
    Err(CheckpointError::NotLlava { path: dir.into(), what })
}

/// Whether a configuration is a language model's alone.
pub(super) fn is_decoder(config: &Value) -> bool {
    !original::is_original(config)
        && !matches!(config["model_type"].as_str(), None | Some("llava" | "basic_llava"))
        && matches!(kind(config), Kind::Decoder)
}

/// The error of adapters whose model below is a language model alone.
pub(super) fn adapters_of_decoder(adapters: &Path, base: &Path, projector: bool) -> CheckpointError {
    let base = base.display();
    let what = if projector {
        format!(
            "holds adapters of a language model alone ({base}) and a projector, but no config.json that says what model they \
             make: copy the one that LLaVA's train.py wrote beside them"
        )
    } else {
        format!(
            "holds adapters of a language model alone ({base}), which sees no images: merge them into it with peft \
             (merge_and_unload, save_pretrained), then `basic assemble --vision DIR --llm MERGED --out DIR` makes a LLaVA \
             checkpoint of it"
        )
    };
    CheckpointError::NotLlava { path: adapters.into(), what }
}

/// The error of a path without config.json, where it can be told what it is instead.
pub(super) fn check_directory(dir: &Path) -> Result<(), CheckpointError> {
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
