//! Compares tiles with transformers' LlavaNextProcessor (tests/reference/tile_fixtures.py): how many an image has, which
//! tokens they make, and their pixel values.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::json;

use super::super::*;
use super::{fixtures, json, numbers};
use crate::config::Tiling;

#[test]
fn the_tokens_of_an_image_are_as_many_and_in_the_order_of_transformers() {
    let (mut counted, mut ordered) = (0, 0);
    for model in json("tiles.json").as_array().unwrap() {
        let size = |key: &str| model[key].as_u64().unwrap() as usize;
        let tiling = Tiling::new(size("side"), size("patches"), numbers(&model["pinpoints"]));
        for case in model["sizes"].as_array().unwrap() {
            let [height, width]: [usize; 2] = serde_json::from_value(case["size"].clone()).unwrap();
            let tiles = tiling.of([height, width]);
            let counts = (tiles.tokens(), tiles.count());
            let expected = ["tokens", "tiles"].map(|key| case[key].as_u64().unwrap() as usize);
            assert_eq!(counts, expected.into(), "{height} x {width}");
            assert!(tiles.tokens() <= tiling.most_tokens() && tiles.count() <= tiling.most_tiles());
            assert_eq!(tiles.places().len(), tiles.patches());
            counted += 1;
            if case["rows"].is_null() {
                continue;
            }
            let mut rows = vec![-1; tiles.tokens()];
            tiles.places().into_iter().zip(tiles.rows()).for_each(|(place, row)| rows[place] = row as i64);
            assert_eq!(rows, numbers::<i64>(&case["rows"]), "{height} x {width}");
            let newlines: Vec<usize> = (0..rows.len()).filter(|place| rows[*place] < 0).collect();
            assert!(tiles.newlines().eq(newlines), "{height} x {width}");
            ordered += 1;
        }
    }
    assert_eq!((counted, ordered), (330, 40));
}

fn config(change: serde_json::Value) -> Result<ImageProcessorConfig> {
    let mut value = json!({
        "image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28}, "do_pad": true,
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
    });
    for (key, changed) in change.as_object().unwrap() {
        value[key] = changed.clone();
    }
    ImageProcessorConfig::from_json(&value, Path::new("preprocessor_config.json"))
}

#[test]
fn the_pixel_values_of_tiles_are_those_of_transformers() {
    let bytes = std::fs::read(fixtures().join("tiles.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let processor = ImageProcessor::new(config(json!({})).unwrap());
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images");
    for name in ["a.png", "wide.png", "tall.png", "strip.png"] {
        let ours = processor.open(images.join(name)).unwrap();
        let theirs = expected.tensor(name).unwrap();
        assert_eq!(theirs.shape(), [ours.tiles, 3, ours.height, ours.width], "{name}");
        let config = processor.config();
        for (at, (ours, theirs)) in ours.data.iter().zip(theirs.data()).enumerate() {
            let theirs = config.number(*theirs, at / (28 * 28) % 3);
            assert_eq!(*ours, theirs, "{name}: value {at}");
        }
    }
}

#[test]
fn the_size_from_a_header_is_that_of_the_decoded_image() {
    let mut compared = 0;
    let folders = [fixtures().join("images"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images")];
    for file in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = file.unwrap().path();
        let Ok(image) = open_image(&path) else { continue };
        let size = image_size_within(&path, DEFAULT_MAX_PIXELS).unwrap();
        assert_eq!(size, [image.height() as usize, image.width() as usize], "{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(decoded_size_within(&path, &bytes, DEFAULT_MAX_PIXELS).unwrap(), size);
        compared += 1;
    }
    assert!(compared > 12, "{compared}");
    let wide = folders[1].join("wide.png");
    assert!(matches!(image_size_within(wide, 100), Err(ProcessorError::TooManyPixels { .. })));
    assert!(matches!(decoded_size_within("empty", &[], 100), Err(ProcessorError::EmptyImage { .. })));
}

#[test]
fn settings_are_written_as_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let read = config(json!({})).unwrap();
    read.save(dir.path()).unwrap();
    assert_eq!(ImageProcessorConfig::load(dir.path()).unwrap(), read);
    let square = config(json!({"size": {"height": 28, "width": 28}, "do_center_crop": false})).unwrap();
    assert_eq!(square, read, "the tiles have this size, whether they are cropped or not");
    let assembled = ImageProcessorConfig::clip(28).with_tiles(28, &read.pinpoints, Path::new("x")).unwrap();
    assert_eq!(assembled, read);
    assert_eq!(ImageProcessor::new(read).output_size(), Some((28, 28)));
    let defaults = json!({"size": {"shortest_edge": 336}, "crop_size": 336, "image_grid_pinpoints": null});
    assert_eq!(config(defaults).unwrap().pinpoints.len(), 5);
}

#[test]
fn settings_that_make_no_tiles_of_one_size_are_refused() {
    for (change, named) in [
        (json!({"image_grid_pinpoints": [[28, 50]]}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": [[28]]}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": [[0, 28]]}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": []}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": "28x28"}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": vec![[28, 28]; 129]}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": [[7000, 7000]]}), "image_grid_pinpoints"),
        (json!({"size": {"height": 28, "width": 56}}), "size"),
        (json!({"crop_size": {"height": 56, "width": 56}}), "size"),
        (json!({"do_resize": false}), "do_resize"),
    ] {
        let error = config(change.clone()).unwrap_err().to_string();
        assert!(error.contains("preprocessor_config.json") && error.contains(named), "{change}: {error}");
    }
    let tiles = config(json!({})).unwrap();
    assert!(tiles.with_aspect_ratio("pad", Path::new("x")).is_err(), "they are padded otherwise");
    assert!(ImageProcessorConfig::clip(28).with_pad().with_tiles(28, &[[28, 28]], Path::new("x")).is_err());
}

#[test]
fn an_extreme_image_is_cut_or_refused_within_the_limit() {
    let processor = ImageProcessor::new(config(json!({})).unwrap());
    let line = ::image::RgbImage::new(1, 20_000);
    let values = processor.process(&line).unwrap();
    assert_eq!((values.tiles, values.image, values.data.len()), (3, [20_000, 1], 3 * 3 * 28 * 28));
    assert!(processor.process(&::image::RgbImage::new(0, 3)).is_err());
}
