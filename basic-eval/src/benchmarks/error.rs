//! The errors of running a benchmark.

use std::path::{Path, PathBuf};

use basic_data::{DataError, ImageNameError};
use thiserror::Error;

use crate::questions::EvalError;

/// Why a benchmark could not be run.
#[derive(Debug, Error)]
pub enum BenchmarkError {
    /// There is no benchmark of that name.
    #[error("no benchmark is called {name:?}: there are {known}")]
    Unknown {
        /// The requested name.
        name: String,
        /// The names of all benchmarks.
        known: String,
    },
    /// A file or folder of the benchmark is missing.
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
        /// The underlying error.
        source: std::io::Error,
    },
    /// A line does not have the form that the benchmark's file has.
    #[error("{path}:{line}: {problem}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// An entry does not have the form that the benchmark's file has.
    #[error("{path}: {entry}: {problem}", path = path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Which entry.
        entry: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The stored answers were made by another checkpoint or with other settings.
    #[error("{path}: these answers were made {was}, not {now}: give --fresh to replace them, or another --out", path = path.display())]
    Stale {
        /// The file of answers.
        path: PathBuf,
        /// How they were made.
        was: String,
        /// How they would be made now.
        now: String,
    },
    /// An image does not lie below its folder.
    #[error("{asked}: {source}")]
    Image {
        /// The question.
        asked: String,
        /// Names the image and says what to do.
        source: ImageNameError,
    },
    /// The stored likelihoods do not belong to the question's options.
    #[error(
        "likelihoods.jsonl: question {question} has {found} likelihoods, but {options} options: give --fresh to begin anew"
    )]
    Rankings {
        /// The question.
        question: String,
        /// How many likelihoods there are.
        found: usize,
        /// How many options there are.
        options: usize,
    },
    /// The folder of images or a table could not be opened.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A device's thread could not be started.
    #[error("the thread of device {rank} could not be started: {source}")]
    Thread {
        /// The device's index in the given list, from 0.
        rank: usize,
        /// The underlying error.
        source: std::io::Error,
    },
    /// Processes that share the questions could not bring their answers together.
    #[error("{0}")]
    Peers(String),
    /// A prompt could not be built, or generation failed.
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
