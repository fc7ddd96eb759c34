//! Tests that impossible configurations are refused with an error that names the key, before any memory is allocated.

use serde_json::{Value, json};

use super::*;

#[track_caller]
fn refused(section: &str, key: &str, value: Value) {
    let whole = json!({ "model_type": "llava", section: { key: value } });
    let error = match LlavaConfig::from_value(&whole) {
        Ok(_) => panic!("{whole} is taken"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(key) && error.len() < 500, "{whole}: {error}");
}

#[test]
fn sizes_of_nothing_and_beyond_all_bounds_are_refused_by_their_key() {
    let sizes = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ];
    for key in sizes {
        for value in [json!(0), json!(1u64 << 62), json!(u64::MAX), json!(-1), json!(1.5), json!("8"), json!([8])] {
            refused("text_config", key, value);
        }
    }
    refused("text_config", "num_hidden_layers", json!(1_000_000_000));
    refused("text_config", "vocab_size", json!(1u64 << 40));
    let mistral = json!({ "model_type": "mistral", "sliding_window": "all" });
    assert!(DecoderConfig::from_value(&mistral).unwrap_err().to_string().contains("sliding_window"));
    for key in
        ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"]
    {
        for value in [json!(0), json!(1u64 << 62), json!(-4), json!("8"), json!(2.5)] {
            refused("vision_config", key, value);
        }
    }
    refused("vision_config", "image_size", json!(1_000_000));
    refused("vision_config", "num_channels", json!(1_000_000));
}

#[test]
fn numbers_that_no_layer_computes_with_are_refused_by_their_key() {
    for value in [json!(0), json!(-1e-5), json!("1e-5"), json!(true)] {
        refused("text_config", "rms_norm_eps", value.clone());
        refused("vision_config", "layer_norm_eps", value);
    }
    for value in [json!(-10000.0), json!(0), json!("10000"), json!([1e4])] {
        refused("text_config", "rope_theta", value);
    }
    for value in [json!(0), json!(-0.5), json!(1.5), json!("0.5"), json!(true)] {
        let text = json!({ "model_type": "phi3", "partial_rotary_factor": value });
        let error = DecoderConfig::from_value(&text).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor"), "{text}: {error}");
    }
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias"] {
        refused("text_config", key, json!("true"));
        refused("text_config", key, json!(1));
    }
    // JSON cannot express these numbers.
    for text in ["NaN", "Infinity", "1e999"] {
        let whole = format!("{{\"model_type\": \"llava\", \"text_config\": {{\"rope_theta\": {text}}}}}");
        assert!(LlavaConfig::from_json(&whole).is_err(), "{text}");
    }
}

#[test]
fn keys_of_the_whole_model_have_their_types() {
    for (key, value) in [
        ("image_token_index", json!("32000")),
        ("image_token_index", json!(-200)),
        ("vision_feature_layer", json!("last")),
        ("tie_word_embeddings", json!("yes")),
        ("vision_feature_select_strategy", json!(0)),
        ("projector_type", json!(2)),
        ("text_config", json!("llama")),
        ("vision_config", json!([])),
    ] {
        let error = LlavaConfig::from_value(&json!({ "model_type": "llava", key: value })).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    assert!(LlavaConfig::from_json("[]").is_err() && LlavaConfig::from_json("3").is_err());
}
