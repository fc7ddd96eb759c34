//! Image processing like transformers' image processors: pad, resize, centre crop, rescale, normalize.

use std::borrow::Cow;
use std::path::Path;

use image::{Rgb, RgbImage};

use super::resample::{self, ResizedPart};
use super::{
    DEFAULT_MAX_PIXELS, ImageProcessorConfig, ProcessorError, Result, Size, decode_image_within, open_image_within,
};

/// The input of the vision encoder: one image, or its tiles, channels first.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `[tiles, 3, height, width]`, row-major; the base image is the first tile. For several vision encoders, the pixel
    /// values for each of them, one after another, with a height and a width of 1.
    pub data: Vec<f32>,
    /// The number of tiles: 1 if the image is not cut.
    pub tiles: usize,
    /// The number of rows.
    pub height: usize,
    /// The number of columns.
    pub width: usize,
    /// The height and width of the image that they were made of.
    pub image: [usize; 2],
}

/// Turns decoded images into [`PixelValues`], like transformers' `CLIPImageProcessor`, `SiglipImageProcessor`,
/// `LlavaImageProcessor` or `LlavaNextImageProcessor` with the Pillow backend. The resampled pixels are equal to the last bit.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    max_pixels: u64,
    /// Those of the other vision encoders that see the same image.
    others: Vec<Self>,
    /// The result of rescaling and normalization for every 8-bit value, per channel.
    table: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// A processor with these settings.
    pub fn new(config: ImageProcessorConfig) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (channel, row) in table.iter_mut().enumerate() {
            for (value, out) in row.iter_mut().enumerate() {
                *out = config.number(value as u8, channel);
            }
        }
        Self { config, max_pixels: DEFAULT_MAX_PIXELS, others: Vec::new(), table }
    }

    /// Reads a checkpoint's settings; see [`ImageProcessorConfig::load`].
    ///
    /// # Errors
    /// Returns the errors of [`ImageProcessorConfig::load`].
    pub fn load(dir: &Path) -> Result<Self> {
        let others = ImageProcessorConfig::load_others(dir)?.into_iter().map(Self::new).collect();
        Ok(Self::new(ImageProcessorConfig::load(dir)?).with_others(others))
    }

    /// The same processor with those of further vision encoders that see the same image: it then gives the pixel values
    /// for each of them, in order.
    #[must_use]
    pub fn with_others(self, others: Vec<Self>) -> Self {
        Self { others, ..self }
    }

    /// The processors of all vision encoders, this one first.
    pub fn each(&self) -> impl Iterator<Item = &Self> {
        [self].into_iter().chain(&self.others)
    }

    /// The same processors with LLaVA's `image_aspect_ratio`; see [`ImageProcessorConfig::with_aspect_ratio`].
    ///
    /// # Errors
    /// Returns [`ProcessorError::Unsupported`], which names `path`.
    pub fn with_aspect_ratio(&self, ratio: &str, path: &Path) -> Result<Self> {
        let others = self.others.iter().map(|other| other.with_aspect_ratio(ratio, path));
        let config = self.config.clone().with_aspect_ratio(ratio, path)?;
        Ok(Self::new(config).with_max_pixels(self.max_pixels).with_others(others.collect::<Result<_>>()?))
    }

    /// The same processor with another limit of pixels, for the image itself and for what it is padded or resized to on
    /// the way. [`DEFAULT_MAX_PIXELS`] by default.
    #[must_use]
    pub fn with_max_pixels(self, max_pixels: u64) -> Self {
        let others = self.others.into_iter().map(|other| other.with_max_pixels(max_pixels)).collect();
        Self { max_pixels, others, ..self }
    }

    /// Writes preprocessor_config.json; see [`ImageProcessorConfig::save`].
    ///
    /// # Errors
    /// Returns [`ProcessorError::Write`].
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.config.save_with(&self.others.iter().map(Self::config).collect::<Vec<_>>(), dir)
    }

    /// The settings.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// All that the pixel values depend on beside the image, as a text.
    pub fn identity(&self) -> String {
        let each = self.each().map(|images| format!("{:?} {}", images.config, images.max_pixels));
        each.collect::<Vec<_>>().join(" ")
    }

    /// `(height, width)` of every processed image or tile, if the settings determine it; the first vision encoder's.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        match (self.config.crop, self.config.size) {
            (Some((height, width)), _) | (None, Some(Size::Exact { height, width })) => {
                Some((height as usize, width as usize))
            }
            // A padded image is a square.
            (None, Some(Size::ShortestEdge(edge))) if self.config.pad.is_some() => Some((edge as usize, edge as usize)),
            _ => None,
        }
    }

    /// Decodes an image file within the limit of pixels and processes it.
    ///
    /// # Errors
    /// Returns the errors of [`open_image_within`] and of [`ImageProcessor::process`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<PixelValues> {
        self.process(&open_image_within(path, self.max_pixels)?)
    }

    /// Decodes an image in memory and processes it; messages call it `name`.
    ///
    /// # Errors
    /// Returns the errors of [`decode_image_within`] and of [`ImageProcessor::process`].
    pub fn decode(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<PixelValues> {
        self.process(&decode_image_within(name, bytes, self.max_pixels)?)
    }

    /// Processes one image, for each vision encoder if there are several.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Resize`] for an image without pixels, and for one whose aspect ratio is so extreme
    /// that processing it would take more pixels than the limit.
    pub fn process(&self, image: &RgbImage) -> Result<PixelValues> {
        let mut values = self.process_alone(image)?;
        if self.others.is_empty() {
            return Ok(values);
        }
        for other in &self.others {
            values.data.extend(other.process_alone(image)?.data);
        }
        Ok(PixelValues { height: 1, width: 1, ..values })
    }

    /// Processes one image for this processor's own vision encoder.
    ///
    /// # Errors
    /// Returns the errors of [`ImageProcessor::process`].
    pub fn process_alone(&self, image: &RgbImage) -> Result<PixelValues> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(fail(image, (width.into(), height.into()), "it has no pixels".into()));
        }
        if !self.config.pinpoints.is_empty() {
            return self.tiles(image);
        }
        if let Some(patches) = self.config.patches {
            return self.patched(image, patches);
        }
        let original = [height as usize, width as usize];
        let image = self.pad(image)?;
        let size = self.resized(&image)?;
        let (rows, columns) = self.config.crop.unwrap_or((size.1, size.0));
        // As in transformers' `center_crop`, a smaller image is padded with black; an odd row goes to the top.
        let (y, to_y) = crop(size.1, rows);
        let (x, to_x) = crop(size.0, columns);
        let pixels = u64::from(rows) * u64::from(columns);
        // A size that the settings determine is allowed whatever it is; only sizes that depend on the image are
        // limited.
        let limit = self.output_size().map_or(self.max_pixels, |_| self.max_pixels.max(4 * pixels));
        let too_many = |pixels: u64| self.too_many(&image, size, pixels);
        if pixels > limit {
            return Err(too_many(pixels));
        }
        let part = ResizedPart { x, y };
        let part = if size == image.dimensions() {
            image::imageops::crop_imm(&*image, part.x.start, part.y.start, part.x.len() as u32, part.y.len() as u32)
                .to_image()
        } else {
            resample::resize(&image, size, part, self.config.resample, limit).map_err(too_many)?
        };
        let (rows, columns) = (rows as usize, columns as usize);
        let mut data = Vec::with_capacity(3 * rows * columns);
        self.values(&part, (to_x, to_y), (rows, columns), &mut data);
        Ok(PixelValues { data, tiles: 1, height: rows, width: columns, image: original })
    }

    /// The error for an image that takes too many pixels when it is resized.
    pub(super) fn too_many(&self, image: &RgbImage, size: (u32, u32), pixels: u64) -> ProcessorError {
        let reason = format!(
            "it would take {pixels} pixels, more than the limit of {}; crop it to a less extreme aspect ratio",
            self.max_pixels
        );
        fail(image, (size.0.into(), size.1.into()), reason)
    }

    /// The number for an 8-bit value of a pixel in a channel.
    pub(super) fn value(&self, channel: usize, value: u8) -> f32 {
        self.table[channel][usize::from(value)]
    }

    /// The limit of pixels.
    pub fn max_pixels(&self) -> u64 {
        self.max_pixels
    }

    /// Adds the pixel values of an image of the given rows and columns that is black except for `part`, placed at
    /// column and row `at`.
    pub(super) fn values(&self, part: &RgbImage, at: (u32, u32), (rows, columns): (usize, usize), data: &mut Vec<f32>) {
        let (plane, start) = (rows * columns, data.len());
        for table in self.table.iter() {
            data.resize(data.len() + plane, table[0]);
        }
        for (x, y, pixel) in part.enumerate_pixels() {
            let at = (y + at.1) as usize * columns + (x + at.0) as usize;
            for (channel, value) in pixel.0.into_iter().enumerate() {
                data[start + channel * plane + at] = self.table[channel][usize::from(value)];
            }
        }
    }

    /// Places the image in the middle of a square if the settings say so. An odd row or column goes to the
    /// bottom or the right.
    fn pad<'a>(&self, image: &'a RgbImage) -> Result<Cow<'a, RgbImage>> {
        let (width, height) = image.dimensions();
        let Some(color) = self.config.pad.filter(|_| width != height) else {
            return Ok(Cow::Borrowed(image));
        };
        let side = width.max(height);
        let pixels = u64::from(side) * u64::from(side);
        if pixels > self.max_pixels {
            let reason = format!(
                "the square that it is padded to has more pixels than the limit of {}; crop it to a less extreme \
                 aspect ratio, scale it down or raise the limit",
                self.max_pixels
            );
            return Err(fail(image, (side.into(), side.into()), reason));
        }
        let mut square = RgbImage::from_pixel(side, side, Rgb(color));
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        image::imageops::replace(&mut square, image, left.into(), top.into());
        Ok(Cow::Owned(square))
    }

    /// `(width, height)` to resize the image to.
    fn resized(&self, image: &RgbImage) -> Result<(u32, u32)> {
        let (width, height) = image.dimensions();
        match self.config.size {
            None => Ok((width, height)),
            Some(Size::Exact { height, width }) => Ok((width, height)),
            Some(Size::ShortestEdge(edge)) => {
                let (short, long) = (width.min(height), width.max(height));
                // int(edge * long / short); integer division rounds down in the same way.
                let grown = u64::from(edge) * u64::from(long) / u64::from(short);
                let long = u32::try_from(grown).map_err(|_| {
                    let size = if width <= height { (edge.into(), grown) } else { (grown, edge.into()) };
                    fail(image, size, "crop it to a less extreme aspect ratio".into())
                })?;
                Ok(if width <= height { (edge, long) } else { (long, edge) })
            }
        }
    }
}

fn fail(image: &RgbImage, (new_width, new_height): (u64, u64), reason: String) -> ProcessorError {
    ProcessorError::Resize { width: image.width(), height: image.height(), new_width, new_height, reason }
}

/// The range of a length that a centre crop keeps, and where that range begins in the crop.
fn crop(length: u32, crop: u32) -> (std::ops::Range<u32>, u32) {
    let start = (i64::from(length) - i64::from(crop)).div_euclid(2); // negative if the crop is longer
    let end = (start + i64::from(crop)).min(i64::from(length));
    (start.max(0) as u32..end.max(0) as u32, (-start).max(0) as u32)
}
