//! The decoder families: the differences between their networks, and the defaults of their classes in transformers. No
//! other file names them; a family that differs from the others only by these fields is one entry of [`Family::ALL`].

use std::fmt;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::Activation;
use super::gguf_family::{GGUF, GGUF_LLAMA, GgufFamily};

/// A decoder family: transformers' `model_type`, and how its network and its files differ from Llama's.
pub struct Family {
    /// The `model_type` in config.json.
    pub name: &'static str,
    /// The `model_type`s that stand for a decoder of this family in the config.json of LLaVA's own code.
    pub llava_names: &'static [&'static str],
    /// RMS norms scale by 1 + weight instead of by the weight; computed in f32.
    pub norm_plus_one: bool,
    /// Where the layers normalize.
    pub layer_norms: LayerNorms,
    /// What of the queries and keys is normalized before they are rotated.
    pub qk_norm: QkNorm,
    /// Which layers have the window.
    pub windows: Windows,
    /// Layers with the window have a rotary embedding of their own.
    pub local_rope: bool,
    /// Queries grow with their position (`llama_4_scaling_beta`).
    pub query_growth: bool,
    /// Queries, keys and values have biases, whatever the value of `attention_bias`.
    pub qkv_bias: bool,
    /// Token embeddings are multiplied by the square root of the width; visual embeddings are not.
    pub scaled_embeddings: bool,
    /// `hidden_act` = `gelu` means GELU's tanh approximation, and `hidden_activation` must not differ.
    pub gelu_is_tanh: bool,
    /// On disk, the query, key and value matrices are stored as one, and so are the gate and up matrices.
    pub fused_on_disk: bool,
    /// How llama.cpp computes the family; `None` if that is not expressed here, so that it is neither written as GGUF
    /// nor read from it.
    pub gguf: Option<GgufFamily>,
    /// The keys of the family's class in transformers 5.23 that change the computation, with those of their defaults
    /// that differ from Llama's. Transformers ignores keys that a class does not have, and so does this project:
    /// `attention_bias`, `mlp_bias`, `sliding_window` and `layer_types` are read only if they are listed here.
    pub own_defaults: fn() -> Value,
}

/// Where a layer normalizes, beside the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerNorms {
    /// The inputs of the attention and of the MLP.
    Before,
    /// Their outputs.
    After,
    /// Both.
    Around,
}

/// What of the queries and keys is normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Each head by itself.
    Heads,
    /// All heads together.
    Whole,
}

/// Which layers have the window. All but the first read `layer_types`; the rest of their description says what holds
/// without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// All layers, and `layer_types` is no key of the class.
    All,
    /// With `use_sliding_window`, the layers from `max_window_layers` on.
    FromLayer,
    /// With `use_sliding_window`, the layers without rotary positions.
    Unrotated,
    /// All but every n-th, where n is `sliding_window_pattern` or this number.
    AllButEvery(usize),
}

/// Llama without keys of its own. The entries below only give their differences from it.
const PLAIN: Family = Family {
    name: "",
    llava_names: &[],
    norm_plus_one: false,
    layer_norms: LayerNorms::Before,
    qk_norm: QkNorm::None,
    windows: Windows::All,
    local_rope: false,
    query_growth: false,
    qkv_bias: false,
    scaled_embeddings: false,
    gelu_is_tanh: false,
    fused_on_disk: false,
    gguf: None,
    own_defaults: || json!({}),
};

/// Llama 1 to 3.2, Vicuna, SmolLM2.
static LLAMA: Family = Family {
    name: "llama",
    llava_names: &["llava", "llava_llama"],
    gguf: Some(GGUF_LLAMA),
    own_defaults: || json!({ "attention_bias": false, "mlp_bias": false }),
    ..PLAIN
};

/// Mistral, also as the text part of Mistral Small 3: a sliding window in all layers.
static MISTRAL: Family = Family {
    name: "mistral",
    llava_names: &["llava_mistral"],
    gguf: Some(GGUF_LLAMA),
    own_defaults: || {
        json!({
            "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "sliding_window": 4096,
        })
    },
    ..PLAIN
};

/// Qwen 2 and 2.5: biases on queries, keys and values, and a window in some layers.
static QWEN2: Family = Family {
    name: "qwen2",
    llava_names: &["llava_qwen"],
    qkv_bias: true,
    windows: Windows::FromLayer,
    gguf: Some(GgufFamily { architecture: "qwen2", heads_fill_width: true, ..GGUF }),
    own_defaults: qwen,
    ..PLAIN
};

