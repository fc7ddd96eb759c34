//! Runs the steps of a stage. The file follows the order of a step: draw, collate, forward, losses, backward, update.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use basic_core::Losses;
use basic_data::{LoaderError, MicroBatch, Samples, Skipped};
use basic_models::checkpoint::{EncoderFiles, FrozenEncoder};
use basic_models::config::Tiles;
use basic_models::nn::Llava;
use basic_models::{Batch, Checkpoint};
use burn::tensor::{DType, Tensor};

use super::TrainError;
use super::backward::{Backward, backward_into};
use super::caches::{Caches, Stores};
use super::moments::Moments;
use super::state::{self, Position, Ranks};
use super::step_source::StepSource;
use super::totals::Totals;
use crate::optim::{Optimizer, StepReadout};
use crate::parallel::shard::{Reduced, StepGradients};
use crate::parallel::{Collective, Solo, together};
use crate::recipe::{Mode, Part, Recipe};
use crate::watch::memory::Memory;
use crate::watch::{Alignment, Meter, StepMetrics, Work, alignment, flops};

/// Called with the metrics of every step after it is done.
pub type Progress<'a> = &'a mut (dyn FnMut(&StepMetrics, usize) + Send);

/// A stage in progress, or one replica of it.
pub struct Trainer<'a> {
    recipe: &'a Recipe,
    source: Arc<StepSource>,
    collective: Arc<dyn Collective>,
    optimizer: Optimizer,
    caches: Caches,
    /// The other encoder that a method compares with; loaded onto this replica's device when it is first needed.
    other: Option<Arc<FrozenEncoder>>,
    meter: Option<Meter>,
    position: Position,
    /// The state that this stage goes on from.
    from: Option<PathBuf>,
    started: bool,
}

/// What a step sums over its micro-batches and then over the replicas.
#[derive(Default)]
struct Sums {
    losses: Option<Losses>,
    /// The sums that [`alignment`] returns, `[2]`.
    alignment: Option<Tensor<1>>,
    /// Number of images with text after them, and number of patches.
    images: [f64; 2],
    work: Work,
}

impl Sums {
    fn add(&mut self, batch: &Batch, losses: Losses, aligned: Option<Tensor<1>>, work: Work) {
        self.losses = Some(match self.losses.take() {
            None => losses,
            Some(sum) => sum.plus(losses),
        });
        if let Some(aligned) = aligned {
            let of_batch = Alignment::new([0.0; 2], &batch.layout);
            self.images[0] += of_batch.images;
            self.images[1] += of_batch.patches;
            self.alignment = Some(match self.alignment.take() {
                Some(sum) => sum + aligned,
                None => aligned,
            });
        }
        let (sums, more) = (self.work.sums(), work.sums());
        self.work = Work::from_sums(std::array::from_fn(|i| sums[i] + more[i]));
    }
}

impl<'a> Trainer<'a> {
    /// A stage at its first step, on a single device.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the checkpoint does not support the style or the length, or `train.vision_store` is no folder.
    pub fn new(recipe: &'a Recipe, checkpoint: &Checkpoint, data: Arc<dyn Samples>) -> Result<Self, TrainError> {
        let source = Arc::new(StepSource::new(recipe, checkpoint, data)?);
        let caches = Caches::new(recipe, &Stores::open(recipe)?);
        Ok(Self::replica(recipe, source, Arc::new(Solo), caches))
    }

    /// One replica of a stage. Whoever makes several starts their source, with what all their caches hold.
    pub fn replica(
        recipe: &'a Recipe,
        source: Arc<StepSource>,
        collective: Arc<dyn Collective>,
        caches: Caches,
    ) -> Self {
        Self {
            recipe,
            source,
            started: collective.world() > 1,
            collective,
            optimizer: Optimizer::new(&recipe.optimizer).with_groups(recipe.groups()),
            caches,
            other: None,
            meter: None,
            position: Position::start(),
            from: None,
        }
    }

    /// Goes on from a saved state, whose parameters it puts into `model`, with this rank's share of the optimizer's state.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] if the state does not fit the model.
    pub fn restore(&mut self, model: Llava, state: &Path, position: Position) -> Result<Llava, TrainError> {
        let model = self.restore_model(model, state, position)?;
        self.restore_moments(&model)?;
        Ok(model)
    }

