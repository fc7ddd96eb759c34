//! The sample that every reader returns: turns, and images as files or bytes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::config::{Tiles, Tiling};
use basic_models::processor::{
    DEFAULT_MAX_PIXELS, ImageProcessor, Message, PixelValues, ProcessorError, decode_image_within, decoded_size_within,
    image_size_within, open_image,
};
use basic_models::{Checkpoint, CheckpointError, outside};
use image::RgbImage;

use super::{DataError, SeenImages};

/// The source of an image's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageSource {
    /// A file.
    File(PathBuf),
    /// A member of an archive or a cell of a table.
    Bytes {
        /// The archive and the member, or the table and the cell; unique within a data set and used in messages.
        name: PathBuf,
        /// The encoded image.
        bytes: Arc<[u8]>,
    },
}

impl ImageSource {
    /// The name that identifies the image, used in messages.
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
    /// [`ProcessorError`] that names the image.
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
    /// [`ProcessorError`] that names the image.
    pub fn decode(&self) -> Result<RgbImage, ProcessorError> {
        match self {
            Self::File(path) => open_image(path),
            Self::Bytes { name, bytes } => decode_image_within(name, bytes, DEFAULT_MAX_PIXELS),
        }
    }

    /// Decodes the image and processes it with the checkpoint's image processor.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the image.
    pub fn pixels(&self, checkpoint: &Checkpoint) -> Result<PixelValues, CheckpointError> {
        Ok(self.process(&checkpoint.images)?)
    }

    /// Decodes the image and processes it.
    ///
    /// # Errors
    ///
    /// [`ProcessorError`] that names the image.
    pub fn process(&self, images: &ImageProcessor) -> Result<PixelValues, ProcessorError> {
        match self {
            Self::File(path) => images.open(path),
            Self::Bytes { name, bytes } => images.decode(name, bytes),
        }
    }
}

impl ImageSource {
    /// The tiles that `tiling` cuts the image into. The image is read only if it is cut, and then its header alone is
    /// decoded, within the limit of `images`.
    ///
    /// # Errors
    ///
    /// [`ProcessorError`] that names the image.
    pub fn tiles(&self, tiling: &Tiling, images: &ImageProcessor) -> Result<Tiles, ProcessorError> {
        let size = match self {
            _ if !tiling.varies() => [0; 2],
            Self::File(path) => image_size_within(path, images.max_pixels())?,
            Self::Bytes { name, bytes } => decoded_size_within(name, bytes, images.max_pixels())?,
        };
        Ok(tiling.of(size))
    }

    /// [`ImageSource::tiles`] of several images, by a checkpoint's settings.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the image.
    pub fn tiles_of(images: &[Self], checkpoint: &Checkpoint) -> Result<Vec<Tiles>, CheckpointError> {
        let tiling = checkpoint.config.tiling();
        images.iter().map(|image| Ok(image.tiles(&tiling, &checkpoint.images)?)).collect()
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
    /// The data file that the sample comes from, for messages.
    pub file: Arc<Path>,
    /// The index in the file and, if the data has one, the id, as `3` or `3 (id x)`; for messages.
    pub place: String,
    /// The images.
    pub images: Vec<ImageSource>,
    /// The turns.
    pub messages: Vec<Message>,
    /// Number of answers before the first question that were dropped, as in LLaVA.
    pub dropped_turns: usize,
}

impl Sample {
    /// The id, if the data has one.
    pub fn id(&self) -> Option<&str> {
        self.place.split_once(" (id ")?.1.strip_suffix(')')
    }

    /// Wraps an image's error with this sample's file and place.
    pub fn image_error(&self, source: CheckpointError) -> DataError {
        DataError::Image { path: self.file.to_path_buf(), place: self.place.clone(), source }
    }
}

/// The numbers that a sample's length is estimated from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hint {
    /// Number of images.
    pub images: usize,
    /// Number of characters in all turns.
    pub characters: usize,
}

/// A data set: samples by index.
pub trait Samples: fmt::Debug + Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `index`; always returns the same sample for the same index.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample.
    fn sample(&self, index: usize) -> Result<Sample, DataError>;

    /// The numbers that the length of sample `index` is estimated from; by default its outline is read.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample.
    fn hint(&self, index: usize) -> Result<Hint, DataError> {
        let sample = self.outline(index)?;
        let characters = sample.messages.iter().map(|message| message.content.chars().count()).sum();
        Ok(Hint { images: sample.images.len(), characters })
    }

    /// Like [`Samples::sample`], but images in archives and tables may come without their bytes. This is enough for
    /// tokenizing and counting, and much cheaper to read.
    ///
    /// # Errors
    ///
    /// Those of [`Samples::sample`], except errors that only an image's bytes reveal.
    fn outline(&self, index: usize) -> Result<Sample, DataError> {
        self.sample(index)
    }

    /// The record of the image files that have been read, if the set keeps one.
    fn seen(&self) -> Option<&SeenImages> {
        None
    }
}
