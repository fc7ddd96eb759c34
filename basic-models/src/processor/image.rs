//! Image processing as transformers' image processors do it: resize, centre crop, rescale, normalize.

use std::path::Path;

use image::RgbImage;

use super::{DEFAULT_MAX_PIXELS, ImageProcessorConfig, ProcessorError, Result, Size, resample};

/// What the vision encoder takes: one image, channels first.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `[3, height, width]`, row-major.
    pub data: Vec<f32>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Turns decoded images into [`PixelValues`], as transformers' `CLIPImageProcessor` (or `SiglipImageProcessor`) does
/// with its Pillow backend, bit for bit in the resampling.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    /// Rescaling and normalization of every 8-bit value, per channel: all that those steps can see.
    table: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// A processor with these settings.
    pub fn new(config: ImageProcessorConfig) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (channel, row) in table.iter_mut().enumerate() {
            for (value, out) in row.iter_mut().enumerate() {
                // transformers rescales in float64, then goes on in float32.
                let x = config.rescale_factor.map_or(value as f32, |factor| (value as f64 * factor) as f32);
                *out = config.normalize.map_or(x, |(mean, std)| (x - mean[channel]) / std[channel]);
            }
        }
        Self { config, table }
    }

    /// Reads a checkpoint's settings; see [`ImageProcessorConfig::load`].
    ///
    /// # Errors
    /// Those of [`ImageProcessorConfig::load`].
    pub fn load(dir: &Path) -> Result<Self> {
        ImageProcessorConfig::load(dir).map(Self::new)
    }

    /// Writes preprocessor_config.json; see [`ImageProcessorConfig::save`].
    ///
    /// # Errors
    /// [`ProcessorError::Write`].
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.config.save(dir)
    }

    /// The settings.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// `(height, width)` of every processed image, where the settings fix it.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        match (self.config.crop, self.config.size) {
            (Some((height, width)), _) | (None, Some(Size::Exact { height, width })) => {
                Some((height as usize, width as usize))
            }
            _ => None,
        }
    }

    /// Processes one image.
    ///
    /// # Errors
    /// [`ProcessorError::Resize`] for an image without pixels, or one so narrow that its longer edge would grow
    /// beyond [`DEFAULT_MAX_PIXELS`].
    pub fn process(&self, image: &RgbImage) -> Result<PixelValues> {
        let resized = self.resize(image)?;
        let image = resized.as_ref().unwrap_or(image);
        let (height, width) = self.config.crop.unwrap_or((image.height(), image.width()));
        // As transformers' center_crop: where the image is smaller, black goes around it, an odd row on top.
        let top = offset(image.height(), height);
        let left = offset(image.width(), width);
        let (rows, columns) = (height as usize, width as usize);
        let black = [self.table[0][0], self.table[1][0], self.table[2][0]];
        let mut data = Vec::with_capacity(3 * rows * columns);
        for channel in black {
            data.resize(data.len() + rows * columns, channel);
        }
        let plane = rows * columns;
        let inside = |i: i64, length: u32| u32::try_from(i).ok().filter(|&i| i < length);
        for y in 0..height {
            let Some(from_y) = inside(i64::from(y) + top, image.height()) else {
                continue;
            };
            for x in 0..width {
                let Some(from_x) = inside(i64::from(x) + left, image.width()) else {
                    continue;
                };
                let pixel = image.get_pixel(from_x, from_y).0;
                let at = y as usize * columns + x as usize;
                for (channel, value) in pixel.into_iter().enumerate() {
                    data[channel * plane + at] = self.table[channel][usize::from(value)];
                }
            }
        }
        Ok(PixelValues { data, height: rows, width: columns })
    }

    /// The resized image, or `None` where it has that size already.
    fn resize(&self, image: &RgbImage) -> Result<Option<RgbImage>> {
        let (width, height) = image.dimensions();
        let Some(size) = self.config.size else {
            return Ok(None);
        };
        let (new_width, new_height) = match size {
            Size::Exact { height, width } => (u64::from(width), u64::from(height)),
            Size::ShortestEdge(edge) => {
                let (short, long) = (width.min(height), width.max(height));
                // int(edge * long / short); whole numbers round down the same way.
                let grown = (u64::from(edge) * u64::from(long)).checked_div(u64::from(short)).unwrap_or(0);
                if width <= height { (u64::from(edge), grown) } else { (grown, u64::from(edge)) }
            }
        };
        let fail = |reason: String| ProcessorError::Resize { width, height, new_width, new_height, reason };
        if width == 0 || height == 0 {
            return Err(fail("it has no pixels".into()));
        }
        // Between the two passes, the image may have one old and one new length.
        if new_width.saturating_mul(new_height.max(u64::from(height))) > DEFAULT_MAX_PIXELS {
            return Err(fail(format!(
                "more than {DEFAULT_MAX_PIXELS} pixels; crop the image to a less extreme aspect ratio"
            )));
        }
        let (new_width, new_height) = (new_width as u32, new_height as u32); // both under the limit just checked
        if (new_width, new_height) == (width, height) {
            return Ok(None);
        }
        Ok(Some(resample::resize(image, new_width, new_height, self.config.resample)))
    }
}

/// Where the crop begins in the image; negative where the image is padded.
fn offset(length: u32, crop: u32) -> i64 {
    (i64::from(length) - i64::from(crop)).div_euclid(2)
}
