//! The configuration of vision encoders: plain vision transformers, including the differences between the families.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Activation, ConfigError, VisionFamily, above_zero, at_most, divides, most, positive, section, unsupported,
};

/// A vision transformer (transformers' `CLIPVisionConfig`, `SiglipVisionConfig`, `Dinov2Config`).
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The family.
    pub family: &'static VisionFamily,
    /// The width.
    pub hidden_size: usize,
    /// The width of the MLP.
    pub intermediate_size: usize,
    /// The number of layers.
    pub num_hidden_layers: usize,
    /// The number of attention heads.
    pub num_attention_heads: usize,
    /// The number of colour channels.
    pub num_channels: usize,
    /// The side of the (square) images that the position embeddings were trained for, in pixels.
    pub image_size: usize,
    /// The side of the input images, if it differs and the family interpolates its position embeddings. It is not a key
    /// of config.json; the image processor determines it.
    pub input_size: Option<usize>,
    /// The side of a (square) patch, in pixels.
    pub patch_size: usize,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// The width of the space that images and texts share. LLaVA does not use it; it is kept so that a
    /// saved file is complete.
    pub projection_dim: usize,
    /// Whether the encoder has a pooling head. LLaVA does not use it; it is kept so that a saved
    /// checkpoint is complete.
    pub pooling_head: bool,
    /// The number of register positions between CLS and the patches.
    pub registers: usize,
    /// Whether there is a mask token. It is not used, but kept so that a saved checkpoint is complete.
    pub mask_token: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the feed-forward block is gated, as in the giant encoders; it is then
    /// [`VisionConfig::swiglu_width`] wide.
    pub swiglu: bool,
}

impl Default for VisionConfig {
    /// transformers' `CLIPVisionConfig()`.
    fn default() -> Self {
        Self {
            family: VisionFamily::ALL[0],
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            input_size: None,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            pooling_head: false,
            registers: 0,
            mask_token: false,
            qkv_bias: true,
            swiglu: false,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    #[serde(default)]
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: Side,
    patch_size: Side,
    hidden_act: String,
    layer_norm_eps: f64,
    #[serde(default)]
    projection_dim: usize,
    #[serde(default)]
    vision_use_head: bool,
    #[serde(default)]
    mlp_ratio: f64,
    #[serde(default)]
    num_register_tokens: usize,
    #[serde(default)]
    use_mask_token: bool,
    qkv_bias: Option<bool>,
    #[serde(default)]
    use_swiglu_ffn: bool,
}

/// A side length, or a height and a width.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Side {
    One(usize),
    Both([usize; 2]),
}

impl Side {
    fn square(self, key: &str) -> Result<usize, ConfigError> {
        match self {
            Self::One(side) => Ok(side),
            Self::Both([height, width]) if height == width => Ok(height),
            Self::Both(sides) => Err(unsupported(&format!("vision_config.{key}"), format!("{sides:?}"), "a square")),
        }
    }
}

impl VisionConfig {
    /// The encoder that `LlavaConfig` assumes without a `vision_config`: CLIP ViT-L/14 at 336 pixels.
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

    /// Reads the object of a config.json (LLaVA's `vision_config`, or a vision encoder's whole file).
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        const SECTION: &str = "vision_config";
        let kind = value.get("model_type").unwrap_or(&Value::Null);
        let found = VisionFamily::of(kind.as_str()).filter(|_| kind.is_string() || kind.is_null());
        let Some((family, registers)) = found else {
            return Err(unsupported("vision_config.model_type", kind, VisionFamily::supported()));
        };
        let merged = section::merged(SECTION, value, family.defaults(registers), &[])?;
        let by_ratio = merged.contains_key("mlp_ratio");
        for key in ["attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"] {
            section::must_be(SECTION, &merged, key, &[json!(0.0), json!(0)])?;
        }
        let raw: Raw = section::parse(SECTION, merged)?;
        let intermediate_size = match by_ratio {
            true => (raw.hidden_size as f64 * raw.mlp_ratio) as usize,
            false => raw.intermediate_size,
        };
        let config = Self {
            family,
            hidden_size: raw.hidden_size,
            intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_channels: raw.num_channels,
            image_size: raw.image_size.square("image_size")?,
            input_size: None,
            patch_size: raw.patch_size.square("patch_size")?,
            hidden_act: Activation::parse("vision_config.hidden_act", &raw.hidden_act)?,
            layer_norm_eps: raw.layer_norm_eps,
            projection_dim: raw.projection_dim,
            pooling_head: raw.vision_use_head,
            registers: raw.num_register_tokens,
            mask_token: raw.use_mask_token,
            qkv_bias: raw.qkv_bias.unwrap_or(true),
            swiglu: raw.use_swiglu_ffn,
        };
        config.validate()?;
        Ok(config)
    }

