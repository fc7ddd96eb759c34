//! Checks before a run begins: the device can hold it, its samples can be trained on, and its output does not overwrite
//! what it reads.

use std::path::{Path, PathBuf};

use basic_data::{DataError, TooLong};
use basic_models::checkpoint::{EncoderFiles, spare};
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::Device;
use rayon::prelude::*;

use super::{RunOptions, StepSource, TrainError};
use crate::plan::{Plan, PlanOptions};
use crate::recipe::{Part, Recipe};

/// The number of samples that are rendered and tokenized before the first step; `basic data check` checks all of a
/// larger set.
const CHECKED: usize = 20_000;

/// Returns an error if the plan says that the device cannot hold the run.
pub(super) fn fits(recipe: &Recipe, options: &RunOptions, devices: usize, device: &Device) -> Result<(), TrainError> {
    if options.force {
        return Ok(());
    }
    let plan = Plan::new(recipe, &PlanOptions { memory: options.memory, samples: None, devices }, device)?;
    match plan.budget {
        Some(budget) if plan.memory.total > budget.bytes => {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let (needs, has) = (gib(plan.memory.total), gib(budget.bytes));
            Err(TrainError::DoesNotFit { device: recipe.device, needs, has, says: budget.source })
        }
        _ => Ok(()),
    }
}

/// Returns an error if the settings or the encoder of the objective do not fit the model.
pub(super) fn objective(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    let (objective, shape) = (&recipe.objective, checkpoint.config.shape());
    objective.check(&shape)?;
    if let Some(name) = objective.encoder() {
        objective.check_encoder(EncoderFiles::open(name)?.positions(), &shape)?;
    }
    Ok(())
}

/// Renders and tokenizes samples before the first step, so that a broken one is found within seconds and not after
/// hours. If broken samples are to be skipped, the steps that draw them do so instead.
pub(super) fn samples(recipe: &Recipe, source: &StepSource) -> Result<(), TrainError> {
    let data = source.data();
    if recipe.data.skip_limit(data.len()) > 0 {
        return Ok(());
    }
    let skip = recipe.loader.too_long == TooLong::Skip;
    // An image's tokens follow from its size if it is cut into tiles: then its bytes are needed.
    let read = |index: usize| if source.preparer().cuts_images() { data.sample(index) } else { data.outline(index) };
    let looked = |index: usize| match source.preparer().prepare(&read(index)?) {
        Err(DataError::TooLong { .. }) if skip => Ok(()),
        other => other.map(drop),
    };
    let results: Vec<Result<(), DataError>> = (0..data.len().min(CHECKED)).into_par_iter().map(looked).collect();
    // The first error in the order of the data, independent of the threads.
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

/// Returns an error if the run would overwrite the model that it starts from, or if `overwrite` would clear anything
/// else that it reads.
pub(super) fn output(recipe: &Recipe, out: &Path, overwrite: bool) -> Result<(), TrainError> {
    let same = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| out.canonicalize().is_ok_and(|out| dir == out));
    if recipe.model.checkpoint.iter().any(same) {
        let reason = "is the model to start from: choose another output directory";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", out.display())).into());
    }
    if overwrite {
        spare(&read_paths(recipe), out)?;
    }
    Ok(())
}

/// The paths that a run reads, which its output must not replace.
pub(super) fn read_paths(recipe: &Recipe) -> Vec<PathBuf> {
    let model = &recipe.model;
    let vision = model.vision.iter().flat_map(|vision| vision.all());
    let models = model.checkpoint.iter().chain(vision).chain(&model.llm).cloned();
    let adapters = Part::ALL.into_iter().filter_map(|part| recipe.parts.of(part).adapters.clone());
    let sets = recipe.data.all_sets().into_iter().flat_map(|set| [Some(set.path), set.images]).flatten();
    let held_out = recipe.eval.iter().flat_map(|eval| [Some(eval.path.clone()), eval.images.clone()]).flatten();
    let encoder = recipe.objective.encoder().map(PathBuf::from);
    let store = recipe.train.vision_store.clone();
    models.chain(encoder).chain(adapters).chain(sets).chain(held_out).chain(store).collect()
}
