//! Opens a checkpoint: its configuration, tokenizer, image processor and the headers of the tensor files, which are
//! checked against each other.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::config_file::{read_config, read_json_text};
use super::hub::resolve;
use super::names::{Layout, PROJECTOR};
use super::opened::{Checkpoint, layers};
use super::original::{self, Original};
use super::peft::AdapterFiles;
use super::read::TensorFiles;
use super::tied::untie;
use super::vocabulary::{TokenizerFiles, room_for};
use super::{CheckpointError, not_llava};
use crate::config::{DecoderConfig, LlavaConfig};
use crate::processor::{
    ChatTemplate, FeatureSelect, ImageProcessor, ImageProcessorConfig, ProcessorConfig, TokenIds, Tokenizer,
};

/// The parts of a checkpoint that [`Checkpoint::with`] combines.
pub(super) struct Opened {
    /// The directory of its decoder.
    pub dir: PathBuf,
    /// The directory of its image processor; without one, CLIP's is used with the vision encoder's image size.
    pub vision: Option<PathBuf>,
    /// The directories of the image processors of further vision encoders, if the parts come from several.
    pub fused_vision: Vec<PathBuf>,
    /// The model's configuration.
    pub config: LlavaConfig,
    /// Its tensors.
    pub files: TensorFiles,
    /// The seed of the projector's weights, if no file has them.
    pub projector_seed: Option<u64>,
    /// The tokenizer's files.
    pub tokenizer_files: TokenizerFiles,
    /// Whether the parts come from elsewhere than a LLaVA checkpoint of Hugging Face's layout, so that its own
    /// files are missing.
    pub composed: bool,
    /// See [`Checkpoint::image_aspect_ratio`].
    pub image_aspect_ratio: Option<String>,
    /// The files beside its decoder's tensors, if they were unpacked from a GGUF file, which is then `dir`.
    pub unpacked: Option<TempDir>,
}

