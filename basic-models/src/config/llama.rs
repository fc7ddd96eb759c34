//! The Llama decoder.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ConfigError, above_zero, divides, positive, unsupported};

/// A Llama decoder (transformers' `LlamaConfig`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// Always `llama`.
    pub model_type: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers (L).
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; by default as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; by default `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Always `silu`.
    pub hidden_act: String,
    /// The context, in positions.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding in transformers 4's layout.
    #[serde(skip_serializing)]
    pub rope_theta: Option<f64>,
    /// The rotary embedding in transformers 4's layout; only `null` and type `default` are supported.
    #[serde(skip_serializing)]
    pub rope_scaling: Option<Value>,
    /// The rotary embedding in transformers 5's layout.
    pub rope_parameters: Option<Value>,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Biases in the attention's projections: not supported.
    pub attention_bias: bool,
    /// Biases in the MLP: not supported.
    pub mlp_bias: bool,
    /// Padding id.
    pub pad_token_id: Option<u32>,
    /// Begin-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence id or ids.
    pub eos_token_id: Option<TokenIds>,
}

/// One token id or several, as Hugging Face writes either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// `2`
    One(u32),
    /// `[2, 7]`
    Many(Vec<u32>),
}

impl TokenIds {
    /// The ids, in order.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            model_type: "llama".into(),
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".into(),
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_id: Some(TokenIds::One(2)),
        }
    }
}

impl LlamaConfig {
    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Base of the rotary embedding, from either generation's key.
    pub fn rope_theta(&self) -> f64 {
        self.rope_parameters
            .as_ref()
            .and_then(|p| p.get("rope_theta"))
            .and_then(Value::as_f64)
            .or(self.rope_theta)
            .unwrap_or(10000.0)
    }

    /// The end-of-sequence ids.
    pub fn eos_ids(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(TokenIds::to_vec).unwrap_or_default()
    }

    /// The same configuration with the rotary embedding written in transformers 5's layout.
    pub(super) fn normalized(mut self) -> Self {
        self.rope_parameters = Some(serde_json::json!({
            "rope_theta": self.rope_theta(), "rope_type": "default"
        }));
        self.rope_theta = None;
        self.rope_scaling = None;
        self
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model_type != "llama" {
            return Err(unsupported("text_config.model_type", &self.model_type, "llama"));
        }
        if self.hidden_act != "silu" {
            return Err(unsupported("text_config.hidden_act", &self.hidden_act, "silu"));
        }
        for (key, value) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if value {
                return Err(unsupported(&format!("text_config.{key}"), value, "false"));
            }
        }
        for (key, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let Some(rope) = rope else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            if kind.is_some_and(|kind| kind != "default") {
                let key = format!("text_config.{key}.rope_type");
                return Err(unsupported(&key, kind.unwrap_or(&Value::Null), "default"));
            }
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
        ];
        positive("text_config", &sizes)?;
        above_zero("text_config.rms_norm_eps", self.rms_norm_eps)?;
        above_zero("text_config.rope_theta", self.rope_theta())?;
        divides(
            "text_config",
            "num_key_value_heads",
            self.kv_heads(),
            "num_attention_heads",
            self.num_attention_heads,
        )?;
        if !self.head_dim().is_multiple_of(2) {
            return Err(ConfigError::Inconsistent(format!(
                "text_config.head_dim {} is odd, and rotary embeddings need pairs",
                self.head_dim()
            )));
        }
        Ok(())
    }
}
