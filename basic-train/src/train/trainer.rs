//! The steps of a stage. Reads from top to bottom as a step goes: draw, collate, forward, losses, backward, update.

use std::collections::BTreeMap;
use std::ops::Add;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use basic_core::LossParts;
use basic_models::nn::{Counts, Llava};
use basic_models::processor::Style;
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::module::Module;
use burn::optim::GradientsParams;
use serde::Serialize;

use super::TrainError;
use super::backward::{Backward, backward};
use super::state::{self, Position};
use crate::data::{ImageSource, Order, Sample, Samples, VisionCache, prepare};
use crate::optim::{Optimizer, add_gradients, read_out};
use crate::parallel::{Collective, Solo};
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
    /// The learning rates of the parts that are trained.
    pub lrs: BTreeMap<&'static str, f64>,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
    /// The gradient norms of the parts that have one.
    pub grad_norms: BTreeMap<&'static str, f64>,
    /// Target tokens of the batch.
    pub tokens: usize,
    /// Samples of the batch that have an image with text after it.
    pub image_samples: usize,
    /// Whether the parameters were left as they were, because the loss or the gradients were not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
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
    position: Position,
    collective: Arc<dyn Collective>,
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
            optimizer: Optimizer::new(&recipe.optimizer).with_groups(recipe.groups()),
            cache: frozen_vision.then(|| VisionCache::new(recipe.train.vision_cache_mib)),
            steps: recipe.steps(data.len()),
            position: Position::default(),
            collective: Arc::new(Solo),
        })
    }

    /// As one of several replicas: takes its share of each batch, and sums over all of them.
    pub fn with_collective(self, collective: Arc<dyn Collective>) -> Self {
        Self { collective, ..self }
    }

    /// Goes on from a saved state, whose parameters it puts into `model`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] where the state does not fit the model.
    pub fn restore(&mut self, model: Llava, state: &Path, position: Position) -> Result<Llava, TrainError> {
        let model = state::restore(state, &position, model, &mut self.optimizer)?;
        self.position = position;
        Ok(model)
    }

    /// Steps of the whole stage.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.position.step
    }

    /// Where the stage stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The optimizer with its state.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Does the next step. Where its loss or gradients are not finite, the parameters stay as they are.
    ///
    /// # Errors
    ///
    /// [`TrainError`] for a sample that cannot be trained on, too many steps in a row that are not finite, a failing
    /// device.
    pub fn step(&mut self, model: Llava) -> Result<(Llava, StepMetrics), TrainError> {
        let start = Instant::now();
        let step = self.position.step;
        let recipe = self.recipe;
        let parts = self.batches(step)?;
        let Counts { tokens, image_samples } =
            parts.iter().map(|part| count(&part.tokens)).fold(Counts::default(), Counts::add);
        // What the losses divide by is counted over the whole batch, on whichever device its samples are.
        let mut all = [tokens as f64, image_samples as f64];
        self.collective.sum_f64(&mut all)?;
        let counts = Counts { tokens: all[0] as usize, image_samples: all[1] as usize };
        let mut sums: Option<LossParts> = None;
        let mut gradients: Option<GradientsParams> = None;
        for part in parts {
            let batch = self.collate(&model, part)?;
            let Backward { losses, gradients: found, .. } =
                backward(&model, &batch, &recipe.objective, counts, recipe.train.recompute)?;
            sums = Some(match sums {
                None => losses,
                Some(sums) => LossParts {
                    lm: sums.lm + losses.lm,
                    das: sums.das + losses.das,
                    sds: sums.sds + losses.sds,
                    total: sums.total + losses.total,
                },
            });
            gradients = match (gradients, found) {
                (Some(a), Some(b)) => Some(add_gradients(&model, a, b)),
                (a, b) => a.or(b),
            };
        }
        let gradients = self.collective.sum_gradients(&model, gradients.unwrap_or_default())?;
        let (Some(LossParts { lm, das, sds, total }), false) = (sums, gradients.is_empty()) else {
            return Err(TrainError::NothingTrained { step: step + 1 });
        };
        let mut readout = read_out(&model, &gradients, vec![lm, das, sds, total])?;
        let mut losses: Vec<f64> = readout.values.iter().copied().map(f64::from).collect();
        self.collective.sum_f64(&mut losses)?;
        readout.values = losses.into_iter().map(|loss| loss as f32).collect();
        let [lm, das, sds, total] = readout.values[..] else {
            return Err(TrainError::NothingTrained { step: step + 1 });
        };
        let factor = recipe.schedule.factor(step, self.steps);
        let model = self.optimizer.apply(model, gradients, &readout, factor);
        let skipped = !readout.is_finite();
        let in_a_row = if skipped { self.position.nonfinite_in_a_row + 1 } else { 0 };
        if in_a_row > recipe.train.max_nonfinite || (skipped && step + 1 == self.steps) {
            let (loss, norm) = (total, readout.grad_norm);
            return Err(TrainError::NotFinite { step: step + 1, loss, norm, in_a_row });
        }
        self.position.step += 1;
        self.position.nonfinite_in_a_row = in_a_row;
        self.position.skipped_steps += usize::from(skipped);
        let norm = |part: Part| {
            let norms = part.prefixes().iter().filter_map(|prefix| readout.norm_below(prefix));
            norms.map(|norm| norm * norm).reduce(|a, b| a + b).map(f64::sqrt)
        };
        let seconds = start.elapsed().as_secs_f64();
        let metrics = StepMetrics {
            step: self.position.step,
            lm,
            das,
            sds,
            total,
            lr: recipe.lr() * factor,
            lrs: recipe.trainable().into_iter().map(|part| (part.name(), recipe.part_lr(part) * factor)).collect(),
            grad_norm: readout.grad_norm,
            grad_norms: Part::ALL.into_iter().filter_map(|part| Some((part.name(), norm(part)?))).collect(),
            tokens: counts.tokens,
            image_samples: counts.image_samples,
            skipped,
            samples_per_s: recipe.train.batch_size as f64 / seconds.max(1e-9),
            seconds,
        };
        Ok((model, metrics))
    }

    /// The samples of `step`, in parts that are in memory together.
    fn batches(&mut self, step: usize) -> Result<Vec<MicroBatch>, TrainError> {
        let train = &self.recipe.train;
        let indices = self.order.batch(step, train.batch_size);
        let share = indices.len() / self.collective.world();
        let indices = &indices[self.collective.rank() * share..][..share];
        let mut parts = Vec::new();
        for indices in indices.chunks(train.micro_batch.unwrap_or(train.batch_size)) {
            let mut part = MicroBatch::default();
            for index in indices {
                let sample = self.data.sample(*index)?;
                let mut prepared = prepare(&sample, self.checkpoint, &self.style)?;
                if self.cache.is_none() {
                    for image in &prepared.images {
                        let pixels = image.pixels(self.checkpoint).map_err(|e| sample.image_error(e))?;
                        prepared.tokens.pixels.push(pixels.data);
                    }
                }
                part.images.extend(prepared.images);
                part.tokens.push(prepared.tokens);
                part.samples.push(sample);
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// A part on the model's device.
    fn collate(&mut self, model: &Llava, part: MicroBatch) -> Result<Batch, TrainError> {
        let MicroBatch { tokens, images, samples } = part;
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

#[derive(Default)]
struct MicroBatch {
    tokens: Vec<ImageTokens>,
    images: Vec<ImageSource>,
    samples: Vec<Sample>,
}

/// What a part adds to the counts that the losses divide by.
fn count(samples: &[ImageTokens]) -> Counts {
    let targets = |sample: &ImageTokens| sample.labels.iter().skip(1).filter(|label| **label >= 0).count();
    let supervised = |sample: &&ImageTokens| {
        let mut images = sample.images.iter();
        let inside = |p: usize| sample.images.iter().any(|image| image.contains(&p));
        images.any(|image| image.last().is_some_and(|last| (last + 1..sample.ids.len()).any(|p| !inside(p))))
    };
    Counts { tokens: samples.iter().map(targets).sum(), image_samples: samples.iter().filter(supervised).count() }
}
