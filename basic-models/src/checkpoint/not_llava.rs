//! Errors for a model that is given as a LLaVA checkpoint but is something else: what it is, and what to do.

use std::path::Path;

use serde_json::Value;

use super::kind::{Kind, kind};
use super::{CheckpointError, original};
use crate::outside::excerpt;

/// Returns an error if the configuration is that of another model, such as a language model or a vision encoder.
pub(super) fn check_model(dir: &Path, config: &Value) -> Result<(), CheckpointError> {
    let model = config["model_type"].as_str().unwrap_or_default();
    if original::is_original(config) || matches!(model, "" | "llava" | "llava_next" | "basic_llava") {
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

/// Whether a configuration is that of a language model only.
pub(super) fn is_decoder(config: &Value) -> bool {
    !original::is_original(config)
        && !matches!(config["model_type"].as_str(), None | Some("llava" | "llava_next" | "basic_llava"))
        && matches!(kind(config), Kind::Decoder)
}

/// The error for adapters whose base is only a language model.
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
