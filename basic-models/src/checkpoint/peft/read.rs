//! Reads adapters that were saved by `peft`, this crate or LLaVA's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device};
use serde_json::Value;

use super::super::config_file::read_config;
use super::super::fused::FusedPart;
use super::super::hub::resolve;
use super::super::laid_over::LaidOver;
use super::super::names::{Layout, in_pooling_head};
use super::super::original::is_original;
use super::super::read::{TensorFiles, VOCABULARY};
use super::super::{CheckpointError, FloatType};
use super::scaling::AdapterConfig;
use super::{CONFIG, TENSORS};
use crate::adapters::{Quantization, attach_factors};
use crate::nn::Llava;
use crate::outside::excerpt;
use crate::parameters::{LORA_A, LORA_B, Slot, slots};

/// PyTorch's file of tensors, which older versions of `peft` wrote.
const TORCH: &str = "adapter_model.bin";

/// LLaVA's file for what it trained besides its adapters.
const BESIDE: &str = "non_lora_trainables.bin";

/// Opened adapters; no weight is in memory yet.
#[derive(Debug)]
pub struct AdapterFiles {
    pub(super) dir: PathBuf,
    pub(super) config: AdapterConfig,
    pub(super) lora: TensorFiles,
    /// The tensors that were saved in full (PEFT's `modules_to_save`).
    pub(in super::super) whole: TensorFiles,
    pub(super) whole_names: Vec<(String, String)>,
}

impl AdapterFiles {
    /// Whether a directory contains adapters and no model of its own. A config.json without tensors, which LLaVA's
    /// train.py leaves beside its adapters, is not a model.
    pub fn is_at(dir: &Path) -> bool {
        let model = dir.join("config.json").is_file() && super::super::files::has_weights(dir);
        dir.join(CONFIG).is_file() && !model
    }

