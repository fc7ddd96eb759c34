//! The configuration of vision encoders: plain vision transformers, including the differences between the families.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Activation, ConfigError, Positions, VisionFamily, above_zero, at_most, divides, most, positive, section,
    unsupported,
};

/// A vision transformer (transformers' `CLIPVisionConfig`, `SiglipVisionConfig`, `Dinov2Config`, `DINOv3ViTConfig`,
/// `Aimv2VisionConfig`).
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
    /// Added to the variance in layer norms, or to the mean square in RMS norms.
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
    /// Which matrices have biases.
    pub biases: Biases,
    /// Whether the feed-forward block is gated, as in DINOv2's giant encoders; it is then
    /// [`VisionConfig::swiglu_width`] wide.
    pub swiglu: bool,
    /// Whether the feed-forward block is gated, and as wide as any other (DINOv3's giant encoders, AIMv2).
    pub gated: bool,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// The most patches of an image whose grid follows its aspect ratio, if it is not the number of the table's positions.
    /// It is not a key of config.json; the image processor determines it.
    pub most_patches: Option<usize>,
    /// Whether positions are told by sines, for images of any size, instead of a table (AIMv2's `is_native`).
    pub native: bool,
}

/// Which of a layer's matrices have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// The queries'.
    pub query: bool,
    /// The keys'.
    pub key: bool,
    /// The values'.
    pub value: bool,
    /// The attention's output's.
    pub out: bool,
    /// Those of the feed-forward block.
    pub mlp: bool,
}

