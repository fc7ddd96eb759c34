//! Hugging Face checkpoints: LLaVA directories, and a vision tower and a decoder put together into a new model.

mod assemble;
mod beside;
mod blueprint;
mod describe;
mod diagnose;
mod dinov2;
mod encoder;
mod error;
mod files;
mod floats;
mod fused;
mod generation;
mod hub;
pub mod leftover;
mod load;
mod mistaken;
mod names;
mod open;
mod original;
mod owned;
mod peft;
mod read;
mod source;
mod spare;
mod staged;
mod take;
mod tied;
mod torch;
mod vocabulary;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::Value;

pub use assemble::AssembleOptions;
pub use describe::{Description, FileReport, Kind, Parameters, TypeReport, describe};
pub use encoder::{EncoderFiles, FrozenEncoder, PatchEncoder};
pub use error::CheckpointError;
pub use floats::FloatType;
pub use hub::resolve;
pub(crate) use names::{LORA_A, LORA_B};
pub use names::{Layout, ParamPath, Slot, slots};
pub use owned::{Contents, MANIFEST};
pub use peft::{AdapterFiles, save_adapters};
pub use read::TensorFiles;
pub use spare::spare;
pub use staged::{Replaces, StagedDir};
pub use write::{SaveOptions, parse_size, write_tensors};

use crate::config::{Family, LlavaConfig, VisionFamily};
use crate::nn::{InitScheme, Llava, seeded_init};
use crate::processor::{
    ChatTemplate, ImageProcessor, PixelValues, ProcessorConfig, TOKENIZER_FILES, Tokenizer, copy_tokenizer_files,
};
use vocabulary::TokenizerFiles;
use write::{gather, write_outgoing};

/// An opened LLaVA checkpoint: everything but the weights is in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it lies; for an assembled model, where its decoder lies.
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
    /// What LLaVA's own config.json says of images that are not square: `pad`, or `square` where they are stretched.
    pub image_aspect_ratio: Option<String>,
    files: TensorFiles,
    /// Where the projector has no weights yet: the seed that they are drawn from.
    projector_seed: Option<u64>,
    tokenizer_files: TokenizerFiles,
    /// A chat template to write beside the tokenizer, which has none.
    template_source: Option<&'static str>,
    warnings: Vec<String>,
}

/// Configurations that lie beside a checkpoint's weights.
const BESIDE: [&str; 6] = [
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "generation_config.json",
];

const PROJECTOR: &str = "multi_modal_projector";

impl Checkpoint {
    /// Reads the weights onto a device, in `dtype`. Where adapters lie over the checkpoint, they are folded in.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that lists missing tensors or wrong shapes.
    pub fn load(&self, dtype: DType, device: &Device) -> Result<Llava, CheckpointError> {
        let mut model = self.config.init(device);
        self.check_adapters(&model)?;
        let Some(seed) = self.projector_seed else { return self.files.load(model, "", dtype, device) };
        // Part by part: the projector is in no file.
        model.vision_tower = self.files.load(model.vision_tower, "vision_tower", dtype, device)?;
        model.language_model = self.files.load(model.language_model, "language_model", dtype, device)?;
        if let Some(head) = model.lm_head.take() {
            model.lm_head = Some(self.files.load(head, "lm_head", dtype, device)?);
        }
        model.multi_modal_projector = seeded_init(model.multi_modal_projector, InitScheme::TorchLinear, seed, device);
        Ok(model)
    }

    /// What of the checkpoint is not as its configuration says, and what was made of it: a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tensors on disk that the model has no place for, by their names on disk.
    pub fn unexpected(&self, device: &Device) -> Vec<String> {
        // The weights of `init` are lazy: nothing is allocated here.
        self.files.unexpected(&self.config.init(device), "")
    }

    /// The files that make the model what it is: those of its weights, adapters' too, in a fixed order, and the tokenizer.
    pub fn source_files(&self) -> Vec<PathBuf> {
        let tokenizer = ["tokenizer.json", "tokenizer.model"].map(|name| self.tokenizer_files.dir().join(name));
        let tokenizer = tokenizer.into_iter().find(|path| path.is_file());
        self.files.all_paths().into_iter().chain(tokenizer).collect()
    }

    /// The configurations and vocabularies beside the weights, adapters' too, in a fixed order: what of them is there is read
    /// when the checkpoint is opened, and some of it again when it is written.
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

    /// The type that most of the parameters on disk have.
    pub fn stored_dtype(&self) -> DType {
        self.files.stored().dtype()
    }

    /// The side lengths that a batch's pixel values have: channels, height, width.
    pub fn image_shape(&self) -> [usize; 3] {
        let vision = &self.config.vision_config;
        [vision.num_channels, vision.side(), vision.side()]
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
        Ok(self.images.open(path)?)
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
        let staged = StagedDir::replacing(target, self.replaces(overwrite))?;
        self.save_into(model, &staged, dtype)?;
        staged.commit()
    }

    /// [`Checkpoint::save`] into a directory that the caller completes and commits.
    ///
    /// # Errors
    ///
    /// I/O errors that name the file.
    pub fn save_into(&self, model: &Llava, staged: &StagedDir, dtype: DType) -> Result<(), CheckpointError> {
        let model = &model.without_heads();
        self.save_side_files(staged, FloatType::of(dtype))?;
        let tensors = gather(model, "", FloatType::of(dtype));
        write_outgoing(staged, tensors, Layout::Llava, &self.fitting(SaveOptions::new(dtype)))
    }

