//! Records what the steps of a run measure besides their losses.
//!
//! | file | holds |
//! |---|---|
//! | `metrics.jsonl` | one line per step ([`Jsonl`]) |
//! | `eval.jsonl` | one line per evaluation: losses on held-out samples, greedy predictions ([`Jsonl`]) |
//! | `tensorboard/` | the same records as event files ([`TensorBoard`]) |
//!
//! [`Meter`] computes samples/s, tokens/s and MFU from a step's work and time ([`flops`], [`peak`]); [`alignment`]
//! measures the attention mass on the image and the cosine between v and V^; [`memory`] reads the memory of the process
//! and of the device. docs/watching.md defines every key.

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
pub use jsonl::{Jsonl, is_evaluated, missing_steps};
pub use meter::{Meter, Speed, Work};
pub use step::StepMetrics;
pub use tensorboard::TensorBoard;

/// Why a record could not be written.
#[derive(Debug, Error)]
pub enum WatchError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The metrics could not be converted to JSON.
    #[error("the metrics of step {step} could not be written as JSON: {reason}")]
    Json {
        /// The step.
        step: usize,
        /// The error of the conversion.
        reason: String,
    },
}

/// Records what a run reports.
pub trait Watcher: Send {
    /// Called after a step.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file.
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), WatchError>;

    /// Called after the model was evaluated on held-out samples.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file.
    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), WatchError>;

    /// Records a text about the run in Markdown, such as its recipe. The default, used for JSON lines, ignores it.
    ///
    /// # Errors
    ///
    /// [`WatchError`] that names the file.
    fn text(&mut self, _step: usize, _tag: &str, _text: &str) -> Result<(), WatchError> {
        Ok(())
    }
}

/// Several watchers as one, called in order.
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
