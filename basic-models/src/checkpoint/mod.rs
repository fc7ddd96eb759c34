//! Hugging Face checkpoints: LLaVA directories, and a vision tower and a decoder put together into a new model.

mod error;
mod names;
mod read;
mod write;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::Value;

pub use error::CheckpointError;
pub use names::{Layout, ParamPath, Slot, slots};
pub use read::TensorFiles;
pub use write::{StagedDir, write_tensors};

use crate::config::{ConfigError, DecoderConfig, LlavaConfig, VisionConfig};
use crate::nn::{InitScheme, Llava, seeded_init};
use crate::processor::{
    ChatTemplate, FeatureSelect, ImageProcessor, PixelValues, ProcessorConfig, TokenIds, Tokenizer,
    copy_tokenizer_files, open_image,
};

/// An opened LLaVA checkpoint: everything but the weights is in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it lies; for an assembled model, where its tokenizer lies.
    pub dir: PathBuf,
    /// The model's configuration.
    pub config: LlavaConfig,
    /// Tokenizer and special tokens.
    pub tokenizer: Tokenizer,
    /// Image processing.
    pub images: ImageProcessor,
    /// How many image tokens stand for an image.
    pub processor: ProcessorConfig,
    /// The chat template, where the checkpoint has one.
    pub template: Option<ChatTemplate>,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Whole(TensorFiles),
    Parts { vision: TensorFiles, decoder: TensorFiles, projector_seed: u64 },
}

