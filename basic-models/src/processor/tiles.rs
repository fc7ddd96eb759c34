//! Cuts images into tiles, like transformers' `LlavaNextImageProcessor` with the Pillow backend.

use std::path::Path;

use image::imageops::{crop_imm, replace};
use image::{Rgb, RgbImage};
use serde_json::Value;

use super::config::ImageProcessorConfig;
use super::resample::{self, ResizedPart};
use super::{ImageKind, ImageProcessor, PixelValues, ProcessorError, Result, Size};
use crate::config::best_resolution;

/// The resolutions of a `LlavaNextImageProcessor` that names none, as height and width.
pub(super) const PINPOINTS: [[usize; 2]; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

/// The most resolutions, and the longest side of one: many times what any model has.
const MOST_PINPOINTS: usize = 128;
const LONGEST_SIDE: u64 = 8192;
/// The most pixels of a resolution, which are 192 MiB of numbers.
const MOST_PIXELS: u64 = 1 << 24;

impl ImageProcessorConfig {
    /// Takes the resolutions of a `LlavaNextImageProcessor`, and checks that its tiles are squares of one size.
    pub(super) fn read_tiles(&mut self, found: Option<&Value>, resizes: Option<bool>, path: &Path) -> Result<()> {
        let unsupported = |key: &str, value: String, supported| ProcessorError::Unsupported {
            path: path.into(),
            key: key.into(),
            value,
            supported,
        };
        if resizes == Some(false) {
            return Err(unsupported("do_resize", "false".into(), "true in a LlavaNextImageProcessor"));
        }
        let side = match (self.size, self.crop) {
            (Some(Size::ShortestEdge(edge)), Some(crop)) if crop == (edge, edge) => edge,
            (Some(Size::Exact { height, width }), Some(crop)) if height == width && crop == (height, width) => height,
            (size, crop) => {
                let value = format!("{size:?} with crop_size {crop:?}");
                return Err(unsupported("size", value, "a square of the size that crop_size has, that of a tile"));
            }
        };
        // The base image and the tiles are squares before they are resized and cropped.
        self.size = Some(Size::ShortestEdge(side));
        let Some(found) = found else { return self.check_pinpoints(side, path) };
        let length = |value: &Value| value.as_u64().filter(|n| (1..=LONGEST_SIDE).contains(n)).map(|n| n as usize);
        let pinpoint = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([height, width]) => Some([length(height)?, length(width)?]),
            _ => None,
        };
        let read = found.as_array().filter(|list| (1..=MOST_PINPOINTS).contains(&list.len()));
        let read: Option<Vec<[usize; 2]>> = read.and_then(|list| list.iter().map(pinpoint).collect());
        self.pinpoints = read.ok_or_else(|| {
            let supported = "1 to 128 resolutions, as [height, width] of 1 to 8192";
            unsupported("image_grid_pinpoints", crate::outside::excerpt(&found.to_string()), supported)
        })?;
        self.check_pinpoints(side, path)
    }

    /// The same settings for a model that cuts images into tiles of `side` x `side` pixels: filter, rescaling and
    /// normalization stay.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Unsupported`] for settings that pad images to a square or do not resize them; `path` is
    /// the file that it names.
    pub fn with_tiles(self, side: usize, pinpoints: &[[usize; 2]], path: &Path) -> Result<Self> {
        if self.pad.is_some() || self.size.is_none() {
            return Err(ProcessorError::Unsupported {
                path: path.into(),
                key: "do_pad, do_resize".into(),
                value: format!("{}, {}", self.pad.is_some(), self.size.is_some()),
                supported: "false, true: the processor of a model that cuts images into tiles",
            });
        }
        let side = side as u32;
        let this = Self {
            kind: ImageKind::LlavaNext,
            size: Some(Size::ShortestEdge(side)),
            crop: Some((side, side)),
            pinpoints: pinpoints.to_vec(),
            ..self
        };
        this.check_pinpoints(side, path)?;
        Ok(this)
    }

    fn check_pinpoints(&self, side: u32, path: &Path) -> Result<()> {
        let whole = |length: usize| length.is_multiple_of(side as usize);
        let fits = |[height, width]: &[usize; 2]| {
            whole(*height) && whole(*width) && (*height as u64) * (*width as u64) <= MOST_PIXELS
        };
        match self.pinpoints.iter().find(|pinpoint| !fits(pinpoint)) {
            None => Ok(()),
            Some(wrong) => Err(ProcessorError::Unsupported {
                path: path.into(),
                key: "image_grid_pinpoints".into(),
                value: format!("{wrong:?} with tiles of {side}"),
                supported: "multiples of the size of a tile, of at most 4096 x 4096 pixels together",
            }),
        }
    }
}

impl ImageProcessor {
    /// The base image, then the tiles of the best resolution, row by row.
    pub(super) fn tiles(&self, image: &RgbImage) -> Result<PixelValues> {
        let config = self.config();
        let (width, height) = image.dimensions();
        let original = [height as usize, width as usize];
        let (side, rows, columns) = match (config.crop, best_resolution(original, &config.pinpoints)) {
            (Some((side, _)), Some([rows, columns])) => (side, rows as u32, columns as u32),
            // `read_tiles` has checked this, but settings made in code may be others.
            _ => return Err(self.too_many(image, (width, height), 0)),
        };
        let resized = |size: (u32, u32)| {
            let limit = self.max_pixels().max(4 * u64::from(size.0) * u64::from(size.1));
            let all = ResizedPart { x: 0..size.0, y: 0..size.1 };
            resample::resize(image, size, all, config.resample, limit)
                .map_err(|pixels| self.too_many(image, size, pixels))
        };
        let fitted = resized(fitted((width, height), (columns, rows)))?;
        let mut padded = RgbImage::from_pixel(columns, rows, Rgb([0; 3]));
        // An odd row or column of padding goes to the bottom or the right.
        let (left, top) = ((columns - fitted.width()) / 2, (rows - fitted.height()) / 2);
        replace(&mut padded, &fitted, left.into(), top.into());
        let (down, across) = (rows / side, columns / side);
        let tiles = 1 + (down * across) as usize;
        let (length, size) = (side as usize, (side as usize, side as usize));
        let mut data = Vec::with_capacity(tiles * 3 * length * length);
        self.values(&resized((side, side))?, (0, 0), size, &mut data);
        for (y, x) in (0..down).flat_map(|y| (0..across).map(move |x| (y, x))) {
            let tile = crop_imm(&padded, x * side, y * side, side, side).to_image();
            self.values(&tile, (0, 0), size, &mut data);
        }
        Ok(PixelValues { data, tiles, height: length, width: length, image: original })
    }
}

/// `(width, height)` of an image that is scaled until it touches the sides of `target` (transformers'
/// `get_patch_output_size`).
fn fitted((width, height): (u32, u32), target: (u32, u32)) -> (u32, u32) {
    let (across, down) = (f64::from(target.0) / f64::from(width), f64::from(target.1) / f64::from(height));
    if across < down {
        (target.0, ((f64::from(height) * across).ceil() as u32).clamp(1, target.1))
    } else {
        (((f64::from(width) * down).ceil() as u32).clamp(1, target.0), target.1)
    }
}
