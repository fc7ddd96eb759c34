//! What the writers of all formats share: options, errors, and the record of a sample.

use std::path::PathBuf;

use basic_models::CheckpointError;
use basic_models::processor::Role;
use serde_json::{Value, json};
use thiserror::Error;

use crate::{DataError, Sample};

/// Where the images of a written set are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Images {
    /// Copied into the set: beside JSON in a folder `images`, in the archive, or in the table.
    #[default]
    Copy,
    /// Left where they are: image files are named relative to this folder, the set's image root.
    Reference(PathBuf),
}

/// Why a set could not be written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The source data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The directory could not be created or replaced.
    #[error(transparent)]
    Directory(#[from] CheckpointError),
    /// A file could not be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// More samples are broken than may be left out.
    #[error(
        "{skipped} samples are broken, at most {limit} may be left out (--max-skipped); the last one: {last}; look at the data with `basic data check`, or raise the limit"
    )]
    TooManySkipped {
        /// Number of samples left out so far.
        skipped: usize,
        /// How many may be left out.
        limit: usize,
        /// The last one's place and what is wrong with it.
        last: String,
    },
    /// The requested set cannot be written.
    #[error("{0}")]
    Impossible(String),
}

/// How samples are spread over files.
#[derive(Debug, Clone, Copy)]
pub struct Sharding {
    /// Number of samples per file.
    pub shard: usize,
    /// Whether archives are gzipped.
    pub gzip: bool,
}

/// Writes samples in one format; takes them in order.
pub trait Writer {
    fn add(&mut self, index: usize, sample: &Sample, images: &[Image]) -> Result<(), ExportError>;

    /// Completes the files and returns their names.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, ExportError>;
}

/// An image to write, as bytes or as a reference to a file.
pub enum Image {
    Bytes { bytes: std::sync::Arc<[u8]>, extension: &'static str },
    Reference(String),
}

/// The turns as LLaVA writes them, as `(from, value)`.
pub fn turns(sample: &Sample) -> Vec<(&'static str, &str)> {
    let from = |role| match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    };
    sample.messages.iter().map(|message| (from(message.role), message.content.as_str())).collect()
}

/// LLaVA's record of a sample, with the names of its images unless the list is empty.
pub fn record(index: usize, sample: &Sample, names: &[String]) -> Value {
    let mut record = json!({ "id": sample.id().map_or(index.to_string(), String::from) });
    match names {
        [] => {}
        [name] => record["image"] = name.as_str().into(),
        names => record["image"] = names.into(),
    }
    record["conversations"] =
        turns(sample).into_iter().map(|(from, value)| json!({"from": from, "value": value})).collect();
    record
}

/// A directory under construction and the path that it will have.
#[derive(Debug, Clone)]
pub struct Named {
    pub staged: PathBuf,
    pub target: PathBuf,
}

impl Named {
    /// The path to write `name` to, and a function that wraps an I/O error with the file's final path.
    pub fn file(&self, name: &str) -> (PathBuf, impl Fn(std::io::Error) -> ExportError + use<>) {
        let path = self.target.join(name);
        (self.staged.join(name), move |source| ExportError::Io { path: path.clone(), source })
    }
}