    /// Opens a directory with adapters that were saved by `peft`, this crate or LLaVA's own code.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file and the key or the tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = resolve(dir)?;
        let config = AdapterConfig::read(&dir.join(CONFIG))?;
        let factor = |name: &str| name.ends_with(LORA_A) || name.ends_with(LORA_B);
        let lora = Self::tensors(&dir)?.keep(&factor);
        let mut whole = Self::tensors(&dir)?.keep(&|name| !factor(name));
        let beside = dir.join(BESIDE);
        if beside.is_file() {
            whole = whole.over(TensorFiles::open(&beside, Layout::Adapters)?);
        }
        if lora.is_empty() && whole.is_empty() {
            let reason = "the adapters hold no tensor: save them again, or use the model below as it is";
            return Err(CheckpointError::Mismatch(format!("{}: {reason}", dir.display())));
        }
        if let Some((_, entry)) = whole.list().find(|(name, _)| name.contains(".lora_embedding_")) {
            let (disk, path) = (&entry.disk, dir.display());
            let reason = "adapters of an embedding table are not read: merge them with peft (merge_and_unload)";
            return Err(CheckpointError::Mismatch(format!("{path}: {disk}: {reason}")));
        }
        for module in &config.saved {
            let holds = whole.list().any(|(_, entry)| entry.disk.contains(module.as_str()));
            let other = config.keeps_tied && ["embed_tokens", "lm_head"].contains(&module.as_str());
            if !holds && !other {
                let reason = format!("names {}, and the files hold no tensor of it", excerpt(module));
                return Err(CheckpointError::AdapterConfig {
                    path: dir.join(CONFIG),
                    key: "modules_to_save".into(),
                    reason,
                });
            }
        }
        let whole_names = whole.list().map(|(name, entry)| (name.to_string(), entry.disk.clone())).collect();
        Ok(Self { dir, config, lora, whole, whole_names })
    }

    /// The adapters' directory.
    pub(in super::super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether an embedding table and a head that were saved in full stay tied (PEFT's `ensure_weight_tying`).
    pub(in super::super) fn keeps_tied(&self) -> bool {
        self.config.keeps_tied
    }

    /// Whether a layer, given by its module path, has factors here.
    pub(in super::super) fn has_factors(&self, layer: &str) -> bool {
        [LORA_A, LORA_B].iter().any(|factor| self.lora.contains(&format!("{layer}{factor}")))
    }

    /// Leaves out a tensor that was saved in full and equals another one.
    pub(in super::super) fn forget(&mut self, name: &str) {
        self.whole.tensors.remove(name);
        self.whole_names.retain(|(known, _)| known != name);
    }

    /// Assigns a tensor that was saved in full to another parameter.
    pub(in super::super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(entry) = self.whole.tensors.remove(from) {
            self.whole.tensors.insert(to.into(), entry);
        }
        for (name, _) in &mut self.whole_names {
            if name == from {
                *name = to.into();
            }
        }
    }

    /// All tensors in a directory of adapters.
    pub(in super::super) fn tensors(dir: &Path) -> Result<TensorFiles, CheckpointError> {
        let paths = [TENSORS, TORCH].map(|name| dir.join(name));
        match paths.iter().find(|path| path.is_file()) {
            Some(path) => TensorFiles::open(path, Layout::Adapters),
            None => {
                let reason = format!("is not there, nor is {TORCH}");
                Err(CheckpointError::io(&paths[0])(std::io::Error::new(std::io::ErrorKind::NotFound, reason)))
            }
        }
    }

    /// The files that the adapters are read from.
    pub fn source_files(&self) -> Vec<PathBuf> {
        let names = [CONFIG, TENSORS, TORCH, BESIDE].map(|name| self.dir.join(name));
        // PyTorch's file is read where there is no other.
        let shadowed = |path: &PathBuf| path.ends_with(TORCH) && self.dir.join(TENSORS).is_file();
        names.into_iter().filter(|path| path.is_file() && !shadowed(path)).collect()
    }

    /// Returns an error if the adapters lie in the model that they are to be added to: a run's output has them in its
    /// weights already.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Mismatch`], which says what to name instead.
    pub fn check_base(&self, base: &Path) -> Result<(), CheckpointError> {
        let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if !place(&self.dir).starts_with(place(base)) {
            return Ok(());
        }
        let named = self.base().map_or(String::new(), |base| format!(" ({base})"));
        Err(CheckpointError::Mismatch(format!(
            "{}: these adapters are in the weights of {} already: name the model that they were trained on{named}",
            self.dir.display(),
            base.display()
        )))
    }

    /// The base model that the adapters name: a directory or a hub name.
    pub fn base(&self) -> Option<&str> {
        self.config.base.as_deref()
    }

    /// The directory of the base model: as named, or relative to the adapters, or in the Hugging Face cache.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that says how to name it.
    pub fn base_dir(&self) -> Result<PathBuf, CheckpointError> {
        let wrong = |reason: String| CheckpointError::AdapterConfig {
            path: self.dir.join(CONFIG),
            key: "base_model_name_or_path".into(),
            reason,
        };
        let Some(base) = self.base() else {
            return Err(wrong("is not set: name the model below, or merge with `basic merge BASE ADAPTER OUT`".into()));
        };
        let beside = self.dir.join(base);
        let dir = if beside.is_dir() { beside } else { resolve(base).map_err(|error| wrong(error.to_string()))? };
        if Self::is_at(&dir) {
            return Err(wrong(format!("{} holds adapters itself: merge them first", dir.display())));
        }
        if !dir.is_dir() {
            return Err(wrong(format!(
                "{base} is not there: merge with `basic merge BASE ADAPTER OUT` to say where it is"
            )));
        }
        Ok(dir)
    }

    /// The config.json that LLaVA's own code left beside the adapters, if there is one: it describes the whole model,
    /// while the base is only a language model.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] if it cannot be read.
    pub(in super::super) fn original(&self) -> Result<Option<Value>, CheckpointError> {
        if !self.dir.join("config.json").is_file() {
            return Ok(None);
        }
        Ok(Some(read_config(&self.dir)?).filter(is_original))
    }

    /// Whether a part (such as `language_model`) has adapters here.
    pub fn adapts(&self, prefix: &str) -> bool {
        self.lora.contains_any(&format!("{prefix}."))
    }

    /// Whether a part was saved in full.
    pub fn holds(&self, prefix: &str) -> bool {
        self.whole.contains_any(&format!("{prefix}."))
    }

    /// Attaches the adapters of a part to it. The part is frozen, and the adapters can be trained; they have the type
    /// `dtype` that the model computes with.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that lists the adapters for which the part has no layer, or the wrong shapes;
    /// [`CheckpointError::Mismatch`] if there are no adapters for the part.
    pub fn attach<M: Module>(
        &self,
        part: M,
        prefix: &str,
        quantize: Option<Quantization>,
        dtype: DType,
    ) -> Result<M, CheckpointError> {
        let inside = slots(&part, prefix);
        let below = format!("{prefix}.");
        self.check(&inside, &below)?;
        let mut factors = BTreeMap::new();
        for (name, placed) in self.place(&inside)? {
            let path = name.strip_prefix(&below).unwrap_or(&name).to_string();
            factors.insert(path, self.factors(&placed)?);
        }
        if factors.is_empty() {
            let reason = format!("holds no adapters of {prefix}");
            return Err(CheckpointError::Mismatch(format!("{}: {reason}", self.dir.display())));
        }
        Ok(attach_factors(part, prefix, factors, quantize, dtype)?)
    }

    /// The model with its tensors replaced by those that were saved in full (PEFT's `modules_to_save`).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`AdapterFiles::fits`], and those of reading.
    pub fn overlay(&self, model: Llava, dtype: DType, device: &Device) -> Result<Llava, CheckpointError> {
        if model.lm_head.is_none()
            && let Some(name) = VOCABULARY.iter().find(|name| self.whole.contains(name))
        {
            let reason = "the model's head is its embedding table, and the adapters hold one of them whole: merge them \
                          first with `basic merge`";
            return Err(CheckpointError::Mismatch(format!("{}: {name}: {reason}", self.dir.display())));
        }
        self.fits(&model)?;
        self.whole.load_held(model, "", dtype, device)
    }

    /// Checks that everything here has a place in a model.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that lists what has none, and the wrong shapes.
    pub fn fits(&self, model: &Llava) -> Result<(), CheckpointError> {
        let all = slots(model, "");
        self.check(&all, "")?;
        self.complete(&all)?;
        self.place(&all).map(|_| ())
    }

    /// Checks that every tensor here whose name begins with `below` belongs to one of `slots`.
    fn check(&self, slots: &[Slot], below: &str) -> Result<(), CheckpointError> {
        let lost = |name: String| CheckpointError::Mismatch(format!("{}: {name}", self.dir.display()));
        let mut known: BTreeSet<String> = slots.iter().map(|slot| slot.name.clone()).collect();
        known.extend(slots.iter().filter_map(|slot| Some(FusedPart::of(&slot.name)?.whole())));
        let (mut strangers, mut halves) = (Vec::new(), Vec::new());
        for (name, entry) in self.lora.list().filter(|(name, _)| name.starts_with(below)) {
            let (layer, other) = match name.strip_suffix(LORA_A) {
                Some(layer) => (layer, LORA_B),
                None => (name.strip_suffix(LORA_B).unwrap_or(name), LORA_A),
            };
            if !known.contains(&format!("{layer}.weight")) {
                strangers.push(entry.disk.clone());
            } else if !self.lora.contains(&format!("{layer}{other}")) {
                halves.push(entry.disk.clone());
            }
        }
        let whole = self.whole_names.iter().filter(|(name, _)| name.starts_with(below) && !known.contains(name));
        strangers.extend(whole.map(|(_, disk)| disk.clone()));
        if !strangers.is_empty() {
            return Err(lost(format!("the model has no place for these tensors: {}", strangers.join(", "))));
        }
        if !halves.is_empty() {
            return Err(lost(format!("these factors lack their counterpart: {}", halves.join(", "))));
        }
        Ok(())
    }

    /// Checks for layers without adapters that `target_modules` names, if others of the same name in the same part have
    /// some: then the file has lost tensors.
    fn complete(&self, slots: &[Slot]) -> Result<(), CheckpointError> {
        let layers = slots.iter().filter(|slot| slot.transposed && !slot.is_adapter());
        let mut groups: BTreeMap<(&str, &str), (bool, Vec<&str>)> = BTreeMap::new();
        for layer in layers.filter_map(|slot| slot.name.strip_suffix(".weight")) {
            let (part, leaf) = (layer.split('.').next().unwrap_or(layer), layer.rsplit('.').next().unwrap_or(layer));
            if in_pooling_head(layer) || !self.config.targets.iter().any(|target| target == leaf) {
                continue;
            }
            let (some, without) = groups.entry((part, leaf)).or_default();
            match self.has_factors(layer) {
                true => *some = true,
                false => without.push(layer),
            }
        }
        let lost: Vec<&str> =
            groups.into_values().filter(|(some, _)| *some).flat_map(|(_, without)| without).take(8).collect();
        if lost.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch(format!(
            "{}: target_modules in {CONFIG} names these layers, and the files hold no factors of them: {}",
            self.dir.display(),
            lost.join(", ")
        )))
    }

    /// The type of most of the tensors.
    pub fn stored_dtype(&self) -> DType {
        FloatType::dtype(self.lora.stored())
    }
}
