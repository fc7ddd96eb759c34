//! The configuration of LLaVA as a whole.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Activation, ConfigError, DecoderConfig, ProjectorKind, Tiling, VisionConfig, at_most, most, section, unsupported,
};

/// The `model_type` of models that transformers' `LlavaConfig` cannot express: those with another projector
/// than `mlp2x_gelu`, several vision encoders, or one whose grid follows the image.
pub const BASIC_MODEL_TYPE: &str = "basic_llava";

/// The `model_type` of models that cut images into tiles (transformers' `LlavaNextConfig`).
pub const NEXT_MODEL_TYPE: &str = "llava_next";

/// The resolutions of a `LlavaNextConfig` that names none, as height and width.
const PINPOINTS: [[usize; 2]; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

/// LLaVA: a vision encoder, a projector and a decoder (transformers' `LlavaConfig`, or `LlavaNextConfig` if images are
/// cut into tiles).
#[derive(Debug, Clone, PartialEq)]
pub struct LlavaConfig {
    /// The decoder.
    pub text_config: DecoderConfig,
    /// The vision encoder; of several side by side, the first, whose grid of patches the others' features are fitted to.
    pub vision_config: VisionConfig,
    /// The other vision encoders, whose features are joined to the first one's by channel; mostly none.
    pub fused_vision_configs: Vec<VisionConfig>,
    /// The token id that stands for one visual embedding in a prompt.
    pub image_token_index: u32,
    /// The kind of projector.
    pub projector: ProjectorKind,
    /// The projector's activation.
    pub projector_hidden_act: Activation,
    /// Whether the projector's layers have biases.
    pub multimodal_projector_bias: bool,
    /// The vision encoder's layers whose outputs are projected, side by side; negative indices count from the end.
    pub vision_feature_layer: FeatureLayers,
    /// `default` drops the encoder's first position (CLS), `full` keeps all.
    pub vision_feature_select_strategy: SelectStrategy,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// The resolutions, as height and width in pixels, of which the best one for an image is cut into tiles; empty if
    /// images are not cut.
    pub image_grid_pinpoints: Vec<[usize; 2]>,
    /// The parameters' type on disk.
    pub dtype: Option<String>,
}

/// The index of one layer, or of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FeatureLayers {
    /// `-2`
    One(i64),
    /// `[-2, -5]`
    Many(Vec<i64>),
}

/// The positions of the vision encoder's output that are projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectStrategy {
    /// All but the first, which is CLS if the encoder has one.
    Default,
    /// All positions.
    Full,
}

