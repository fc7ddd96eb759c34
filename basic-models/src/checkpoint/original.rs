//! Checkpoints of LLaVA's own code (`LlavaLlamaForCausalLM`): a decoder's config.json with the vision tower's path and
//! the projector's type among its keys, instead of one section for each part.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::CheckpointError;
use super::hub::resolve;
use super::read::TensorFiles;
use crate::config::{ConfigError, ProjectorKind};

/// What such a file says.
#[derive(Debug)]
pub(super) struct Original {
    /// The same in Hugging Face's layout, without the image token.
    pub config: Value,
    /// Where the vision tower's own files lie, if they were found.
    pub tower: Option<PathBuf>,
    /// `pad` (to a square), or what else LLaVA does to an image's aspect ratio.
    pub image_aspect_ratio: Option<String>,
}

/// Whether a config.json is of LLaVA's own code.
pub(super) fn is_original(config: &Value) -> bool {
    config.get("text_config").is_none() && config.get("mm_vision_tower").is_some()
}

/// The towers that LLaVA's published checkpoints name, for those who don't have them apart: the size of the image in
/// pixels. Both are CLIP's ViT-L/14.
const TOWERS: [(&str, usize); 2] = [("openai/clip-vit-large-patch14-336", 336), ("openai/clip-vit-large-patch14", 224)];

/// Reads such a file.
///
/// # Errors
///
/// [`CheckpointError`] that names the file and the key, or where the vision tower was looked for.
pub(super) fn read(dir: &Path, config: &Value, tensors: &TensorFiles) -> Result<Original, CheckpointError> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let unsupported = |key: &str, supported: &'static str| CheckpointError::Config {
        path: dir.into(),
        source: ConfigError::Unsupported {
            key: key.into(),
            value: config.get(key).cloned().unwrap_or_default().to_string(),
            supported,
        },
    };
    for key in TEXTS {
        if config.get(key).is_some_and(|value| !value.is_null() && !value.is_string()) {
            return Err(unsupported(key, "text"));
        }
    }
    let decoder = match text("model_type") {
        None | Some("llava" | "llava_llama" | "llama") => "llama",
        Some("llava_mistral" | "mistral") => "mistral",
        Some("llava_qwen" | "qwen2") => "qwen2",
        _ => return Err(unsupported("model_type", "llava, llava_llama, llava_mistral or llava_qwen")),
    };
    let projector = ProjectorKind::parse("mm_projector_type", text("mm_projector_type").unwrap_or("linear"))
        .map_err(|source| CheckpointError::Config { path: dir.into(), source })?;
    if matches!(projector, ProjectorKind::PixelShuffle { .. }) {
        return Err(unsupported("mm_projector_type", "linear, mlp{N}x_gelu or identity"));
    }
    let select = match text("mm_vision_select_feature") {
        None | Some("patch") => "default",
        Some("cls_patch") => "full",
        _ => return Err(unsupported("mm_vision_select_feature", "patch or cls_patch")),
    };
    let layer = config.get("mm_vision_select_layer").cloned().unwrap_or(json!(-2));
    if text("image_aspect_ratio").is_some_and(|ratio| ratio.starts_with("anyres")) {
        return Err(unsupported("image_aspect_ratio", "pad or square"));
    }
    for key in ["mm_use_im_start_end", "mm_use_im_patch_token"] {
        if config.get(key).is_some_and(|value| !value.is_null() && value != false) {
            return Err(unsupported(key, "false"));
        }
    }
    let (vision, tower) = vision(dir, config, tensors)?;
    let mut decoder_config = Map::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        let ours = key.starts_with("mm_") || OWN.contains(&key.as_str());
        if !ours && !value.is_null() {
            decoder_config.insert(key.clone(), value.clone());
        }
    }
    decoder_config.insert("model_type".into(), decoder.into());
    let tied = config.get("tie_word_embeddings").cloned().unwrap_or(false.into());
    Ok(Original {
        config: json!({
            "model_type": "llava",
            "text_config": decoder_config,
            "vision_config": vision,
            "projector_type": (projector != ProjectorKind::LLAVA).then(|| projector.name()),
            "vision_feature_layer": layer,
            "vision_feature_select_strategy": select,
            "tie_word_embeddings": tied,
        }),
        tower,
        image_aspect_ratio: text("image_aspect_ratio").map(Into::into),
    })
}

/// Keys whose values are text.
const TEXTS: [&str; 5] =
    ["model_type", "mm_vision_tower", "mm_projector_type", "mm_vision_select_feature", "image_aspect_ratio"];

/// Keys beside those with `mm_` that are LLaVA's, or say nothing about the decoder.
const OWN: [&str; 14] = [
    "model_type",
    "architectures",
    "_name_or_path",
    "torch_dtype",
    "transformers_version",
    "auto_map",
    "freeze_mm_mlp_adapter",
    "tune_mm_mlp_adapter",
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "use_mm_proj",
    "unfreeze_mm_vision_tower",
];

/// The vision tower's configuration, and where its files lie.
fn vision(dir: &Path, config: &Value, tensors: &TensorFiles) -> Result<(Value, Option<PathBuf>), CheckpointError> {
    let name = config.get("mm_vision_tower").and_then(Value::as_str).unwrap_or_default();
    // A path is relative to the checkpoint, or to where the program runs.
    let beside = dir.join(name);
    let found = if name.is_empty() {
        Err(CheckpointError::Mismatch("the name is empty".into()))
    } else if beside.is_dir() {
        Ok(beside)
    } else {
        resolve(name)
    };
    let found = found.and_then(|tower| super::part(&tower, "vision_config").map(|config| (config, Some(tower))));
    let (vision, tower) = match found {
        Ok(found) => found,
        Err(error) => match TOWERS.iter().find(|(known, _)| *known == name) {
            // The weights must be in the checkpoint then.
            Some((_, size)) if tensors.contains_any("vision_tower.") => (clip_large(*size), None),
            _ => {
                return Err(CheckpointError::Mismatch(format!(
                    "{}: the vision tower mm_vision_tower = {name:?} was not found: {error}",
                    dir.join("config.json").display()
                )));
            }
        },
    };
    let (given, wanted) = (vision.get("hidden_size"), config.get("mm_hidden_size"));
    if given.is_some() && wanted.is_some() && given != wanted {
        return Err(CheckpointError::Mismatch(format!(
            "{}: mm_hidden_size is {}, the vision tower {name} has {}",
            dir.join("config.json").display(),
            wanted.unwrap_or(&Value::Null),
            given.unwrap_or(&Value::Null)
        )));
    }
    Ok((vision, tower))
}

fn clip_large(image_size: usize) -> Value {
    json!({
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": image_size, "patch_size": 14, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "projection_dim": 768,
    })
}
