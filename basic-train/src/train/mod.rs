//! A run of a recipe, and each step of it.
//!
//! [`run`] is in `loop`, which reads from top to bottom as a run goes: open, prepare, train, conclude. `trainer` does one step:
//! draw, collate, forward, losses, backward, update; `backward` computes the losses and gradients of a batch. Around them:
//!
//! - `inputs` opens the data and the held-out samples, `checks` refuses what cannot be trained, `preparer` makes samples ready
//!   as the run would;
//! - `model` says which parameters are trained, `heads` makes and saves the trainable heads of supervision methods;
//! - `step_source` draws the samples of each step, `caches` keeps the features of frozen vision encoders;
//! - `state` saves what a run needs to resume, `moments` the optimizer's part of it, in files that `tensor_file` reads and
//!   writes;
//! - `options` has the caller's options, `run_info` the record `run.json`, `run_files` writes it and the metrics, `output`
//!   takes the output directory.

mod backward;
mod caches;
mod checks;
mod checksum;
mod heads;
mod inputs;
mod r#loop;
mod model;
mod moments;
mod options;
mod output;
mod preparer;
mod run_files;
mod run_info;
mod state;
mod step_source;
mod tensor_file;
mod totals;
mod trainer;

pub use backward::{Backward, backward, backward_into};
pub use caches::{Caches, Stores};
pub use checksum::Checksum;
pub use heads::head_file;
pub use r#loop::run;
pub use model::{adapters, prepare_model};
pub use options::{Outcome, RunOptions};
pub use preparer::preparer;
pub use run_info::{RunInfo, Status, can_go_on, lacks};
pub use state::Position;
pub use step_source::StepSource;
pub use trainer::{Progress, Trainer};

use std::path::PathBuf;

use basic_core::{DeviceError, DeviceSpec};
use basic_data::LoaderError;
use basic_models::adapters::AdapterError;
use thiserror::Error;

use crate::batch_error::BatchError;
use crate::directory_lock::HoldError;
use crate::parallel::{CollectiveError, ReplicasError};
use crate::plan::PlanError;
use crate::recipe::RecipeError;
use crate::watch::{EvaluationError, WatchError};

/// Why a run stopped.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data, the checkpoint, a setting of a supervision method, or the device.
    #[error(transparent)]
    Batch(BatchError),
    /// A batch that could not be made.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// Adapters that the model cannot have.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Another replica, or the devices together.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Devices that cannot train together.
    #[error(transparent)]
    Replicas(#[from] ReplicasError),
    /// A record could not be kept.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The held-out samples.
    #[error("eval: {0}")]
    Evaluation(#[from] EvaluationError),
    /// The device was not found.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The loss or its gradients are not finite, in more steps in a row than the recipe allows, or in the last one.
    #[error(
        "step {step}: the loss ({loss}) or its gradient norm ({norm}) is not finite, the {in_a_row}. time in a row: lower optimizer.lr or the lambdas"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// The objective.
        loss: f32,
        /// The gradient norm.
        norm: f32,
        /// How many steps in a row were not, this one included.
        in_a_row: usize,
    },
    /// A supervision method's head that does not fit the recipe.
    #[error(
        "{path}: {reason} Set [objective] as the run that trained it had it, or take the file away to start a fresh head",
        path = path.display()
    )]
    Head {
        /// The head's file.
        path: PathBuf,
        /// What does not fit, as a sentence.
        reason: String,
    },
    /// Processes that were launched together and do not read the same.
    #[error(
        "{what} of rank {rank} differ from rank 0's: all processes must read the same files and be of the same build; copy them to every machine, or give all the same path on a shared file system"
    )]
    Differs {
        /// The first rank that differs.
        rank: usize,
        /// What differs, as the beginning of a sentence.
        what: &'static str,
    },
    /// A run cannot go on.
    #[error("{path}: {reason}", path = path.display())]
    Resume {
        /// The run, or the file in it.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// No gradient reaches what is trained.
    #[error(
        "step {step}: no sample of the batch reaches a trainable parameter (text only, and the decoder is frozen): train the decoder, or mix samples with images into every batch (loader.order = \"grouped\" keeps the two apart)"
    )]
    NothingTrained {
        /// The step, from 1.
        step: usize,
    },
    /// Nothing was left of the data to train on.
    #[error(
        "{out}: no sample was trained on in {steps} steps, all that were drawn were left out{last}: no checkpoint is written; look at the data with `basic data check`, and at left_out in {out}/metrics.jsonl",
        out = out.display(),
        last = last.as_ref().map(|last| format!(", such as {last}")).unwrap_or_default()
    )]
    NothingLearned {
        /// The run.
        out: PathBuf,
        /// Its steps.
        steps: usize,
        /// What is wrong with the last one.
        last: Option<String>,
    },
    /// Another process writes there.
    #[error(transparent)]
    Held(#[from] HoldError),
    /// What the run would take is not known.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device is too small.
    #[error(
        "the run needs about {needs:.1} GiB on {device}, which has {has:.1} GiB ({says}): `basic train RECIPE --plan` shows what for; try a smaller train.micro_batch, train.recompute or adapters, or --force"
    )]
    DoesNotFit {
        /// The device.
        device: DeviceSpec,
        /// GiB that the plan estimates.
        needs: f64,
        /// GiB that there are.
        has: f64,
        /// Who says so.
        says: &'static str,
    },
    /// A file of the run could not be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No place to write to.
    #[error("the run has no output directory: set `output` in the recipe or pass --out")]
    NoOutput,
}

impl<E> From<E> for TrainError
where
    BatchError: From<E>,
{
    fn from(error: E) -> Self {
        Self::Batch(error.into())
    }
}