/// Qwen 3: norms on the queries and keys of each head.
static QWEN3: Family = Family {
    name: "qwen3",
    qk_norm: QkNorm::Heads,
    windows: Windows::FromLayer,
    gguf: Some(GgufFamily { architecture: "qwen3", ..GGUF }),
    own_defaults: || {
        let mut keys = qwen();
        keys["head_dim"] = json!(128);
        keys["attention_bias"] = json!(false);
        keys
    },
    ..PLAIN
};

/// Phi-3 and Phi-4-mini: fused projections on disk.
static PHI3: Family = Family {
    name: "phi3",
    fused_on_disk: true,
    gguf: Some(GgufFamily { architecture: "phi3", partial_rotary: true, heads_fill_width: true, ..GGUF }),
    own_defaults: || {
        json!({
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "pad_token_id": 32000, "eos_token_id": 32000, "sliding_window": null,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "partial_rotary_factor": null,
            "original_max_position_embeddings": 4096,
        })
    },
    ..PLAIN
};

/// Gemma: norms that scale by 1 + weight and scaled token embeddings; the output head is the embedding table.
static GEMMA: Family = Family {
    name: "gemma",
    norm_plus_one: true,
    scaled_embeddings: true,
    // Its first configurations had `gelu` where they meant the approximation.
    gelu_is_tanh: true,
    gguf: Some(GgufFamily { architecture: "gemma", own_head: false, activation: Activation::GeluTanh, ..GGUF }),
    own_defaults: || {
        json!({
            "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "tie_word_embeddings": true,
            "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "attention_bias": false,
            "use_bidirectional_attention": null,
        })
    },
    ..PLAIN
};

/// Gemma 2: norms around attention and MLP, capped scores, and a window in every other layer.
static GEMMA2: Family = Family {
    name: "gemma2",
    norm_plus_one: true,
    scaled_embeddings: true,
    layer_norms: LayerNorms::Around,
    windows: Windows::AllButEvery(2),
    own_defaults: || {
        let mut keys = gemma();
        keys["final_logit_softcapping"] = json!(30.0);
        keys["attn_logit_softcapping"] = json!(50.0);
        keys
    },
    ..PLAIN
};

/// Gemma 3's text part: norms of queries and keys, and a window with a rotary base of its own in five of six layers.
static GEMMA3: Family = Family {
    name: "gemma3_text",
    norm_plus_one: true,
    scaled_embeddings: true,
    layer_norms: LayerNorms::Around,
    qk_norm: QkNorm::Heads,
    windows: Windows::AllButEvery(6),
    local_rope: true,
    own_defaults: || {
        let mut keys = gemma();
        keys["vocab_size"] = json!(262_208);
        keys["max_position_embeddings"] = json!(131_072);
        keys["sliding_window_pattern"] = json!(6);
        keys["rope_theta"] = json!(1e6);
        keys["rope_local_base_freq"] = json!(1e4);
        keys["final_logit_softcapping"] = json!(null);
        keys["attn_logit_softcapping"] = json!(null);
        keys
    },
    ..PLAIN
};

/// OLMo 2: norms after attention and MLP, and over all queries and all keys.
static OLMO2: Family = Family {
    name: "olmo2",
    layer_norms: LayerNorms::After,
    qk_norm: QkNorm::Whole,
    own_defaults: || {
        json!({
            "vocab_size": 50304, "rms_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": null,
            "eos_token_id": 50279, "attention_bias": false,
        })
    },
    ..PLAIN
};

/// SmolLM3: every fourth layer has no rotary positions.
static SMOLLM3: Family = Family {
    name: "smollm3",
    windows: Windows::Unrotated,
    own_defaults: || {
        json!({
            "vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 4, "max_position_embeddings": 32768, "pad_token_id": 128_004,
            "bos_token_id": 128_000, "eos_token_id": 128_001, "rope_theta": 2e6, "use_sliding_window": false,
            "sliding_window": null, "no_rope_layers": null, "no_rope_layer_interval": 4, "layer_types": null,
            "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
        })
    },
    ..PLAIN
};

/// Ministral 3, the text part of Mistral 3's later models: YaRN, and queries that grow with their position.
static MINISTRAL3: Family = Family {
    name: "ministral3",
    query_growth: true,
    own_defaults: || {
        json!({
            "vocab_size": 131_072, "intermediate_size": 14336, "num_hidden_layers": 34, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-5, "pad_token_id": 11,
            "sliding_window": null,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        })
    },
    ..PLAIN
};

/// The keys that Gemma 2 and 3 share.
fn gemma() -> Value {
    json!({
        "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "tie_word_embeddings": true,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "attention_bias": false,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": null,
        "use_bidirectional_attention": null,
    })
}

