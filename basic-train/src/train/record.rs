//! What a run writes while it runs: steps, states, evaluations, its own record, and in the end the checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use basic_models::checkpoint::{FrozenEncoder, StagedDir};
use basic_models::processor::Style;
use basic_models::{Checkpoint, Llava};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::run::{RunInfo, RunOptions, Status};
use super::state::{self, Position};
use super::{Progress, Source, TrainError, Trainer, output};
use crate::data::{DataConfig, DataError, DataSet, ImageSource, Samples, SeenImages, Watched, content_hash, prepare};
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
    /// What lies beside the model's weights, and is read again for the checkpoint.
    pub beside: Watched,
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
    beside: String,
}

impl Inputs {
    pub(super) fn of(data: &DataSet, checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let model = content_hash(&checkpoint.source_files())?;
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

/// The samples that are kept from training, to look at the model with.
pub(super) struct HeldOut {
    data: DataSet,
    fingerprint: String,
    /// Its image files.
    images: Watched,
    style: Style,
    every: usize,
    options: EvaluationOptions,
}

/// Refuses files that are not what they were when the run began.
fn unchanged(files: &Watched, so: &str) -> Result<(), DataError> {
    let Some(path) = files.changed() else { return Ok(()) };
    let reason = format!("was changed while the run went on, {so}: put it back and go on with --resume, or start anew");
    Err(DataError::Set { path: path.into(), reason })
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

    fn evaluate(
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
                // What was trained is none the worse for it.
                if let Err(error) = unchanged(&held_out.images, "this evaluation would not be of the same images") {
                    self.save(checkpoint, trainer, &model, evaluated)?;
                    return Err(error.into());
                }
                let evaluation = held_out.evaluate(done, &model, checkpoint, self.recipe, trainer.encoder(&model)?)?;
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
            let same = unchanged(&self.beside, "the checkpoint would not be what was trained with");
            let saved = same.map_err(TrainError::from);
            if let Err(error) = saved.and_then(|()| output::save(checkpoint, &model, self.out, self.recipe)) {
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
            unchanged(&self.beside, "the checkpoint would not be what was trained with")?;
            let staged = StagedDir::new(&dir.join("model"), false)?;
            checkpoint.save_into(model, &staged, self.recipe.train.dtype.dtype())?;
            Ok(staged.commit()?)
        };
        let evaluation = evaluated.filter(|(step, _)| *step == trainer.done()).map(|(_, total)| total);
        let Inputs { data, model: start, beside } = self.inputs.clone();
        let position = Position { data, model: start, beside, evaluation, ..trainer.position().clone() };
        let images = self.data.seen().and_then(SeenImages::to_bytes);
        let saved = state::save(self.out, model, trainer.optimizer(), position, images, full)?;
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
