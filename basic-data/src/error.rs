//! The errors of data sets.

use std::path::{Path, PathBuf};

use basic_models::CheckpointError;
use basic_models::outside::excerpt;
use basic_models::processor::ProcessorError;
use thiserror::Error;

/// Why a data set or a sample cannot be used; every message names the file and the sample.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file could not be read.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not valid JSON.
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
        /// What was expected or what was found.
        reason: String,
    },
    /// A file or folder that as a whole is not a data set.
    #[error("{}: {reason}", shown(path))]
    Set {
        /// The file, folder or pattern.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The data set holds no samples.
    #[error("{}: holds no sample", shown(.0))]
    Empty(PathBuf),
    /// A sample that is not in LLaVA's format.
    #[error("{}: sample {}: {reason}", shown(path), excerpt(place))]
    Sample {
        /// The file.
        path: PathBuf,
        /// The sample: its index from 0 and its id.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An image file that is missing, or outside the image folder.
    #[error("{}: sample {}: {reason}", shown(path), excerpt(place))]
    ImageFile {
        /// The data file.
        path: PathBuf,
        /// The sample: its index from 0 and its id.
        place: String,
        /// Names the image and says what to do.
        reason: String,
    },
    /// A conversation that cannot be trained on.
    #[error("{}: sample {}: {source}", shown(path), excerpt(place))]
    Conversation {
        /// The file.
        path: PathBuf,
        /// The sample: its index from 0 and its id.
        place: String,
        /// What is wrong and what to do.
        source: ProcessorError,
    },
    /// An image that cannot be decoded or processed.
    #[error("{}: sample {}: {source}", shown(path), excerpt(place))]
    Image {
        /// The file.
        path: PathBuf,
        /// The sample: its index from 0 and its id.
        place: String,
        /// The decoder's error, which names the image.
        source: CheckpointError,
    },
    /// A sample with more tokens than allowed.
    #[error("{}: sample {}: is {length} tokens long, {}: shorten it, leave it out, or set loader.too_long", shown(path), excerpt(place), longest(*max_length, *context))]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The sample: its index from 0 and its id.
        place: String,
        /// Its length in tokens.
        length: usize,
        /// The largest allowed length in tokens.
        max_length: usize,
        /// The model's context length in tokens.
        context: usize,
    },
}

impl DataError {
    /// Whether the error concerns a single sample only. These are the errors that `on_error = "skip"` leaves out.
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

/// A path as messages show it, shortened if it is a very long pattern.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    // Paths that a file system accepts (up to 4,096 bytes) are shown in full.
    if text.len() <= 4096 { text } else { excerpt(&text) }
}

fn longest(max_length: usize, context: usize) -> String {
    match max_length == context {
        true => format!("the model's context is {context}"),
        false => format!("loader.max_length is {max_length}"),
    }
}