impl Checkpoint {
    /// Opens a LLaVA directory.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the file, the key or the tensors.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref();
        let config = LlavaConfig::from_json(&read_text(&dir.join("config.json"))?)
            .map_err(|source| CheckpointError::Config { path: dir.into(), source })?;
        let weights = Weights::Whole(TensorFiles::open(dir, Layout::Llava)?);
        Self::with(dir, dir, config, weights)
    }

    /// Puts a CLIP vision tower and a Llama decoder together, with a fresh projector drawn from `seed`. The decoder's
    /// tokenizer must already have an `<image>` token.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the file, the key or the tensors.
    pub fn assemble(vision: &Path, decoder: &Path, seed: u64) -> Result<Self, CheckpointError> {
        let vision_config = part(vision, "vision_config", VisionConfig::from_value)?;
        let text_config = part(decoder, "text_config", DecoderConfig::from_value)?;
        let tokenizer = Tokenizer::load(decoder, &token_ids(&text_config, None))?;
        let image = tokenizer.image_id()?;
        let mut config = LlavaConfig { image_token_index: image, text_config, vision_config, ..LlavaConfig::default() };
        config.tie_word_embeddings = config.text_config.tie_word_embeddings;
        config.validate().map_err(|source| CheckpointError::Config { path: decoder.into(), source })?;
        let weights = Weights::Parts {
            vision: TensorFiles::open(vision, Layout::Vision)?,
            decoder: TensorFiles::open(decoder, Layout::Decoder)?,
            projector_seed: seed,
        };
        Self::with(decoder, vision, config, weights)
    }

    fn with(text: &Path, vision: &Path, config: LlavaConfig, weights: Weights) -> Result<Self, CheckpointError> {
        let tokenizer = Tokenizer::load(text, &token_ids(&config.text_config, Some(config.image_token_index)))?;
        if tokenizer.vocab_size() > config.text_config.vocab_size {
            return Err(CheckpointError::Mismatch(format!(
                "{}: the tokenizer has {} tokens, the embedding table {} rows",
                text.display(),
                tokenizer.vocab_size(),
                config.text_config.vocab_size
            )));
        }
        if let Some((token, id)) = tokenizer.largest_id()
            && id as usize >= config.text_config.vocab_size
        {
            return Err(CheckpointError::Mismatch(format!(
                "{}: tokenizer.json gives {token:?} the id {id}, the embedding table has {} rows: resize the table or use \
                 the tokenizer that belongs to these weights",
                text.display(),
                config.text_config.vocab_size
            )));
        }
        if tokenizer.ids().image != Some(config.image_token_index) || tokenizer.specials().image.is_empty() {
            return Err(CheckpointError::Mismatch(format!(
                "{}: config.json's image_token_index {} is no token of the tokenizer: set it to the id of <image>",
                text.display(),
                config.image_token_index
            )));
        }
        let mut fallback = ProcessorConfig::clip(config.vision_config.patch_size);
        if !config.drops_first() {
            fallback.vision_feature_select_strategy = FeatureSelect::Full;
        }
        let images = ImageProcessor::load(vision)?;
        if let Some(size) = images.output_size()
            && size != (config.vision_config.image_size, config.vision_config.image_size)
        {
            return Err(CheckpointError::Mismatch(format!(
                "{}: the image processor makes {size:?} pixels, the vision encoder takes {} x {}",
                vision.display(),
                config.vision_config.image_size,
                config.vision_config.image_size
            )));
        }
        Ok(Self {
            dir: text.into(),
            tokenizer,
            images,
            processor: ProcessorConfig::load(text, fallback)?,
            template: ChatTemplate::load(text)?,
            config,
            weights,
        })
    }

    /// Reads the weights onto a device, in `dtype`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that lists missing tensors or wrong shapes.
    pub fn load(&self, dtype: DType, device: &Device) -> Result<Llava, CheckpointError> {
        let model = self.config.init(device);
        match &self.weights {
            Weights::Whole(files) => files.load(model, "", dtype, device),
            Weights::Parts { vision, decoder, projector_seed } => {
                let mut model = model;
                model.vision_tower = vision.load(model.vision_tower, "vision_tower", dtype, device)?;
                model.language_model = decoder.load(model.language_model, "language_model", dtype, device)?;
                if let Some(head) = model.lm_head.take() {
                    model.lm_head = Some(decoder.load(head, "lm_head", dtype, device)?);
                }
                let projector = model.multi_modal_projector;
                model.multi_modal_projector = seeded_init(projector, InitScheme::TorchLinear, *projector_seed, device);
                Ok(model)
            }
        }
    }

    /// Tensors on disk that the model has no place for, by their names on disk.
    pub fn unexpected(&self, device: &Device) -> Vec<String> {
        match &self.weights {
            // The weights of `init` are lazy: nothing is allocated here.
            Weights::Whole(files) => files.unexpected(&self.config.init(device), ""),
            Weights::Parts { .. } => Vec::new(),
        }
    }

    /// The side lengths that a batch's pixel values have: channels, height, width.
    pub fn image_shape(&self) -> [usize; 3] {
        let vision = &self.config.vision_config;
        [vision.num_channels, vision.image_size, vision.image_size]
    }

    /// Visual embeddings of an image (m).
    pub fn visual_tokens(&self) -> usize {
        self.config.visual_tokens()
    }

    /// Decodes and processes an image file.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn pixels(&self, path: &Path) -> Result<PixelValues, CheckpointError> {
        Ok(self.images.process(&open_image(path)?)?)
    }

    /// The padding id for batches; where the checkpoint has none, 0, which no loss and no attention sees.
    pub fn pad_id(&self) -> u32 {
        self.tokenizer.ids().pad.or(self.config.text_config.pad_token_id).unwrap_or(0)
    }

    /// The ids at which a generation ends.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = self.config.text_config.eos_ids();
        ids.extend(self.tokenizer.ids().eos);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Writes `model` with this checkpoint's configuration, tokenizer, processor and template as a LLaVA directory that
    /// transformers loads, in `dtype`. Nothing has the final name until all is on disk.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`] where `target` holds files and `overwrite` is off; I/O errors that name the file.
    pub fn save(&self, model: &Llava, target: &Path, dtype: DType, overwrite: bool) -> Result<(), CheckpointError> {
        let staged = StagedDir::new(target, overwrite)?;
        self.save_into(model, &staged, dtype)?;
        staged.commit()
    }

    /// [`Checkpoint::save`] into a directory that the caller completes and commits.
    ///
    /// # Errors
    ///
    /// I/O errors that name the file.
    pub fn save_into(&self, model: &Llava, staged: &StagedDir, dtype: DType) -> Result<(), CheckpointError> {
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        let config = LlavaConfig { dtype: Some(name.into()), ..self.config.clone() };
        let text = config.to_json().map_err(|source| CheckpointError::Config { path: self.dir.clone(), source })?;
        staged.write("config.json", text.as_bytes())?;
        let generation = serde_json::json!({
            "bos_token_id": self.config.text_config.bos_token_id,
            "eos_token_id": self.config.text_config.eos_token_id,
            "pad_token_id": self.config.text_config.pad_token_id,
        });
        staged.write("generation_config.json", format!("{generation:#}\n").as_bytes())?;
        copy_tokenizer_files(&self.dir, staged.path())?;
        self.images.save(staged.path())?;
        self.processor.save(staged.path())?;
        write_tensors(staged, model, "", Layout::Llava, dtype)
    }
}

fn token_ids(text: &DecoderConfig, image: Option<u32>) -> TokenIds {
    TokenIds { bos: text.bos_token_id, eos: text.eos_ids().first().copied(), pad: text.pad_token_id, image }
}

fn read_text(path: &Path) -> Result<String, CheckpointError> {
    std::fs::read_to_string(path).map_err(CheckpointError::io(path))
}

/// A part's configuration: the file itself, or its section in a combined one (CLIP's `vision_config`).
fn part<T>(
    dir: &Path,
    section: &str,
    read: impl FnOnce(&Value) -> Result<T, ConfigError>,
) -> Result<T, CheckpointError> {
    let config = |source| CheckpointError::Config { path: dir.into(), source };
    let value: Value =
        serde_json::from_str(&read_text(&dir.join("config.json"))?).map_err(|source| config(source.into()))?;
    read(value.get(section).unwrap_or(&value)).map_err(config)
}
