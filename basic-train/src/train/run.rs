//! A whole run: recipe in, checkpoint, metrics and a record of how it was made out.

use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use basic_core::DeviceSpec;
use basic_models::checkpoint::{AssembleOptions, StagedDir};
use basic_models::{Checkpoint, CheckpointError, Llava};
use burn::module::Module;
use burn::tensor::Device;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::output::{self, Replaced};
use super::{Progress, TrainError, Trainer, set_trainable, state};
use crate::data::{DataSet, Samples, prepare};
use crate::files::write_atomically;
use crate::parallel::{Collective, Replicas, ReplicasError};
use crate::recipe::{Recipe, Stage};
use crate::watch::{Jsonl, TensorBoard, Watcher, Watchers};

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
        let text = std::fs::read_to_string(&path)
            .map_err(|e| wrong(format!("{e}: --resume takes the output directory of a run")))?;
        serde_json::from_str(&text).map_err(|e| wrong(format!("is not the record of a run: {e}")))
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
    let mut recipe = recipe.clone();
    if let Some(device) = options.devices.first() {
        recipe.device = *device;
    }
    let out = options.out.clone().or(recipe.output.clone()).ok_or(TrainError::NoOutput)?;
    recipe.output = Some(out.clone());
    recipe.optimizer.lr = Some(recipe.lr());
    recipe.resolve_parts();
    let replicas =
        Replicas::open(if options.devices.is_empty() { from_ref(&recipe.device) } else { &options.devices })?;
    let (world, batch) = (replicas.world(), recipe.train.batch_size);
    if batch % world != 0 {
        return Err(ReplicasError::Shares { batch, world }.into());
    }
    let device = replicas.devices()[0].clone();

    let checkpoint = open_model(&recipe)?;
    recipe.objective.k = Some(recipe.objective.resolve_k(checkpoint.config.text_config.num_hidden_layers)?);
    let data = DataSet::open(&recipe.data, recipe.seed)?;
    check(&recipe, &checkpoint, &data)?;
    let mut trainer = Trainer::new(&recipe, &checkpoint, &data)?;
    let same = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| out.canonicalize().is_ok_and(|out| dir == out));
    if recipe.model.checkpoint.iter().any(same) {
        let reason = "is the model to start from: choose another output directory";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", out.display())).into());
    }
    let from = match options.resume {
        true => {
            state::sweep(&out);
            state::latest(&out, warn)?
        }
        false => None,
    };
    if options.resume && from.is_none() {
        warn(&format!("{}: no state was saved; the run begins at its first step", out.display()));
    }
    let mut model = set_trainable(checkpoint.load(recipe.train.dtype.dtype(), &device)?, &recipe.trainable());
    let forks = replicas.devices()[1..].iter().map(|device| Mutex::new(Some(model.clone().fork(device))));
    let forks: Vec<Mutex<Option<Llava>>> = forks.collect();
    if let Some((path, position)) = &from {
        model = trainer.restore(model, path, position.clone())?;
    }
    let replaced = if options.resume { output::reopen(&out) } else { output::prepare(&out, options.overwrite)? };
    let record = Record { out: &out, recipe: &recipe, options, samples: data.len(), start };
    let steps = trainer.steps();
    let lead = |collective: Arc<dyn Collective>, _: &Device| {
        let mut trainer = trainer.with_collective(collective.clone());
        record.train(&checkpoint, &mut trainer, &*collective, model, progress)
    };
    // The other replicas do the same steps and write nothing.
    let follow = |collective: Arc<dyn Collective>, _: &Device| -> Result<(), TrainError> {
        let fork = &forks[collective.rank() - 1];
        let mut trainer = Trainer::new(&recipe, &checkpoint, &data)?.with_collective(collective.clone());
        let Some(mut model) = fork.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        if let Some((path, position)) = &from {
            model = trainer.restore(model, path, position.clone())?;
        }
        while trainer.done() < steps && !collective.any(false)? {
            (model, _) = trainer.step(model)?;
        }
        Ok(())
    };
    match replicas.lead(lead, follow) {
        Ok(Some(step)) => {
            record.write(Status::Stopped)?;
            Ok(Outcome::Stopped { out, step, steps })
        }
        Ok(None) => {
            record.write(Status::Done)?;
            replaced.discard()?;
            Ok(Outcome::Done(out))
        }
        Err(error) => {
            // The failure itself is what the caller must hear of, not a full disk on top of it.
            let _ = record.write(Status::Failed);
            let _ = Replaced::restore(replaced);
            Err(error)
        }
    }
}

