use serde_json::{Value, json};

use super::*;

fn decoder(value: Value) -> DecoderConfig {
    DecoderConfig::from_value(&value).unwrap()
}

fn minimal(text: Value) -> Result<LlavaConfig, ConfigError> {
    LlavaConfig::from_value(&json!({ "model_type": "llava", "text_config": text }))
}

#[test]
fn absent_keys_take_the_defaults_of_transformers_classes() {
    // The defaults of LlavaConfig() with LlamaConfig() in transformers 5.23: the sizes of Vicuna-7B and CLIP
    // ViT-L/14-336. LLaVA-1.5's file needs to give only one key: a vocabulary with room for the image token, 32000.
    let config = minimal(json!({ "vocab_size": 32064 })).unwrap();
    assert_eq!((config.text_config.hidden_size, config.text_config.kv_heads()), (4096, 32));
    assert_eq!((config.text_config.head_dim(), config.text_config.rope.theta), (128, 10000.0));
    assert_eq!((config.vision_config.num_hidden_layers, config.visual_tokens()), (24, 576));
    assert_eq!(config.feature_layers().unwrap(), [23]);
    assert_eq!(config.text_config, DecoderConfig { vocab_size: 32064, ..DecoderConfig::default() });
}

#[test]
fn each_family_takes_its_own_defaults() {
    let mistral = decoder(json!({ "model_type": "mistral" }));
    assert_eq!((mistral.kv_heads(), mistral.intermediate_size, mistral.window(31)), (8, 14336, Some(4096)));
    assert_eq!(decoder(json!({ "model_type": "mistral", "sliding_window": null })).window(0), None);
    let qwen2 = decoder(json!({ "model_type": "qwen2" }));
    assert_eq!((qwen2.vocab_size, qwen2.attention_biases(), qwen2.window(31)), (151936, (true, false), None));
    let qwen3 = decoder(json!({ "model_type": "qwen3", "hidden_size": 1024 }));
    assert_eq!((qwen3.head_dim(), qwen3.attention_biases()), (128, (false, false)));
    let phi3 = decoder(json!({ "model_type": "phi3" }));
    assert_eq!((phi3.hidden_size, phi3.eos_ids(), phi3.window(0), phi3.rms_norm_eps), (3072, vec![32000], None, 1e-5));
    let gemma = decoder(json!({ "model_type": "gemma", "hidden_size": 2048, "hidden_act": "gelu" }));
    assert_eq!((gemma.head_dim(), gemma.hidden_act), (256, Activation::GeluTanh));
    assert!(gemma.tie_word_embeddings && gemma.embedding_scale() == Some(2048f64.sqrt()));
    let siglip = VisionConfig::from_value(&json!({ "model_type": "siglip_vision_model" })).unwrap();
    assert_eq!((siglip.num_patches(), siglip.special_positions(), siglip.pooling_head), (196, 0, true));
    let dino = VisionConfig::from_value(&json!({ "model_type": "dinov2_with_registers" })).unwrap();
    assert_eq!((dino.num_patches(), dino.special_positions(), dino.intermediate_size), (196, 5, 3072));
}

#[test]
fn windows_follow_the_layer_types() {
    let base = json!({ "model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": true, "sliding_window": 9,
        "max_window_layers": 3 });
    let windows = |config: &DecoderConfig| (0..4).map(|i| config.window(i)).collect::<Vec<_>>();
    assert_eq!(windows(&decoder(base.clone())), [None, None, None, Some(9)]);
    let mut named = base.clone();
    named["layer_types"] = json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention"]);
    assert_eq!(windows(&decoder(named.clone())), [Some(9), None, Some(9), None]);
    assert_eq!(windows(&decoder(decoder(named.clone()).to_value())), [Some(9), None, Some(9), None]);
    named["use_sliding_window"] = json!(false);
    assert!(DecoderConfig::from_value(&named).unwrap_err().to_string().contains("layer_types"));
}

#[test]
fn what_is_written_reads_back_as_the_same() {
    let rope = json!({ "type": "linear", "factor": 2.0 });
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 });
    for text in [
        json!({ "vocab_size": 32064, "rope_scaling": rope, "rope_theta": 5e5, "attention_bias": true }),
        json!({ "vocab_size": 32064, "rope_parameters": llama3, "eos_token_id": [2, 7], "mlp_bias": true }),
        json!({ "vocab_size": 32064, "rope_scaling": { "rope_type": "dynamic", "factor": 4.0 } }),
        json!({ "model_type": "mistral", "vocab_size": 32064, "sliding_window": null }),
        json!({ "model_type": "qwen2" }),
        json!({ "model_type": "qwen3", "num_hidden_layers": 2, "head_dim": 64 }),
        json!({ "model_type": "phi3", "partial_rotary_factor": 0.75, "sliding_window": 2047 }),
        json!({ "model_type": "gemma" }),
    ] {
        let config = minimal(text.clone()).unwrap();
        let mut again = LlavaConfig::from_json(&config.to_json().unwrap()).unwrap();
        // These are written out instead of left at their defaults.
        again.text_config.num_key_value_heads = config.text_config.num_key_value_heads;
        again.text_config.head_dim = config.text_config.head_dim;
        again.tie_word_embeddings = config.tie_word_embeddings;
        assert_eq!(again, config, "{text}");
    }
    for vision in ["clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers"] {
        let config = VisionConfig::from_value(&json!({ "model_type": vision })).unwrap();
        assert_eq!(VisionConfig::from_value(&config.to_value()).unwrap(), config);
    }
}

