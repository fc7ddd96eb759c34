//! What can be wrong with a data set.

use std::path::{Path, PathBuf};

use basic_models::CheckpointError;
use basic_models::outside::excerpt;
use basic_models::processor::ProcessorError;
use thiserror::Error;

/// What can be wrong with a data set; every message names the file and the sample.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file could not be read.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not JSON.
    #[error(
        "{}: line {line} column {column}: {reason}: LLaVA's format is a JSON array of samples, or one sample a line",
        shown(path)
    )]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column in bytes, from 1.
        column: u64,
        /// What was expected or found.
        reason: String,
    },
    /// A file or folder that is no data set as a whole.
    #[error("{}: {reason}", shown(path))]
    Set {
        /// The file, folder or pattern.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// No sample at all.
    #[error("{}: holds no sample", shown(.0))]
    Empty(PathBuf),
    /// A sample that is not LLaVA's.
    #[error("{}: sample {}: {reason}", shown(path), excerpt(place))]
    Sample {
        /// The file.
        path: PathBuf,
        /// Which one: its index from 0 and its id.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An image file that is missing, or not below its folder.
    #[error("{}: sample {}: {reason}", shown(path), excerpt(place))]
    ImageFile {
        /// The data file.
        path: PathBuf,
        /// Which one: its index from 0 and its id.
        place: String,
        /// Names the image and says what to do.
        reason: String,
    },
    /// A conversation that cannot be trained on.
    #[error("{}: sample {}: {source}", shown(path), excerpt(place))]
    Conversation {
        /// The file.
        path: PathBuf,
        /// Which one: its index from 0 and its id.
        place: String,
        /// What is wrong and what to do.
        source: ProcessorError,
    },
    /// An image that cannot be decoded or processed.
    #[error("{}: sample {}: {source}", shown(path), excerpt(place))]
    Image {
        /// The file.
        path: PathBuf,
        /// Which one: its index from 0 and its id.
        place: String,
        /// Names the image.
        source: CheckpointError,
    },
    /// A sample with more tokens than it may have.
    #[error("{}: sample {}: is {length} tokens long, {}: shorten it, leave it out, or set loader.too_long", shown(path), excerpt(place), longest(*max_length, *context))]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Which one: its index from 0 and its id.
        place: String,
        /// Its tokens.
        length: usize,
        /// How many it may have.
        max_length: usize,
        /// The model's context.
        context: usize,
    },
}

impl DataError {
    /// Whether one sample is wrong and the others may be right: what `on_error = "skip"` leaves out.
    pub fn is_sample(&self) -> bool {
        matches!(
            self,
            Self::Sample { .. }
                | Self::ImageFile { .. }
                | Self::Conversation { .. }
                | Self::Image { .. }
                | Self::TooLong { .. }
        )
    }
}

/// A path in a message: a pattern may be as long as its writer likes.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    // What a file system takes is told whole.
    if text.len() <= 4096 { text } else { excerpt(&text) }
}

fn longest(max_length: usize, context: usize) -> String {
    match max_length == context {
        true => format!("the model's context is {context}"),
        false => format!("loader.max_length is {max_length}"),
    }
}
