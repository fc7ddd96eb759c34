//! Reads a model's configuration from config.json alone, for plans, which need no weights and no tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::assemble::AssembleOptions;
use super::config_file::{part, read_config};
use super::gguf::{GgufDecoder, is_gguf};
use super::hub::resolve;
use super::opened::Checkpoint;
use super::peft::AdapterFiles;
use super::{CheckpointError, not_llava, original};
use crate::config::{
    BASIC_MODEL_TYPE, DecoderConfig, LlavaConfig, NEXT_MODEL_TYPE, ProjectorKind, VisionConfig, VisionFamily,
};
use crate::processor::ImageProcessor;

impl LlavaConfig {
    /// The configuration of a LLaVA checkpoint: a directory, or a hub name in the local Hugging Face cache. For Hugging
    /// Face's layout, config.json is enough; a checkpoint of LLaVA's own code is opened with all its files.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file and the key.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = resolve(dir)?;
        if AdapterFiles::is_at(&dir) {
            let adapters = AdapterFiles::open(&dir)?;
            let base = adapters.base_dir()?;
            return match !AdapterFiles::is_at(&base) && not_llava::is_decoder(&read_config(&base)?) {
                true => Ok(Checkpoint::open_with(base, adapters)?.config),
                false => Self::open(base),
            };
        }
        let value = read_config(&dir)?;
        if original::is_original(&value) {
            return Ok(Checkpoint::open(dir)?.config);
        }
        not_llava::check_model(&dir, &value)?;
        let parsed = Self::from_value(&value);
        let mut config = parsed.map_err(|source| CheckpointError::Config { path: dir.clone(), source })?;
        let images = ImageProcessor::load(&dir).ok();
        let each = images.iter().flat_map(ImageProcessor::each);
        let encoders = [&mut config.vision_config].into_iter().chain(&mut config.fused_vision_configs);
        encoders.zip(each).for_each(|(encoder, images)| fit(encoder, images));
        Ok(config)
    }

    /// The configuration of the model that a vision encoder and a decoder form, from their config.json files, or from the
    /// decoder's GGUF file. It always has a row for the `<image>` token; [`Checkpoint::assemble_with`] adds none if the
    /// tokenizer already has that token.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file and the key.
    pub fn of_parts(vision: &Path, decoder: &Path, options: &AssembleOptions) -> Result<Self, CheckpointError> {
        let kind = ProjectorKind::parse("projector", &options.projector)
            .map_err(|source| CheckpointError::Mismatch(source.to_string()))?;
        let vision = resolve(vision)?;
        let fused = options.fused_vision.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        let unpacked = is_gguf(decoder).then(|| GgufDecoder::open(decoder)).transpose()?.map(|gguf| gguf.beside);
        let beside = unpacked.as_ref().map_or_else(|| resolve(decoder), |beside| Ok(beside.path().into()))?;
        let invalid = |source| CheckpointError::Config { path: decoder.into(), source };
        let mut composed = composed(&vision, &fused, &beside, kind, &options.image_grid_pinpoints)?;
        let rows = DecoderConfig::from_value(&composed["text_config"]).map_err(invalid)?.vocab_size;
        composed["text_config"]["vocab_size"] = (rows + 1).into();
        composed["image_token_index"] = rows.into();
        let mut config = Self::from_value(&composed).map_err(invalid)?;
        config.tie_word_embeddings = config.text_config.tie_word_embeddings;
        fit_images(&mut config.vision_config, &vision);
        for (encoder, dir) in config.fused_vision_configs.iter_mut().zip(&fused) {
            fit_images(encoder, dir);
        }
        Ok(config)
    }
}

/// Sets the image size from the image processor, if there is one, for families that interpolate their
/// position embeddings.
pub(super) fn fit_images(config: &mut VisionConfig, dir: &Path) {
    if let Ok(images) = ImageProcessor::load(dir) {
        fit(config, &images);
    }
}

fn fit(config: &mut VisionConfig, images: &ImageProcessor) {
    if let Some(patches) = images.config().patches.filter(|_| config.is_flexible()) {
        config.most_patches = Some(patches.most);
    }
    if config.fits_any_size()
        && let Some((height, width)) = images.output_size()
        && height == width
        && height != config.image_size
    {
        config.input_size = Some(height);
    }
}

/// The configurations of a vision encoder and a decoder combined to LLaVA's, without the image token. `fused` are further
/// vision encoders.
pub(super) fn composed(
    vision: &Path,
    fused: &[PathBuf],
    decoder: &Path,
    kind: ProjectorKind,
    pinpoints: &[[usize; 2]],
) -> Result<Value, CheckpointError> {
    let vision_config = part(vision, "vision_config")?;
    let text_config = part(decoder, "text_config")?;
    // Some families have no CLS position that could be dropped.
    let class = VisionFamily::of(vision_config["model_type"].as_str()).is_none_or(|(family, _)| family.class);
    let mut config = json!({
        "model_type": "llava",
        "vision_config": vision_config,
        "text_config": text_config,
        "vision_feature_select_strategy": if class || !fused.is_empty() { "default" } else { "full" },
    });
    if !fused.is_empty() {
        let each = fused.iter().map(|dir| part(dir, "vision_config"));
        config["fused_vision_configs"] = each.collect::<Result<Vec<_>, _>>()?.into();
    }
    if kind != ProjectorKind::LLAVA || !fused.is_empty() {
        config["model_type"] = BASIC_MODEL_TYPE.into();
        config["projector_type"] = kind.name().into();
    } else if !pinpoints.is_empty() {
        config["model_type"] = NEXT_MODEL_TYPE.into();
    }
    if !pinpoints.is_empty() {
        config["image_grid_pinpoints"] = json!(pinpoints);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(dir: &Path, name: &str, value: Value) -> std::path::PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), value.to_string()).unwrap();
        path
    }

    #[test]
    fn a_configuration_needs_no_weights_and_no_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        // As on the hub: values that equal the class's default are left out.
        let clip = json!({ "model_type": "clip", "vision_config": { "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14 } });
        let vision = write(dir.path(), "clip", clip);
        let llm = write(dir.path(), "llama", json!({ "model_type": "llama" }));
        let config = LlavaConfig::of_parts(&vision, &llm, &AssembleOptions::default()).unwrap();
        assert_eq!((config.visual_tokens(), config.text_config.vocab_size), (576, 32001));
        assert_eq!(config.image_token_index, 32000);
        let whole =
            write(dir.path(), "llava", json!({ "model_type": "llava", "text_config": { "vocab_size": 32064 } }));
        assert_eq!(LlavaConfig::open(&whole).unwrap().visual_tokens(), 576);
        let error = LlavaConfig::open(dir.path().join("gone")).unwrap_err().to_string();
        assert!(error.contains("gone/config.json"), "{error}");
    }
}
