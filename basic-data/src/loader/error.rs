//! Why no more batches come.

use basic_models::CheckpointError;
use thiserror::Error;

use crate::DataError;

/// Why a loader stopped.
#[derive(Debug, Error)]
pub enum LoaderError {
    /// A sample that cannot be trained on.
    #[error(transparent)]
    Data(#[from] DataError),
    /// More samples were left out than may be.
    #[error(
        "{skipped} samples were left out, at most {limit} may be (data.max_skipped); the last one: {last}; look at the data with `basic data check`, or raise the limit"
    )]
    TooManySkipped {
        /// Samples left out so far.
        skipped: usize,
        /// How many may be.
        limit: usize,
        /// The last one's place and what is wrong with it.
        last: String,
    },
    /// A sample made the code that prepares it panic: a defect of this program.
    #[error("sample {index} of the data broke the loader: {message}; leave the sample out and report it")]
    Panicked {
        /// The sample's index over all data of the run.
        index: usize,
        /// The panic's message.
        message: String,
    },
    /// `max_length` is not a length that the model can take.
    #[error("loader.max_length is {max_length}; it must be between 1 and the model's context, {context}")]
    MaxLength {
        /// The value.
        max_length: usize,
        /// The model's context.
        context: usize,
    },
    /// A worker thread could not be started.
    #[error("a data worker could not be started: {0}; set loader.workers to a smaller number, 0 for none")]
    Start(std::io::Error),
}

impl LoaderError {
    /// An image's error, with the place of its sample.
    pub(super) fn image(file: &std::path::Path, place: &str, source: CheckpointError) -> Self {
        Self::Data(DataError::Image { path: file.into(), place: place.into(), source })
    }
}
