//! An opened checkpoint: everything that is known before a weight is read, and reading the weights.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use tempfile::TempDir;

use super::CheckpointError;
use super::names::FUSED_TOWERS;
use super::peft::AdapterFiles;
use super::read::TensorFiles;
use super::vocabulary::TokenizerFiles;
use crate::config::{LlavaConfig, Tiles};
use crate::nn::{InitScheme, Llava, seeded_init};
use crate::processor::{
    ChatTemplate, ImageProcessor, PixelValues, ProcessorConfig, TOKENIZER_FILES, Tokenizer, image_size_within,
};

/// An opened LLaVA checkpoint, with everything but the weights in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its directory; for an assembled model, the directory of its decoder, or the decoder's GGUF file.
    pub dir: PathBuf,
    /// The model's configuration.
    pub config: LlavaConfig,
    /// The tokenizer with its special tokens.
    pub tokenizer: Tokenizer,
    /// The image processor.
    pub images: ImageProcessor,
    /// The settings that determine the number of image tokens for an image.
    pub processor: ProcessorConfig,
    /// The chat template, if the checkpoint has one.
    pub template: Option<ChatTemplate>,
    /// LLaVA's own setting for images that are not square: `pad`, or `square` if they are stretched.
    pub image_aspect_ratio: Option<String>,
    pub(super) files: TensorFiles,
    /// The seed of the projector's weights, if it has none yet.
    pub(super) projector_seed: Option<u64>,
    pub(super) tokenizer_files: TokenizerFiles,
    /// A chat template to write beside the tokenizer, if that has none.
    pub(super) template_source: Option<&'static str>,
    pub(super) warnings: Vec<String>,
    /// Keeps the files that were unpacked from a GGUF file as long as they are needed.
    pub(super) unpacked: Option<TempDir>,
}

/// The configuration files beside a checkpoint's weights.
const BESIDE: [&str; 6] = [
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "generation_config.json",
];

impl Checkpoint {
    /// Reads the weights onto a device, in `dtype`. If the checkpoint has adapters, they are merged.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that lists missing tensors or wrong shapes.
    pub fn load(&self, dtype: DType, device: &Device) -> Result<Llava, CheckpointError> {
        let mut model = self.config.init(device);
        self.check_adapters(&model)?;
        let Some(seed) = self.projector_seed else { return self.files.load(model, "", dtype, device) };
        // Part by part, because no file has the projector.
        model.vision_tower = self.files.load(model.vision_tower, "vision_tower", dtype, device)?;
        model.fused_vision_towers = self.files.load(model.fused_vision_towers, FUSED_TOWERS, dtype, device)?;
        model.language_model = self.files.load(model.language_model, "language_model", dtype, device)?;
        if let Some(head) = model.lm_head.take() {
            model.lm_head = Some(self.files.load(head, "lm_head", dtype, device)?);
        }
        model.multi_modal_projector = seeded_init(model.multi_modal_projector, InitScheme::TorchLinear, seed, device);
        Ok(model)
    }

    /// What of the checkpoint differs from its configuration, and how that was handled: one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tensors on disk for which the model has no place, by their names on disk.
    pub fn unexpected(&self, device: &Device) -> Vec<String> {
        // `init` does not allocate any weights.
        self.files.unexpected(&self.config.init(device), "")
    }

    /// The directory of the files beside the decoder's tensors: its own, or the one that a GGUF file was unpacked to.
    pub(super) fn beside(&self) -> &Path {
        self.unpacked.as_ref().map_or(&self.dir, TempDir::path)
    }

    /// The files that determine the model: those of its weights, including adapters, in a fixed order,
    /// and the tokenizer.
    pub fn source_files(&self) -> Vec<PathBuf> {
        let tokenizer = ["tokenizer.json", "tokenizer.model"].map(|name| self.tokenizer_files.dir().join(name));
        let tokenizer = tokenizer.into_iter().find(|path| path.is_file());
        self.files.all_paths().into_iter().chain(tokenizer).collect()
    }

    /// The configurations and vocabularies beside the weights, including the adapters', in a fixed order. Those that
    /// exist are read when the checkpoint is opened, and some again when it is written.
    pub fn beside_files(&self) -> Vec<PathBuf> {
        let files = self.files.all_paths();
        let folders = files.iter().filter_map(|path| path.parent());
        let mut dirs: Vec<&Path> = Vec::new();
        for dir in [&*self.dir].into_iter().chain(folders).chain([self.tokenizer_files.dir()]) {
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        let names = BESIDE.into_iter().chain(TOKENIZER_FILES);
        dirs.iter().flat_map(|dir| names.clone().map(|name| dir.join(name))).filter(|path| path.is_file()).collect()
    }

    /// The type of most parameters on disk.
    pub fn stored_dtype(&self) -> DType {
        self.files.stored().dtype()
    }

    /// The sizes of an image's pixel values in a batch; see [`LlavaConfig::image_shape`].
    pub fn image_shape(&self) -> [usize; 3] {
        self.config.image_shape()
    }

    /// The number of visual embeddings of an image that is not cut into tiles (m).
    pub fn visual_tokens(&self) -> usize {
        self.config.visual_tokens()
    }

    /// The tiles of an image file, from which the number of its tokens follows. The file is read only if the model cuts
    /// images into tiles, and then its header alone is decoded.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file.
    pub fn tiles(&self, path: &Path) -> Result<Tiles, CheckpointError> {
        let tiling = self.config.tiling();
        let size = if tiling.varies() { image_size_within(path, self.images.max_pixels())? } else { [0; 2] };
        Ok(tiling.of(size))
    }

    /// Decodes and processes an image file.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file.
    pub fn pixels(&self, path: &Path) -> Result<PixelValues, CheckpointError> {
        Ok(self.images.open(path)?)
    }

    /// The padding token's id for batches. A checkpoint without one gets 0, which no loss and no attention uses.
    pub fn pad_id(&self) -> u32 {
        self.tokenizer.ids().pad.or(self.config.text_config.pad_token_id).unwrap_or(0)
    }

    /// The token ids that end a generation.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = self.config.text_config.eos_ids();
        ids.extend(self.tokenizer.ids().eos);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Adds adapters to the checkpoint, which is then loaded and converted with them merged.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Mismatch`] if it has adapters already.
    pub fn with_adapters(mut self, adapters: AdapterFiles) -> Result<Self, CheckpointError> {
        if self.files.adapters.is_some() {
            let reason = "has adapters over it already: merge them first";
            return Err(CheckpointError::Mismatch(format!("{}: {reason}", self.dir.display())));
        }
        self.lay(adapters)?;
        Ok(self)
    }

    /// Checks that all adapters have a place in the model.
    pub(super) fn check_adapters(&self, model: &Llava) -> Result<(), CheckpointError> {
        self.files.adapters.as_ref().map_or(Ok(()), |adapters| adapters.fits(model))
    }
}

/// The number of layers of the deeper part.
pub(super) fn layers(config: &LlavaConfig) -> usize {
    let vision = config.encoders().map(|encoder| encoder.num_hidden_layers).max().unwrap_or(0);
    config.text_config.num_hidden_layers.max(vision)
}
