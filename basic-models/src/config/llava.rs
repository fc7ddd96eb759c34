//! LLaVA as a whole.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ClipVisionConfig, ConfigError, LlamaConfig, unsupported};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal(text: &str) -> Result<LlavaConfig, ConfigError> {
        LlavaConfig::from_json(&format!(r#"{{"model_type": "llava", "text_config": {{{text}}}}}"#))
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers_classes() {
        // LlavaConfig() with LlamaConfig() in transformers 5.23: Vicuna-7B's sizes and CLIP ViT-L/14-336.
        // The one key that LLaVA-1.5's file has to give: room for the image token, 32000.
        let config = minimal(r#""vocab_size": 32064"#).unwrap();
        assert_eq!((config.text_config.hidden_size, config.text_config.kv_heads()), (4096, 32));
        assert_eq!((config.text_config.head_dim(), config.text_config.rope_theta()), (128, 10000.0));
        assert_eq!((config.vision_config.num_hidden_layers, config.visual_tokens()), (24, 576));
        assert_eq!(config.feature_layer().unwrap(), 23);
    }

    #[test]
    fn both_generations_of_the_rotary_base_are_read_and_written() {
        for text in [r#""rope_theta": 5e5"#, r#""rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}"#] {
            let config = minimal(&format!(r#""vocab_size": 32064, {text}"#)).unwrap();
            assert_eq!(config.text_config.rope_theta(), 5e5);
            let written: Value = serde_json::from_str(&config.to_json().unwrap()).unwrap();
            assert_eq!(written["text_config"]["rope_theta"], 5e5);
            assert_eq!(written["text_config"]["rope_parameters"]["rope_theta"], 5e5);
        }
    }

    #[test]
    fn what_changes_the_computation_and_is_not_built_is_an_error_that_names_the_key() {
        for (text, key) in [
            (r#""rope_scaling": {"type": "linear", "factor": 2.0}"#, "rope_scaling.rope_type"),
            (r#""hidden_act": "gelu""#, "hidden_act"),
            (r#""model_type": "qwen2""#, "model_type"),
            (r#""attention_bias": true"#, "attention_bias"),
            (r#""num_key_value_heads": 5"#, "num_key_value_heads"),
            (r#""hidden_size": 0"#, "hidden_size"),
            (r#""hidden_size": "many""#, "expected usize"),
        ] {
            let error = minimal(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
