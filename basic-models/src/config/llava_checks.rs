//! Checks that the parts of a LLaVA configuration fit each other.

use super::{ConfigError, FeatureLayers, LlavaConfig, ProjectorKind, SelectStrategy, VisionConfig, at_most, most};

impl LlavaConfig {
    /// Checks that what an encoder with a grid for each image is combined with does not need one grid for all.
    fn validate_flexible(&self) -> Result<(), ConfigError> {
        if !self.encoders().any(VisionConfig::is_flexible) {
            return Ok(());
        }
        let kind = self.vision_config.family.name;
        let conflict = if self.is_fused() {
            "fused_vision_configs joins the patches of one grid"
        } else if self.tiling().cuts() {
            "image_grid_pinpoints cuts images into squares"
        } else if self.projector.shuffle() > 1 || self.projector.queries().is_some() {
            "its projector_type needs one grid for all images"
        } else if self.vision_feature_select_strategy == SelectStrategy::Default {
            "vision_feature_select_strategy default drops a patch: set it to full"
        } else {
            return Ok(());
        };
        Err(ConfigError::Inconsistent(format!(
            "vision_config.model_type {kind} gives each image a grid of its own, and {conflict}"
        )))
    }

    /// Checks that the model can be built.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.encoders().try_for_each(VisionConfig::validate)?;
        self.text_config.validate()?;
        at_most(
            "",
            &[("fused_vision_configs (number of encoders)", self.fused_vision_configs.len(), most::FUSED_ENCODERS)],
        )?;
        let features = match &self.vision_feature_layer {
            FeatureLayers::One(_) => 1,
            FeatureLayers::Many(layers) => layers.len(),
        };
        at_most("", &[("vision_feature_layer (number of layers)", features, most::FEATURE_LAYERS)])?;
        self.encoders().try_for_each(|encoder| self.feature_layers(encoder).map(drop))?;
        self.validate_flexible()?;
        if self.is_fused() && self.vision_feature_select_strategy == SelectStrategy::Full {
            return Err(ConfigError::Inconsistent(
                "vision_feature_select_strategy full keeps positions that are no patches, and fused_vision_configs joins \
                 patches of several encoders: set it to default"
                    .into(),
            ));
        }
        if self.is_fused() && self.tiling().cuts() {
            return Err(ConfigError::Inconsistent(
                "image_grid_pinpoints cuts images into tiles for one vision encoder, and fused_vision_configs has more: \
                 leave one of them out"
                    .into(),
            ));
        }
        if self.image_token_index as usize >= self.text_config.vocab_size {
            return Err(ConfigError::Inconsistent(format!(
                "image_token_index {} is outside the table of {} rows",
                self.image_token_index, self.text_config.vocab_size
            )));
        }
        if self.features() == 0 {
            return Err(ConfigError::Inconsistent(
                "vision_feature_select_strategy default drops the only patch".into(),
            ));
        }
        let side = self.vision_config.grid();
        let (name, factor) = (self.projector.name(), self.projector.shuffle());
        if factor > 1 && (self.features() != side * side || !side.is_multiple_of(factor)) {
            return Err(ConfigError::Inconsistent(format!(
                "projector_type {name} joins {factor} x {factor} patches, and the encoder gives {} positions of {side} x \
                 {side} patches",
                self.features()
            )));
        }
        if let Some(new) = self.projector.pooled_side()
            && (self.features() != side * side || new > side)
        {
            return Err(ConfigError::Inconsistent(format!(
                "projector_type {name} pools a grid of patches to {new} x {new} squares, and the encoder gives {} \
                 positions of {side} x {side} patches",
                self.features()
            )));
        }
        if self.tiling().cuts() && self.projector.queries().is_some() {
            return Err(ConfigError::Inconsistent(format!(
                "image_grid_pinpoints cuts images into tiles, and the projector {name} makes a fixed number of visual embeddings \
                 of an image: take one that keeps the patches"
            )));
        }
        if self.tiling().cuts() && (factor > 1 || self.features() != side * side) {
            return Err(ConfigError::Inconsistent(format!(
                "image_grid_pinpoints cuts images into tiles of {side} x {side} patches, of which the projector {name} gets \
                 {} positions: drop what is no patch with vision_feature_select_strategy, and join no patches",
                self.features()
            )));
        }
        if self.vision_config.side() != self.vision_config.image_size && self.tiling().cuts() {
            return Err(ConfigError::Inconsistent(format!(
                "image_grid_pinpoints: the tiles have {0} x {0} pixels and the vision encoder's image_size is {1}: its \
                 position embeddings are not interpolated for tiles",
                self.vision_config.side(),
                self.vision_config.image_size
            )));
        }
        self.tiling().validate()?;
        if self.projector == ProjectorKind::Identity && self.feature_width() != self.text_config.hidden_size {
            return Err(ConfigError::Inconsistent(format!(
                "projector_type {name}: the features are {} wide, the decoder {}",
                self.feature_width(),
                self.text_config.hidden_size
            )));
        }
        Ok(())
    }
}
