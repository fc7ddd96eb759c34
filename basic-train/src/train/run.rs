//! A whole run: recipe in, checkpoint, metrics and a record of how it was made out.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use basic_core::DeviceSpec;
use basic_models::checkpoint::{AssembleOptions, EncoderFiles, spare};
use basic_models::{Checkpoint, CheckpointError, outside};
use burn::module::Module;
use burn::tensor::Device;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::output::{self, Replaced};
use super::record::{HeldOut, Inputs, Record};
use super::state;
use super::{Progress, Source, TrainError, Trainer, prepare_model};
use crate::data::{DataError, DataSet, Samples, TooLong, VisionCache, Watched};
use crate::held::Held;
use crate::parallel::{Replicas, Solo};
use crate::plan::{Plan, PlanOptions};
use crate::recipe::{Part, Recipe};
use crate::watch::missing_steps;

/// Samples that are rendered and tokenized before the first step; `basic data check` looks at all of a larger set.
const CHECKED: usize = 20_000;

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Overrides the recipe's device: one, or several that share each batch.
    pub devices: Vec<DeviceSpec>,
    /// Overrides the recipe's output.
    pub out: Option<PathBuf>,
    /// Replace a run that is there.
    pub overwrite: bool,
    /// Go on from the latest state in the output directory.
    pub resume: bool,
    /// What memory a device has, where it does not tell itself.
    pub memory: Option<u64>,
    /// Train even where the plan says that the device cannot hold the run.
    pub force: bool,
    /// Once it is set, the run finishes its step, saves its state and ends.
    pub stop: Option<Arc<AtomicBool>>,
    /// The source's git revision, where known.
    pub revision: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; the output directory is a checkpoint.
    Done(PathBuf),
    /// It was asked to stop and saved its state.
    Stopped {
        /// The output directory.
        out: PathBuf,
        /// Steps done.
        step: usize,
        /// Steps of the whole run.
        steps: usize,
    },
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It runs, or was killed.
    Running,
    /// It was asked to stop and can be resumed.
    Stopped,
    /// The checkpoint is whole.
    Done,
    /// It ended with an error.
    Failed,
}

/// How a run was made: `run.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// Where it stands.
    pub status: Status,
    /// The resolved recipe: every default written out.
    pub recipe: Recipe,
    /// The devices, where they are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceSpec>,
    /// Steps of the run.
    pub steps: usize,
    /// Samples in the data.
    pub samples: usize,
    /// basic's version.
    pub version: String,
    /// Burn's version.
    pub burn: String,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Seconds so far, of the last start.
    pub seconds: f64,
    /// A checksum of recipe and devices; empty in a record that was written without it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub checksum: String,
}

impl RunInfo {
    /// Reads a run's record.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] where the directory holds none, or one that cannot be read.
    pub fn open(run: &Path) -> Result<Self, TrainError> {
        let path = run.join("run.json");
        let wrong = |reason: String| TrainError::Resume { path: path.clone(), reason };
        let text = outside::read_json_text(&path)
            .map_err(|e| wrong(format!("{e}: --resume takes the output directory of a run")))?;
        serde_json::from_str(&text).map_err(|e| wrong(format!("is not the record of a run: {e}")))
    }

    /// The checksum of what a run that goes on takes from here.
    pub(super) fn digest(&self) -> String {
        // A recipe that has no JSON form cannot be written at all, which whoever writes it hears.
        let bytes = serde_json::to_vec(&(&self.recipe, &self.devices)).unwrap_or_default();
        format!("{:016x}", xxh3_64(&bytes))
    }

    /// Refuses a recipe that is not the one that was written.
    fn intact(&self, run: &Path) -> Result<(), TrainError> {
        if self.checksum.is_empty() || self.checksum == self.digest() {
            return Ok(());
        }
        let reason = "is damaged: its recipe is not what the run began with; put back what was there, start anew with \
                      --overwrite, or delete its `checksum` where the recipe was changed on purpose";
        Err(TrainError::Resume { path: run.join("run.json"), reason: reason.into() })
    }
}

