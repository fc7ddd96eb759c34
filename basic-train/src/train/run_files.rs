//! The files that a run writes while it runs: steps, states, evaluations, and its record.

use std::path::Path;
use std::time::Instant;

use basic_data::{DataSet, Samples, SeenImages, Watched};
use basic_models::atomic_file::write_atomically;
use basic_models::checkpoint::StagedDir;
use basic_models::{Checkpoint, Llava};

use super::inputs::{HeldOut, Inputs, unchanged};
use super::state::{self, Position};
use super::{RunInfo, RunOptions, Status, StepSource, TrainError, Trainer};
use crate::directory_lock::Held;
use crate::parallel::{Collective, CollectiveError, together};
use crate::recipe::Recipe;
use crate::watch::{Jsonl, TensorBoard, Watcher, Watchers};

/// The files that a run writes while it runs, with what is needed to write them.
pub(super) struct RunFiles<'a> {
    pub out: &'a Path,
    pub recipe: &'a Recipe,
    pub options: &'a RunOptions,
    pub source: &'a StepSource,
    pub inputs: &'a Inputs,
    pub held_out: Option<&'a HeldOut>,
    pub start: Instant,
    /// The data, to check whether it has changed.
    pub data: &'a DataSet,
    /// The files beside the model's weights, which are read again when a checkpoint is written.
    pub beside: &'a Watched,
    /// The lock on the output directory; only the process that writes has one.
    pub held: Option<Held>,
}

impl RunFiles<'_> {
    /// Whether the output directory has been removed or replaced.
    pub(super) fn vanished(&self) -> bool {
        self.lost() || (self.held.is_some() && !self.out.join("run.json").is_file())
    }

    /// Whether the directory that is locked is not the output directory any more.
    pub(super) fn lost(&self) -> bool {
        self.held.as_ref().is_some_and(Held::lost)
    }

    /// Returns an error if data files have changed since the run began, because the model would then be trained on a
    /// mixture of both versions.
    pub(super) fn unchanged(&self) -> Result<(), TrainError> {
        self.data.unchanged(&self.inputs.data)?;
        match self.held_out {
            Some(held_out) => Ok(held_out.unchanged()?),
            None => Ok(()),
        }
    }

    /// Whether the state after `done` steps lacks the whole model that it should hold, because that could not be written.
    pub(super) fn lacks_model(&self, done: usize) -> bool {
        self.recipe.checkpoint.full && done > 0 && !state::has_model(self.out, done)
    }

    /// The held-out samples, if they are evaluated after step `done` of `steps`.
    pub(super) fn evaluates_at(&self, done: usize, steps: usize) -> Option<&HeldOut> {
        let due = |held_out: &HeldOut| done > 0 && (done.is_multiple_of(held_out.every) || done == steps);
        self.held_out.filter(|held_out| due(held_out))
    }

    /// The watchers that record the steps after `done`.
    pub(super) fn watchers(&self, done: usize) -> Result<Watchers, TrainError> {
        let lines = if self.options.resume { Jsonl::resume(self.out, done)? } else { Jsonl::create(self.out)? };
        let mut watchers = Watchers(vec![Box::new(lines)]);
        if self.recipe.watch.tensorboard {
            watchers.0.push(Box::new(TensorBoard::create(&self.out.join("tensorboard"), done)?));
            let recipe = toml::to_string(self.recipe).unwrap_or_default();
            watchers.text(done, "recipe", &format!("```toml\n{recipe}```"))?;
        }
        Ok(watchers)
    }

    /// Saves the run's state; all ranks call it together. `evaluated` is the step that was evaluated last, with its
    /// objective.
    pub(super) fn save(
        &self,
        checkpoint: &Checkpoint,
        trainer: &Trainer,
        model: &Llava,
        evaluated: Option<(usize, f64)>,
    ) -> Result<(), TrainError> {
        let ranks = trainer.ranks();
        let first = trainer.rank() == 0;
        let Anew { vanished, held } =
            together(ranks.collective, if first { self.before_save() } else { Ok(Anew::default()) })?;
        let full = |dir: &Path| -> Result<(), TrainError> {
            unchanged(self.beside, "the checkpoint would not be what was trained with")?;
            let staged = StagedDir::new(&dir.join("model"), false)?;
            checkpoint.save_into(model, &staged, self.recipe.train.dtype.dtype())?;
            Ok(staged.commit()?)
        };
        // Without the whole model, the state is still there to go on from.
        let mut incomplete = Ok(());
        let full = |dir: &Path| incomplete = if self.recipe.checkpoint.full { full(dir) } else { Ok(()) };
        let evaluation = evaluated.filter(|(step, _)| *step == trainer.done()).map(|(_, total)| total);
        let Inputs { data, model: start, beside } = self.inputs.clone();
        let position = Position { data, model: start, beside, evaluation, ..trainer.position().clone() };
        let images = match self.data.seen() {
            Some(seen) => self.seen(seen, ranks.collective)?,
            None => None,
        };
        let saved = state::save(self.out, model, trainer.optimizer(), ranks, position, images, full)?;
        drop(held);
        let after = match (first, vanished) {
            (false, _) => Ok(()),
            // An earlier state with a whole model is then still needed.
            (true, false) => {
                incomplete.and_then(|()| state::prune(self.out, self.recipe.checkpoint.keep_last, trainer.done()))
            }
            (true, true) => {
                let reason = format!(
                    "the run's directory has vanished; what was in memory is saved in {}: `basic train --resume {}` goes on from there",
                    saved.display(),
                    self.out.display()
                );
                Err(TrainError::Resume { path: self.out.into(), reason })
            }
        };
        together(ranks.collective, after)
    }

    /// The record of the image files that all processes have read.
    fn seen(&self, seen: &SeenImages, collective: &dyn Collective) -> Result<Option<Vec<u8>>, TrainError> {
        let own = seen.to_bytes();
        if !collective.separate() {
            return Ok(own);
        }
        for bytes in collective.gather_bytes(&own.unwrap_or_default())?.iter().filter(|bytes| !bytes.is_empty()) {
            seen.merge(bytes).map_err(|reason| CollectiveError::Transfer(format!("the record of images {reason}")))?;
        }
        Ok(seen.to_bytes())
    }

    /// Looks whether the data is what it was and the output directory is there, which is made anew if it has vanished.
    fn before_save(&self) -> Result<Anew, TrainError> {
        // The held-out data is nothing to what was trained.
        self.data.unchanged(&self.inputs.data)?;
        let mut anew = Anew { vanished: self.vanished(), held: None };
        if anew.vanished {
            if self.lost() {
                anew.held = Some(Held::take(self.out)?);
                if self.out.join("run.json").exists() {
                    let reason = "another run has taken the place of this one, which ends and is not saved".into();
                    return Err(TrainError::Resume { path: self.out.into(), reason });
                }
            }
            self.write(Status::Failed)?;
        }
        Ok(anew)
    }

    /// Writes the run's record, if this process writes.
    pub(super) fn write(&self, status: Status) -> Result<(), TrainError> {
        if self.held.is_none() {
            return Ok(());
        }
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

/// The output directory before a state is saved.
#[derive(Default)]
struct Anew {
    /// Whether it had vanished.
    vanished: bool,
    /// The lock on the new one.
    held: Option<Held>,
}