#[test]
fn both_generations_of_the_rotary_base_are_read_and_written() {
    for rope in
        [json!({ "rope_theta": 5e5 }), json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } })]
    {
        let mut text = json!({ "vocab_size": 32064 });
        text.as_object_mut().unwrap().extend(rope.as_object().unwrap().clone());
        let config = minimal(text).unwrap();
        assert_eq!(config.text_config.rope.theta, 5e5);
        let written: Value = serde_json::from_str(&config.to_json().unwrap()).unwrap();
        assert_eq!(written["text_config"]["rope_theta"], 5e5);
        assert_eq!(written["text_config"]["rope_parameters"]["rope_theta"], 5e5);
    }
}

#[test]
fn what_changes_the_computation_and_is_not_built_is_an_error_that_names_the_key() {
    for (text, key) in [
        (json!({ "rope_scaling": { "type": "yarn", "factor": 2.0 } }), "rope_scaling.rope_type"),
        (json!({ "rope_scaling": { "type": "linear" } }), "rope_scaling.factor"),
        (json!({ "hidden_act": "relu" }), "text_config.hidden_act"),
        (json!({ "model_type": "mamba" }), "text_config.model_type"),
        (json!({ "attention_dropout": 0.1 }), "text_config.attention_dropout"),
        (json!({ "num_key_value_heads": 5 }), "num_key_value_heads"),
        (json!({ "hidden_size": 0 }), "hidden_size"),
        (json!({ "hidden_size": "many" }), "text_config.hidden_size"),
        (json!({ "quantization_config": { "quant_method": "awq" } }), "text_config.quantization_config"),
        (json!({ "model_type": "gemma", "use_bidirectional_attention": true }), "use_bidirectional_attention"),
    ] {
        let error = minimal(text.clone()).unwrap_err().to_string();
        assert!(error.contains(key), "{text}: {error}");
    }
    let vision = |value: Value| VisionConfig::from_value(&value).unwrap_err().to_string();
    assert!(vision(json!({ "model_type": "dinov2", "drop_path_rate": 0.1 })).contains("drop_path_rate"));
    assert!(vision(json!({ "image_size": [224, 192] })).contains("image_size"));
    assert!(vision(json!({ "model_type": "vit" })).contains("dinov2"));
}

#[test]
fn a_gated_vision_block_is_two_thirds_as_wide_in_steps_of_8_and_keeps_its_key() {
    // facebook/dinov2-giant has width 1536 and mlp_ratio 4, and its weights_in has 8192 rows.
    for (hidden, ratio, width) in [(1536, 4, 4096), (24, 2, 32), (24, 3, 48), (40, 4, 112)] {
        let value = json!({ "model_type": "dinov2", "hidden_size": hidden, "num_attention_heads": 2,
            "mlp_ratio": ratio, "use_swiglu_ffn": true });
        let config = VisionConfig::from_value(&value).unwrap();
        assert_eq!(config.swiglu_width(), width);
        assert_eq!(VisionConfig::from_value(&config.to_value()).unwrap(), config);
    }
}

#[test]
fn other_projectors_carry_their_own_model_type() {
    let mut config = minimal(json!({ "vocab_size": 32064 })).unwrap();
    config.projector = ProjectorKind::PixelShuffle { factor: 2, layers: 2 };
    assert_eq!(config.visual_tokens(), 144);
    let text = config.to_json().unwrap();
    assert!(text.contains("\"basic_llava\""));
    assert_eq!(LlavaConfig::from_json(&text).unwrap().projector, config.projector);
    config.vision_feature_select_strategy = SelectStrategy::Full;
    assert!(config.validate().unwrap_err().to_string().contains("pixel_shuffle2"));
    config.projector = ProjectorKind::Identity;
    assert!(config.validate().unwrap_err().to_string().contains("4096"));
}

#[test]
fn several_feature_layers_stand_side_by_side() {
    let mut config = minimal(json!({ "vocab_size": 32064 })).unwrap();
    config.vision_feature_layer = FeatureLayers::Many(vec![-2, 0, 24]);
    assert_eq!((config.feature_layers().unwrap(), config.feature_width()), (vec![23, 0, 24], 3 * 1024));
    for bad in [vec![], vec![25], vec![-26], vec![i64::MIN]] {
        config.vision_feature_layer = FeatureLayers::Many(bad);
        assert!(config.feature_layers().is_err());
    }
}
