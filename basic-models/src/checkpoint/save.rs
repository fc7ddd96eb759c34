//! Writes an opened checkpoint: the weights of a model or those of its own files, with all files that
//! belong beside them.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};

use super::floats::FloatType;
use super::names::{Layout, PROJECTOR};
use super::opened::Checkpoint;
use super::owned::Contents;
use super::staged::{Replaces, StagedDir};
use super::write::{SaveOptions, gather, write_outgoing};
use super::{CheckpointError, generation, tokenizer_check};
use crate::config::LlavaConfig;
use crate::nn::{InitScheme, Llava, seeded_init};
use crate::parameters::slots;
use crate::processor::copy_tokenizer_files;

impl Checkpoint {
    /// Writes `model` with this checkpoint's configuration, tokenizer, processor and template as a LLaVA directory that
    /// transformers can load, in `dtype`. The directory gets its name only when everything is on disk.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Exists`] if `target` contains files and `overwrite` is off, and I/O errors
    /// that name the file.
    pub fn save(&self, model: &Llava, target: &Path, dtype: DType, overwrite: bool) -> Result<(), CheckpointError> {
        let staged = StagedDir::replacing(target, self.replaces(overwrite))?;
        self.save_into(model, &staged, dtype)?;
        staged.commit()
    }

    /// [`Checkpoint::save`] into a directory that the caller completes and commits.
    ///
    /// # Errors
    ///
    /// Returns I/O errors that name the file.
    pub fn save_into(&self, model: &Llava, staged: &StagedDir, dtype: DType) -> Result<(), CheckpointError> {
        let model = &model.without_heads();
        self.save_side_files(staged, FloatType::of(dtype))?;
        let tensors = gather(model, "", FloatType::of(dtype));
        write_outgoing(staged, tensors, Layout::Llava, &self.fitting(SaveOptions::new(dtype)))
    }

    /// Writes the whole checkpoint like [`Checkpoint::save`], directly from its files: no more than a window of one
    /// tensor is in memory. `device` is the device for initializing a new projector.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Checkpoint::load`] and [`Checkpoint::save`].
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
        // Before anything is written, so that a checkpoint that does not fit leaves nothing behind.
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

    /// What may be replaced: a checkpoint that contains nothing of this one.
    fn replaces(&self, overwrite: bool) -> Replaces {
        Replaces::new(overwrite, Contents::Checkpoint, self.sources())
    }

    /// Everything that is read: the files of tensors, including the adapters', and their folders.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        let files = self.files.all_paths();
        let folders = files.iter().filter_map(|path| path.parent().map(Path::to_path_buf));
        let dirs = [self.dir.clone(), self.tokenizer_files.dir().into()];
        let all: std::collections::BTreeSet<PathBuf> = folders.chain(dirs).chain(files.iter().cloned()).collect();
        all.into_iter().collect()
    }

    /// Checks, before work begins, that the files which a written checkpoint copies from this one are valid.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Beside`], which names the file.
    pub fn check_beside(&self) -> Result<(), CheckpointError> {
        generation::generation_config(self.beside())?;
        tokenizer_check::check(self.tokenizer_files.dir())
    }

    /// The options, with the settings for the tensors of this model's families.
    fn fitting(&self, options: SaveOptions) -> SaveOptions {
        SaveOptions {
            fused: options.fused || self.config.text_config.family.fused_on_disk,
            vision: options.vision.or(self.config.vision_config.family.names),
            ..options
        }
    }

    fn save_side_files(&self, staged: &StagedDir, dtype: FloatType) -> Result<(), CheckpointError> {
        let config = LlavaConfig { dtype: Some(dtype.torch_name().into()), ..self.config.clone() };
        let text = config.to_json().map_err(|source| CheckpointError::Config { path: self.dir.clone(), source })?;
        staged.write("config.json", text.as_bytes())?;
        let generation = generation::generation_config(self.beside())?;
        let generation = generation.unwrap_or_else(|| {
            let generation = serde_json::json!({
                "bos_token_id": self.config.text_config.bos_token_id,
                "eos_token_id": self.config.text_config.eos_token_id,
                "pad_token_id": self.config.text_config.pad_token_id,
            });
            format!("{generation:#}\n")
        });
        staged.write("generation_config.json", generation.as_bytes())?;
        tokenizer_check::check(self.tokenizer_files.dir())?;
        copy_tokenizer_files(self.tokenizer_files.dir(), staged.path())?;
        if let Some(template) = self.template_source {
            staged.write("chat_template.jinja", template.as_bytes())?;
        }
        self.images.save(staged.path())?;
        Ok(self.processor.save(staged.path())?)
    }
}