    /// Writes the whole checkpoint as [`Checkpoint::save`] does, straight from its files: no more than a window of one
    /// tensor is in memory. `device` is where a fresh projector is drawn.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::load`] and [`Checkpoint::save`].
    pub fn convert(
        &self,
        target: &Path,
        options: &SaveOptions,
        overwrite: bool,
        device: &Device,
    ) -> Result<(), CheckpointError> {
        let replaces = self.replaces(overwrite);
        replaces.check(target)?;
        self.check_beside()?;
        let to = FloatType::of(options.dtype);
        let model = self.config.init(device);
        self.check_adapters(&model)?;
        let mut wanted = slots(&model, "");
        if self.projector_seed.is_some() {
            wanted.retain(|slot| !slot.name.starts_with(PROJECTOR));
        }
        // Before anything is written: a checkpoint that does not fit leaves nothing behind.
        let mut tensors = self.files.outgoing(&wanted, to, device)?;
        if let Some(seed) = self.projector_seed {
            let projector = seeded_init(model.multi_modal_projector, InitScheme::TorchLinear, seed, device);
            tensors.extend(gather(&projector, PROJECTOR, to));
        }
        let staged = StagedDir::replacing(target, replaces)?;
        self.save_side_files(&staged, to)?;
        write_outgoing(&staged, tensors, Layout::Llava, &self.fitting(*options))?;
        staged.commit()
    }

    /// What a writer may replace: a checkpoint that nothing of this one lies in.
    fn replaces(&self, overwrite: bool) -> Replaces {
        Replaces::new(overwrite, Contents::Checkpoint, self.sources())
    }

    /// Everything that is read: the files of tensors, adapters' too, and the folders that they lie in.
    fn sources(&self) -> Vec<PathBuf> {
        let files = self.files.all_paths();
        let folders = files.iter().filter_map(|path| path.parent().map(Path::to_path_buf));
        let dirs = [self.dir.clone(), self.tokenizer_files.dir().into()];
        let all: std::collections::BTreeSet<PathBuf> = folders.chain(dirs).chain(files.iter().cloned()).collect();
        all.into_iter().collect()
    }

    /// Checks that the files which a written checkpoint has from this one are valid, before work begins.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Beside`] that names the file.
    pub fn check_beside(&self) -> Result<(), CheckpointError> {
        generation::generation_config(&self.dir)?;
        beside::check(self.tokenizer_files.dir())
    }

    /// Lays adapters over the checkpoint: it loads and converts merged with them.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`] where it has some already.
    pub fn with_adapters(mut self, adapters: AdapterFiles) -> Result<Self, CheckpointError> {
        if self.files.adapters.is_some() {
            let reason = "has adapters over it already: merge them first";
            return Err(CheckpointError::Mismatch(format!("{}: {reason}", self.dir.display())));
        }
        self.lay(adapters)?;
        Ok(self)
    }

    /// Checks that all adapters have their place.
    pub(super) fn check_adapters(&self, model: &Llava) -> Result<(), CheckpointError> {
        self.files.adapters.as_ref().map_or(Ok(()), |adapters| adapters.fits(model))
    }

    /// The options with the tensors of this model's families.
    fn fitting(&self, options: SaveOptions) -> SaveOptions {
        SaveOptions {
            fused: options.fused || self.config.text_config.family == Family::Phi3,
            dinov2: options.dinov2 || self.config.vision_config.family == VisionFamily::Dinov2,
            ..options
        }
    }

    fn save_side_files(&self, staged: &StagedDir, dtype: FloatType) -> Result<(), CheckpointError> {
        let config = LlavaConfig { dtype: Some(dtype.torch_name().into()), ..self.config.clone() };
        let text = config.to_json().map_err(|source| CheckpointError::Config { path: self.dir.clone(), source })?;
        staged.write("config.json", text.as_bytes())?;
        let generation = generation::generation_config(&self.dir)?;
        let generation = generation.unwrap_or_else(|| {
            let generation = serde_json::json!({
                "bos_token_id": self.config.text_config.bos_token_id,
                "eos_token_id": self.config.text_config.eos_token_id,
                "pad_token_id": self.config.text_config.pad_token_id,
            });
            format!("{generation:#}\n")
        });
        staged.write("generation_config.json", generation.as_bytes())?;
        beside::check(self.tokenizer_files.dir())?;
        copy_tokenizer_files(self.tokenizer_files.dir(), staged.path())?;
        if let Some(template) = self.template_source {
            staged.write("chat_template.jinja", template.as_bytes())?;
        }
        self.images.save(staged.path())?;
        Ok(self.processor.save(staged.path())?)
    }
}

fn read_json_text(path: &Path) -> Result<String, CheckpointError> {
    crate::outside::read_json_text(path).map_err(CheckpointError::io(path))
}

/// A directory's config.json as it is.
fn read_config(dir: &Path) -> Result<Value, CheckpointError> {
    mistaken::check_directory(dir)?;
    let text = read_json_text(&dir.join("config.json"))?;
    serde_json::from_str(&text).map_err(|source| CheckpointError::Config { path: dir.into(), source: source.into() })
}

/// A part's configuration: the file itself, or its section in a combined one (CLIP's `vision_config`).
fn part(dir: &Path, section: &str) -> Result<Value, CheckpointError> {
    let mut value = read_config(dir)?;
    Ok(match value.get_mut(section) {
        Some(inner) => inner.take(),
        None => value,
    })
}
