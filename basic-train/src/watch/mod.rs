//! Watching a run: what a step measures beside its losses, and where that is written.
//!
//! | file | holds |
//! |---|---|
//! | `metrics.jsonl` | one line a step ([`Jsonl`]) |
//! | `eval.jsonl` | one line an evaluation: losses on held-out samples, greedy predictions ([`Jsonl`]) |
//! | `tensorboard/` | the same as event files ([`TensorBoard`]) |
//!
//! [`Meter`] turns a step's work and time into samples/s, tokens/s and MFU ([`flops`], [`peak`]); [`alignment`] gives the
//! attention mass on the image and the cosine between v and V^; [`memory`] reads the process's and the device's memory.
//! docs/watching.md defines every key.

mod alignment;
mod evaluation;
pub mod flops;
mod jsonl;
pub mod memory;
mod meter;
pub mod peak;
mod step;
mod tensorboard;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use thiserror::Error;

pub use alignment::{Alignment, alignment};
pub use evaluation::{Evaluation, EvaluationError, EvaluationOptions, Sampled, evaluate};
pub use jsonl::{Jsonl, missing_steps};
pub use meter::{Meter, Speed, Work};
pub use step::StepMetrics;
pub use tensorboard::TensorBoard;

/// Why a record could not be kept.
#[derive(Debug, Error)]
pub enum WatchError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Metrics that have no JSON form.
    #[error("the metrics of step {step} could not be written as JSON: {reason}")]
    Json {
        /// The step.
        step: usize,
        /// Why.
        reason: String,
    },
}

/// Keeps what a run reports.
pub trait Watcher: Send {
    /// A step is done.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file.
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), WatchError>;

    /// The model was evaluated on held-out samples.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file.
    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), WatchError>;

    /// A text about the run, in Markdown, such as its recipe. Kept where texts have a place: not in JSON lines.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file.
    fn text(&mut self, _step: usize, _tag: &str, _text: &str) -> Result<(), WatchError> {
        Ok(())
    }
}

/// Several watchers as one, asked in order.
#[derive(Default)]
pub struct Watchers(pub Vec<Box<dyn Watcher>>);

impl Watcher for Watchers {
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), WatchError> {
        self.0.iter_mut().try_for_each(|watcher| watcher.step(metrics))
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), WatchError> {
        self.0.iter_mut().try_for_each(|watcher| watcher.evaluation(evaluation))
    }

    fn text(&mut self, step: usize, tag: &str, text: &str) -> Result<(), WatchError> {
        self.0.iter_mut().try_for_each(|watcher| watcher.text(step, tag, text))
    }
}
