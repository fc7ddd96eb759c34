//! The configurations of Hugging Face checkpoints, with the defaults of transformers' classes for absent keys.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// A configuration that is unreadable or asks for what is not built.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, or a key of the wrong type.
    #[error("config.json: {0}")]
    Parse(#[from] serde_json::Error),
    /// A value that changes the computation and is not supported.
    #[error("config.json: {key} = {value} is not supported: {supported}")]
    Unsupported {
        /// The key, with its section.
        key: String,
        /// Its value.
        value: String,
        /// What would be.
        supported: &'static str,
    },
    /// Sizes that contradict each other.
    #[error("config.json: {0}")]
    Inconsistent(String),
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported { key: key.into(), value: value.to_string(), supported }
}

/// CLIP's vision tower (transformers' `CLIPVisionConfig`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Always `clip_vision_model`.
    pub model_type: String,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Side of the (square) image, in pixels.
    pub image_size: usize,
    /// Side of a (square) patch, in pixels.
    pub patch_size: usize,
    /// `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Width of CLIP's joint space; unused by LLaVA, kept so that the file stays whole.
    pub projection_dim: usize,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            model_type: "clip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            projection_dim: 512,
        }
    }
}

impl ClipVisionConfig {
    /// What `LlavaConfig` assumes where it has no `vision_config`: CLIP ViT-L/14 at 336 pixels.
    fn llava_default() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            projection_dim: 768,
            ..Self::default()
        }
    }

    /// Patches of an image, without the CLS position.
    pub fn num_patches(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model_type != "clip_vision_model" && self.model_type != "clip" {
            return Err(unsupported("vision_config.model_type", &self.model_type, "clip_vision_model"));
        }
        if !["quick_gelu", "gelu"].contains(&self.hidden_act.as_str()) {
            return Err(unsupported("vision_config.hidden_act", &self.hidden_act, "quick_gelu or gelu"));
        }
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_channels", self.num_channels),
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
        ];
        positive("vision_config", &sizes)?;
        divides("vision_config", "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)?;
        if self.patch_size > self.image_size {
            return Err(ConfigError::Inconsistent(format!(
                "vision_config.patch_size {} is larger than image_size {}",
                self.patch_size, self.image_size
            )));
        }
        Ok(())
    }
}

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
    fn normalized(mut self) -> Self {
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

/// LLaVA: a vision tower, a two-layer projector and a decoder (transformers' `LlavaConfig`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlavaConfig {
    /// `["LlavaForConditionalGeneration"]`.
    pub architectures: Vec<String>,
    /// Always `llava`.
    pub model_type: String,
    /// The decoder.
    pub text_config: LlamaConfig,
    /// The vision tower.
    pub vision_config: ClipVisionConfig,
    /// The id that stands for one visual embedding in a prompt.
    #[serde(alias = "image_token_id")]
    pub image_token_index: u32,
    /// Visual embeddings of an image.
    pub image_seq_length: usize,
    /// Always `gelu`.
    pub projector_hidden_act: String,
    /// Whether the projector's layers have biases; only `true` is supported.
    pub multimodal_projector_bias: bool,
    /// Which layer's output is projected; negative counts from the end.
    pub vision_feature_layer: Value,
    /// `default` (patches only) or `full` (with CLS).
    pub vision_feature_select_strategy: String,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// The parameters' type on disk.
    #[serde(alias = "torch_dtype", skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
}

impl Default for LlavaConfig {
    fn default() -> Self {
        Self {
            architectures: vec!["LlavaForConditionalGeneration".into()],
            model_type: "llava".into(),
            text_config: LlamaConfig::default(),
            vision_config: ClipVisionConfig::llava_default(),
            image_token_index: 32000,
            image_seq_length: 576,
            projector_hidden_act: "gelu".into(),
            multimodal_projector_bias: true,
            vision_feature_layer: Value::from(-2),
            vision_feature_select_strategy: "default".into(),
            tie_word_embeddings: false,
            dtype: None,
        }
    }
}

impl LlavaConfig {
    /// Reads and checks a config.json's text.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let mut value: Value = serde_json::from_str(text)?;
        if let Some(object) = value.as_object_mut() {
            // Hugging Face writes null for "the default".
            object.retain(|_, v| !v.is_null());
            for part in ["text_config", "vision_config"] {
                if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
                    part.retain(|_, v| !v.is_null());
                }
            }
        }
        let config: Self = serde_json::from_value(value)?;
        config.validate()?;
        Ok(config)
    }

    /// The text of a config.json that transformers 4 and 5 read.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        let mut config = self.clone();
        config.text_config = config.text_config.normalized();
        let mut value = serde_json::to_value(&config)?;
        // transformers 4 reads the decoder's rope_theta beside rope_parameters' absence.
        value["text_config"]["rope_theta"] = Value::from(self.text_config.rope_theta());
        Ok(serde_json::to_string_pretty(&value)?)
    }

    /// The index of the vision layer whose output is projected: 0 is the embeddings, i the output of layer i.
    pub fn feature_layer(&self) -> Result<usize, ConfigError> {
        let layers = self.vision_config.num_hidden_layers as i64;
        let index = self
            .vision_feature_layer
            .as_i64()
            .ok_or_else(|| unsupported("vision_feature_layer", &self.vision_feature_layer, "one index"))?;
        let resolved = if index < 0 { layers + 1 + index } else { index };
        if !(0..=layers).contains(&resolved) {
            return Err(ConfigError::Inconsistent(format!(
                "vision_feature_layer {index} is outside the tower's {layers} layers"
            )));
        }
        Ok(resolved as usize)
    }

    /// Whether the CLS position is dropped (`default`) or kept (`full`).
    pub fn drops_cls(&self) -> bool {
        self.vision_feature_select_strategy == "default"
    }

    /// Visual embeddings of an image (m).
    pub fn visual_tokens(&self) -> usize {
        self.vision_config.num_patches() + usize::from(!self.drops_cls())
    }

    /// Checks that the model can be built.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model_type != "llava" {
            return Err(unsupported("model_type", &self.model_type, "llava"));
        }
        if self.projector_hidden_act != "gelu" {
            return Err(unsupported("projector_hidden_act", &self.projector_hidden_act, "gelu"));
        }
        if !self.multimodal_projector_bias {
            return Err(unsupported("multimodal_projector_bias", false, "true"));
        }
        if !["default", "full"].contains(&self.vision_feature_select_strategy.as_str()) {
            let value = &self.vision_feature_select_strategy;
            return Err(unsupported("vision_feature_select_strategy", value, "default or full"));
        }
        self.vision_config.validate()?;
        self.text_config.validate()?;
        self.feature_layer()?;
        if self.image_token_index as usize >= self.text_config.vocab_size {
            return Err(ConfigError::Inconsistent(format!(
                "image_token_index {} is outside the table of {} rows",
                self.image_token_index, self.text_config.vocab_size
            )));
        }
        Ok(())
    }

    /// Whether the output head is the embedding table.
    pub fn tied(&self) -> bool {
        self.tie_word_embeddings || self.text_config.tie_word_embeddings
    }
}

fn positive(section: &str, sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((key, _)) => Err(ConfigError::Inconsistent(format!("{section}.{key} is 0"))),
        None => Ok(()),
    }
}

fn divides(section: &str, part: &str, divisor: usize, whole: &str, size: usize) -> Result<(), ConfigError> {
    if size.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(ConfigError::Inconsistent(format!("{section}.{part} {divisor} does not divide {whole} {size}")))
}