    /// The object of a config.json that transformers can read.
    pub fn to_value(&self) -> Value {
        let with_registers = self.family.registers_name.filter(|_| self.registers > 0);
        let mut out = json!({
            "model_type": with_registers.unwrap_or(self.family.name),
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_channels": self.num_channels,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_act": self.hidden_act.name(),
            "layer_norm_eps": self.layer_norm_eps,
        });
        // Of the optional keys, only those that the family's class has.
        let keys = self.family.defaults(with_registers.is_some());
        for (key, value) in [
            ("intermediate_size", json!(self.intermediate_size)),
            ("projection_dim", json!(self.projection_dim)),
            ("vision_use_head", json!(self.pooling_head)),
            ("mlp_ratio", json!(self.intermediate_size / self.hidden_size.max(1))),
            ("qkv_bias", json!(self.qkv_bias)),
            ("use_mask_token", json!(self.mask_token)),
            ("use_swiglu_ffn", json!(self.swiglu)),
        ] {
            if keys.contains_key(key) {
                out[key] = value;
            }
        }
        if with_registers.is_some() {
            out["num_register_tokens"] = json!(self.registers);
        }
        out
    }

    /// The number of patches of an image.
    pub fn num_patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// The number of patches along a side of an image.
    pub fn grid(&self) -> usize {
        self.side() / self.patch_size
    }

    /// The width of a gated feed-forward block: two thirds of the MLP's width, rounded up to a multiple of 8.
    pub fn swiglu_width(&self) -> usize {
        (self.intermediate_size * 2 / 3).next_multiple_of(8)
    }

    /// The side of the input images, in pixels.
    pub fn side(&self) -> usize {
        self.input_size.unwrap_or(self.image_size)
    }

    /// The number of positions before the patches: CLS and registers.
    pub fn special_positions(&self) -> usize {
        usize::from(self.family.class) + self.registers
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_channels", self.num_channels),
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
            ("image_size", self.side()),
        ];
        positive("vision_config", &sizes)?;
        let bounds = [
            ("hidden_size", self.hidden_size, most::WIDTH),
            ("intermediate_size", self.intermediate_size, most::INNER),
            ("projection_dim", self.projection_dim, most::INNER),
            ("num_hidden_layers", self.num_hidden_layers, most::LAYERS),
            ("num_attention_heads", self.num_attention_heads, most::HEADS),
            ("num_channels", self.num_channels, most::CHANNELS),
            ("image_size", self.image_size.max(self.side()), most::SIDE),
            ("patch_size", self.patch_size, most::SIDE),
            ("num_register_tokens", self.registers, most::REGISTERS),
        ];
        at_most("vision_config", &bounds)?;
        at_most("vision_config", &[("(image_size / patch_size)^2", self.num_patches(), most::VISUAL)])?;
        above_zero("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        divides("vision_config", "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)?;
        if self.patch_size > self.image_size.min(self.side()) {
            return Err(ConfigError::Inconsistent(format!(
                "vision_config.patch_size {} is larger than image_size {}",
                self.patch_size,
                self.image_size.min(self.side())
            )));
        }
        Ok(())
    }
}
