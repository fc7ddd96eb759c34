//! The configuration of Llama-like decoders, including the differences between the families.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Activation, ConfigError, Family, Rope, RopeKind, above_zero, at_most, divides, most, positive, section, unsupported,
};
use crate::outside::excerpt;

/// A Llama-like decoder (transformers' `LlamaConfig` and its variants).
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub family: &'static Family,
    /// The number of rows of the embedding table.
    pub vocab_size: usize,
    /// The width (d).
    pub hidden_size: usize,
    /// The width of the MLP.
    pub intermediate_size: usize,
    /// The number of layers (L).
    pub num_hidden_layers: usize,
    /// The number of query heads.
    pub num_attention_heads: usize,
    /// The number of key and value heads; by default that of the query heads.
    pub num_key_value_heads: Option<usize>,
    /// The width of a head; `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<usize>,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// The context length, in positions.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// The rotary position embedding.
    pub rope: Rope,
    /// The number of positions that a query sees in layers with a window, its own included.
    pub sliding_window: Option<usize>,
    /// For each layer, whether it has the window; by default all have it.
    pub windowed: Option<Vec<bool>>,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the attention's projections have biases. With [`Family::qkv_bias`], queries, keys and
    /// values have them anyway.
    pub attention_bias: bool,
    /// Whether the MLP has biases.
    pub mlp_bias: bool,
    /// The padding token's id.
    pub pad_token_id: Option<u32>,
    /// The begin-of-sequence token's id.
    pub bos_token_id: Option<u32>,
    /// The ids of the end-of-sequence tokens.
    pub eos_token_id: Option<EndIds>,
}

/// One token id or several; Hugging Face writes either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndIds {
    /// `2`
    One(u32),
    /// `[2, 7]`
    Many(Vec<u32>),
}

