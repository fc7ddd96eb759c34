//! The steps of a stage. Reads from top to bottom as a step goes: draw, collate, forward, losses, backward, update.

use std::time::Instant;

use basic_core::Objective;
use basic_models::nn::Llava;
use basic_models::processor::Style;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::module::Module;
use serde::Serialize;

use super::TrainError;
use crate::data::{Order, Sample, Samples, VisionCache, prepare};
use crate::optim::Optimizer;
use crate::recipe::{Part, Recipe};

/// What a step did: one line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct StepMetrics {
    /// The step, from 1.
    pub step: usize,
    /// Mean cross entropy over the batch's target tokens.
    pub lm: f32,
    /// Directional alignment supervision, unweighted; 0 where it is off.
    pub das: f32,
    /// Semantic distribution supervision, unweighted; 0 where it is off.
    pub sds: f32,
    /// The objective.
    pub total: f32,
    /// The learning rate.
    pub lr: f64,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
    /// Samples a second, over this step.
    pub samples_per_s: f64,
    /// Seconds of this step.
    pub seconds: f64,
}

/// Sees every step as it is done.
pub type Progress<'a> = &'a mut dyn FnMut(&StepMetrics, usize);

/// A stage in progress.
pub struct Trainer<'a> {
    recipe: &'a Recipe,
    checkpoint: &'a Checkpoint,
    data: &'a dyn Samples,
    style: Style,
    order: Order,
    optimizer: Optimizer,
    cache: Option<VisionCache>,
    steps: usize,
    done: usize,
}

/// Marks the parameters that a run trains; all others are frozen.
pub fn set_trainable(model: Llava, parts: &[Part]) -> Llava {
    let mut model = model.freeze();
    if parts.contains(&Part::Vision) {
        model.vision_tower = model.vision_tower.unfreeze();
    }
    if parts.contains(&Part::Projector) {
        model.multi_modal_projector = model.multi_modal_projector.unfreeze();
    }
    if parts.contains(&Part::Decoder) {
        model.language_model = model.language_model.unfreeze();
        model.lm_head = model.lm_head.map(Module::unfreeze);
    }
    model
}

impl<'a> Trainer<'a> {
    /// A stage at its first step.
    ///
    /// # Errors
    ///
    /// A style that the checkpoint cannot give.
    pub fn new(recipe: &'a Recipe, checkpoint: &'a Checkpoint, data: &'a dyn Samples) -> Result<Self, TrainError> {
        let captions = recipe.stage == crate::recipe::Stage::Pretrain;
        let frozen_vision = !recipe.trainable().contains(&Part::Vision);
        Ok(Self {
            recipe,
            checkpoint,
            data,
            style: recipe.data.conversation.resolve(checkpoint, captions)?,
            order: Order::new(data.len(), recipe.seed),
            optimizer: Optimizer::new(&recipe.optimizer),
            cache: frozen_vision.then(|| VisionCache::new(recipe.train.vision_cache_mib)),
            steps: recipe.steps(data.len()),
            done: 0,
        })
    }

    /// Steps of the whole stage.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Does the next step.
    ///
    /// # Errors
    ///
    /// [`TrainError`] for a sample that cannot be trained on, a loss that is not finite, a failing device.
    pub fn step(&mut self, model: Llava) -> Result<(Llava, StepMetrics), TrainError> {
        let start = Instant::now();
        let step = self.done;
        let objective: &Objective = &self.recipe.objective;
        let batch = self.batch(&model, step)?;
        let forward = model.forward(&batch, objective)?;
        let parts = model.losses(&batch, forward, objective);
        if !parts.total.is_tracked() {
            return Err(TrainError::NothingTrained { step: step + 1 });
        }
        let lr = self.recipe.lr() * self.recipe.schedule.factor(step, self.steps);
        let (model, readout) = self.optimizer.step(model, &parts.total, &[parts.lm, parts.das, parts.sds], lr)?;
        let [lm, das, sds, total] = readout.values[..] else {
            return Err(TrainError::NothingTrained { step: step + 1 });
        };
        if !readout.grad_norm.is_finite() || !total.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, loss: total, norm: readout.grad_norm });
        }
        self.done += 1;
        let seconds = start.elapsed().as_secs_f64();
        let samples_per_s = self.recipe.train.batch_size as f64 / seconds.max(1e-9);
        let grad_norm = readout.grad_norm;
        Ok((model, StepMetrics { step: self.done, lm, das, sds, total, lr, grad_norm, samples_per_s, seconds }))
    }

    /// The batch of `step` on the model's device.
    fn batch(&mut self, model: &Llava, step: usize) -> Result<Batch, TrainError> {
        let mut tokens: Vec<ImageTokens> = Vec::new();
        let mut images = Vec::new();
        let indices = self.order.batch(step, self.recipe.train.batch_size);
        let samples: Result<Vec<_>, _> = indices.iter().map(|index| self.data.sample(*index)).collect();
        let samples = samples?;
        for sample in &samples {
            let mut prepared = prepare(sample, self.checkpoint, &self.style)?;
            if self.cache.is_none() {
                for image in &prepared.images {
                    let pixels = image.pixels(self.checkpoint).map_err(|e| sample.image_error(e))?;
                    prepared.tokens.pixels.push(pixels.data);
                }
            }
            images.extend(prepared.images);
            tokens.push(prepared.tokens);
        }
        let shape = self.checkpoint.image_shape();
        let mut batch = Batch::collate(&tokens, self.checkpoint.pad_id(), shape, &model.device());
        if let Some(cache) = &mut self.cache {
            batch.features = cache.features(model, self.checkpoint, &images).map_err(|error| {
                // The error names the image; the sample that holds it is found by the name.
                let text = error.to_string();
                let holds = |sample: &&Sample| sample.images.iter().any(|image| text.contains(&image.to_string()));
                samples.iter().find(holds).unwrap_or(&samples[0]).image_error(error)
            })?;
        }
        Ok(batch)
    }
}