impl Checkpoint {
    /// Opens a LLaVA checkpoint: a directory, or a hub name in the local Hugging Face cache. It may have Hugging Face's
    /// layout, with either generation of names, or that of LLaVA's own code. A directory of adapters opens as the model
    /// that they name, with the adapters merged.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file, the key or the tensors.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = resolve(dir)?;
        if AdapterFiles::is_at(&dir) {
            let adapters = AdapterFiles::open(&dir)?;
            let base = adapters.base_dir()?;
            return Self::open_with(base, adapters);
        }
        let value = read_config(&dir)?;
        if original::is_original(&value) {
            return Self::open_original(&dir, &value, dir.clone());
        }
        not_llava::check_model(&dir, &value)?;
        let config = LlavaConfig::from_json(&read_json_text(&dir.join("config.json"))?)
            .map_err(|source| CheckpointError::Config { path: dir.clone(), source })?;
        Self::with(Opened {
            vision: Some(dir.clone()),
            fused_vision: Vec::new(),
            config,
            files: TensorFiles::open(&dir, Layout::Llava)?,
            projector_seed: None,
            tokenizer_files: TokenizerFiles::of(&dir),
            composed: false,
            image_aspect_ratio: None,
            unpacked: None,
            dir,
        })
    }

    /// Opens a checkpoint with adapters. For adapters of LLaVA's own code, the checkpoint may be the language model
    /// that they were trained on: the config.json beside the adapters then describes the whole model, and the projector
    /// is beside them too.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Checkpoint::open`] and [`Checkpoint::with_adapters`].
    pub fn open_with(base: impl AsRef<Path>, adapters: AdapterFiles) -> Result<Self, CheckpointError> {
        let base = resolve(base)?;
        if AdapterFiles::is_at(&base) || !not_llava::is_decoder(&read_config(&base)?) {
            return Self::open(base)?.with_adapters(adapters);
        }
        match adapters.original()? {
            Some(value) => Self::open_original(adapters.dir(), &value, base)?.with_adapters(adapters),
            None => {
                let projector = adapters.holds(PROJECTOR);
                Err(not_llava::adapters_of_decoder(adapters.dir(), &base, projector))
            }
        }
    }

    /// Opens the model that a config.json of LLaVA's own code in `from` describes, with the weights and the
    /// tokenizer in `dir`.
    fn open_original(from: &Path, value: &Value, dir: PathBuf) -> Result<Self, CheckpointError> {
        let files = TensorFiles::open(&dir, Layout::Llava)?;
        let Original { mut config, vision, image_aspect_ratio } = original::read(from, value, &files)?;
        let brings_tokenizer = ["tokenizer.json", "tokenizer.model"].iter().any(|name| from.join(name).is_file());
        let tokenizer_files = TokenizerFiles::with_image_token(if brings_tokenizer { from } else { &dir })?;
        let growth = room_for(&tokenizer_files, &files, &mut config, None)?;
        let config = LlavaConfig::from_json(&config.to_string())
            .map_err(|source| CheckpointError::Config { path: dir.clone(), source })?;
        let files = match &vision {
            Some(vision) if !files.contains_any("vision_tower.") => {
                files.over(TensorFiles::open(vision, Layout::Vision)?)
            }
            _ => files,
        };
        let has_images = ["preprocessor_config.json", "processor_config.json"].iter().any(|n| dir.join(n).is_file());
        Self::with(Opened {
            vision: if has_images { Some(dir.clone()) } else { vision },
            fused_vision: Vec::new(),
            config,
            files: files.growing(growth),
            projector_seed: None,
            tokenizer_files,
            composed: true,
            image_aspect_ratio,
            unpacked: None,
            dir,
        })
    }

    /// The same checkpoint with another limit on the images' pixels, or with LLaVA's `image_aspect_ratio`
    /// (`pad`, `square`).
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] for any other aspect ratio.
    pub fn with_images(mut self, ratio: Option<&str>, max_pixels: Option<u64>) -> Result<Self, CheckpointError> {
        if let Some(ratio) = ratio {
            self.images = self.images.with_aspect_ratio(ratio, &self.dir.join("config.json"))?;
            self.image_aspect_ratio = Some(ratio.into());
        }
        if let Some(most) = max_pixels {
            self.images = self.images.with_max_pixels(most);
        }
        Ok(self)
    }

    pub(super) fn with(opened: Opened) -> Result<Self, CheckpointError> {
        let Opened { dir, vision, mut config, files, tokenizer_files, .. } = opened;
        let mismatch = |what: String| CheckpointError::Mismatch(format!("{}: {what}", dir.display()));
        let layers = layers(&config);
        if layers > files.len() {
            // Checked before a network of that size is built, even without weights.
            return Err(mismatch(format!(
                "config.json asks for {layers} layers (num_hidden_layers), the files hold {} tensors",
                files.len()
            )));
        }
        let warnings = untie(&mut config, &files, &dir)?;
        let tokenizer =
            Tokenizer::load(tokenizer_files.dir(), &token_ids(&config.text_config, Some(config.image_token_index)))?;
        check_tokens(&tokenizer, &config, &mismatch)?;
        let images = match &vision {
            Some(vision) => ImageProcessor::load(vision)?,
            None => ImageProcessor::new(ImageProcessorConfig::clip(config.vision_config.image_size as u32)),
        };
        let images = match &opened.image_aspect_ratio {
            Some(ratio) => images.with_aspect_ratio(ratio, &dir.join("config.json"))?,
            None => images,
        };
        let images = match opened.fused_vision.is_empty() {
            true => images,
            false => {
                let others = opened.fused_vision.iter().map(|dir| ImageProcessor::load(dir));
                images.with_others(others.collect::<Result<_, _>>()?)
            }
        };
        let images = match opened.composed && config.tiling().cuts() {
            true => {
                let (side, pinpoints) = (config.vision_config.side(), &config.image_grid_pinpoints);
                ImageProcessor::new(images.config().clone().with_tiles(
                    side,
                    pinpoints,
                    vision.as_deref().unwrap_or(&dir),
                )?)
            }
            false => images,
        };
        if images.config().pinpoints != config.image_grid_pinpoints {
            return Err(CheckpointError::Mismatch(format!(
                "{}: the image processor cuts images into tiles of the resolutions {:?}, config.json has \
                 image_grid_pinpoints {:?}: write the same into preprocessor_config.json",
                vision.as_deref().unwrap_or(&dir).display(),
                images.config().pinpoints,
                config.image_grid_pinpoints
            )));
        }
        let vision = vision.as_deref().unwrap_or(&dir);
        let images = match (config.vision_config.is_flexible(), images.config().patches) {
            (true, Some(patches)) => {
                let (encoder, size) = (&mut config.vision_config, patches.size as usize);
                if size != encoder.patch_size {
                    return Err(CheckpointError::Mismatch(format!(
                        "{}: the image processor makes patches of {size} pixels, the vision encoder takes {}",
                        vision.display(),
                        encoder.patch_size
                    )));
                }
                encoder.most_patches = Some(patches.most);
                images.with_grid(encoder.grid())
            }
            _ => images,
        };
        let (made, wanted) = (images.each().count(), config.encoders().count());
        if made != wanted {
            return Err(CheckpointError::Mismatch(format!(
                "{}: preprocessor_config.json has the settings of {made} image processors (fused_image_processors), and \
                 config.json has {wanted} vision encoders (fused_vision_configs)",
                vision.display(),
            )));
        }
        let fused = opened.fused_vision.iter().map(PathBuf::as_path).chain(std::iter::repeat(vision));
        let dirs = [vision].into_iter().chain(fused);
        let encoders = [&mut config.vision_config].into_iter().chain(&mut config.fused_vision_configs);
        for ((encoder, images), at) in encoders.zip(images.each()).zip(dirs) {
            let side = encoder.image_size;
            if encoder.is_flexible() != images.config().patches.is_some() {
                return Err(CheckpointError::Mismatch(format!(
                    "{}: preprocessor_config.json and config.json disagree whether each image has a grid of its own: \
                     Siglip2ImageProcessor belongs to a siglip2_vision_model",
                    at.display(),
                )));
            }
            if images.output_size().is_none() && !encoder.is_flexible() {
                return Err(CheckpointError::Mismatch(format!(
                    "{}: by preprocessor_config.json, images keep their own shapes, and the vision encoder takes {side} x \
                     {side}: set do_resize, and a crop_size with do_center_crop or a size with a height and a width",
                    at.display(),
                )));
            }
            if let Some((height, width)) = images.output_size()
                && height == width
                && height != side
                && encoder.fits_any_size()
            {
                encoder.input_size = Some(height);
            } else if let Some(size) = images.output_size()
                && size != (side, side)
            {
                return Err(CheckpointError::Mismatch(format!(
                    "{}: the image processor makes {size:?} pixels, the vision encoder takes {side} x {side}",
                    at.display(),
                )));
            }
        }
        config.validate().map_err(|source| CheckpointError::Config { path: dir.clone(), source })?;
        // A pixel shuffle turns a square of patches into one token, which for the processor is a larger patch.
        let mut processor = ProcessorConfig::clip(config.vision_config.patch_size * config.projector.shuffle());
        processor.tiles = config.tiling().cuts();
        // Of several encoders, only patches are projected.
        processor.num_additional_image_tokens =
            if config.is_fused() { 0 } else { config.vision_config.special_positions() };
        if config.dropped(&config.vision_config) == 0 {
            processor.vision_feature_select_strategy = FeatureSelect::Full;
        }
        if opened.composed {
            processor.image_token = tokenizer.specials().image.clone();
        } else {
            processor = ProcessorConfig::load(&dir, processor)?;
        }
        let beside = opened.unpacked.as_ref().map_or(&*dir, TempDir::path);
        let mut template = ChatTemplate::load(beside)?;
        let template_source = (opened.composed && template.is_none()).then_some(VICUNA);
        if let Some(source) = template_source {
            template = Some(ChatTemplate::new(source, "vicuna_v1")?);
        }
        Ok(Self {
            tokenizer,
            images,
            processor,
            template,
            config,
            image_aspect_ratio: opened.image_aspect_ratio,
            files,
            projector_seed: opened.projector_seed,
            tokenizer_files,
            template_source,
            warnings,
            unpacked: opened.unpacked,
            dir,
        })
    }
}

