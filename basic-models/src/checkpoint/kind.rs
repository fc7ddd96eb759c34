//! Tells the kind of model from its config.json.

use serde::Serialize;
use serde_json::Value;

use super::original;
use crate::config::VisionFamily;

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A LLaVA checkpoint of Hugging Face's layout.
    Llava,
    /// A LLaVA checkpoint of LLaVA's own code.
    LlavaOriginal,
    /// A vision encoder, alone or in a model of images and texts.
    Vision,
    /// A decoder.
    Decoder,
    /// Adapters of a LLaVA checkpoint.
    Adapters,
}

/// The kind of what a config.json belongs to, which has no adapters.
pub(super) fn kind(config: &Value) -> Kind {
    // A model of images and texts such as CLIP has a text_config too: of it, the vision encoder alone is of use here.
    let vision = VisionFamily::is_relative(config["model_type"].as_str().unwrap_or_default());
    if original::is_original(config) {
        Kind::LlavaOriginal
    } else if config.get("text_config").is_some() && !vision {
        Kind::Llava
    } else if config.get("patch_size").is_some() || vision {
        Kind::Vision
    } else {
        Kind::Decoder
    }
}
