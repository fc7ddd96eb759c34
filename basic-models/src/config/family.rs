//! The decoder's families, and the defaults of their classes in transformers.

use serde_json::{Map, Value, json};

/// The families: transformers' `model_type` of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// Llama 1 to 3, Vicuna, SmolLM2.
    #[default]
    Llama,
    /// Mistral: a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: norms on each head's queries and keys.
    Qwen3,
    /// Phi-3: fused projections on disk.
    Phi3,
    /// Gemma: norms scale by 1 + weight, token embeddings are scaled by the root of the width, the head is tied.
    Gemma,
}

impl Family {
    pub(super) const ALL: [Self; 6] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Phi3, Self::Gemma];
    pub(super) const SUPPORTED: &'static str = "llama, mistral, qwen2, qwen3, phi3 or gemma";

    /// The `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma => "gemma",
        }
    }

    /// The keys of the family's class in transformers 5.23 that change the computation, with their defaults. Keys that
    /// a class doesn't have mean nothing to transformers, and so nothing here.
    pub(super) fn defaults(self) -> Map<String, Value> {
        let mut all = json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "pad_token_id": null, "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0,
        });
        let own = match self {
            Self::Llama => json!({ "attention_bias": false, "mlp_bias": false }),
            Self::Mistral => json!({
                "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                "sliding_window": 4096,
            }),
            Self::Qwen2 | Self::Qwen3 => json!({
                "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
                "max_position_embeddings": 32768, "bos_token_id": null, "eos_token_id": null,
                "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "layer_types": null,
            }),
            Self::Phi3 => json!({
                "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5, "pad_token_id": 32000, "eos_token_id": 32000, "sliding_window": null,
                "resid_pdrop": 0.0, "embd_pdrop": 0.0, "partial_rotary_factor": null,
            }),
            Self::Gemma => json!({
                "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
                "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "tie_word_embeddings": true,
                "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "attention_bias": false,
                "use_bidirectional_attention": null,
            }),
        };
        let qwen3 = json!({ "head_dim": 128, "attention_bias": false });
        for extra in [own, if self == Self::Qwen3 { qwen3 } else { json!({}) }] {
            if let (Value::Object(all), Value::Object(extra)) = (&mut all, extra) {
                all.extend(extra);
            }
        }
        match all {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}
