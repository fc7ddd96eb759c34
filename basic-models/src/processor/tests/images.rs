use super::super::*;
use super::fixtures;
use ::image::{ImageFormat, Rgb, RgbImage};
use safetensors::SafeTensors;

fn floats(tensor: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn pixel_values_are_those_of_transformers() {
    let bytes = std::fs::read(fixtures().join("pixel_values.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for (name, tensor) in expected.tensors() {
        let (folder, file) = name.split_once('/').unwrap();
        if folder == "rgb" {
            continue;
        }
        let processor = ImageProcessor::load(&fixtures().join(folder)).unwrap();
        let ours = processor.process(&open_image(fixtures().join("images").join(file)).unwrap()).unwrap();
        assert_eq!(tensor.shape(), [3, ours.height, ours.width], "{name}");
        let plane = ours.height * ours.width;
        let config = processor.config();
        let std = config.normalize.map_or([1.0; 3], |(_, std)| std);
        let unit = if config.rescale_factor.is_some() { 1.0 } else { 255.0 };
        let difference =
            ours.data.iter().zip(floats(&tensor)).enumerate().map(|(i, (a, b))| (a - b).abs() * std[i / plane] / unit);
        let (mut worst, mut off) = (0f32, 0);
        for d in difference {
            worst = worst.max(d);
            off += usize::from(d > 0.5 / 255.0);
        }
        println!(
            "{name}: at most {:.3}/255 before normalization, {off} of {} values differ",
            worst * 255.0,
            ours.data.len()
        );
        assert!(worst < 0.001 / 255.0, "{name}: {}", worst * 255.0);
        compared += 1;
    }
    assert_eq!(compared, 18);
}

#[test]
fn an_image_of_the_models_size_passes_without_resampling() {
    let image = RgbImage::from_fn(28, 28, |x, y| Rgb([x as u8, y as u8, 200]));
    let values = ImageProcessor::new(ImageProcessorConfig::clip(28)).process(&image).unwrap();
    let (mean, std) = ImageProcessorConfig::clip(28).normalize.unwrap();
    let expected = (3.0 / 255.0 - mean[0]) / std[0];
    assert!((values.data[28 * 5 + 3] - expected).abs() < 1e-6);
}

#[test]
fn a_jpeg_decodes_nearly_as_in_pillow() {
    let bytes = std::fs::read(fixtures().join("pixel_values.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let expected = tensors.tensor("rgb/photo.jpg").unwrap();
    let ours = open_image(fixtures().join("images/photo.jpg")).unwrap();
    let worst = ours.as_raw().iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("photo.jpg (4:2:0): at most {worst}/255 from Pillow's libjpeg-turbo");
    // Decoders may round the inverse transform and the colour upsampling differently.
    assert!(worst <= 4, "{worst}");
}

#[test]
fn a_missing_a_truncated_or_a_foreign_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("gone.png");
    assert!(open_image(&missing).unwrap_err().to_string().contains("gone.png"));
    for name in ["odd.png", "photo.jpg", "palette.gif", "../decode/rgb.bmp", "../decode/alpha.webp"] {
        let whole = std::fs::read(fixtures().join("images").join(name)).unwrap();
        for part in [1, 20, whole.len() / 2, whole.len() * 9 / 10] {
            let name = name.trim_start_matches("../decode/");
            let path = dir.path().join(name);
            std::fs::write(&path, &whole[..part]).unwrap();
            let error = open_image(&path).expect_err(&format!("{part} bytes of {name}")).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
    let text = dir.path().join("text.png");
    std::fs::write(&text, "not an image").unwrap();
    assert!(matches!(open_image(&text), Err(ProcessorError::Decode { .. })));
}

#[test]
fn an_image_beyond_the_pixel_limit_is_refused_before_it_is_decoded() {
    let path = fixtures().join("images/odd.png");
    let error = open_image_within(&path, 61 * 47 - 1).unwrap_err();
    assert!(matches!(error, ProcessorError::TooManyPixels { width: 61, height: 47, max_pixels: 2866, .. }), "{error}");
    assert!(open_image_within(&path, 61 * 47).is_ok());
}

#[test]
fn a_line_of_pixels_is_processed_without_the_millions_of_rows_that_it_would_grow_to() {
    let line = RgbImage::from_fn(1, 500_000, |_, y| Rgb([(y / 1961) as u8; 3]));
    let processor = ImageProcessor::new(ImageProcessorConfig { normalize: None, ..ImageProcessorConfig::clip(224) });
    let values = processor.process(&line).unwrap(); // from an image of 224 x 112,000,000
    assert!(values.data.iter().all(|value| (value * 255.0).round() == 127.0));
    let uncropped = ImageProcessorConfig { crop: None, ..ImageProcessorConfig::clip(224) };
    let error = ImageProcessor::new(uncropped).process(&line).unwrap_err();
    assert!(matches!(error, ProcessorError::Resize { new_height: 112_000_000, .. }), "{error}");
    assert!(error.to_string().contains("aspect ratio"), "{error}");
    assert!(ImageProcessor::new(ImageProcessorConfig::clip(224)).process(&RgbImage::new(0, 3)).is_err());
}

#[test]
fn padding_a_line_to_a_square_beyond_the_limit_is_refused() {
    let processor = ImageProcessor::new(ImageProcessorConfig::clip(28).with_pad());
    let error = processor.process(&RgbImage::new(1, 500_000)).unwrap_err();
    assert!(matches!(error, ProcessorError::Resize { new_width: 500_000, new_height: 500_000, .. }), "{error}");
    let processor = processor.with_max_pixels(99);
    assert!(processor.process(&RgbImage::new(1, 10)).is_err());
    assert!(processor.with_max_pixels(100).process(&RgbImage::new(1, 10)).is_ok());
}

#[test]
fn the_format_is_told_by_the_content_not_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("really_a.jpg");
    RgbImage::from_pixel(3, 2, Rgb([9, 8, 7])).save_with_format(&path, ImageFormat::Png).unwrap();
    assert_eq!(open_image(&path).unwrap().get_pixel(2, 1).0, [9, 8, 7]);
}

/// The same image that tests/reference/image_fixtures.py draws.
fn drawn(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| ((x * 7 + y * 13 + c * 29) ^ ((x * y) >> 5)) as u8)))
}

fn fnv(values: &[u8]) -> String {
    let hash = values
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &value| (hash ^ u64::from(value)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[test]
fn images_of_all_sizes_are_processed_bit_for_bit_as_by_transformers() {
    let fixture = super::json("sizes.json");
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 86);
    for case in cases {
        let name = case["processor"].as_str().unwrap();
        let config = ImageProcessorConfig::from_json(&fixture["processors"][name], std::path::Path::new(name)).unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as u32;
        let values = ImageProcessor::new(config).process(&drawn(size("width"), size("height"))).unwrap();
        assert_eq!([3, values.height, values.width].to_vec(), super::numbers::<usize>(&case["shape"]));
        let bytes: Vec<u8> = values.data.iter().map(|&value| value as u8).collect();
        let case_name = format!("{name} of {} x {}", size("width"), size("height"));
        let samples: Vec<u8> = bytes.iter().copied().step_by((bytes.len() / 24).max(1)).collect();
        assert_eq!(samples, super::numbers::<u8>(&case["samples"]), "{case_name}");
        assert_eq!(fnv(&bytes), case["hash"].as_str().unwrap(), "{case_name}");
    }
}

/// The largest difference from the pixels that transformers' `load_image` returned, and whether the sizes are equal.
fn difference(name: &str, expected: &serde_json::Value) -> (u8, bool) {
    let image = open_image(fixtures().join("decode").join(name)).unwrap();
    let hex = expected["rgb"].as_str().unwrap();
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
    let size = [&expected["width"], &expected["height"]].map(|value| value.as_u64().unwrap() as u32);
    let worst = image.as_raw().iter().zip(bytes).map(|(a, b)| a.abs_diff(b)).max().unwrap();
    (worst, size == [image.width(), image.height()])
}

#[test]
fn files_of_every_kind_and_orientation_decode_as_in_transformers() {
    let fixture = super::json("decoded.json");
    let mut wrong = Vec::new();
    for (name, expected) in fixture.as_object().unwrap() {
        let (worst, same_size) = difference(name, expected);
        // Decoders of lossy files round their transforms and upsampling differently.
        let lossy = name.ends_with(".jpg") || name == "lossy.webp";
        if lossy {
            println!("{name}: at most {worst}/255");
        }
        if !same_size || worst > if lossy { 4 } else { 0 } {
            wrong.push(format!("{name}: {worst}/255, same size: {same_size}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(fixture.as_object().unwrap().len(), 37);
}

#[test]
fn an_image_of_50_000_by_50_000_pixels_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.png");
    // Only a header: with its pixels, the file would have 2.4 MB.
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    for length in [50_000u32, 50_000] {
        bytes.extend(length.to_be_bytes());
    }
    bytes.extend([1, 0, 0, 0, 0]);
    let crc = bytes[12..].iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    });
    bytes.extend((!crc).to_be_bytes());
    bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    std::fs::write(&path, &bytes).unwrap();
    let error = open_image(&path).unwrap_err();
    assert!(
        matches!(error, ProcessorError::TooManyPixels { width: 50_000, height: 50_000, .. })
            && error.to_string().contains("bomb.png"),
        "{error}"
    );
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    // The length of a device is unknown.
    assert!(matches!(open_image("/dev/zero"), Err(ProcessorError::Decode { .. })));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.png");
    let mut bytes = std::fs::read(fixtures().join("images/odd.png")).unwrap();
    bytes.resize((1 << 26) + 8001, 0);
    std::fs::write(&path, bytes).unwrap();
    let error = open_image_within(&path, 1000).unwrap_err();
    assert!(matches!(error, ProcessorError::ImageFileTooLarge { max_pixels: 1000, .. }), "{error}");
}

#[test]
fn a_decoder_that_panics_is_an_error_that_names_the_image() {
    // A palette of four bytes, which is not a multiple of three.
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        png.extend((data.len() as u32).to_be_bytes());
        let body = [kind.as_slice(), data].concat();
        png.extend(&body);
        let mut crc = !0u32;
        for byte in &body {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        png.extend((!crc).to_be_bytes());
    };
    chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0]);
    chunk(b"PLTE", &[1, 2, 3, 4]);
    // zlib: one stored block of two zero bytes (the filter, and the palette's first colour).
    chunk(b"IDAT", &[0x78, 0x01, 1, 2, 0, 0xFD, 0xFF, 0, 0, 0, 2, 0, 1]);
    chunk(b"IEND", &[]);
    let error = decode_image_within("bad.png", &png, 100).unwrap_err();
    assert!(error.to_string().contains("bad.png"), "{error}");
    assert!(matches!(error, ProcessorError::DecoderGaveUp { .. } | ProcessorError::Decode { .. }), "{error}");
}
