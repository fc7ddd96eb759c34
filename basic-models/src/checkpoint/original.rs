//! Reads checkpoints of LLaVA's own code (`LlavaLlamaForCausalLM`): a decoder's config.json whose keys also name the
//! vision encoder's path and the projector's type, instead of one section for each part.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::CheckpointError;
use super::config_file::part;
use super::hub::resolve;
use super::read::TensorFiles;
use crate::config::{ConfigError, Family, ProjectorKind, VisionFamily};

/// The content of such a file.
#[derive(Debug)]
pub(super) struct Original {
    /// The configuration in Hugging Face's layout, without the image token.
    pub config: Value,
    /// The directory of the vision encoder's own files, if they were found.
    pub vision: Option<PathBuf>,
    /// LLaVA's setting for an image's aspect ratio, such as `pad` (to a square).
    pub image_aspect_ratio: Option<String>,
}

/// Whether a config.json was written by LLaVA's own code.
pub(super) fn is_original(config: &Value) -> bool {
    config.get("text_config").is_none() && config.get("mm_vision_tower").is_some()
}

/// The vision encoders of LLaVA's published checkpoints, with their image size in pixels, for users who do not have the
/// encoders themselves. Both are CLIP's ViT-L/14.
const ENCODERS: [(&str, usize); 2] =
    [("openai/clip-vit-large-patch14-336", 336), ("openai/clip-vit-large-patch14", 224)];

/// Reads such a file.
///
/// # Errors
///
/// Returns a [`CheckpointError`] that names the file and the key, or says where the vision encoder was looked for.
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
    let Some(family) = Family::of_llava(text("model_type")) else {
        return Err(unsupported("model_type", Family::supported_by_llava()));
    };
    let projector = ProjectorKind::parse("mm_projector_type", text("mm_projector_type").unwrap_or("linear"))
        .map_err(|source| CheckpointError::Config { path: dir.into(), source })?;
    if projector.shuffle() > 1 {
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
    let (section, vision) = vision(dir, config, tensors)?;
    // Encoders without a CLS position have patches alone, whatever the key says: LLaVA's code for SigLIP reads all of them.
    let patches = VisionFamily::of(section["model_type"].as_str()).is_some_and(|(family, _)| !family.class);
    let select = if patches { "full" } else { select };
    let mut decoder_config = Map::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        let ours = key.starts_with("mm_") || OWN.contains(&key.as_str());
        if !ours && !value.is_null() {
            decoder_config.insert(key.clone(), value.clone());
        }
    }
    decoder_config.insert("model_type".into(), family.name.into());
    let tied = config.get("tie_word_embeddings").cloned().unwrap_or(false.into());
    Ok(Original {
        config: json!({
            "model_type": "llava",
            "text_config": decoder_config,
            "vision_config": section,
            "projector_type": (projector != ProjectorKind::LLAVA).then(|| projector.name()),
            "vision_feature_layer": layer,
            "vision_feature_select_strategy": select,
            "tie_word_embeddings": tied,
        }),
        vision,
        image_aspect_ratio: text("image_aspect_ratio").map(Into::into),
    })
}

/// Keys whose values are texts.
const TEXTS: [&str; 5] =
    ["model_type", "mm_vision_tower", "mm_projector_type", "mm_vision_select_feature", "image_aspect_ratio"];

/// LLaVA's keys without `mm_`, and keys that do not describe the decoder.
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

/// The vision encoder's configuration, and the directory of its files.
fn vision(dir: &Path, config: &Value, tensors: &TensorFiles) -> Result<(Value, Option<PathBuf>), CheckpointError> {
    let name = config.get("mm_vision_tower").and_then(Value::as_str).unwrap_or_default();
    // The path may be relative to the checkpoint or to the current directory.
    let beside = dir.join(name);
    let found = if name.is_empty() {
        Err(CheckpointError::Mismatch("the name is empty".into()))
    } else if beside.is_dir() {
        Ok(beside)
    } else {
        resolve(name)
    };
    let found = found.and_then(|place| part(&place, "vision_config").map(|config| (config, Some(place))));
    let (vision, place) = match found {
        Ok(found) => found,
        Err(error) => match ENCODERS.iter().find(|(known, _)| *known == name) {
            // Then the checkpoint must contain the encoder's weights.
            Some((_, size)) if tensors.contains_any("vision_tower.") => (clip_large(*size), None),
            _ => {
                return Err(CheckpointError::Mismatch(format!(
                    "{}: the vision encoder mm_vision_tower = {name:?} was not found: {error}",
                    dir.join("config.json").display()
                )));
            }
        },
    };
    let (given, wanted) = (vision.get("hidden_size"), config.get("mm_hidden_size"));
    if given.is_some() && wanted.is_some() && given != wanted {
        return Err(CheckpointError::Mismatch(format!(
            "{}: mm_hidden_size is {}, the vision encoder {name} has {}",
            dir.join("config.json").display(),
            wanted.unwrap_or(&Value::Null),
            given.unwrap_or(&Value::Null)
        )));
    }
    Ok((vision, place))
}

fn clip_large(image_size: usize) -> Value {
    json!({
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": image_size, "patch_size": 14, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "projection_dim": 768,
    })
}