/// The keys that Qwen 2 and 3 share.
fn qwen() -> Value {
    json!({
        "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
        "max_position_embeddings": 32768, "bos_token_id": null, "eos_token_id": null,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "layer_types": null,
    })
}

impl Family {
    /// Every family; a config.json without a `model_type` is of the first one.
    pub const ALL: [&'static Self; 11] =
        [&LLAMA, &MISTRAL, &QWEN2, &QWEN3, &PHI3, &GEMMA, &GEMMA2, &GEMMA3, &OLMO2, &SMOLLM3, &MINISTRAL3];

    /// The family of a `model_type` in config.json; the first one for `None`.
    pub(super) fn of(name: Option<&str>) -> Option<&'static Self> {
        let name = name.unwrap_or(Self::ALL[0].name);
        Self::ALL.into_iter().find(|family| family.name == name)
    }

    /// The family of a `model_type` in the config.json of LLaVA's own code; the first one for `None`.
    pub fn of_llava(name: Option<&str>) -> Option<&'static Self> {
        let Some(name) = name else { return Some(Self::ALL[0]) };
        let mut known = Self::ALL.into_iter().filter(|family| !family.llava_names.is_empty());
        known.find(|family| family.name == name || family.llava_names.contains(&name))
    }

    /// The family as which a GGUF file of this architecture is read, and how llama.cpp computes it.
    pub(crate) fn of_gguf(architecture: &str) -> Option<(&'static Self, &'static GgufFamily)> {
        let mut known = Self::ALL.into_iter().filter_map(|family| Some((family, family.gguf.as_ref()?)));
        known.find(|(_, gguf)| gguf.architecture == architecture)
    }

    /// The architectures of GGUF files that are read, as listed in an error.
    pub(crate) fn supported_in_gguf() -> &'static str {
        static NAMES: LazyLock<String> = LazyLock::new(|| {
            let mut names: Vec<&str> =
                Family::ALL.iter().filter_map(|family| family.gguf.as_ref()).map(|gguf| gguf.architecture).collect();
            names.dedup();
            listed(&names)
        });
        &NAMES
    }

    /// The `model_type`s that are supported, as listed in an error.
    pub(super) fn supported() -> &'static str {
        static NAMES: LazyLock<String> = LazyLock::new(|| listed(&Family::ALL.map(|family| family.name)));
        &NAMES
    }

    /// The `model_type`s of LLaVA's own code that are supported, as listed in an error.
    pub fn supported_by_llava() -> &'static str {
        static NAMES: LazyLock<String> = LazyLock::new(|| {
            let names: Vec<&str> = Family::ALL.iter().flat_map(|family| family.llava_names).copied().collect();
            listed(&names)
        });
        &NAMES
    }

    /// The keys of the family's class that change the computation, with their defaults.
    pub(super) fn defaults(&self) -> Map<String, Value> {
        let shared = json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "pad_token_id": null, "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0,
        });
        let object = |value| if let Value::Object(map) = value { map } else { Map::new() };
        let mut all = object(shared);
        all.extend(object((self.own_defaults)()));
        all
    }
}

/// `a, b or c`.
pub(super) fn listed(names: &[&str]) -> String {
    match names {
        [before @ .., last] if !before.is_empty() => format!("{} or {last}", before.join(", ")),
        _ => names.concat(),
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Family {
    /// Each name has only one entry.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Family {}

#[cfg(test)]
mod tests {
    use super::Family;

    #[test]
    fn a_name_has_one_entry_and_errors_list_all_of_them() {
        for (index, family) in Family::ALL.into_iter().enumerate() {
            assert!(!Family::ALL[..index].contains(&family), "{family:?}");
            assert_eq!(Family::of(Some(family.name)), Some(family));
            for name in family.llava_names {
                assert_eq!(Family::of_llava(Some(name)), Some(family));
            }
        }
        assert_eq!(Family::supported_in_gguf(), "llama, qwen2, qwen3, phi3 or gemma");
        assert_eq!(Family::of_gguf("llama").map(|(family, _)| family), Some(Family::ALL[0]));
        assert_eq!(Family::of_gguf("gemma2"), None);
        let supported = Family::supported();
        assert_eq!(
            supported,
            "llama, mistral, qwen2, qwen3, phi3, gemma, gemma2, gemma3_text, olmo2, smollm3 or ministral3"
        );
        assert_eq!(Family::supported_by_llava(), "llava, llava_llama, llava_mistral or llava_qwen");
        assert_eq!((Family::of(Some("mamba")), Family::of_llava(Some("gemma"))), (None, None));
        assert_eq!((Family::of(None), Family::of_llava(None)), (Some(Family::ALL[0]), Some(Family::ALL[0])));
    }
}
