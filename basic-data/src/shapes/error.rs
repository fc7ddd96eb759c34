//! The errors of Shapes.

use std::io;
use std::path::PathBuf;

/// Why a scene was refused or a data set could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShapesError {
    /// A file or directory could not be read, made or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The directory for a new data set already holds something.
    #[error("{path} is not empty: give a new or empty directory", path = path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// An image could not be encoded.
    #[error("{path}: cannot encode the image: {source}", path = path.display())]
    Image {
        /// The image's file.
        path: PathBuf,
        /// The encoder's error.
        source: image::ImageError,
    },
    /// More scenes were requested than the file names can number.
    #[error("{requested} scenes asked for in one split, but at most {limit} fit")]
    TooManyScenes {
        /// The requested number of scenes.
        requested: usize,
        /// The largest number of scenes.
        limit: usize,
    },
    /// A list of objects that is not a scene: it is empty, has more than four objects, or two in one cell.
    #[error("not a scene: {reason}")]
    InvalidScene {
        /// What is wrong with it.
        reason: String,
    },
}

impl ShapesError {
    /// Wraps an I/O error with its path.
    pub(super) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