/// Runs a recipe. `metrics.jsonl` and `run.json` grow in the output directory; the checkpoint's files get their names
/// when all of them are on disk. `warn` hears of what is not as it should be and does not end the run.
///
/// # Errors
///
/// [`TrainError`]; the output directory then holds the metrics up to the failure, the states that were saved, and no
/// checkpoint.
pub fn run(
    recipe: &Recipe,
    options: &RunOptions,
    warn: &mut dyn FnMut(&str),
    progress: Progress,
) -> Result<Outcome, TrainError> {
    let start = Instant::now();
    let given = recipe;
    let mut recipe = recipe.clone();
    if let Some(device) = options.devices.first() {
        recipe.device = *device;
    }
    let out = options.out.clone().or(recipe.output.clone()).ok_or(TrainError::NoOutput)?;
    recipe.output = Some(out.clone());
    // A study goes on by its own recipes, all others by the run's record.
    let recorded = options.resume.then(|| RunInfo::open(&out).ok()).flatten().filter(|info| info.recipe == *given);
    recipe.optimizer.lr = Some(recipe.lr());
    recipe.resolve_parts();
    let specs = if options.devices.is_empty() { vec![recipe.device] } else { options.devices.clone() };
    let replicas = Replicas::open(&specs)?;
    let world = replicas.world();
    let device = replicas.devices()[0].clone();
    fits(&recipe, options, world, &device)?;

    let checkpoint = open_model(&recipe)?;
    checkpoint.warnings().iter().for_each(|warning| warn(warning));
    recipe.objective.check(&checkpoint.config.shape())?;
    if let Some(name) = recipe.objective.encoder() {
        recipe.objective.check_encoder(EncoderFiles::open(name)?.positions(), &checkpoint.config.shape())?;
    }
    recipe.objective = recipe.objective.resolved(checkpoint.config.text_config.num_hidden_layers)?;
    let data = Arc::new(DataSet::open(&recipe.data, recipe.seed)?);
    let inputs = Inputs::of(&data, &checkpoint)?;
    let beside = Watched::of(&checkpoint.beside_files())?;
    let source = Arc::new(Source::new(&recipe, &checkpoint, data.clone())?);
    check(&recipe, &source)?;
    let held_out = HeldOut::open(&recipe, &checkpoint)?;
    let same = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| out.canonicalize().is_ok_and(|out| dir == out));
    if recipe.model.checkpoint.iter().any(same) {
        let reason = "is the model to start from: choose another output directory";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", out.display())).into());
    }
    if options.overwrite {
        spare(&read_paths(&recipe), &out)?;
    }
    checkpoint.check_beside()?;
    if (0..source.steps()).all(|step| recipe.rate_is_zero(step, source.steps())) {
        warn(
            "the learning rate is 0 in every step, nothing will be learned: see optimizer.lr, the lr of [parts], and schedule.warmup_ratio, by which the first step has none",
        );
    }
    let mut own = None;
    let from = match options.resume {
        true => {
            own = Some(Held::take(&out)?);
            state::sweep(&out);
            state::latest(&out, warn)?
        }
        false => None,
    };
    if options.resume && from.is_none() {
        warn(&format!("{}: no state was saved; the run begins at its first step", out.display()));
    }
    let mut model = prepare_model(&recipe, checkpoint.load(recipe.train.dtype.dtype(), &device)?)?;
    let caches: Vec<_> = replicas.devices().iter().map(|_| Trainer::cache(&recipe)).collect();
    let held = caches.iter().map(|cache| cache.as_ref().map(VisionCache::keys).unwrap_or_default()).collect();
    // The state of all replicas is that of the first.
    let mut first = Trainer::replica(&recipe, source.clone(), Arc::new(Solo), None);
    if let Some((path, position)) = from {
        if let Some(what) = inputs.changed(&position) {
            let reason =
                format!("the {what} are not what they were when this state was saved: put them back, or start anew");
            return Err(TrainError::Resume { path, reason });
        }
        if let (Some(bytes), Some(seen)) = (state::images(&path, &position)?, data.seen()) {
            let wrong = |reason| TrainError::Resume { path: path.join("images.bin"), reason };
            seen.restore(&bytes).map_err(wrong)?;
        }
        model = first.restore(model, &path, position)?;
    }
    if options.resume {
        // Behind the state, whose tensors tell more exactly what a changed recipe does not fit.
        if let Some(info) = recorded {
            info.intact(&out)?;
        }
        if let Some(missing) = missing_steps(&out, first.done()) {
            warn(&missing);
        }
    }
    source.start(&recipe, first.done(), held, first.position().skipped_samples.clone())?;
    let (replaced, held) = match own {
        Some(own) => (output::reopen(&out), own),
        None => output::prepare(&out, options.overwrite, read_paths(&recipe))?,
    };
    let record =
        Record { out: &out, recipe: &recipe, options, source: &source, inputs, held_out, start, data, beside, held };
    if let Err(error) = record.write(Status::Running) {
        let _ = Replaced::restore(replaced);
        return Err(error);
    }

    let (caches, progress) = (Mutex::new(caches), Mutex::new(progress));
    let begin = Mutex::new((Some(model), Some(first), world));
    let results = replicas.run(|collective, device| {
        let rank = collective.rank();
        let cache = lock(&caches)[rank].take();
        let mut trainer = Trainer::replica(&recipe, source.clone(), collective, cache);
        let model = {
            let mut begin = lock(&begin);
            let (model, first, left) = &mut *begin;
            if let Some(first) = first {
                trainer.follow(first, &device.clone().without_autodiff());
            }
            let own = model.clone();
            *left -= 1;
            // Where nothing else holds them, updates change weights and moments in place.
            if *left == 0 {
                (*model, *first) = (None, None);
            }
            own.ok_or(TrainError::NoOutput)?
        };
        // Every replica has leaves of its own.
        let model = if world == 1 { model } else { model.fork(device) };
        record.train(&checkpoint, &mut trainer, model, &mut |step, steps| {
            if rank == 0 {
                (lock(&progress))(step, steps);
            }
        })
    });
    match results.map(|steps| steps.into_iter().flatten().next()) {
        Ok(Some(step)) => {
            record.write(Status::Stopped)?;
            Ok(Outcome::Stopped { out, step, steps: source.steps() })
        }
        Ok(None) => {
            record.write(Status::Done)?;
            replaced.discard()?;
            Ok(Outcome::Done(out))
        }
        // What is there now is not this run's.
        Err(error) if record.held.lost() => Err(error),
        Err(error) => {
            // The failure itself is what the caller must hear of, not a full disk on top of it.
            let _ = record.write(Status::Failed);
            // With states it can go on, and what it replaces stays aside; without, the earlier run comes back.
            if state::saved(&out).is_empty() {
                let _ = Replaced::restore(replaced);
            }
            Err(error)
        }
    }
}

