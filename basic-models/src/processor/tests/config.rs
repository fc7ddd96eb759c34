use super::super::*;
use serde_json::json;
use std::path::Path;

fn parse(value: serde_json::Value) -> Result<ImageProcessorConfig> {
    ImageProcessorConfig::from_json(&value, Path::new("preprocessor_config.json"))
}

#[test]
fn an_empty_file_means_clips_defaults() {
    assert_eq!(parse(json!({})).unwrap(), ImageProcessorConfig::clip(224));
    assert_eq!(parse(json!({ "size": null, "do_resize": null })).unwrap(), ImageProcessorConfig::clip(224));
}

#[test]
fn old_files_with_plain_lengths_are_read() {
    let old = json!({ "feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336 });
    assert_eq!(parse(old).unwrap(), ImageProcessorConfig::clip(336));
    // facebook/dinov2-base has a class of its own, with CLIP's steps.
    let dino = json!({ "image_processor_type": "BitImageProcessor", "size": { "shortest_edge": 256 } });
    let expected = ImageProcessorConfig { size: Some(Size::ShortestEdge(256)), ..ImageProcessorConfig::clip(224) };
    assert_eq!(parse(dino).unwrap(), expected);
}

#[test]
fn an_unsupported_value_is_an_error_that_names_the_file_and_the_key() {
    for (value, key) in [
        (json!({ "resample": 1 }), "resample"),
        (json!({ "size": { "longest_edge": 4 } }), "size"),
        (json!({ "size": 0 }), "size"),
        (json!({ "crop_size": { "height": 4 } }), "crop_size"),
        (json!({ "image_mean": [0.5, 0.5] }), "image_mean"),
        (json!({ "image_std": [0.5, 0.0, 0.5] }), "image_std"),
        (json!({ "do_pad": true }), "do_pad"),
        (json!({ "image_processor_type": "DonutImageProcessor" }), "image_processor_type"),
    ] {
        let error = parse(value).unwrap_err().to_string();
        assert!(error.contains("preprocessor_config.json") && error.contains(key), "{error}");
    }
    let said = parse(json!({ "do_resize": "yes" })).unwrap_err().to_string();
    assert!(said.contains("\"do_resize\" is \"yes\""), "{said}");
}

#[test]
fn saved_settings_are_read_back_the_same() {
    let bilinear = ImageProcessorConfig {
        size: Some(Size::Exact { height: 20, width: 31 }),
        resample: Resample::Bilinear,
        crop: None,
        normalize: None,
        ..ImageProcessorConfig::clip(28)
    };
    let bare = ImageProcessorConfig { size: None, rescale_factor: None, ..ImageProcessorConfig::siglip(28) };
    let llava = ImageProcessorConfig { kind: ImageKind::Llava, ..ImageProcessorConfig::clip(336) };
    let dark = ImageProcessorConfig { pad: Some([9, 0, 255]), normalize: None, ..llava.clone() };
    let padded = [llava.clone(), llava.with_pad(), dark];
    for config in
        padded.into_iter().chain([ImageProcessorConfig::clip(336), ImageProcessorConfig::siglip(384), bilinear, bare])
    {
        let dir = tempfile::tempdir().unwrap();
        config.save(dir.path()).unwrap();
        ProcessorConfig::clip(14).save(dir.path()).unwrap();
        let back = ImageProcessorConfig::load(dir.path()).unwrap();
        // If normalization is off, the mean has no effect and is not kept; everything else is.
        assert_eq!(back, config);
    }
}

#[test]
fn settings_nested_in_processor_config_win_as_in_transformers() {
    let dir = tempfile::tempdir().unwrap();
    ImageProcessorConfig::clip(336).save(dir.path()).unwrap();
    let nested = json!({ "image_processor": { "size": 28, "crop_size": 28 }, "patch_size": 7 });
    std::fs::write(dir.path().join("processor_config.json"), nested.to_string()).unwrap();
    assert_eq!(ImageProcessorConfig::load(dir.path()).unwrap(), ImageProcessorConfig::clip(28));
    let config = ProcessorConfig::load(dir.path(), ProcessorConfig::clip(14)).unwrap();
    assert_eq!(config, ProcessorConfig::clip(7));
}

#[test]
fn a_directory_without_image_settings_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = ImageProcessorConfig::load(dir.path()).unwrap_err();
    assert!(matches!(error, ProcessorError::MissingFile { .. }), "{error}");
    assert!(error.to_string().contains(&dir.path().display().to_string()));
}

#[test]
fn an_image_takes_one_token_a_patch_and_the_class_token_only_where_it_is_used() {
    let clip = ProcessorConfig::clip(14);
    assert_eq!(clip.image_tokens(336, 336), 576); // LLaVA-1.5
    let full = ProcessorConfig { vision_feature_select_strategy: FeatureSelect::Full, ..clip.clone() };
    assert_eq!(full.image_tokens(336, 336), 577);
    let siglip = ProcessorConfig { num_additional_image_tokens: 0, ..full };
    assert_eq!(siglip.image_tokens(30, 45), 6);
}

#[test]
fn a_zero_patch_size_or_an_unknown_strategy_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for text in [r#"{"patch_size": 0}"#, r#"{"vision_feature_select_strategy": "all"}"#, "[", r#"{"patch_size": -1}"#] {
        std::fs::write(dir.path().join("processor_config.json"), text).unwrap();
        assert!(ProcessorConfig::load(dir.path(), ProcessorConfig::clip(7)).is_err(), "{text}");
    }
}

#[test]
fn padding_is_asked_for_by_the_image_processor_or_by_llavas_own_key() {
    // int(mean * 255) of CLIP's mean, as LLaVA computes it.
    let llava = parse(json!({ "image_processor_type": "LlavaImageProcessor", "do_pad": true })).unwrap();
    assert_eq!(llava.pad, Some([122, 116, 104]));
    let path = Path::new("config.json");
    let square = ImageProcessorConfig::clip(336).with_aspect_ratio("square", path).unwrap();
    assert_eq!(square, ImageProcessorConfig::clip(336));
    let padded = ImageProcessorConfig::siglip(384).with_aspect_ratio("pad", path).unwrap();
    assert_eq!(padded.pad, Some([127; 3]));
    let error = ImageProcessorConfig::clip(336).with_aspect_ratio("anyres", path).unwrap_err().to_string();
    assert!(error.contains("image_aspect_ratio") && error.contains("anyres"), "{error}");
    // What is saved pads in the same way, whichever class it came from.
    let dir = tempfile::tempdir().unwrap();
    padded.save(dir.path()).unwrap();
    let back = ImageProcessorConfig::load(dir.path()).unwrap();
    assert_eq!(back, ImageProcessorConfig { kind: ImageKind::Llava, ..padded });
}

#[test]
fn settings_that_take_too_much_or_make_no_numbers_are_refused_by_key() {
    for (settings, key) in [
        (json!({ "crop_size": { "height": 16384, "width": 16384 } }), "crop_size"),
        (json!({ "size": { "shortest_edge": 4097 } }), "size"),
        (json!({ "rescale_factor": 1e300 }), "rescale_factor"),
        (json!({ "image_std": [1e-45, 0.5, 0.5] }), "image_std"),
        (json!({ "image_std": 0 }), "image_std"),
        (json!({ "image_mean": [3e38, 0.5, 0.5], "image_std": 0.1 }), "image_mean"),
    ] {
        let error = parse(settings).unwrap_err().to_string();
        assert!(error.contains(key) && error.len() < 400, "{error}");
    }
    assert!(parse(json!({ "size": 4096, "crop_size": 4096 })).is_ok());
}
