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
fn sixteen_bit_samples_keep_their_upper_byte_and_alpha_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep.png");
    let deep = ::image::ImageBuffer::from_pixel(2, 2, ::image::Rgba([0xABFFu16, 0x0100, 0x00FF, 7]));
    deep.save(&path).unwrap();
    assert_eq!(open_image(&path).unwrap().get_pixel(0, 0).0, [0xAB, 1, 0]);
    ::image::ImageBuffer::from_pixel(2, 2, ::image::Luma([0x80FFu16])).save(&path).unwrap();
    assert_eq!(open_image(&path).unwrap().get_pixel(1, 1).0, [0x80; 3]);
}

#[test]
fn a_missing_a_truncated_or_a_foreign_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("gone.png");
    assert!(open_image(&missing).unwrap_err().to_string().contains("gone.png"));
    for name in ["odd.png", "photo.jpg", "palette.gif"] {
        let whole = std::fs::read(fixtures().join("images").join(name)).unwrap();
        for part in [1, 20, whole.len() / 2, whole.len() * 9 / 10] {
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
fn an_image_that_would_grow_beyond_memory_is_refused() {
    let line = RgbImage::new(1, 500_000);
    let error = ImageProcessor::new(ImageProcessorConfig::clip(224)).process(&line).unwrap_err();
    assert!(matches!(error, ProcessorError::Resize { new_height: 112_000_000, .. }), "{error}");
    assert!(ImageProcessor::new(ImageProcessorConfig::clip(224)).process(&RgbImage::new(0, 3)).is_err());
}

#[test]
fn the_format_is_told_by_the_content_not_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("really_a.jpg");
    RgbImage::from_pixel(3, 2, Rgb([9, 8, 7])).save_with_format(&path, ImageFormat::Png).unwrap();
    assert_eq!(open_image(&path).unwrap().get_pixel(2, 1).0, [9, 8, 7]);
}
