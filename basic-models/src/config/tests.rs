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
    assert_eq!(config.feature_layers(&config.vision_config).unwrap(), [23]);
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
    let gemma2 = decoder(json!({ "model_type": "gemma2" }));
    assert_eq!((gemma2.score_cap, gemma2.logit_cap, gemma2.query_scale()), (Some(50.0), Some(30.0), None));
    assert_eq!((gemma2.window(0), gemma2.window(1), gemma2.hidden_act), (Some(4096), None, Activation::GeluTanh));
    // Gemma 2 27B divides its scores by the root of 144, and its heads are 128 wide.
    let wide = decoder(json!({ "model_type": "gemma2", "head_dim": 128, "query_pre_attn_scalar": 144 }));
    assert_eq!(wide.query_scale(), Some((128f64 / 144.0).sqrt()));
    let gemma3 = decoder(json!({ "model_type": "gemma3_text" }));
    assert_eq!((gemma3.score_cap, gemma3.window(4), gemma3.window(5)), (None, Some(4096), None));
    assert_eq!((gemma3.rope.theta, gemma3.local_rope.map(|rope| rope.theta)), (1e6, Some(1e4)));
    let olmo2 = decoder(json!({ "model_type": "olmo2" }));
    assert_eq!((olmo2.vocab_size, olmo2.rms_norm_eps, olmo2.pad_token_id), (50304, 1e-5, Some(1)));
    let smollm3 = decoder(json!({ "model_type": "smollm3" }));
    assert_eq!([2, 3, 35].map(|layer| smollm3.rotates(layer)), [true, false, false]);
    assert_eq!((smollm3.rope.theta, smollm3.window(3), smollm3.tie_word_embeddings), (2e6, None, true));
    let ministral3 = decoder(json!({ "model_type": "ministral3" }));
    assert_eq!((ministral3.rope.theta, ministral3.rope.attention_factor()), (1e6, 1.0));
    assert_eq!(ministral3.rope.growth.map(|growth| (growth.at(16383), growth.beta)), Some((1.0, 0.1)));
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
fn yarn_and_dynamic_scaling_stretch_the_context() {
    let context = |scaling: Value, positions: usize| {
        decoder(json!({ "rope_scaling": scaling, "max_position_embeddings": positions })).context()
    };
    let yarn = |factor: f64, original: usize| json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original });
    // Qwen's README adds the scaling and leaves max_position_embeddings; other files have the stretched one.
    assert_eq!(context(yarn(4.0, 32_768), 32_768), 131_072);
    assert_eq!(context(yarn(4.0, 32_768), 131_072), 131_072);
    assert_eq!(context(yarn(2.0, 32_768), 131_072), 131_072);
    assert_eq!(context(json!({ "rope_type": "dynamic", "factor": 2.0 }), 4096), 8192);
    assert_eq!(context(json!({ "rope_type": "linear", "factor": 4.0 }), 16_384), 16_384);
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
        json!({ "vocab_size": 32064, "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "truncate": false } }),
        json!({ "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "partial_rotary_factor": 0.75,
            "rope_scaling": { "type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 4.0] },
            "max_position_embeddings": 131_072 }),
        json!({ "model_type": "gemma2", "query_pre_attn_scalar": 144, "final_logit_softcapping": null }),
        json!({ "model_type": "gemma3_text", "rope_scaling": { "rope_type": "linear", "factor": 8.0 } }),
        json!({ "model_type": "olmo2", "attention_bias": true }),
        json!({ "model_type": "smollm3", "use_sliding_window": true, "sliding_window": 8192 }),
        json!({ "model_type": "ministral3" }),
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
fn decoders_have_as_many_parameters_as_the_published_models() {
    // The numbers that the Hub states for the files of meta-llama/Llama-3.2-1B, google/gemma-2-2b, google/gemma-3-1b-pt,
    // allenai/OLMo-2-1124-7B, HuggingFaceTB/SmolLM3-3B, microsoft/Phi-4-mini-instruct and
    // mistralai/Mistral-Small-24B-Instruct-2501, with the sizes of their config.json.
    let device = basic_core::DeviceSpec::Cpu.open().unwrap();
    for (text, parameters) in [
        (
            json!({ "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
                "num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": true }),
            1_235_814_400,
        ),
        (json!({ "model_type": "gemma2" }), 2_614_341_888),
        (
            json!({ "model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 1152, "intermediate_size": 6912,
                "num_attention_heads": 4, "num_key_value_heads": 1 }),
            999_885_952,
        ),
        (json!({ "model_type": "olmo2", "vocab_size": 100_352 }), 7_298_617_344),
        (json!({ "model_type": "smollm3" }), 3_075_098_624),
        (
            json!({ "model_type": "phi3", "vocab_size": 200_064, "num_attention_heads": 24, "num_key_value_heads": 8,
                "tie_word_embeddings": true }),
            3_836_021_760,
        ),
        (
            json!({ "model_type": "mistral", "vocab_size": 131_072, "hidden_size": 5120, "intermediate_size": 32768,
                "num_hidden_layers": 40, "head_dim": 128, "sliding_window": null }),
            23_572_403_200usize,
        ),
    ] {
        let config = decoder(text.clone());
        let slots = crate::parameters::slots(&config.init(&device), "");
        let body: usize = slots.iter().map(|slot| slot.shape.iter().product::<usize>()).sum();
        let head = if config.tie_word_embeddings { 0 } else { config.vocab_size * config.hidden_size };
        assert_eq!(body + head, parameters, "{text}");
    }
}

#[test]
fn divisors_that_do_not_fit_the_head_are_refused() {
    // A head of 8 of which three quarters are rotated has three pairs.
    let phi = |short: Value, long: Value, original: Value| {
        let rope = json!({ "type": "longrope", "short_factor": short, "long_factor": long });
        let text = json!({ "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "rope_scaling": rope,
            "partial_rotary_factor": 0.75, "original_max_position_embeddings": original });
        DecoderConfig::from_value(&text).map_err(|error| error.to_string())
    };
    assert!(phi(json!([1, 1, 1]), json!([1, 2, 3]), json!(24)).is_ok());
    for (short, long, original, said) in [
        (json!([1, 1]), json!([1, 2, 3]), json!(24), "2 numbers"),
        (json!([1, 1, 1]), json!([1, 2, 3, 4]), json!(24), "4 numbers"),
        (json!([1, 1, 0]), json!([1, 2, 3]), json!(24), "short_factor"),
        (json!([1, 1, "1"]), json!([1, 2, 3]), json!(24), "short_factor"),
        (json!([1, 1, 1]), json!(vec![1; 70_000]), json!(24), "long_factor"),
        (json!([1, 1, 1]), json!([1, 2, 3]), json!(1), "original_max_position_embeddings"),
        (json!([1, 1, 1]), json!([1, 2, 3]), json!("24"), "original_max_position_embeddings"),
    ] {
        let error = phi(short, long, original).unwrap_err();
        assert!(error.contains(said) && error.len() < 500, "{error}");
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
        (json!({ "rope_scaling": { "type": "ntk", "factor": 2.0 } }), "rope_scaling.rope_type"),
        (json!({ "rope_scaling": { "type": "yarn" } }), "rope_scaling.factor"),
        (json!({ "rope_scaling": { "type": "longrope" } }), "rope_scaling.short_factor"),
        (json!({ "model_type": "ministral3", "rope_parameters": { "rope_theta": 1e6 } }), "llama_4_scaling_beta"),
        (json!({ "model_type": "gemma2", "attn_logit_softcapping": -1.0 }), "attn_logit_softcapping"),
        (json!({ "model_type": "gemma2", "query_pre_attn_scalar": 0 }), "query_pre_attn_scalar"),
        (json!({ "model_type": "gemma2", "hidden_activation": "relu" }), "hidden_activation"),
        (json!({ "model_type": "gemma2", "sliding_window": null }), "sliding_window"),
        (
            json!({ "model_type": "gemma3_text", "sliding_window_pattern": 0, "num_hidden_layers": 1 }),
            "sliding_window_pattern",
        ),
        (json!({ "model_type": "gemma3_text", "rope_local_base_freq": "fast" }), "rope_local_base_freq"),
        (json!({ "model_type": "smollm3", "no_rope_layers": [1, 0] }), "no_rope_layers"),
        (json!({ "model_type": "smollm3", "no_rope_layers": [-1] }), "no_rope_layers"),
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
    assert_eq!(
        (config.feature_layers(&config.vision_config).unwrap(), config.feature_width()),
        (vec![23, 0, 24], 3 * 1024)
    );
    for bad in [vec![], vec![25], vec![-26], vec![i64::MIN]] {
        config.vision_feature_layer = FeatureLayers::Many(bad);
        assert!(config.feature_layers(&config.vision_config).is_err());
    }
}
