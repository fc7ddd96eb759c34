//! What the workers of a loader hold to make samples ready.

use basic_models::Checkpoint;
use basic_models::config::{Tiles, Tiling};
use basic_models::processor::{ImageProcessor, PixelValues, ProcessorError, Style, Tokenizer};

use super::LoaderError;
use crate::prepare::{Limit, fitting, tokens};
use crate::{DataError, ImageSource, LoaderConfig, Prepared, Sample, TooLong};

/// What it takes to make a sample ready for a batch: a checkpoint's tokenizer and image processor, no weights.
#[derive(Debug, Clone)]
pub struct Preparer {
    tokenizer: Tokenizer,
    images: ImageProcessor,
    other_images: Option<ImageProcessor>,
    style: Style,
    tiling: Tiling,
    limit: Limit,
    pad: u32,
    image_shape: [usize; 3],
}

impl Preparer {
    /// A preparer for `checkpoint`, whose conversations are written in `style`.
    ///
    /// # Errors
    ///
    /// [`LoaderError::MaxLength`].
    pub fn new(checkpoint: &Checkpoint, style: Style, config: &LoaderConfig) -> Result<Self, LoaderError> {
        let context = checkpoint.config.text_config.context();
        let max_length = config.max_length.unwrap_or(context);
        if max_length == 0 || max_length > context {
            return Err(LoaderError::MaxLength { max_length, context });
        }
        Ok(Self {
            tokenizer: checkpoint.tokenizer.clone(),
            images: checkpoint.images.clone(),
            other_images: None,
            style,
            tiling: checkpoint.config.tiling(),
            limit: Limit { max_length, context, too_long: config.too_long },
            pad: checkpoint.pad_id(),
            image_shape: checkpoint.image_shape(),
        })
    }

    /// The same, with the image processor of another encoder that a supervision method compares with: a loader then
    /// makes every image ready for both.
    #[must_use]
    pub fn with_other_images(mut self, images: ImageProcessor) -> Self {
        self.other_images = Some(images);
        self
    }

    /// Renders and tokenizes a sample; one that is too long is an error or cut.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample: no target, too long, a template's failure, or an image that is cut
    /// into tiles and cannot be read.
    pub fn prepare(&self, sample: &Sample) -> Result<Prepared, DataError> {
        let tiles = sample.images.iter().map(|image| self.tiles(image));
        let tiles = tiles.collect::<Result<Vec<_>, _>>().map_err(|error| sample.image_error(error.into()))?;
        fitting(sample, tokens(sample, &self.tokenizer, &self.style, &tiles)?, self.limit)
    }

    /// The tiles of an image; it is read only if the model cuts images.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn tiles(&self, image: &ImageSource) -> Result<Tiles, ProcessorError> {
        image.tiles(&self.tiling, &self.images)
    }

    /// Whether the model cuts images into tiles, so that an image's tokens follow from its size.
    pub fn cuts_images(&self) -> bool {
        self.tiling.varies()
    }

    /// Decodes and processes an image.
    ///
    /// # Errors
    ///
    /// Names the image.
    pub fn pixels(&self, image: &ImageSource) -> Result<PixelValues, ProcessorError> {
        image.process(&self.images)
    }

    /// The image processor.
    pub fn images(&self) -> &ImageProcessor {
        &self.images
    }

    /// The image processor of the other encoder, where there is one.
    pub fn other_images(&self) -> Option<&ImageProcessor> {
        self.other_images.as_ref()
    }

    /// The tokens that a sample and a packed row may have.
    pub fn max_length(&self) -> usize {
        self.limit.max_length
    }

    /// The tokens that the model takes.
    pub fn context(&self) -> usize {
        self.limit.context
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How conversations are written.
    pub fn style(&self) -> &Style {
        &self.style
    }

    /// What happens to longer samples.
    pub fn too_long(&self) -> TooLong {
        self.limit.too_long
    }

    /// The most that an image takes of a sequence.
    pub fn visual_tokens(&self) -> usize {
        self.tiling.most_tokens()
    }

    /// The id of padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The side lengths of an image's pixel values: channels, height, width.
    pub fn image_shape(&self) -> [usize; 3] {
        self.image_shape
    }
}
