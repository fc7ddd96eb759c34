//! What can be wrong with a benchmark's files.

use std::path::{Path, PathBuf};

use basic_data::{DataError, ImageNameError};
use thiserror::Error;

use crate::questions::EvalError;

/// Why a benchmark could not be run.
#[derive(Debug, Error)]
pub enum BenchmarkError {
    /// No benchmark of that name.
    #[error("no benchmark is called {name:?}: there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A file or folder of the benchmark is not there.
    #[error("{path}: not there: {need}", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it is and where it comes from.
        need: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what the benchmark has there.
    #[error("{path}:{line}: {problem}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// An entry is not what the benchmark has there.
    #[error("{path}: {entry}: {problem}", path = path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Which entry.
        entry: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The answers that are there are not this checkpoint's with these settings.
    #[error("{path}: these answers were made {was}, not {now}: give --fresh to replace them, or another --out", path = path.display())]
    Stale {
        /// The answers.
        path: PathBuf,
        /// How they were made.
        was: String,
        /// How they would be made.
        now: String,
    },
    /// An image that is not below its folder.
    #[error("{asked}: {source}")]
    Image {
        /// The question.
        asked: String,
        /// Names the image and says what to do.
        source: ImageNameError,
    },
    /// The folder of images.
    #[error(transparent)]
    Folder(#[from] DataError),
    /// A device's thread could not be started.
    #[error("the thread of device {rank} could not be started: {source}")]
    Thread {
        /// The device's place among those given, from 0.
        rank: usize,
        /// Why.
        source: std::io::Error,
    },
    /// Generation.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

impl BenchmarkError {
    pub(super) fn line(path: &Path, line: usize, problem: impl ToString) -> Self {
        Self::Line { path: path.into(), line, problem: problem.to_string() }
    }

    pub(super) fn entry(path: &Path, entry: impl ToString, problem: impl ToString) -> Self {
        Self::Entry { path: path.into(), entry: entry.to_string(), problem: problem.to_string() }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
