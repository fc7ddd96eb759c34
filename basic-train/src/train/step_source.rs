//! Provides a run's batches from one loader that all replicas of the run share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use basic_data::{HeldFeatures, Loader, LoaderPlan, Preparer, Sampler, Samples, StepSamples};
use basic_models::Checkpoint;
use basic_models::checkpoint::EncoderFiles;

use super::TrainError;
use crate::recipe::{Recipe, Stage, bounded};

/// The steps of a run. Each is drawn and prepared once and given to every replica.
#[derive(Debug)]
pub struct StepSource {
    data: Arc<dyn Samples>,
    preparer: Arc<Preparer>,
    sampler: Sampler,
    steps: usize,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    loader: Option<Loader>,
    step: Option<Arc<StepSamples>>,
}

impl StepSource {
    /// The steps of `recipe` over `data`; only what the order needs is read here.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the checkpoint does not support the style or the length.
    pub fn new(recipe: &Recipe, checkpoint: &Checkpoint, data: Arc<dyn Samples>) -> Result<Self, TrainError> {
        let style = recipe.data.conversation.resolve(checkpoint, recipe.stage == Stage::Pretrain)?;
        let mut preparer = Preparer::new(checkpoint, style, &recipe.loader)?;
        if let Some(encoder) = recipe.objective.encoder() {
            preparer = preparer.with_other_images(EncoderFiles::open(encoder)?.images().clone());
        }
        let preparer = Arc::new(preparer);
        let (batch, visual) = (recipe.train.batch_size, preparer.visual_tokens());
        let sampler = Sampler::new(recipe.loader.order, &*data, batch, recipe.seed, visual);
        let steps = match (recipe.train.steps, recipe.train.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => sampler.steps(epochs.unwrap_or(1.0)),
        };
        let steps = bounded(recipe, steps)?;
        Ok(Self { data, preparer, sampler, steps, current: Mutex::default() })
    }

    /// Number of optimizer steps of the run.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The preparer of the samples.
    pub fn preparer(&self) -> &Preparer {
        &self.preparer
    }

    /// The data.
    pub fn data(&self) -> &dyn Samples {
        &*self.data
    }

    /// Number of passes over the data after `steps` steps.
    pub fn epochs(&self, steps: usize) -> f64 {
        self.sampler.epochs(steps)
    }

    /// Starts the workers at step `first` (0-based). `held` lists the images whose features each replica of this process
    /// has cached; `skipped` holds the samples that were left out before. `process` is this process's number and the
    /// number of processes, where each has one replica: then the others' samples are left to them.
    ///
    /// # Errors
    ///
    /// [`TrainError::Loader`] if no worker thread could be started.
    pub fn start(
        &self,
        recipe: &Recipe,
        first: usize,
        held: Vec<HeldFeatures>,
        skipped: BTreeSet<usize>,
        process: Option<(usize, usize)>,
    ) -> Result<(), TrainError> {
        let limit = recipe.data.skip_limit(self.data.len());
        let plan = LoaderPlan {
            replicas: process.map_or(held.len(), |(_, world)| world).max(1),
            only: process.map(|(rank, _)| rank),
            skip_broken: limit > 0,
            max_skipped: limit,
            skipped,
            held,
            ..LoaderPlan::new(self.steps, recipe.train.micro_batch.unwrap_or(recipe.train.batch_size))
        };
        let (data, preparer) = (self.data.clone(), self.preparer.clone());
        let loader = Loader::start(data, preparer, self.sampler.clone(), &recipe.loader, plan, first)?;
        *self.lock() = Current { loader: Some(loader), step: None };
        Ok(())
    }

    /// The samples of `step` (0-based). Steps must be requested in order; each replica may request the same step.
    /// `None` if an earlier request has failed.
    ///
    /// # Errors
    ///
    /// [`TrainError::Loader`] for a sample that cannot be trained on.
    pub fn step(&self, step: usize) -> Result<Option<Arc<StepSamples>>, TrainError> {
        let mut current = self.lock();
        if let Some(held) = current.step.as_ref().filter(|held| held.step == step) {
            return Ok(Some(held.clone()));
        }
        let Some(loader) = current.loader.as_mut() else { return Ok(None) };
        let next = loader.next()?.map(Arc::new);
        current.step = next.clone();
        Ok(next.filter(|next| next.step == step))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
