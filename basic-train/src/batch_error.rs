//! Why the losses of a batch could not be computed, in training or in evaluation.

use basic_core::ObjectiveError;
use basic_data::DataError;
use basic_models::CheckpointError;
use basic_models::processor::ProcessorError;
use burn::tensor::TensorReadError;
use thiserror::Error;

/// Why the losses of a batch could not be computed.
///
/// [`TrainError`](crate::train::TrainError) and [`EvaluationError`](crate::watch::EvaluationError) take it in, and whatever it is
/// made from.
#[derive(Debug, Error)]
pub enum BatchError {
    /// The data: a file, or a sample in it.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of the checkpoint or of an image, read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The chat template or the tokenizer.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// A setting of a supervision method.
    #[error("objective: {0}")]
    Objective(#[from] ObjectiveError),
    /// The device failed.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
}
