//! Why questions could not be answered.

use std::path::{Path, PathBuf};

use basic_data::{DataError, ImageNameError};
use basic_models::CheckpointError;
use basic_models::generate::GenerateError;
use basic_models::processor::ProcessorError;
use thiserror::Error;

use crate::lens::LensError;

/// Why a file could not be evaluated.
#[derive(Debug, Error)]
pub enum EvalError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not a question.
    #[error("{path}:{line}: {source}: a question has \"image\", \"text\", \"answer\" and \"category\"", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A folder in place of a file.
    #[error("{path}: is a folder: eval takes a file of questions, one JSON object a line; for a folder of benchmarks, give --bench NAME --root DIR", path = .0.display())]
    Folder(PathBuf),
    /// No question in the file.
    #[error("{path}: holds no question", path = .0.display())]
    Empty(PathBuf),
    /// A question's image that is not there, or not below its folder.
    #[error("question {question}: {source}")]
    Image {
        /// Which one: its place in the file, from 0, and its id.
        question: String,
        /// Names the image and says what to do.
        source: ImageNameError,
    },
    /// The folder of the images.
    #[error(transparent)]
    Root(#[from] DataError),
    /// What is wrong with the questions of a file.
    #[error("{path}: {source}", path = path.display())]
    Of {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<EvalError>,
    },
    /// Checkpoint or image.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Template or tokenizer.
    #[error("question {question}: {source}")]
    Prompt {
        /// Which one: its place in the file, from 0, or its id.
        question: String,
        /// Why.
        source: ProcessorError,
    },
    /// A question whose choices cannot be ranked.
    #[error("question {question}: {reason}")]
    Choices {
        /// Which one: its place in the file, from 0, and its id.
        question: String,
        /// What is wrong with its choices.
        reason: String,
    },
    /// The visual embeddings have no nearest tokens that could replace them.
    #[error("{checkpoint}: question {question}: {source}", checkpoint = checkpoint.display())]
    Replace {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Which one: its place in the file, from 0, and its id.
        question: String,
        /// Why.
        source: Box<LensError>,
    },
    /// A question that leaves no room for its answer in the model's context.
    #[error("question {question}: {source}: shorten it or leave it out, or ask for fewer new tokens")]
    TooLong {
        /// Which one.
        question: String,
        /// The tokens.
        source: GenerateError,
    },
    /// The checkpoint's own fault.
    #[error("{checkpoint}: question {question}: {source}", checkpoint = checkpoint.display())]
    Broken {
        /// Its directory.
        checkpoint: PathBuf,
        /// At which question: its place in the file, from 0, or its id.
        question: String,
        /// Why.
        source: GenerateError,
    },
    /// Generation.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

impl EvalError {
    /// The error with the file that the questions are from, where it does not name one.
    #[must_use]
    pub fn of(self, path: &Path) -> Self {
        match self {
            Self::Image { .. } | Self::Prompt { .. } | Self::Choices { .. } | Self::TooLong { .. } => {
                Self::Of { path: path.into(), source: Box::new(self) }
            }
            named => named,
        }
    }
}
