//! Embeds images in a page as `data:` URLs.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use basic_models::outside::{guarded, read};
use basic_models::processor::{DEFAULT_MAX_PIXELS, ProcessorError, decode_image_within};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::thumbnail;
use image::{ImageFormat, RgbImage};
use serde::Serialize;
use thiserror::Error;

/// The longest side of an embedded image, in pixels.
const SIDE: u32 = 192;
/// An image whose longer side has at most this many pixels is enlarged with sharp pixels.
const TINY: u32 = 96;
/// An image file of at most this many bytes is embedded unchanged.
const SMALL_FILE: usize = 16 << 10;

/// An image in a page.
#[derive(Debug, Serialize)]
pub(crate) struct Picture {
    source: String,
    width: u32,
    height: u32,
    pixelated: bool,
}

/// Why an image cannot be embedded.
#[derive(Debug, Error)]
pub enum PictureError {
    /// The file could not be read.
    #[error("{path}: cannot read the image: {source}", path = path.display())]
    Read {
        /// The image's file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not an image, or it is truncated.
    #[error("{path}: cannot decode the image: {source}", path = path.display())]
    Decode {
        /// The image's file.
        path: PathBuf,
        /// The decoder's error.
        source: image::ImageError,
    },
    /// The image is larger than the limit, or the decoder panicked on it.
    #[error("{path}: cannot decode the image: {reason}", path = path.display())]
    Broken {
        /// The image's file.
        path: PathBuf,
        /// The decoder's message.
        reason: String,
    },
}

impl Picture {
    /// Reads and decodes an image, so that a broken one is an error here and not a blank on the page. A large one is
    /// scaled down.
    pub(crate) fn read(path: &Path) -> Result<Self, PictureError> {
        let bytes = read(path).map_err(|source| PictureError::Read { path: path.into(), source })?;
        let undecodable = |source| PictureError::Decode { path: path.into(), source };
        let broken = |reason| PictureError::Broken { path: path.into(), reason };
        let format = image::guess_format(&bytes).map_err(undecodable)?;
        // Decoding libraries may panic on damaged bytes.
        let decoded = guarded(|| decode_image_within(path, &bytes, DEFAULT_MAX_PIXELS)).map_err(broken)?;
        let decoded = decoded.map_err(|error| match error {
            ProcessorError::Decode { source, .. } => undecodable(source),
            other => broken(other.to_string()),
        })?;
        let (width, height) = decoded.dimensions();
        let pixelated = width.max(height) <= TINY;
        let shown = matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif);
        if shown && width.max(height) <= SIDE && bytes.len() <= SMALL_FILE {
            let source = format!("data:{};base64,{}", format.to_mime_type(), STANDARD.encode(&bytes));
            return Ok(Self { source, width, height, pixelated });
        }
        let small = if width.max(height) > SIDE { made_small(&decoded) } else { decoded };
        let (width, height) = small.dimensions();
        let mut jpeg = Cursor::new(Vec::new());
        small.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, 80)).map_err(undecodable)?;
        let source = format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg.into_inner()));
        Ok(Self { source, width, height, pixelated })
    }
}

/// The image scaled so that its longer side has [`SIDE`] pixels.
fn made_small(image: &RgbImage) -> RgbImage {
    let longer = u64::from(image.width().max(image.height()));
    let side = |pixels: u32| u32::try_from(u64::from(pixels) * u64::from(SIDE) / longer).unwrap_or(SIDE).max(1);
    thumbnail(image, side(image.width()), side(image.height()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_image_is_named_and_a_wide_one_made_small() {
        let dir = tempfile::tempdir().unwrap();
        RgbImage::new(4000, 2).save(dir.path().join("wide.png")).unwrap();
        let picture = Picture::read(&dir.path().join("wide.png")).unwrap();
        assert_eq!((picture.width, picture.height), (192, 1));
        std::fs::write(dir.path().join("broken.png"), b"\x89PNG\r\n\x1a\nnothing").unwrap();
        let error = Picture::read(&dir.path().join("broken.png")).unwrap_err();
        assert!(error.to_string().contains("broken.png: cannot decode the image"), "{error}");
    }
}
