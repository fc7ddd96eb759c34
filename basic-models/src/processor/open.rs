//! Decodes image files like transformers' `load_image` (Pillow: `exif_transpose`, then
//! `convert("RGB")`), within limits.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, Limits, Luma, Rgb, RgbImage};

use super::{ProcessorError, Result};
use crate::outside::guarded;

/// The default limit of an image's pixels: above this number, Pillow refuses an image as a decompression bomb.
pub const DEFAULT_MAX_PIXELS: u64 = 178_956_970;

/// [`open_image_within`] the [`DEFAULT_MAX_PIXELS`].
///
/// # Errors
/// Returns the errors of [`open_image_within`].
pub fn open_image(path: impl AsRef<Path>) -> Result<RgbImage> {
    open_image_within(path, DEFAULT_MAX_PIXELS)
}

/// Decodes an image file of any supported format into RGB. The format is recognized by its content.
///
/// The orientation that a camera recorded (EXIF, otherwise XMP) is applied, as in transformers' `load_image`; a bare
/// `Image.open(path).convert("RGB")` would ignore it. Everything else is as in Pillow: transparency is dropped (not
/// blended), greys are repeated, palettes are looked up, animations give their first frame, CMYK is multiplied out.
/// 16-bit samples keep their upper byte, except in 16-bit grey images without alpha, which Pillow clips at 255.
///
/// # Errors
/// Returns `Read`, `Decode`, `DecoderGaveUp`, `TruncatedImage`, `ImageFileTooLarge`, or `TooManyPixels`, which is
/// checked before anything is decoded.
pub fn open_image_within(path: impl AsRef<Path>, max_pixels: u64) -> Result<RgbImage> {
    let path = path.as_ref();
    let (bytes, format) = read(path, max_pixels)?;
    decode(path, &bytes, format, max_pixels)
}

/// [`open_image_within`] for an image in memory; messages call it `name`.
///
/// # Errors
/// Returns the errors of [`open_image_within`], except `Read` and `ImageFileTooLarge`.
pub fn decode_image_within(name: impl AsRef<Path>, bytes: &[u8], max_pixels: u64) -> Result<RgbImage> {
    let path = name.as_ref();
    if bytes.is_empty() {
        return Err(ProcessorError::EmptyImage { path: path.into() });
    }
    let format = image::guess_format(bytes).map_err(|source| ProcessorError::Decode { path: path.into(), source })?;
    decode(path, bytes, format, max_pixels)
}

/// The `[height, width]` of an image as [`open_image_within`] decodes it, from its header alone.
///
/// # Errors
/// Returns the errors of [`open_image_within`], except those that only decoding reveals.
pub fn image_size_within(path: impl AsRef<Path>, max_pixels: u64) -> Result<[usize; 2]> {
    let path = path.as_ref();
    let (bytes, format) = read(path, max_pixels)?;
    size(path, &bytes, format, max_pixels)
}

/// [`image_size_within`] for an image in memory; messages call it `name`.
///
/// # Errors
/// Returns the errors of [`image_size_within`], except `Read` and `ImageFileTooLarge`.
pub fn decoded_size_within(name: impl AsRef<Path>, bytes: &[u8], max_pixels: u64) -> Result<[usize; 2]> {
    let path = name.as_ref();
    if bytes.is_empty() {
        return Err(ProcessorError::EmptyImage { path: path.into() });
    }
    let format = image::guess_format(bytes).map_err(|source| ProcessorError::Decode { path: path.into(), source })?;
    size(path, bytes, format, max_pixels)
}

