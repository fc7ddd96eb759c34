//! What the writers of all formats share: how a set is written, sample by sample.

use std::path::PathBuf;

use basic_models::CheckpointError;
use basic_models::processor::Role;
use serde_json::{Value, json};
use thiserror::Error;

use crate::{DataError, Sample};

/// Where a written set has its images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Images {
    /// In it: beside JSON in a folder `images`, in the archive, in the table.
    #[default]
    Copy,
    /// Where they are: image files are named relative to this folder, the set's image root.
    Reference(PathBuf),
}

/// Why a set could not be written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// It could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] CheckpointError),
    /// A file could not be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// More broken samples than may be left out.
    #[error(
        "{skipped} samples are broken, at most {limit} may be left out (--max-skipped); the last one: {last}; look at the data with `basic data check`, or raise the limit"
    )]
    TooManySkipped {
        /// Samples left out so far.
        skipped: usize,
        /// How many may be.
        limit: usize,
        /// The last one's place and what is wrong with it.
        last: String,
    },
    /// What is asked for cannot be written.
    #[error("{0}")]
    Impossible(String),
}

/// How samples are spread over files.
#[derive(Debug, Clone, Copy)]
pub struct Sharding {
    /// Samples of a file.
    pub shard: usize,
    /// Gzip archives.
    pub gzip: bool,
}

/// A format's writer: takes the samples in order.
pub trait Writer {
    fn add(&mut self, index: usize, sample: &Sample, images: &[Image]) -> Result<(), ExportError>;

    /// Completes the files and returns their names.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, ExportError>;
}

/// An image to write.
pub enum Image {
    Bytes { bytes: std::sync::Arc<[u8]>, extension: &'static str },
    Reference(String),
}

/// The turns as LLaVA writes them: `(from, value)`.
pub fn turns(sample: &Sample) -> Vec<(&'static str, &str)> {
    let from = |role| match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    };
    sample.messages.iter().map(|message| (from(message.role), message.content.as_str())).collect()
}

/// LLaVA's record of a sample, with the names of its images where they are named.
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

/// A directory under construction and the name that it will have.
#[derive(Debug, Clone)]
pub struct Named {
    pub staged: PathBuf,
    pub target: PathBuf,
}

impl Named {
    /// Where to write `name`, and an error that names where it will be.
    pub fn file(&self, name: &str) -> (PathBuf, impl Fn(std::io::Error) -> ExportError + use<>) {
        let path = self.target.join(name);
        (self.staged.join(name), move |source| ExportError::Io { path: path.clone(), source })
    }
}