impl Default for LlavaConfig {
    fn default() -> Self {
        Self {
            text_config: DecoderConfig::default(),
            vision_config: VisionConfig::llava_default(),
            fused_vision_configs: Vec::new(),
            image_token_index: 32000,
            projector: ProjectorKind::LLAVA,
            projector_hidden_act: Activation::Gelu,
            multimodal_projector_bias: true,
            vision_feature_layer: FeatureLayers::One(-2),
            vision_feature_select_strategy: SelectStrategy::Default,
            tie_word_embeddings: false,
            image_grid_pinpoints: Vec::new(),
            dtype: None,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    image_token_index: u32,
    projector_hidden_act: String,
    multimodal_projector_bias: bool,
    vision_feature_layer: FeatureLayers,
    vision_feature_select_strategy: SelectStrategy,
    tie_word_embeddings: bool,
    projector_type: Option<String>,
    fused_vision_configs: Vec<Value>,
    image_grid_pinpoints: Option<Vec<[usize; 2]>>,
    use_image_newline_parameter: bool,
    dtype: Option<String>,
}

impl LlavaConfig {
    /// Reads and checks the text of a config.json.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Self::from_value(&serde_json::from_str(text)?)
    }

    /// Reads and checks a config.json.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        let defaults = json!({
            "model_type": "llava", "image_token_index": 32000, "projector_hidden_act": "gelu",
            "multimodal_projector_bias": true, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "tie_word_embeddings": false, "projector_type": null,
            "fused_vision_configs": [],
            "image_grid_pinpoints": null, "use_image_newline_parameter": true, "dtype": null,
        });
        let Value::Object(defaults) = defaults else { return Err(unsupported("config", "", "an object")) };
        let mut merged: Map<String, Value> = section::merged("config", value, defaults, &[])?;
        for (key, alias) in [("image_token_index", "image_token_id"), ("dtype", "torch_dtype")] {
            if let Some(found) = value.get(alias).filter(|v| !v.is_null() && value.get(key).is_none_or(Value::is_null))
            {
                merged.insert(key.into(), found.clone());
            }
        }
        let raw: Raw = section::parse("config", merged)?;
        let given = |key: &str| value.get(key).filter(|v| !v.is_null());
        let projector = match (raw.model_type.as_str(), &raw.projector_type) {
            ("llava", None) => ProjectorKind::LLAVA,
            ("llava" | BASIC_MODEL_TYPE, Some(name)) => ProjectorKind::parse("projector_type", name)?,
            (BASIC_MODEL_TYPE, None) => return Err(unsupported("projector_type", "null", "a projector's name")),
            (NEXT_MODEL_TYPE, _) => ProjectorKind::LLAVA,
            (other, _) => return Err(unsupported("model_type", other, "llava, llava_next or basic_llava")),
        };
        let fused = match raw.model_type.as_str() {
            BASIC_MODEL_TYPE => raw.fused_vision_configs,
            // transformers' classes have no such key.
            _ => Vec::new(),
        };
        at_most("", &[("fused_vision_configs (number of encoders)", fused.len(), most::FUSED_ENCODERS)])?;
        let image_grid_pinpoints = match (raw.model_type.as_str(), raw.image_grid_pinpoints) {
            // transformers' `LlavaConfig` has no such key.
            ("llava", _) | (BASIC_MODEL_TYPE, None) => Vec::new(),
            (_, Some(pinpoints)) if pinpoints.is_empty() => {
                return Err(unsupported("image_grid_pinpoints", "[]", "one resolution or more, as [height, width]"));
            }
            (_, pinpoints) => pinpoints.unwrap_or_else(|| PINPOINTS.to_vec()),
        };
        if !image_grid_pinpoints.is_empty() && !raw.use_image_newline_parameter {
            return Err(unsupported("use_image_newline_parameter", false, "true"));
        }
        let config = Self {
            text_config: given("text_config")
                .map_or_else(|| Ok(DecoderConfig::default()), DecoderConfig::from_value)?,
            vision_config: given("vision_config")
                .map_or_else(|| Ok(VisionConfig::llava_default()), VisionConfig::from_value)?,
            fused_vision_configs: fused.iter().map(VisionConfig::from_value).collect::<Result<_, _>>()?,
            image_token_index: raw.image_token_index,
            projector,
            projector_hidden_act: Activation::parse("projector_hidden_act", &raw.projector_hidden_act)?,
            multimodal_projector_bias: raw.multimodal_projector_bias,
            vision_feature_layer: raw.vision_feature_layer,
            vision_feature_select_strategy: raw.vision_feature_select_strategy,
            tie_word_embeddings: raw.tie_word_embeddings,
            image_grid_pinpoints,
            dtype: raw.dtype,
        };
        config.validate()?;
        Ok(config)
    }

    /// The text of a config.json. Transformers 4 and 5 can read it if [`LlavaConfig::in_transformers`].
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Parse`] if a number cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        let (native, tiled) = (self.in_transformers(), self.tiling().cuts());
        let (architecture, model_type) = match (native, tiled) {
            (true, false) => ("LlavaForConditionalGeneration", "llava"),
            (true, true) => ("LlavaNextForConditionalGeneration", NEXT_MODEL_TYPE),
            (false, _) => ("BasicLlavaForConditionalGeneration", BASIC_MODEL_TYPE),
        };
        let mut value = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "text_config": self.text_config.to_value(),
            "vision_config": self.vision_config.to_value(),
            "image_token_index": self.image_token_index,
            "image_seq_length": self.visual_tokens(),
            "projector_hidden_act": self.projector_hidden_act.name(),
            "multimodal_projector_bias": self.multimodal_projector_bias,
            "vision_feature_layer": serde_json::to_value(&self.vision_feature_layer)?,
            "vision_feature_select_strategy": serde_json::to_value(self.vision_feature_select_strategy)?,
            "tie_word_embeddings": self.tied(),
        });
        if !native {
            value["projector_type"] = json!(self.projector.name());
        }
        if self.is_fused() {
            value["fused_vision_configs"] = self.fused_vision_configs.iter().map(VisionConfig::to_value).collect();
        }
        if tiled {
            value["image_grid_pinpoints"] = json!(self.image_grid_pinpoints);
        }
        if let Some(dtype) = &self.dtype {
            value["dtype"] = json!(dtype);
        }
        Ok(serde_json::to_string_pretty(&value)?)
    }

    /// Whether transformers' `LlavaConfig` or `LlavaNextConfig` can express the model.
    pub fn in_transformers(&self) -> bool {
        self.projector == ProjectorKind::LLAVA && !self.is_fused() && !self.vision_config.is_flexible()
    }

    /// Whether several vision encoders see each image.
    pub fn is_fused(&self) -> bool {
        !self.fused_vision_configs.is_empty()
    }

    /// All vision encoders, in the order in which their features are joined.
    pub fn encoders(&self) -> impl Iterator<Item = &VisionConfig> {
        [&self.vision_config].into_iter().chain(&self.fused_vision_configs)
    }

    /// The layers of a vision encoder whose outputs are projected: 0 is the embeddings, i the output of layer i. An index
    /// counts in each of several encoders, from its own end if it is negative.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Inconsistent`] if there is none, or if one is outside the encoder.
    pub fn feature_layers(&self, encoder: &VisionConfig) -> Result<Vec<usize>, ConfigError> {
        let layers = encoder.num_hidden_layers as i64;
        let indices = match &self.vision_feature_layer {
            FeatureLayers::One(index) => std::slice::from_ref(index),
            FeatureLayers::Many(indices) => indices,
        };
        let resolve = |index: &i64| {
            let resolved = if *index < 0 { (layers + 1).saturating_add(*index) } else { *index };
            (0..=layers).contains(&resolved).then_some(resolved as usize).ok_or_else(|| {
                ConfigError::Inconsistent(format!(
                    "vision_feature_layer {index} is outside the encoder's {layers} layers"
                ))
            })
        };
        if indices.is_empty() {
            return Err(ConfigError::Inconsistent("vision_feature_layer names no layer".into()));
        }
        indices.iter().map(resolve).collect()
    }

    /// The width of the features that the projector gets.
    pub fn feature_width(&self) -> usize {
        let layers = match &self.vision_feature_layer {
            FeatureLayers::One(_) => 1,
            FeatureLayers::Many(indices) => indices.len(),
        };
        self.encoders().map(|encoder| encoder.hidden_size * layers).sum()
    }

    /// The number of an encoder's first positions that are dropped: the first one alone (`default`) or none (`full`); of
    /// several encoders all that are no patches, because only patches of the same place can be joined.
    pub fn dropped(&self, encoder: &VisionConfig) -> usize {
        match self.is_fused() {
            true => encoder.special_positions(),
            false => usize::from(self.vision_feature_select_strategy == SelectStrategy::Default),
        }
    }

    /// The number of positions of an image that are projected.
    pub fn features(&self) -> usize {
        let all = self.vision_config.num_patches() + self.vision_config.special_positions();
        all - self.dropped(&self.vision_config)
    }

    /// The sizes of an image's pixel values in a batch: channels, height and width. If several encoders see the image, its
    /// pixel values for each follow one another, and the sizes are their number, 1 and 1.
    pub fn image_shape(&self) -> [usize; 3] {
        match self.is_fused() {
            true => [self.encoders().map(|encoder| encoder.pixel_shape().iter().product::<usize>()).sum(), 1, 1],
            false => self.vision_config.pixel_shape(),
        }
    }

    /// The number of visual embeddings of an image that is not cut, or of a base image (m).
    pub fn visual_tokens(&self) -> usize {
        match self.projector.queries() {
            Some(queries) => queries,
            None => self.features() / (self.projector.shuffle() * self.projector.shuffle()),
        }
    }

    /// How the model cuts images into tiles, from which the number of an image's visual tokens follows.
    pub fn tiling(&self) -> Tiling {
        match self.image_grid_pinpoints.as_slice() {
            [] if self.vision_config.is_flexible() => {
                Tiling::flexible(self.vision_config.patch_size, self.visual_tokens())
            }
            [] => Tiling::none(self.visual_tokens()),
            pinpoints => Tiling::new(self.vision_config.side(), self.vision_config.grid(), pinpoints.to_vec()),
        }
    }

    /// Whether the output head is the embedding table.
    pub fn tied(&self) -> bool {
        self.tie_word_embeddings || self.text_config.tie_word_embeddings
    }
}
