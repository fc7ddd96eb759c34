//! What a run writes while it runs: steps, states, evaluations, its own record, and in the end the checkpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use basic_models::checkpoint::StagedDir;
use basic_models::processor::Style;
use basic_models::{Checkpoint, Llava};
use rayon::prelude::*;

use super::run::{RunInfo, RunOptions, Status};
use super::state::{self, Position};
use super::{Progress, Source, TrainError, Trainer, output};
use crate::data::{DataConfig, DataSet, Samples, content_hash, prepare};
use crate::files::write_atomically;
use crate::held::Held;
use crate::recipe::{EvalConfig, Recipe, Stage};
use crate::watch::{Evaluation, EvaluationError, EvaluationOptions, Jsonl, TensorBoard, Watcher, Watchers, evaluate};

/// What a run writes while it runs.
pub(super) struct Record<'a> {
    pub out: &'a Path,
    pub recipe: &'a Recipe,
    pub options: &'a RunOptions,
    pub source: &'a Source,
    pub inputs: Inputs,
    pub held_out: Option<HeldOut>,
    pub start: Instant,
    /// The data, to look whether it is still what it was.
    pub data: Arc<DataSet>,
    /// The output directory, which is this process's own.
    pub held: Held,
}

/// Between two looks at the data files, at least; and so many times what the last look took.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_SHARE: u32 = 100;

/// What a run reads, by its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inputs {
    data: String,
    model: String,
}

impl Inputs {
    pub(super) fn of(data: &DataSet, checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let model = content_hash(&checkpoint.source_files())?;
        Ok(Self { data: data.fingerprint()?, model: format!("{model:016x}") })
    }

    /// What a state of this run cannot go on with.
    pub(super) fn changed(&self, since: &Position) -> Option<&'static str> {
        if self.data != since.data {
            return Some("data files");
        }
        (!since.model.is_empty() && self.model != since.model).then_some("model's files")
    }
}

/// The samples that are kept from training, to look at the model with.
pub(super) struct HeldOut {
    data: DataSet,
    fingerprint: String,
    style: Style,
    every: usize,
    options: EvaluationOptions,
}