/// Renders and tokenizes samples before the first step, so that a bad one costs seconds and not hours.
fn check(recipe: &Recipe, checkpoint: &Checkpoint, data: &dyn Samples) -> Result<(), TrainError> {
    let style = recipe.data.conversation.resolve(checkpoint, recipe.stage == Stage::Pretrain)?;
    let looked = |index: usize| prepare(&data.sample(index)?, checkpoint, &style).map(drop);
    let results: Vec<_> = (0..data.len().min(CHECKED)).into_par_iter().map(looked).collect();
    // The first one in the file's order, whichever thread was first.
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

/// Opens the model that a recipe starts from.
///
/// # Errors
///
/// [`CheckpointError`] that names the file.
pub(crate) fn open_model(recipe: &Recipe) -> Result<Checkpoint, CheckpointError> {
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

/// What a run writes while it runs.
struct Record<'a> {
    out: &'a Path,
    recipe: &'a Recipe,
    options: &'a RunOptions,
    samples: usize,
    start: Instant,
}

impl Record<'_> {
    /// Does all steps and writes the checkpoint; or gives the step at which the run was asked to stop.
    fn train(
        &self,
        checkpoint: &Checkpoint,
        trainer: &mut Trainer,
        collective: &dyn Collective,
        mut model: Llava,
        progress: Progress,
    ) -> Result<Option<usize>, TrainError> {
        self.write(Status::Running)?;
        let mut watchers = self.watchers(trainer.done())?;
        let steps = trainer.steps();
        while trainer.done() < steps {
            if collective.any(self.options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::SeqCst)))? {
                self.save(checkpoint, trainer, &model)?;
                return Ok(Some(trainer.done()));
            }
            let step;
            (model, step) = trainer.step(model)?;
            watchers.step(&step)?;
            progress(&step, steps);
            let due = self.recipe.checkpoint.every.is_some_and(|every| trainer.done() % every == 0);
            if due && trainer.done() < steps {
                self.save(checkpoint, trainer, &model)?;
            }
        }
        // The last state stays until the checkpoint is whole: where the disk is full now, nothing is lost.
        if self.recipe.checkpoint.every.is_some() {
            self.save(checkpoint, trainer, &model)?;
        }
        output::save(checkpoint, &model, self.out, self.recipe.train.dtype.dtype())?;
        Ok(None)
    }

    /// Where the steps go.
    fn watchers(&self, done: usize) -> Result<Watchers, TrainError> {
        let jsonl = if self.options.resume { Jsonl::resume(self.out, done) } else { Jsonl::create(self.out) };
        let board = TensorBoard::create(&self.out.join("tensorboard"), done)?;
        Ok(Watchers(vec![Box::new(jsonl?), Box::new(board)]))
    }

    /// Saves the run's state.
    fn save(&self, checkpoint: &Checkpoint, trainer: &Trainer, model: &Llava) -> Result<(), TrainError> {
        let vanished = !self.out.join("run.json").is_file();
        if vanished {
            self.write(Status::Failed)?;
        }
        let dtype = self.recipe.train.dtype.dtype();
        let full = |dir: &Path| {
            if !self.recipe.checkpoint.full {
                return Ok(());
            }
            let staged = StagedDir::new(&dir.join("model"), false)?;
            checkpoint.save_into(model, &staged, dtype)?;
            Ok(staged.commit()?)
        };
        let saved = state::save(self.out, model, trainer.optimizer(), trainer.position().clone(), full)?;
        if vanished {
            let reason = format!(
                "the run's directory has vanished; what was in memory is saved in {}: `basic train --resume {}` goes on from there",
                saved.display(),
                self.out.display()
            );
            return Err(TrainError::Resume { path: self.out.into(), reason });
        }
        state::prune(self.out, self.recipe.checkpoint.keep_last)
    }

    fn write(&self, status: Status) -> Result<(), TrainError> {
        let info = RunInfo {
            status,
            recipe: self.recipe.clone(),
            steps: self.recipe.steps(self.samples),
            samples: self.samples,
            version: env!("CARGO_PKG_VERSION").into(),
            burn: "0.22.1".into(),
            revision: self.options.revision.clone(),
            seconds: self.start.elapsed().as_secs_f64(),
        };
        let path = self.out.join("run.json");
        let text = serde_json::to_string_pretty(&info).map_err(|e| std::io::Error::other(e.to_string()));
        text.and_then(|text| write_atomically(&path, (text + "\n").as_bytes()))
            .map_err(|source| TrainError::Io { path, source })
    }
}
