//! What a run reads, and whether that is still what it was when the run began.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use basic_data::{DataConfig, DataError, DataSet, ImageSource, Samples, Watched, content_hash, prepare};
use basic_models::checkpoint::{EncoderFiles, FrozenEncoder};
use basic_models::processor::Style;
use basic_models::{Checkpoint, Llava};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::model::given_adapters;
use super::state::Position;
use super::{Stores, TrainError};
use crate::recipe::{EvalConfig, Recipe, Stage};
use crate::watch::{Evaluation, EvaluationError, EvaluationOptions, evaluate};

/// What a run reads, by its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inputs {
    pub data: String,
    pub model: String,
    pub beside: String,
}

impl Inputs {
    pub(super) fn of(recipe: &Recipe, data: &DataSet, checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let mut files = checkpoint.source_files();
        // What a supervision method compares with is a part of the model as far as a state is concerned.
        if let Some(name) = recipe.objective.encoder() {
            files.extend(EncoderFiles::open(name)?.source_files());
        }
        // So are the adapters that it goes on with, and the whole parts beside them.
        for (adapters, _) in given_adapters(recipe)? {
            files.extend(adapters.source_files());
        }
        let model = content_hash(&files)?;
        let mut beside = checkpoint.beside_files();
        // How answers are chosen is nothing to training.
        beside.retain(|path| !path.ends_with("generation_config.json"));
        let names = beside.iter().filter_map(|path| path.file_name()?.to_str()).collect::<Vec<_>>().join("/");
        let beside = content_hash(&beside)? ^ xxh3_64(names.as_bytes());
        Ok(Self { data: data.fingerprint()?, model: format!("{model:016x}"), beside: format!("{beside:016x}") })
    }

    /// What a state of this run cannot go on with.
    pub(super) fn changed(&self, since: &Position) -> Option<&'static str> {
        if self.data != since.data {
            return Some("data files");
        }
        let differs = |own: &str, since: &str| !since.is_empty() && own != since;
        if differs(&self.model, &since.model) {
            return Some("model's files");
        }
        differs(&self.beside, &since.beside).then_some("model's configuration or vocabulary")
    }
}

/// Refuses files that are not what they were when the run began.
pub(super) fn unchanged(files: &Watched, so: &str) -> Result<(), DataError> {
    let Some(path) = files.changed() else { return Ok(()) };
    let reason = format!("was changed while the run went on, {so}: put it back and go on with --resume, or start anew");
    Err(DataError::Set { path: path.into(), reason })
}

/// The samples that are kept from training, to look at the model with.
pub(super) struct HeldOut {
    data: DataSet,
    fingerprint: String,
    /// Its image files.
    images: Watched,
    style: Style,
    /// Steps between two evaluations.
    pub every: usize,
    options: EvaluationOptions,
}

impl HeldOut {
    pub(super) fn open(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<Option<Self>, TrainError> {
        let Some(config) = &recipe.eval else { return Ok(None) };
        let EvalConfig { path, images, format, split, every, samples, predictions, max_new_tokens } = config.clone();
        let data = DataConfig { images, format, split, limit: Some(samples), ..DataConfig::new(path) };
        let options = EvaluationOptions {
            samples,
            batch_size: recipe.train.micro_batch.unwrap_or(recipe.train.batch_size),
            predictions,
            max_new_tokens,
            // Not the trainer's: a model that is not trained computes with other kernels.
            stores: Stores::open(recipe)?,
            encoder: None,
        };
        let style = recipe.data.conversation.resolve(checkpoint, recipe.stage == Stage::Pretrain)?;
        let data = DataSet::open(&data, recipe.seed)?;
        let fingerprint = data.fingerprint()?;
        // A sample that cannot be used ends the run now, and not at its first evaluation.
        let usable = |index: usize| -> Result<Vec<ImageSource>, EvaluationError> {
            let sample = data.sample(index)?;
            let images = prepare(&sample, checkpoint, &style)?.images;
            images
                .iter()
                .try_for_each(|image| image.pixels(checkpoint).map(drop).map_err(|e| sample.image_error(e)))?;
            Ok(images)
        };
        let looked: Vec<_> = (0..data.len().min(samples)).into_par_iter().map(usable).collect();
        let images = looked.into_iter().collect::<Result<Vec<_>, _>>()?;
        let file = |image: ImageSource| match image {
            ImageSource::File(path) => Some(path),
            ImageSource::Bytes { .. } => None,
        };
        let files: BTreeSet<PathBuf> = images.into_iter().flatten().filter_map(file).collect();
        let images = Watched::of(&files.into_iter().collect::<Vec<_>>())?;
        Ok(Some(Self { data, fingerprint, images, style, every, options }))
    }

    /// Refuses data files that are not what they were.
    pub(super) fn unchanged(&self) -> Result<(), DataError> {
        self.data.unchanged(&self.fingerprint)
    }

    /// Refuses image files that are not what they were.
    pub(super) fn images_unchanged(&self) -> Result<(), DataError> {
        unchanged(&self.images, "this evaluation would not be of the same images")
    }

    /// The losses and predictions on these samples after `step` steps; `encoder` is the other encoder that the objective
    /// compares with.
    pub(super) fn evaluate(
        &self,
        step: usize,
        model: &Llava,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        encoder: Option<Arc<FrozenEncoder>>,
    ) -> Result<Evaluation, TrainError> {
        let options = EvaluationOptions { encoder, ..self.options.clone() };
        Ok(evaluate(step, model, checkpoint, &self.data, &self.style, &recipe.objective, &options)?)
    }
}
