//! What is refused before a run begins: a device that cannot hold it, samples that cannot be trained on, an output
//! directory that the run reads from.

use std::path::{Path, PathBuf};

use basic_data::{DataError, TooLong};
use basic_models::checkpoint::{EncoderFiles, spare};
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::Device;
use rayon::prelude::*;

use super::{RunOptions, StepSource, TrainError};
use crate::plan::{Plan, PlanOptions};
use crate::recipe::{Part, Recipe};

/// Samples that are rendered and tokenized before the first step; `basic data check` looks at all of a larger set.
const CHECKED: usize = 20_000;

/// Refuses a run that its plan says the device cannot hold.
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

/// Refuses an objective whose knobs or whose encoder do not fit the model.
pub(super) fn objective(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    let (objective, shape) = (&recipe.objective, checkpoint.config.shape());
    objective.check(&shape)?;
    if let Some(name) = objective.encoder() {
        objective.check_encoder(EncoderFiles::open(name)?.positions(), &shape)?;
    }
    Ok(())
}

/// Renders and tokenizes samples before the first step, so that a bad one costs seconds and not hours. Where bad ones
/// are left out, the steps that draw them do that.
pub(super) fn samples(recipe: &Recipe, source: &StepSource) -> Result<(), TrainError> {
    let data = source.data();
    if recipe.data.skip_limit(data.len()) > 0 {
        return Ok(());
    }
    let skip = recipe.loader.too_long == TooLong::Skip;
    let looked = |index: usize| match source.preparer().prepare(&data.outline(index)?) {
        Err(DataError::TooLong { .. }) if skip => Ok(()),
        other => other.map(drop),
    };
    let results: Vec<Result<(), DataError>> = (0..data.len().min(CHECKED)).into_par_iter().map(looked).collect();
    // The first one in the file's order, whichever thread was first.
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

/// Refuses to write where the run reads: to the model that it starts from, or, where `overwrite` clears the directory, over
/// anything else of it.
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

/// What a run reads, and must not be in the way of what it writes.
pub(super) fn read_paths(recipe: &Recipe) -> Vec<PathBuf> {
    let model = &recipe.model;
    let models = [&model.checkpoint, &model.vision, &model.llm].into_iter().flatten().cloned();
    let adapters = Part::ALL.into_iter().filter_map(|part| recipe.parts.of(part).adapters.clone());
    let sets = recipe.data.all_sets().into_iter().flat_map(|set| [Some(set.path), set.images]).flatten();
    let held_out = recipe.eval.iter().flat_map(|eval| [Some(eval.path.clone()), eval.images.clone()]).flatten();
    let encoder = recipe.objective.encoder().map(PathBuf::from);
    models.chain(encoder).chain(adapters).chain(sets).chain(held_out).collect()
}
