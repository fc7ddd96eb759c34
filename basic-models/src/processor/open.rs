//! Image files, decoded as Pillow's `Image.open(path).convert("RGB")` does, within limits.

use std::io::{BufReader, Cursor};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::{ProcessorError, Result};

/// The default limit of an image's pixels, the number above which Pillow warns of a decompression bomb.
pub const DEFAULT_MAX_PIXELS: u64 = 89_478_485;

/// [`open_image_within`] the [`DEFAULT_MAX_PIXELS`].
///
/// # Errors
/// Those of [`open_image_within`].
pub fn open_image(path: impl AsRef<Path>) -> Result<RgbImage> {
    open_image_within(path, DEFAULT_MAX_PIXELS)
}

/// Decodes an image file of any supported format, told by its content, into RGB.
///
/// As in Pillow, transparency is dropped (not blended), greys are repeated, palettes looked up, animations give their
/// first frame and EXIF rotation is ignored. Samples of 16 bits keep their upper byte; Pillow does the same except
/// for 16-bit greys, which it clips to white.
///
/// # Errors
/// `Read`, `Decode`, `TruncatedImage`, or `TooManyPixels`, which is found before anything is decoded.
pub fn open_image_within(path: impl AsRef<Path>, max_pixels: u64) -> Result<RgbImage> {
    let path = path.as_ref();
    let read = |source| ProcessorError::Read { path: path.into(), source };
    let decode = |source| ProcessorError::Decode { path: path.into(), source };
    let bytes = std::fs::read(path).map_err(read)?;
    let mut reader = ImageReader::new(BufReader::new(Cursor::new(&bytes))).with_guessed_format().map_err(read)?;
    // The decoder is lenient: it would paint what is missing grey.
    let jpeg = reader.format() == Some(ImageFormat::Jpeg);
    if jpeg && !jpeg_is_complete(&bytes) {
        return Err(ProcessorError::TruncatedImage { path: path.into() });
    }
    let mut limits = Limits::default();
    // Up to 8 bytes a pixel, a second copy while converting, and the decoders' own buffers.
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(1 << 24));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(decode)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ProcessorError::TooManyPixels { path: path.into(), width, height, max_pixels });
    }
    Ok(to_rgb(DynamicImage::from_decoder(decoder).map_err(decode)?))
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    let high = |sample: u16| (sample >> 8) as u8;
    match image {
        DynamicImage::ImageLuma16(i) => {
            RgbImage::from_fn(i.width(), i.height(), |x, y| image::Rgb([high(i[(x, y)].0[0]); 3]))
        }
        DynamicImage::ImageLumaA16(i) => {
            RgbImage::from_fn(i.width(), i.height(), |x, y| image::Rgb([high(i[(x, y)].0[0]); 3]))
        }
        DynamicImage::ImageRgb16(i) => {
            RgbImage::from_fn(i.width(), i.height(), |x, y| image::Rgb(i[(x, y)].0.map(high)))
        }
        DynamicImage::ImageRgba16(i) => RgbImage::from_fn(i.width(), i.height(), |x, y| {
            let [r, g, b, _] = i[(x, y)].0;
            image::Rgb([r, g, b].map(high))
        }),
        other => other.into_rgb8(),
    }
}

/// Whether an end marker follows the first scan. Entropy-coded data holds no 0xFFD9, but a thumbnail in a header may,
/// so the headers are stepped over.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        at += match marker {
            0xFF => 1, // fill byte
            0xDA => return bytes[at..].windows(2).any(|pair| pair == [0xFF, 0xD9]),
            _ => 2 + usize::from(u16::from_be_bytes([high, low])),
        };
    }
    false
}