impl HeldOut {
    pub(super) fn open(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<Option<Self>, TrainError> {
        let Some(config) = &recipe.eval else { return Ok(None) };
        let EvalConfig { path, images, format, every, samples, predictions, max_new_tokens } = config.clone();
        let data = DataConfig { images, format, limit: Some(samples), ..DataConfig::new(path) };
        let options = EvaluationOptions {
            samples,
            batch_size: recipe.train.micro_batch.unwrap_or(recipe.train.batch_size),
            predictions,
            max_new_tokens,
        };
        let style = recipe.data.conversation.resolve(checkpoint, recipe.stage == Stage::Pretrain)?;
        let data = DataSet::open(&data, recipe.seed)?;
        let fingerprint = data.fingerprint()?;
        // A sample that cannot be used ends the run now, and not at its first evaluation.
        let usable = |index: usize| -> Result<(), EvaluationError> {
            let sample = data.sample(index)?;
            let images = prepare(&sample, checkpoint, &style)?.images;
            Ok(images
                .iter()
                .try_for_each(|image| image.pixels(checkpoint).map(drop).map_err(|e| sample.image_error(e)))?)
        };
        let looked: Vec<_> = (0..data.len().min(samples)).into_par_iter().map(usable).collect();
        looked.into_iter().collect::<Result<(), _>>()?;
        Ok(Some(Self { data, fingerprint, style, every, options }))
    }

    fn evaluate(
        &self,
        step: usize,
        model: &Llava,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
    ) -> Result<Evaluation, TrainError> {
        Ok(evaluate(step, model, checkpoint, &self.data, &self.style, &recipe.objective, &self.options)?)
    }
}

impl Record<'_> {
    /// Does all steps and, on the first replica, writes the checkpoint; or gives the step at which the run was asked to
    /// stop.
    pub(super) fn train(
        &self,
        checkpoint: &Checkpoint,
        trainer: &mut Trainer,
        mut model: Llava,
        progress: Progress,
    ) -> Result<Option<usize>, TrainError> {
        let writes = trainer.rank() == 0;
        let mut watchers = if writes { self.watchers(trainer.done())? } else { Watchers::default() };
        // A state that is saved again keeps what it knew.
        let mut evaluated = trainer.position().evaluation.map(|total| (trainer.done(), total));
        let steps = trainer.steps();
        let (mut looked, mut pause) = (Instant::now(), LOOK_EVERY);
        let mut left_out = None;
        while trainer.done() < steps {
            if trainer.agree(self.options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::SeqCst)))? {
                if writes {
                    self.save(checkpoint, trainer, &model, evaluated)?;
                }
                return Ok(Some(trainer.done()));
            }
            let step;
            (model, step) = trainer.step(model)?;
            watchers.step(&step)?;
            left_out = step.left_out.last().cloned().or(left_out);
            progress(&step, steps);
            if writes && self.vanished() {
                self.save(checkpoint, trainer, &model, evaluated)?;
            }
            if writes && looked.elapsed() >= pause {
                let start = Instant::now();
                self.unchanged()?;
                (looked, pause) = (Instant::now(), LOOK_EVERY.max(start.elapsed() * LOOK_SHARE));
            }
            let done = trainer.done();
            let due = |every: Option<usize>| every.is_some_and(|every| done.is_multiple_of(every));
            if let (true, Some(held_out)) = (writes, &self.held_out)
                && (due(Some(held_out.every)) || done == steps)
            {
                let evaluation = held_out.evaluate(done, &model, checkpoint, self.recipe)?;
                watchers.evaluation(&evaluation)?;
                evaluated = Some((done, evaluation.total));
            }
            if writes && due(self.recipe.checkpoint.every) && done < steps {
                self.save(checkpoint, trainer, &model, evaluated)?;
            }
        }
        if trainer.position().trained == Some(0) {
            return Err(TrainError::NothingLearned { out: self.out.into(), steps, last: left_out });
        }
        if writes {
            self.unchanged()?;
            // The last state stays until the checkpoint is whole: where the disk is full now, nothing is lost.
            if self.recipe.checkpoint.every.is_some() || self.vanished() {
                self.save(checkpoint, trainer, &model, evaluated)?;
            }
            if let Err(error) = output::save(checkpoint, &model, self.out, self.recipe) {
                // What was trained is often far smaller than the checkpoint: there may be room for that.
                if self.recipe.checkpoint.every.is_none() {
                    let _ = self.save(checkpoint, trainer, &model, evaluated);
                }
                return Err(error);
            }
        }
        Ok(None)
    }

    /// Whether the output directory is not there any more.
    fn vanished(&self) -> bool {
        self.held.lost() || !self.out.join("run.json").is_file()
    }

    /// Refuses data files that are not what they were when the run began: what it has learned since is of both.
    fn unchanged(&self) -> Result<(), TrainError> {
        self.data.unchanged(&self.inputs.data)?;
        match &self.held_out {
            Some(held_out) => Ok(held_out.data.unchanged(&held_out.fingerprint)?),
            None => Ok(()),
        }
    }

    /// Who hears of the steps behind `done`.
    fn watchers(&self, done: usize) -> Result<Watchers, TrainError> {
        let lines = if self.options.resume { Jsonl::resume(self.out, done)? } else { Jsonl::create(self.out)? };
        let mut watchers = Watchers(vec![Box::new(lines)]);
        if self.recipe.watch.tensorboard {
            watchers.0.push(Box::new(TensorBoard::create(&self.out.join("tensorboard"), done)?));
            let recipe = toml::to_string(self.recipe).unwrap_or_default();
            watchers.text(done, "recipe", &format!("```toml\n{recipe}```"))?;
        }
        Ok(watchers)
    }

    /// Saves the run's state; `evaluated` is the last step that was evaluated, and the objective there.
    fn save(
        &self,
        checkpoint: &Checkpoint,
        trainer: &Trainer,
        model: &Llava,
        evaluated: Option<(usize, f64)>,
    ) -> Result<(), TrainError> {
        self.unchanged()?;
        let vanished = self.vanished();
        let mut anew = None;
        if vanished {
            if self.held.lost() {
                anew = Some(Held::take(self.out)?);
                if self.out.join("run.json").exists() {
                    let reason = "another run has taken the place of this one, which ends and is not saved".into();
                    return Err(TrainError::Resume { path: self.out.into(), reason });
                }
            }
            self.write(Status::Failed)?;
        }
        let full = |dir: &Path| {
            if !self.recipe.checkpoint.full {
                return Ok(());
            }
            let staged = StagedDir::new(&dir.join("model"), false)?;
            checkpoint.save_into(model, &staged, self.recipe.train.dtype.dtype())?;
            Ok(staged.commit()?)
        };
        let evaluation = evaluated.filter(|(step, _)| *step == trainer.done()).map(|(_, total)| total);
        let Inputs { data, model: start } = self.inputs.clone();
        let position = Position { data, model: start, evaluation, ..trainer.position().clone() };
        let saved = state::save(self.out, model, trainer.optimizer(), position, full)?;
        drop(anew);
        if vanished {
            let reason = format!(
                "the run's directory has vanished; what was in memory is saved in {}: `basic train --resume {}` goes on from there",
                saved.display(),
                self.out.display()
            );
            return Err(TrainError::Resume { path: self.out.into(), reason });
        }
        state::prune(self.out, self.recipe.checkpoint.keep_last, trainer.done())
    }

    pub(super) fn write(&self, status: Status) -> Result<(), TrainError> {
        let info = RunInfo {
            status,
            recipe: self.recipe.clone(),
            devices: self.options.devices.clone(),
            steps: self.source.steps(),
            samples: self.source.data().len(),
            version: env!("CARGO_PKG_VERSION").into(),
            burn: "0.22.1".into(),
            revision: self.options.revision.clone(),
            seconds: self.start.elapsed().as_secs_f64(),
            checksum: String::new(),
        };
        let info = RunInfo { checksum: info.digest(), ..info };
        let path = self.out.join("run.json");
        let text = serde_json::to_string_pretty(&info).map_err(|e| std::io::Error::other(e.to_string()));
        text.and_then(|text| write_atomically(&path, (text + "\n").as_bytes()))
            .map_err(|source| TrainError::Io { path, source })
    }
}
