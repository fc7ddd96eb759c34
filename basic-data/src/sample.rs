//! A sample as every reader gives it: turns, and images as files or bytes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::processor::{
    DEFAULT_MAX_PIXELS, ImageProcessor, Message, PixelValues, ProcessorError, decode_image_within, open_image,
};
use basic_models::{Checkpoint, CheckpointError, outside};
use image::RgbImage;

use super::{DataError, SeenImages};

/// Where an image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageSource {
    /// A file.
    File(PathBuf),
    /// A member of an archive or a cell of a table.
    Bytes {
        /// The archive and the member, for messages; no two images of a data set have the same.
        name: PathBuf,
        /// The encoded image.
        bytes: Arc<[u8]>,
    },
}

impl ImageSource {
    /// What names the image in messages, and tells it from others.
    pub fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Bytes { name, .. } => name,
        }
    }

    /// The encoded image.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn bytes(&self) -> Result<Arc<[u8]>, ProcessorError> {
        match self {
            Self::Bytes { bytes, .. } => Ok(bytes.clone()),
            Self::File(path) => {
                let bytes =
                    outside::read(path).map_err(|source| ProcessorError::Read { path: path.clone(), source })?;
                Ok(bytes.into())
            }
        }
    }

    /// Decodes the image into RGB.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn decode(&self) -> Result<RgbImage, ProcessorError> {
        match self {
            Self::File(path) => open_image(path),
            Self::Bytes { name, bytes } => decode_image_within(name, bytes, DEFAULT_MAX_PIXELS),
        }
    }

    /// Decodes and processes the image as `checkpoint` does.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn pixels(&self, checkpoint: &Checkpoint) -> Result<PixelValues, CheckpointError> {
        Ok(self.process(&checkpoint.images)?)
    }

    /// Decodes and processes the image.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn process(&self, images: &ImageProcessor) -> Result<PixelValues, ProcessorError> {
        match self {
            Self::File(path) => images.open(path),
            Self::Bytes { name, bytes } => images.decode(name, bytes),
        }
    }
}

impl From<PathBuf> for ImageSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().display().fmt(f)
    }
}

/// One conversation with its images.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The data file that it is from: for messages.
    pub file: Arc<Path>,
    /// Index in the file, and the id where it has one, as `3` or `3 (id x)`: for messages.
    pub place: String,
    /// The images.
    pub images: Vec<ImageSource>,
    /// The turns.
    pub messages: Vec<Message>,
    /// Turns that the data has before the first question, and that were dropped, as LLaVA does.
    pub dropped_turns: usize,
}

impl Sample {
    /// The id, where the data has one.
    pub fn id(&self) -> Option<&str> {
        self.place.split_once(" (id ")?.1.strip_suffix(')')
    }

    /// An image's error with this sample's place.
    pub fn image_error(&self, source: CheckpointError) -> DataError {
        DataError::Image { path: self.file.to_path_buf(), place: self.place.clone(), source }
    }
}

/// What a sample's length is estimated from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hint {
    /// Its images.
    pub images: usize,
    /// The characters of its turns.
    pub characters: usize,
}

/// A data set: samples by index.
pub trait Samples: fmt::Debug + Send + Sync {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `index`, the same one every time.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample.
    fn sample(&self, index: usize) -> Result<Sample, DataError>;

    /// What sample `index`'s length is estimated from; by default the sample is read.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample.
    fn hint(&self, index: usize) -> Result<Hint, DataError> {
        let sample = self.outline(index)?;
        let characters = sample.messages.iter().map(|message| message.content.chars().count()).sum();
        Ok(Hint { images: sample.images.len(), characters })
    }

    /// As [`Samples::sample`], but the images of archives and tables may come with their names alone, without bytes:
    /// all that tokenizing and counting need, for a fraction of the reading.
    ///
    /// # Errors
    ///
    /// Those of [`Samples::sample`], but for what only an image's bytes show.
    fn outline(&self, index: usize) -> Result<Sample, DataError> {
        self.sample(index)
    }

    /// What is known of the image files that were read, where that is kept.
    fn seen(&self) -> Option<&SeenImages> {
        None
    }
}