impl EndIds {
    /// The ids, in order.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

impl Default for DecoderConfig {
    /// transformers' `LlamaConfig()`.
    fn default() -> Self {
        Self {
            family: Family::ALL[0],
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope: Rope::default(),
            sliding_window: None,
            windowed: None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_id: Some(EndIds::One(2)),
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
    pad_token_id: Option<u32>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<EndIds>,
}

impl DecoderConfig {
    /// Reads the object of a config.json (LLaVA's `text_config`, or a language model's whole file). Absent keys take
    /// the defaults of the family's class in transformers.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        const SECTION: &str = "text_config";
        let kind = value.get("model_type").unwrap_or(&Value::Null);
        let family = Family::of(kind.as_str()).filter(|_| kind.is_string() || kind.is_null());
        let Some(family) = family else {
            return Err(unsupported("text_config.model_type", kind, Family::supported()));
        };
        let own_keys = family.defaults();
        // For these keys null means "none"; elsewhere it means "the default".
        let nullable = ["sliding_window", "pad_token_id", "bos_token_id", "eos_token_id"];
        let mut merged = section::merged(SECTION, value, own_keys.clone(), &nullable)?;
        for key in ["pad_token_id", "bos_token_id", "eos_token_id"] {
            // Original Llama checkpoints write -1 for a token that does not exist.
            if merged.get(key).and_then(Value::as_i64) == Some(-1) {
                merged.insert(key.into(), Value::Null);
            }
        }
        section::must_be(SECTION, &merged, "attention_dropout", &[json!(0.0), json!(0)])?;
        section::must_be(SECTION, &merged, "resid_pdrop", &[json!(0.0), json!(0)])?;
        section::must_be(SECTION, &merged, "embd_pdrop", &[json!(0.0), json!(0)])?;
        section::must_be(SECTION, &merged, "use_bidirectional_attention", &[json!(false)])?;
        let partial = match merged.get("partial_rotary_factor").filter(|value| !value.is_null()) {
            None => None,
            Some(value) => Some(value.as_f64().ok_or_else(|| ConfigError::Type {
                key: "text_config.partial_rotary_factor".into(),
                reason: format!("{} is no number", excerpt(&value.to_string())),
            })?),
        };
        let raw: Raw = section::parse(SECTION, merged)?;
        // Checked before a list with an entry per layer is made.
        at_most(SECTION, &[("num_hidden_layers", raw.num_hidden_layers, most::LAYERS)])?;
        let (mut sliding_window, mut windowed) = (raw.sliding_window, None);
        if own_keys.contains_key("layer_types") {
            sliding_window = sliding_window.filter(|_| raw.use_sliding_window);
            let flags: Vec<bool> = match &raw.layer_types {
                Some(types) => types.iter().map(|kind| layer_type(kind)).collect::<Result<_, _>>()?,
                None => {
                    (0..raw.num_hidden_layers).map(|i| sliding_window.is_some() && i >= raw.max_window_layers).collect()
                }
            };
            windowed = Some(flags);
        }
        let hidden_act = match raw.hidden_act.as_str() {
            "gelu" if family.gelu_is_tanh => Activation::GeluTanh,
            name => Activation::parse("text_config.hidden_act", name)?,
        };
        let other = value.get("hidden_activation").filter(|v| family.gelu_is_tanh && !v.is_null());
        if other.is_some_and(|v| v != "gelu_pytorch_tanh") {
            let value = other.unwrap_or(&Value::Null);
            return Err(unsupported("text_config.hidden_activation", value, "gelu_pytorch_tanh"));
        }
        let config = Self {
            family,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads,
            head_dim: raw.head_dim,
            hidden_act,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope: Rope::from_value(value, partial, raw.max_position_embeddings)?,
            sliding_window,
            windowed,
            tie_word_embeddings: raw.tie_word_embeddings,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            pad_token_id: raw.pad_token_id,
            bos_token_id: raw.bos_token_id,
            eos_token_id: raw.eos_token_id,
        };
        config.validate()?;
        Ok(config)
    }

    /// The object of a config.json that transformers 4 and 5 can read.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "model_type": self.family.name,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.kv_heads(),
            "head_dim": self.head_dim(),
            "hidden_act": self.hidden_act.name(),
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        });
        self.rope.write(&mut out);
        // Of the optional keys, only those that the family's class has.
        let keys = self.family.defaults();
        if keys.contains_key("layer_types") {
            let flags: Vec<bool> = (0..self.num_hidden_layers).map(|i| self.window(i).is_some()).collect();
            let name = |windowed: &bool| if *windowed { "sliding_attention" } else { "full_attention" };
            out["use_sliding_window"] = json!(self.sliding_window.is_some());
            out["sliding_window"] = json!(self.sliding_window);
            // transformers before 4.53 reads this key instead of `layer_types`.
            out["max_window_layers"] = json!(flags.iter().take_while(|windowed| !**windowed).count());
            out["layer_types"] = flags.iter().map(name).collect();
        } else if keys.contains_key("sliding_window") {
            out["sliding_window"] = json!(self.sliding_window);
        }
        for (key, bias) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if keys.contains_key(key) {
                out[key] = json!(bias);
            }
        }
        out
    }

    /// The number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// The number of positions that a query of layer `index` sees, its own included; `None` if it sees all earlier
    /// ones.
    pub fn window(&self, index: usize) -> Option<usize> {
        let has = |flags: &Vec<bool>| flags.get(index).copied().unwrap_or(false);
        self.sliding_window.filter(|_| self.windowed.as_ref().is_none_or(has))
    }

    /// The longest sequence in positions: the context length, times the factor by which dynamic scaling may stretch it.
    pub fn context(&self) -> usize {
        match self.rope.kind {
            RopeKind::Dynamic { factor, .. } => (self.max_position_embeddings as f64 * factor.max(1.0)) as usize,
            _ => self.max_position_embeddings,
        }
    }

    /// The factor of the token embeddings before the first layer; visual embeddings are not scaled.
    pub fn embedding_scale(&self) -> Option<f64> {
        self.family.scaled_embeddings.then(|| (self.hidden_size as f64).sqrt())
    }

    /// Whether queries, keys and values have biases, and whether the attention's output has one.
    pub fn attention_biases(&self) -> (bool, bool) {
        (self.attention_bias || self.family.qkv_bias, self.attention_bias)
    }

    /// The end-of-sequence ids.
    pub fn eos_ids(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(EndIds::to_vec).unwrap_or_default()
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        let bounds = [
            ("vocab_size", self.vocab_size, most::VOCABULARY),
            ("hidden_size", self.hidden_size, most::WIDTH),
            ("intermediate_size", self.intermediate_size, most::INNER),
            ("num_hidden_layers", self.num_hidden_layers, most::LAYERS),
            ("num_attention_heads", self.num_attention_heads, most::HEADS),
            ("num_key_value_heads", self.kv_heads(), most::HEADS),
            ("head_dim", self.head_dim(), most::HEAD_DIM),
            ("num_attention_heads * head_dim", self.num_attention_heads.saturating_mul(self.head_dim()), most::INNER),
            ("max_position_embeddings", self.max_position_embeddings, most::POSITIONS),
            ("max_position_embeddings * rope_scaling.factor", self.context(), most::POSITIONS),
            ("eos_token_id (number of ids)", self.eos_ids().len(), most::END_IDS),
        ];
        // Checked first: with too many heads, the width of each would be 0.
        at_most("text_config", &bounds)?;
        positive("text_config", &sizes)?;
        above_zero("text_config.rms_norm_eps", self.rms_norm_eps)?;
        divides(
            "text_config",
            "num_key_value_heads",
            self.kv_heads(),
            "num_attention_heads",
            self.num_attention_heads,
        )?;
        let rotary = self.rope.rotary_dims(self.head_dim());
        if !rotary.is_multiple_of(2) || rotary == 0 {
            return Err(ConfigError::Inconsistent(format!(
                "text_config.head_dim {}: {rotary} of it are rotated, and rotary embeddings need pairs",
                self.head_dim()
            )));
        }
        if let Some(flags) = &self.windowed {
            if flags.len() != self.num_hidden_layers {
                return Err(ConfigError::Inconsistent(format!(
                    "text_config.layer_types names {} layers of {}",
                    flags.len(),
                    self.num_hidden_layers
                )));
            }
            if flags.contains(&true) && self.sliding_window.is_none() {
                return Err(ConfigError::Inconsistent(
                    "text_config.layer_types has sliding_attention without use_sliding_window and sliding_window"
                        .into(),
                ));
            }
        }
        Ok(())
    }
}

/// Whether layers of this type have the window.
fn layer_type(kind: &str) -> Result<bool, ConfigError> {
    match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(unsupported("text_config.layer_types", other, "full_attention or sliding_attention")),
    }
}
