//! Opens the model that a run starts from and prepares it for training: each part frozen, fully trained, or with
//! adapters.

use std::path::PathBuf;

use basic_models::adapters::{LoraConfig, Quantization, attach};
use basic_models::checkpoint::AdapterFiles;
use basic_models::nn::Llava;
use basic_models::{Checkpoint, CheckpointError};
use burn::module::Module;
use burn::tensor::DType;

use super::TrainError;
use super::heads::with_heads;
use crate::recipe::{Mode, Part, Recipe};
use crate::trainable::set_trainable;

/// Opens the model that a recipe starts from.
///
/// # Errors
///
/// [`CheckpointError`] that names the file.
pub(crate) fn open_model(recipe: &Recipe) -> Result<Checkpoint, CheckpointError> {
    check_adapters(recipe)?;
    let checkpoint = open_parts(recipe)?;
    recipe.check_encoders(&checkpoint.config)?;
    checkpoint.with_images(recipe.model.image_aspect_ratio.as_deref(), recipe.model.max_pixels)
}

/// The adapters that a recipe's parts go on with, each directory once, with the parts that name it.
pub(super) fn given_adapters(recipe: &Recipe) -> Result<Vec<(AdapterFiles, Vec<Part>)>, CheckpointError> {
    let mut given: Vec<(&PathBuf, Vec<Part>)> = Vec::new();
    for part in Part::ALL {
        let Some(dir) = &recipe.parts.of(part).adapters else { continue };
        match given.iter_mut().find(|(known, _)| *known == dir) {
            Some((_, parts)) => parts.push(part),
            None => given.push((dir, vec![part])),
        }
    }
    given.into_iter().map(|(dir, parts)| Ok((AdapterFiles::open(dir)?, parts))).collect()
}

/// Refuses adapters that the model has already, and directories with adapters of further parts, which would be left out.
fn check_adapters(recipe: &Recipe) -> Result<(), CheckpointError> {
    for (files, parts) in given_adapters(recipe)? {
        if let Some(base) = &recipe.model.checkpoint {
            files.check_base(&basic_models::checkpoint::resolve(base)?)?;
        }
        let others = Part::ALL.into_iter().filter(|part| !parts.contains(part));
        let left_out = others.filter(|part| part.prefixes().iter().any(|prefix| files.adapts(prefix)));
        if let (Some(other), Some(part)) = (left_out.into_iter().next(), parts.first()) {
            return Err(CheckpointError::Mismatch(format!(
                "parts.{}.adapters: the directory has adapters of the {} too: write the same into parts.{}, or merge them first",
                part.name(),
                other.name(),
                other.name()
            )));
        }
    }
    Ok(())
}

fn open_parts(recipe: &Recipe) -> Result<Checkpoint, CheckpointError> {
    let model = &recipe.model;
    match (&model.checkpoint, model.first_vision(), &model.llm) {
        (Some(dir), _, _) => Checkpoint::open(dir),
        (None, Some(vision), Some(llm)) => Checkpoint::assemble_with(vision, llm, &model.assembly(recipe.seed)),
        // `Recipe::open` checks this, but a recipe built in code may not have been checked.
        _ => Err(CheckpointError::Mismatch("[model] needs either `checkpoint`, or `vision` and `llm`".into())),
    }
}

/// Prepares a loaded model for training: freezes the parts that `recipe` does not train, and attaches adapters, fresh
/// ones drawn from its seed or those that it names.
///
/// # Errors
///
/// [`TrainError::Adapter`] for adapters that do not fit the model,
/// [`BatchError::Checkpoint`](crate::BatchError::Checkpoint) for files that don't.
pub fn prepare_model(recipe: &Recipe, model: Llava) -> Result<Llava, TrainError> {
    let dtype = recipe.train.dtype.dtype();
    let mut model = model;
    let mut given = Vec::new();
    for part in Part::ALL {
        let files = recipe.parts.of(part).adapters.as_ref().map(AdapterFiles::open).transpose()?;
        if let Some(files) = &files {
            // A projector that was fully trained together with the adapters belongs to them.
            let device = model.device();
            model = files.overlay(model, dtype, &device)?;
        }
        given.push(files);
    }
    model = with_heads(recipe, model)?;
    let whole: Vec<Part> = Part::ALL.into_iter().filter(|part| recipe.mode(*part) == Mode::Full).collect();
    let mut model = set_trainable(model, &whole);
    for (part, given) in Part::ALL.into_iter().zip(given) {
        let Some(config) = adapters(recipe, part) else { continue };
        let attacher = Attacher { part, config, given, seed: recipe.seed, dtype };
        match part {
            Part::Vision => model.vision_tower = attacher.attach(model.vision_tower)?,
            Part::Projector => model.multi_modal_projector = attacher.attach(model.multi_modal_projector)?,
            Part::Decoder => model.language_model = attacher.attach(model.language_model)?,
            // Recipes cannot set adapters for the head.
            Part::Head => {}
            Part::FusedVision if !model.config().is_fused() => {}
            Part::FusedVision => model.fused_vision_towers = attacher.attach(model.fused_vision_towers)?,
        }
    }
    Ok(model)
}

struct Attacher {
    part: Part,
    config: LoraConfig,
    given: Option<AdapterFiles>,
    seed: u64,
    dtype: DType,
}

impl Attacher {
    fn attach<M: Module>(&self, module: M) -> Result<M, TrainError> {
        let prefix = self.part.prefixes()[0];
        Ok(match &self.given {
            Some(files) => files.attach(module, prefix, self.config.quantize, self.dtype)?,
            None => attach(module, prefix, &self.config, self.seed, self.dtype)?,
        })
    }
}

/// The configuration of a part's adapters, if it has any.
pub fn adapters(recipe: &Recipe, part: Part) -> Option<LoraConfig> {
    let (mode, config) = (recipe.mode(part), recipe.parts.of(part));
    if !matches!(mode, Mode::Lora | Mode::Qlora) {
        return None;
    }
    let default = LoraConfig::default();
    let rank = config.rank.unwrap_or(default.rank);
    let Quantization { bits, block } = Quantization::default();
    let quantize = (mode == Mode::Qlora)
        .then(|| Quantization { bits: config.bits.unwrap_or(bits), block: config.block.unwrap_or(block) });
    Some(LoraConfig {
        rank,
        // In LLaVA the scale is 2 for every rank.
        alpha: config.alpha.unwrap_or(2.0 * rank as f64),
        targets: config.targets.clone().unwrap_or_default(),
        quantize,
    })
}