    /// [`Trainer::restore`] without the optimizer's state, which is only looked through. Replicas that
    /// [`follow`](Trainer::follow) this one restore it, each its own share.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] if the state does not fit the model.
    pub fn restore_model(&mut self, model: Llava, state: &Path, position: Position) -> Result<Llava, TrainError> {
        let model = state::restore(state, model)?;
        Moments::open(state, &position, &self.ranks().layout(&model))?;
        self.position = position;
        self.from = Some(state.into());
        Ok(model)
    }

    fn restore_moments(&mut self, model: &Llava) -> Result<(), TrainError> {
        let Some(state) = &self.from else { return Ok(()) };
        let layout = self.ranks().layout(model);
        let moments = Moments::open(state, &self.position, &layout)?;
        moments.restore(&self.position, &layout, &mut self.optimizer)
    }

    /// Begins where another replica began, whose parameters are in `model`: at the same position, with this rank's share
    /// of the optimizer's state.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the state cannot be read any more.
    pub fn follow(&mut self, other: &Trainer, model: &Llava) -> Result<(), TrainError> {
        self.position = other.position.clone();
        self.from = other.from.clone();
        self.restore_moments(model)
    }

    /// The ranks of this run, and what is divided among them.
    pub(super) fn ranks(&self) -> Ranks<'_> {
        let collective = &*self.collective;
        Ranks { collective, shard: self.recipe.parallel.shard(collective.world()) }
    }

    /// Number of steps of the whole stage.
    pub fn steps(&self) -> usize {
        self.source.steps()
    }

    /// This replica's number.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Whether `own` is true on any replica; used so that all replicas stop at the same step.
    ///
    /// # Errors
    ///
    /// [`TrainError::Collective`] if another replica has failed.
    pub fn agree(&self, own: bool) -> Result<bool, TrainError> {
        let mut votes = [f64::from(u8::from(own))];
        self.collective.sum_f64(&mut votes)?;
        Ok(votes[0] > 0.0)
    }

    /// What this replica has done, if all others have done their part too; otherwise the first error, on all of them.
    ///
    /// # Errors
    ///
    /// This replica's own error, or [`TrainError::Collective`] with another's message.
    pub fn together<T>(&self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        together(&*self.collective, own)
    }

    /// Number of steps done.
    pub fn done(&self) -> usize {
        self.position.step
    }

    /// The current position of the stage.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The optimizer with its state.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Runs the next step. If its loss or gradients are not finite, the parameters stay unchanged.
    ///
    /// # Errors
    ///
    /// [`TrainError`] for a sample that cannot be trained on, too many consecutive steps that are not finite, or a
    /// device or replica that fails.
    pub fn step(&mut self, model: Llava) -> Result<(Llava, StepMetrics), TrainError> {
        let start = Instant::now();
        let (step, steps, recipe) = (self.position.step, self.steps(), self.recipe);
        self.start()?;
        let Some(samples) = self.source.step(step)? else {
            // Another replica has found the data broken; the collective returns its error.
            self.collective.barrier()?;
            return Err(TrainError::NothingTrained { step: step + 1 });
        };
        let waited = start.elapsed();
        let all = Totals::of(&samples, &*self.collective)?;
        self.check_skipped(&all)?;
        let counts = all.counts;
        let (collective, mut sums) = (self.collective.clone(), Sums::default());
        let own = samples.of(self.rank()).count();
        let mut gradients = StepGradients::begin(&*collective, self.ranks().shard, &model, own)?;
        for part in samples.of(self.rank()) {
            let before = self.caches.encoded();
            let batch = self.batch(&model, part)?;
            let encoded = self.caches.encoded().zip(before).map(|(after, before)| (after - before) as usize);
            let work = self.work(&model, part, encoded);
            let Backward { losses, v, targets, .. } =
                backward_into(&model, &batch, &recipe.objective, counts, recipe.train.recompute, &mut gradients)?;
            gradients.end_pass(&model)?;
            let aligned = v.zip(targets).map(|(v, targets)| alignment(&v, &targets));
            sums.add(&batch, losses, aligned, work);
        }
        let gradients = gradients.reduce(&model)?;
        if gradients.is_empty() && all.samples > 0 {
            return Err(TrainError::NothingTrained { step: step + 1 });
        }
        let (readout, losses, aligned, work) = self.read(&model, sums, &gradients)?;
        let total = losses.total() as f32;
        let factor = recipe.schedule.factor(step, steps);
        let skipped = !readout.is_finite();
        // A step whose samples were all left out has no gradients; it does not end the run.
        let model = match all.samples {
            0 => model,
            _ => self.optimizer.apply_reduced(model, gradients, &readout, factor, &*collective)?,
        };
        let in_a_row = if skipped { self.position.nonfinite_in_a_row + 1 } else { 0 };
        // A single skipped step is acceptable even at the end, but a run must not end in several of them.
        let ends_so = step + 1 == steps && (in_a_row > 1 || (skipped && step == 0));
        if ends_so || in_a_row > recipe.train.max_nonfinite {
            let (loss, norm) = (total, readout.grad_norm);
            return Err(TrainError::NotFinite { step: step + 1, loss, norm, in_a_row });
        }
        self.position.step += 1;
        self.position.nonfinite_in_a_row = in_a_row;
        self.position.skipped_steps += usize::from(skipped);
        // Taken from this step and not from the source, because a faster replica may have drawn the next step already.
        self.position.skipped_samples.extend(all.broken());
        self.position.too_long += all.skipped.iter().filter(|skipped| skipped.too_long).count() as u64;
        self.position.trained = self.position.trained.map(|trained| trained + all.samples as u64);
        let seconds = start.elapsed().as_secs_f64();
        let metrics = StepMetrics {
            step: self.position.step,
            losses: losses.map(|_, value| value as f32),
            total,
            lr: recipe.lr() * factor,
            lrs: recipe.trainable().into_iter().map(|part| (part.name(), recipe.part_lr(part) * factor)).collect(),
            grad_norm: readout.grad_norm,
            grad_norms: part_norms(&readout),
            tokens: counts.tokens,
            image_samples: counts.image_samples,
            skipped,
            skipped_steps: self.position.skipped_steps,
            attention_mass: aligned.attention_mass(),
            cosine: aligned.cosine(),
            samples: all.samples,
            left_out: all.skipped.iter().map(|skipped| skipped.reason.clone()).collect(),
            skipped_samples: self.position.skipped_samples.len(),
            data_wait: waited.as_secs_f64() / seconds.max(1e-9),
            speed: self.meter.as_ref().map(|meter| meter.speed(work, seconds)).unwrap_or_default(),
            memory: Memory::now(&model.device()),
            seconds,
        };
        Ok((model, metrics))
    }

    /// Returns an error if the processes together have left out more broken samples than they may; the loader of each
    /// counts its own.
    fn check_skipped(&self, all: &Totals) -> Result<(), TrainError> {
        if !self.collective.separate() {
            return Ok(());
        }
        let mut skipped = self.position.skipped_samples.clone();
        skipped.extend(all.broken());
        let limit = self.recipe.data.skip_limit(self.source.data().len());
        let last = all.skipped.iter().rfind(|skipped| !skipped.too_long);
        match last.filter(|_| skipped.len() > limit) {
            Some(Skipped { reason, .. }) => {
                let last = reason.clone();
                Err(LoaderError::TooManySkipped { skipped: skipped.len(), limit, last }.into())
            }
            None => Ok(()),
        }
    }

    /// Starts the source of a single-device stage at the current step.
    fn start(&mut self) -> Result<(), TrainError> {
        if !self.started {
            let held = vec![self.caches.held()];
            let Position { step, skipped_samples, .. } = self.position.clone();
            self.source.start(self.recipe, step, held, skipped_samples, None)?;
            self.started = true;
        }
        Ok(())
    }

    /// Collates a micro-batch on the model's device.
    fn batch(&mut self, model: &Llava, part: &MicroBatch) -> Result<Batch, TrainError> {
        let preparer = self.source.preparer();
        let mut batch = match &mut self.caches.own {
            Some(cache) => part.encoded(preparer, model, cache)?,
            None => part.batch(preparer, &model.device())?,
        };
        if let Some(encoder) = self.encoder(model)? {
            batch.other_features = part.other_features(&encoder, &mut self.caches.other)?;
        }
        Ok(batch)
    }

    /// The second encoder that a supervision method compares with, on the model's device; `None` if no method needs
    /// one.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`](basic_models::CheckpointError) that names its file.
    pub fn encoder(&mut self, model: &Llava) -> Result<Option<Arc<FrozenEncoder>>, TrainError> {
        if let (Some(name), None) = (self.recipe.objective.encoder(), &self.other) {
            let encoder = EncoderFiles::open(name)?.load(model.dtype(), &model.device())?;
            self.other = Some(Arc::new(encoder));
        }
        Ok(self.other.clone())
    }

    /// The number of images, or tiles of images, that a frozen vision encoder has encoded so far; `None` where it is trained.
    pub fn encoded_images(&self) -> Option<u64> {
        self.caches.encoded()
    }

    /// The arithmetic of a micro-batch; a frozen encoder has encoded so many tiles for it.
    fn work(&mut self, model: &Llava, part: &MicroBatch, encoded: Option<usize>) -> Work {
        let (recipe, world) = (self.recipe, self.collective.world());
        let whole = || Part::ALL.into_iter().filter(|part| recipe.mode(*part) == Mode::Full).collect::<Vec<_>>();
        let dtype = recipe.train.dtype.dtype();
        let new = || Meter::new(model.config(), &whole(), &model.device(), dtype, world);
        let meter = self.meter.get_or_insert_with(new);
        let samples = || part.rows.iter().flatten();
        let tiles = || samples().flat_map(|sample| &sample.tokens.tiles);
        let counts = flops::BatchCounts {
            lengths: samples().map(|sample| sample.tokens.ids.len()).collect(),
            labels: part.counts.tokens,
            patches: tiles().map(Tiles::patches).sum(),
            encoded: encoded.unwrap_or_else(|| tiles().map(Tiles::count).sum()),
        };
        meter.work(part.samples(), &counts)
    }

    /// Reads back and sums over all replicas: the losses, the alignment of v with V^, and the work done. The gradient
    /// norms are the same on all replicas.
    fn read(
        &self,
        model: &Llava,
        sums: Sums,
        gradients: &Reduced,
    ) -> Result<(StepReadout, Losses<f64>, Alignment, Work), TrainError> {
        let device = model.device().without_autodiff();
        let losses = sums.losses.unwrap_or_else(|| self.recipe.objective.zeros(&device));
        let mut report: Vec<Tensor<1>> = losses.named().map(|(_, value)| value.clone()).collect();
        let own = report.len();
        report.push(sums.alignment.unwrap_or_else(|| Tensor::zeros([2], (&device, DType::F32))));
        let mut readout: StepReadout = gradients.read_out::<_, TrainError>(model, &*self.collective, report)?;
        let mut values: Vec<f64> = readout.values.iter().map(|value| f64::from(*value)).collect();
        values.extend(sums.images);
        values.extend(sums.work.sums());
        self.collective.sum_f64(&mut values)?;
        let (read, rest) = values.split_at(own);
        let mut read = read.iter().copied();
        let losses = losses.map(|_, _| read.next().unwrap_or(f64::NAN));
        // A sum that exceeds the range of f32 becomes infinite, as it would have on the device.
        readout.values = losses.named().map(|(_, value)| *value as f32).chain([losses.total() as f32]).collect();
        let at = |index: usize| rest.get(index).copied().unwrap_or_default();
        let aligned = Alignment::from_sums(std::array::from_fn(at));
        let work = Work::from_sums(std::array::from_fn(|index| at(index + 4)));
        Ok((readout, losses, aligned, work))
    }
}

/// The gradient norms of the parts that have gradients.
fn part_norms(readout: &StepReadout) -> BTreeMap<&'static str, f64> {
    let norm = |part: Part| {
        let norms = part.prefixes().iter().filter_map(|prefix| readout.norm_below(prefix));
        norms.map(|norm| norm * norm).reduce(|a, b| a + b).map(f64::sqrt)
    };
    Part::ALL.into_iter().filter_map(|part| Some((part.name(), norm(part)?))).collect()
}
