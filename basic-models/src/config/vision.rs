//! CLIP's vision tower.

use serde::{Deserialize, Serialize};

use super::{ConfigError, above_zero, divides, positive, unsupported};

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
    pub(super) fn llava_default() -> Self {
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
        above_zero("vision_config.layer_norm_eps", self.layer_norm_eps)?;
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