/// Checks that every token has a row in the embedding table, and that the image token is a single token.
fn check_tokens(
    tokenizer: &Tokenizer,
    config: &LlavaConfig,
    mismatch: &dyn Fn(String) -> CheckpointError,
) -> Result<(), CheckpointError> {
    let rows = config.text_config.vocab_size;
    if tokenizer.vocab_size() > rows {
        return Err(mismatch(format!(
            "the tokenizer has {} tokens, the embedding table {rows} rows",
            tokenizer.vocab_size()
        )));
    }
    if let Some((token, id)) = tokenizer.largest_id()
        && id as usize >= rows
    {
        return Err(mismatch(format!(
            "tokenizer.json gives {:?} the id {id}, the embedding table has {rows} rows: resize the table or use the \
             tokenizer that belongs to these weights",
            crate::outside::excerpt(&token)
        )));
    }
    let image = config.image_token_index;
    if tokenizer.ids().image != Some(image) || tokenizer.specials().image.is_empty() {
        return Err(mismatch(format!(
            "config.json's image_token_index {image} is no token of the tokenizer: set it to the id of <image>"
        )));
    }
    Ok(())
}

fn token_ids(text: &DecoderConfig, image: Option<u32>) -> TokenIds {
    TokenIds { bos: text.bos_token_id, eos: text.eos_ids().first().copied(), pad: text.pad_token_id, image }
}

/// LLaVA's conversation style `vicuna_v1` as a chat template, for decoders without one.
const VICUNA: &str = "{% if messages[0]['role'] != 'system' %}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}{% for message in messages %}{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %} {% endif %}{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{{ '\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% if message['role'] == 'user' %} ASSISTANT:{% elif message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::{Message, Role, SpecialTokens, Style, render};

    #[test]
    fn the_template_that_a_decoder_without_one_gets_writes_vicuna_v1() {
        let specials = SpecialTokens { eos: Some("</s>".into()), ..SpecialTokens::default() };
        let conversation = [
            Message::new(Role::User, "<image>\nWhat is it?"),
            Message::new(Role::Assistant, "A dog."),
            Message::new(Role::User, "And here?"),
            Message::new(Role::Assistant, "A cat."),
        ];
        let template = Style::from(ChatTemplate::new(VICUNA, "vicuna_v1").unwrap());
        // Compares the texts only: a template records which bytes are the user's only when that matters.
        let pieces = |style: &Style, conversation: &[Message]| -> Vec<(String, bool)> {
            let pieces = render(style, conversation, &specials).unwrap();
            pieces.into_iter().map(|piece| (piece.text, piece.supervised)).collect()
        };
        for conversation in [&conversation[..], &conversation[..2]] {
            assert_eq!(pieces(&template, conversation), pieces(&Style::vicuna_v1(), conversation));
        }
        let mut system = conversation.to_vec();
        system.insert(0, Message::new(Role::System, "Be brief."));
        assert_eq!(pieces(&template, &system), pieces(&Style::vicuna_v1(), &system));
    }
}