impl Biases {
    /// All of them.
    pub const ALL: Self = Self { query: true, key: true, value: true, out: true, mlp: true };
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
            biases: Biases::ALL,
            swiglu: false,
            gated: false,
            rope_theta: 100.0,
            most_patches: None,
            native: false,
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
    image_size: Option<Side>,
    num_patches: Option<usize>,
    patch_size: Side,
    hidden_act: String,
    #[serde(alias = "rms_norm_eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    projection_dim: usize,
    #[serde(default, alias = "use_head")]
    vision_use_head: bool,
    #[serde(default)]
    mlp_ratio: f64,
    #[serde(default)]
    num_register_tokens: usize,
    #[serde(default)]
    use_mask_token: bool,
    qkv_bias: Option<bool>,
    query_bias: Option<bool>,
    key_bias: Option<bool>,
    value_bias: Option<bool>,
    proj_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(default)]
    use_swiglu_ffn: bool,
    #[serde(default)]
    use_gated_mlp: bool,
    rope_theta: Option<f64>,
    #[serde(default)]
    is_native: bool,
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
        let patch_size = raw.patch_size.square("patch_size")?;
        let image_size = match (raw.image_size, raw.num_patches) {
            (Some(side), _) => side.square("image_size")?,
            (None, found) => {
                // The image whose grid is that of the table.
                let found = found.unwrap_or(0);
                at_most(SECTION, &[("num_patches", found, most::VISUAL)])?;
                if found == 0 || found.isqrt().pow(2) != found {
                    return Err(unsupported("vision_config.num_patches", found, "a square number"));
                }
                found.isqrt().saturating_mul(patch_size)
            }
        };
        let config = Self {
            family,
            hidden_size: raw.hidden_size,
            intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_channels: raw.num_channels,
            image_size,
            input_size: None,
            patch_size,
            hidden_act: Activation::parse("vision_config.hidden_act", &raw.hidden_act)?,
            layer_norm_eps: raw.layer_norm_eps,
            projection_dim: raw.projection_dim,
            pooling_head: raw.vision_use_head,
            registers: raw.num_register_tokens,
            // DINOv3 always has one.
            mask_token: raw.use_mask_token || family.positions == Positions::Rotary,
            biases: Biases {
                query: raw.query_bias.or(raw.qkv_bias).unwrap_or(true),
                key: raw.key_bias.or(raw.qkv_bias).unwrap_or(true),
                value: raw.value_bias.or(raw.qkv_bias).unwrap_or(true),
                // AIMv2's key holds for the output too, DINOv2's does not.
                out: raw.proj_bias.or(raw.qkv_bias.filter(|_| family.rms_norms)).unwrap_or(true),
                mlp: raw.mlp_bias.unwrap_or(true),
            },
            swiglu: raw.use_swiglu_ffn,
            gated: family.gated || raw.use_gated_mlp,
            rope_theta: raw.rope_theta.unwrap_or(Self::default().rope_theta),
            most_patches: None,
            native: raw.is_native,
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
            "patch_size": self.patch_size,
            "hidden_act": self.hidden_act.name(),
        });
        // Of the optional keys, only those that the family's class has.
        let keys = self.family.defaults(with_registers.is_some());
        for (key, value) in [
            ("image_size", json!(self.image_size)),
            ("num_patches", json!(self.grid() * self.grid())),
            ("intermediate_size", json!(self.intermediate_size)),
            ("projection_dim", json!(self.projection_dim)),
            ("vision_use_head", json!(self.pooling_head)),
            ("mlp_ratio", json!(self.intermediate_size / self.hidden_size.max(1))),
            ("layer_norm_eps", json!(self.layer_norm_eps)),
            ("rms_norm_eps", json!(self.layer_norm_eps)),
            ("qkv_bias", json!(self.biases.value)),
            ("query_bias", json!(self.biases.query)),
            ("key_bias", json!(self.biases.key)),
            ("value_bias", json!(self.biases.value)),
            ("proj_bias", json!(self.biases.out)),
            ("mlp_bias", json!(self.biases.mlp)),
            ("use_mask_token", json!(self.mask_token)),
            ("use_swiglu_ffn", json!(self.swiglu)),
            ("use_gated_mlp", json!(self.gated)),
            ("use_head", json!(self.pooling_head)),
            ("rope_theta", json!(self.rope_theta)),
            ("is_native", json!(self.native)),
        ] {
            if keys.contains_key(key) {
                out[key] = value;
            }
        }
        if with_registers.is_some() || self.family.positions == Positions::Rotary {
            out["num_register_tokens"] = json!(self.registers);
        }
        out
    }

    /// The number of patches of an image, or the most that one can have.
    pub fn num_patches(&self) -> usize {
        self.most_patches.filter(|_| self.is_flexible()).unwrap_or(self.grid() * self.grid())
    }

    /// Whether each image has a grid of its own, which follows its aspect ratio.
    pub fn is_flexible(&self) -> bool {
        self.family.positions == Positions::Flexible
    }

    /// The numbers that an encoder with a grid for each image gets of a patch: its pixels, row by row with the channels
    /// last; the weights of the rows and of the columns of the table of positions; and 1, or 0 for padding.
    pub fn patch_values(&self) -> usize {
        self.num_channels * self.patch_size * self.patch_size + 2 * self.grid() + 1
    }

    /// The number of patches along a side of an image.
    pub fn grid(&self) -> usize {
        self.side() / self.patch_size
    }

    /// Whether the images may have another size than the configuration's.
    pub fn fits_any_size(&self) -> bool {
        self.family.interpolates || self.native
    }

    /// The number of matrices of a feed-forward block that are as large as the width times the MLP's width; a SwiGLU of two
    /// thirds of that width counts as two.
    pub fn mlp_matrices(&self) -> usize {
        if self.gated { 3 } else { 2 }
    }

    /// The width of a gated feed-forward block: two thirds of the MLP's width, rounded up to a multiple of 8.
    pub fn swiglu_width(&self) -> usize {
        (self.intermediate_size * 2 / 3).next_multiple_of(8)
    }

    /// The side of the input images, in pixels.
    pub fn side(&self) -> usize {
        self.input_size.unwrap_or(self.image_size)
    }

    /// The sizes of an image's pixel values: channels, height and width; of an image with a grid of its own, the number of
    /// all patches' numbers, 1 and 1.
    pub fn pixel_shape(&self) -> [usize; 3] {
        if self.is_flexible() {
            return [self.num_patches() * self.patch_values(), 1, 1];
        }
        [self.num_channels, self.side(), self.side()]
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
        let patches = self.num_patches().max(self.grid() * self.grid());
        at_most("vision_config", &[("(image_size / patch_size)^2", patches, most::VISUAL)])?;
        above_zero("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        above_zero("vision_config.rope_theta", self.rope_theta)?;
        divides("vision_config", "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)?;
        // Half of the numbers turn with the row and half with the column, in pairs; so it is with sines.
        let quarters = match (self.family.positions, self.native) {
            (Positions::Rotary, _) => Some(("the width of a head", self.hidden_size / self.num_attention_heads)),
            (_, true) => Some(("hidden_size", self.hidden_size)),
            _ => None,
        };
        if let Some((what, width)) = quarters.filter(|(_, width)| !width.is_multiple_of(4)) {
            return Err(ConfigError::Inconsistent(format!(
                "vision_config: {what} is {width}, and must be a multiple of 4"
            )));
        }
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