fn size(path: &Path, bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<[usize; 2]> {
    let size = || {
        let mut decoder = decoder(path, bytes, format, max_pixels)?;
        let (width, height) = decoder.dimensions();
        let (width, height) = (width as usize, height as usize);
        // Bit 4 of EXIF's numbers is a quarter turn.
        Ok(if orientation(&mut decoder).to_exif() > 4 { [width, height] } else { [height, width] })
    };
    guarded(size).unwrap_or_else(|reason| Err(ProcessorError::DecoderGaveUp { path: path.into(), reason }))
}

/// The decoders assert some properties of a file. The guard turns their panics into errors about the image.
fn decode(path: &Path, bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<RgbImage> {
    guarded(|| decode_unguarded(path, bytes, format, max_pixels))
        .unwrap_or_else(|reason| Err(ProcessorError::DecoderGaveUp { path: path.into(), reason }))
}

fn decode_unguarded(path: &Path, bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<RgbImage> {
    let decode = |source| ProcessorError::Decode { path: path.into(), source };
    // The decoder is lenient: it would fill the missing part with grey.
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(ProcessorError::TruncatedImage { path: path.into() });
    }
    let mut decoder = decoder(path, bytes, format, max_pixels)?;
    let orientation = orientation(&mut decoder);
    let mut image = DynamicImage::ImageRgb8(to_rgb(DynamicImage::from_decoder(decoder).map_err(decode)?));
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// The decoder of an image within the limit of pixels, which has read the header.
fn decoder<'a>(path: &Path, bytes: &'a [u8], format: ImageFormat, max_pixels: u64) -> Result<impl ImageDecoder + 'a> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    // Up to 8 bytes per pixel, a second copy during conversion, and the decoders' own buffers.
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(1 << 24));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|source| ProcessorError::Decode { path: path.into(), source })?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ProcessorError::TooManyPixels { path: path.into(), width, height, max_pixels });
    }
    Ok(decoder)
}

/// The file's bytes, up to the most that an image within the limit can need, and its format.
fn read(path: &Path, max_pixels: u64) -> Result<(Vec<u8>, ImageFormat)> {
    let read = |source| ProcessorError::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    // A file of another kind is recognized by its first bytes, however large it is.
    file.by_ref().take(64).read_to_end(&mut bytes).map_err(read)?;
    if bytes.is_empty() {
        return Err(ProcessorError::EmptyImage { path: path.into() });
    }
    let format = image::guess_format(&bytes).map_err(|source| ProcessorError::Decode { path: path.into(), source })?;
    let limit = max_pixels.saturating_mul(8).saturating_add(1 << 26);
    file.take(limit).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > limit {
        return Err(ProcessorError::ImageFileTooLarge { path: path.into(), limit, max_pixels });
    }
    Ok((bytes, format))
}

/// The orientation in EXIF, otherwise in XMP; none if the metadata is damaged.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten();
    exif.and_then(|chunk| Orientation::from_exif_chunk(&chunk))
        .or_else(|| {
            let xmp = decoder.xmp_metadata().ok().flatten()?;
            Orientation::from_exif(xmp_orientation(&xmp)?)
        })
        .unwrap_or(Orientation::NoTransforms)
}

/// Reads the digit of the first `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    let key = b"tiff:Orientation";
    let values = (0..xmp.len()).filter_map(|at| xmp[at..].strip_prefix(key));
    let mut digits = values.filter_map(|rest| {
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    });
    digits.next()
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    let high = |sample: u16| (sample >> 8) as u8;
    let clip = |sample: u16| sample.min(255) as u8;
    fn map<P: image::Pixel<Subpixel = u16> + 'static>(
        image: &ImageBuffer<P, Vec<u16>>,
        rgb: impl Fn(&P) -> [u8; 3],
    ) -> RgbImage {
        RgbImage::from_fn(image.width(), image.height(), |x, y| Rgb(rgb(image.get_pixel(x, y))))
    }
    match image {
        DynamicImage::ImageLuma16(i) => map(&i, |Luma([grey])| [clip(*grey); 3]),
        DynamicImage::ImageLumaA16(i) => map(&i, |p| [high(p.0[0]); 3]),
        DynamicImage::ImageRgb16(i) => map(&i, |p| p.0.map(high)),
        DynamicImage::ImageRgba16(i) => map(&i, |p| [p.0[0], p.0[1], p.0[2]].map(high)),
        other => other.into_rgb8(),
    }
}

/// Whether an end marker follows the first scan. Entropy-coded data does not contain 0xFFD9, but a thumbnail in a
/// header may, so the headers are skipped.
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
