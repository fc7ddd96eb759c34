//! The decoder families: the differences between their networks, and the defaults of their classes in transformers. No
//! other file names them; a family that differs from the others only by these fields is one entry of [`Family::ALL`].

use std::fmt;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::Activation;

/// A decoder family: transformers' `model_type`, and how its network and its files differ from Llama's.
pub struct Family {
    /// The `model_type` in config.json.
    pub name: &'static str,
    /// The `model_type`s that stand for a decoder of this family in the config.json of LLaVA's own code.
    pub llava_names: &'static [&'static str],
    /// RMS norms scale by 1 + weight instead of by the weight; computed in f32.
    pub norm_plus_one: bool,
    /// The queries and keys of each head are normalized before they are rotated.
    pub qk_norm: bool,
    /// Queries, keys and values have biases, whatever the value of `attention_bias`.
    pub qkv_bias: bool,
    /// Token embeddings are multiplied by the square root of the width; visual embeddings are not.
    pub scaled_embeddings: bool,
    /// `hidden_act` = `gelu` means GELU's tanh approximation, and `hidden_activation` must not differ.
    pub gelu_is_tanh: bool,
    /// On disk, the query, key and value matrices are stored as one, and so are the gate and up matrices.
    pub fused_on_disk: bool,
    /// How llama.cpp computes the family.
    pub gguf: GgufFamily,
    /// The keys of the family's class in transformers 5.23 that change the computation, with those of their defaults
    /// that differ from Llama's. Transformers ignores keys that a class does not have, and so does this project:
    /// `attention_bias`, `mlp_bias`, `sliding_window` and `layer_types` are read only if they are listed here.
    pub own_defaults: fn() -> Value,
}

/// How llama.cpp (`src/models/`) computes a family. What it cannot compute is refused when a checkpoint is written as
/// GGUF.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufFamily {
    /// The value of `general.architecture`. The first family of an architecture is the one that a file is read as.
    pub architecture: &'static str,
    /// The two halves of each head's rows in the query and key matrices are interleaved.
    pub interleaved: bool,
    /// The rotary frequencies may be divided by a tensor (Llama 3's scaling).
    pub frequency_divisors: bool,
    /// A part of each head may be rotated.
    pub partial_rotary: bool,
    /// The attention's output may have a bias.
    pub output_bias: bool,
    /// The MLP may have biases.
    pub mlp_bias: bool,
    /// The output head may differ from the embedding table.
    pub own_head: bool,
    /// The heads must be together as wide as the decoder.
    pub heads_fill_width: bool,
    /// The MLP's activation.
    pub activation: Activation,
}

/// What llama.cpp does for most families.
const GGUF: GgufFamily = GgufFamily {
    architecture: "",
    interleaved: false,
    frequency_divisors: false,
    partial_rotary: false,
    output_bias: false,
    mlp_bias: false,
    own_head: true,
    heads_fill_width: false,
    activation: Activation::Silu,
};

/// Llama's, which Mistral's models share.
const GGUF_LLAMA: GgufFamily = GgufFamily {
    architecture: "llama",
    interleaved: true,
    frequency_divisors: true,
    output_bias: true,
    mlp_bias: true,
    ..GGUF
};

/// Llama without keys of its own. The entries below only give their differences from it.
const PLAIN: Family = Family {
    name: "",
    llava_names: &[],
    norm_plus_one: false,
    qk_norm: false,
    qkv_bias: false,
    scaled_embeddings: false,
    gelu_is_tanh: false,
    fused_on_disk: false,
    gguf: GGUF,
    own_defaults: || json!({}),
};

/// Llama 1 to 3, Vicuna, SmolLM2.
static LLAMA: Family = Family {
    name: "llama",
    llava_names: &["llava", "llava_llama"],
    gguf: GGUF_LLAMA,
    own_defaults: || json!({ "attention_bias": false, "mlp_bias": false }),
    ..PLAIN
};

/// Mistral: a sliding window in all layers.
static MISTRAL: Family = Family {
    name: "mistral",
    llava_names: &["llava_mistral"],
    gguf: GGUF_LLAMA,
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
    gguf: GgufFamily { architecture: "qwen2", heads_fill_width: true, ..GGUF },
    own_defaults: qwen,
    ..PLAIN
};

/// Qwen 3: norms on the queries and keys of each head.
static QWEN3: Family = Family {
    name: "qwen3",
    qk_norm: true,
    gguf: GgufFamily { architecture: "qwen3", ..GGUF },
    own_defaults: || {
        let mut keys = qwen();
        keys["head_dim"] = json!(128);
        keys["attention_bias"] = json!(false);
        keys
    },
    ..PLAIN
};

/// Phi-3: fused projections on disk.
static PHI3: Family = Family {
    name: "phi3",
    fused_on_disk: true,
    gguf: GgufFamily { architecture: "phi3", partial_rotary: true, heads_fill_width: true, ..GGUF },
    own_defaults: || {
        json!({
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "pad_token_id": 32000, "eos_token_id": 32000, "sliding_window": null,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "partial_rotary_factor": null,
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
    gguf: GgufFamily { architecture: "gemma", own_head: false, activation: Activation::GeluTanh, ..GGUF },
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
    pub const ALL: [&'static Self; 6] = [&LLAMA, &MISTRAL, &QWEN2, &QWEN3, &PHI3, &GEMMA];

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

    /// The family as which a GGUF file of this architecture is read.
    pub(crate) fn of_gguf(architecture: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|family| family.gguf.architecture == architecture)
    }

    /// The architectures of GGUF files that are read, as listed in an error.
    pub(crate) fn supported_in_gguf() -> &'static str {
        static NAMES: LazyLock<String> = LazyLock::new(|| {
            let mut names: Vec<&str> = Family::ALL.iter().map(|family| family.gguf.architecture).collect();
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
        assert_eq!(Family::of_gguf("llama"), Some(Family::ALL[0]));
        assert_eq!(Family::supported(), "llama, mistral, qwen2, qwen3, phi3 or gemma");
        assert_eq!(Family::supported_by_llava(), "llava, llava_llama, llava_mistral or llava_qwen");
        assert_eq!((Family::of(Some("mamba")), Family::of_llava(Some("gemma"))), (None, None));
        assert_eq!((Family::of(None), Family::of_llava(None)), (Some(Family::ALL[0]), Some(Family::ALL[0])));
    }
}