/// What a run that is done lacks of its checkpoint: why that cannot be opened. `None` where it is whole.
pub fn lacks(run: &Path) -> Option<String> {
    // The configuration is the last file to get its name.
    Checkpoint::open(run).err().map(|error| error.to_string())
}

/// Whether a run has a state to go on from.
pub fn can_go_on(run: &Path) -> bool {
    !state::saved(run).is_empty()
}

/// What a run reads, and must not be in the way of what it writes.
fn read_paths(recipe: &Recipe) -> Vec<PathBuf> {
    let model = &recipe.model;
    let models = [&model.checkpoint, &model.vision, &model.llm].into_iter().flatten().cloned();
    let adapters = Part::ALL.into_iter().filter_map(|part| recipe.parts.of(part).adapters.clone());
    let sets = recipe.data.all_sets().into_iter().flat_map(|set| [Some(set.path), set.images]).flatten();
    let held_out = recipe.eval.iter().flat_map(|eval| [Some(eval.path.clone()), eval.images.clone()]).flatten();
    let encoder = recipe.objective.encoder().map(PathBuf::from);
    models.chain(encoder).chain(adapters).chain(sets).chain(held_out).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a run that its plan says the device cannot hold.
fn fits(recipe: &Recipe, options: &RunOptions, devices: usize, device: &Device) -> Result<(), TrainError> {
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

/// Renders and tokenizes samples before the first step, so that a bad one costs seconds and not hours. Where bad ones
/// are left out, the steps that draw them do that.
fn check(recipe: &Recipe, source: &Source) -> Result<(), TrainError> {
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

/// Opens the model that a recipe starts from.
///
/// # Errors
///
/// [`CheckpointError`] that names the file.
pub(crate) fn open_model(recipe: &Recipe) -> Result<Checkpoint, CheckpointError> {
    let checkpoint = open_parts(recipe)?;
    checkpoint.with_images(recipe.model.image_aspect_ratio.as_deref(), recipe.model.max_pixels)
}

fn open_parts(recipe: &Recipe) -> Result<Checkpoint, CheckpointError> {
    match (&recipe.model.checkpoint, &recipe.model.vision, &recipe.model.llm) {
        (Some(dir), _, _) => Checkpoint::open(dir),
        (None, Some(vision), Some(llm)) => {
            let mut options = AssembleOptions { seed: recipe.seed, ..AssembleOptions::default() };
            if let Some(projector) = &recipe.model.projector {
                options.projector = projector.clone();
            }
            Checkpoint::assemble_with(vision, llm, &options)
        }
        // `Recipe::open` has checked it; a recipe built in code may not have been.
        _ => Err(CheckpointError::Mismatch("[model] needs either `checkpoint`, or `vision` and `llm`".into())),
    }
}
