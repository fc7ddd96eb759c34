//! The table `[model]`: what a run starts from.

use std::path::{Path, PathBuf};

use basic_models::checkpoint::AssembleOptions;
use basic_models::{CheckpointError, LlavaConfig};
use serde::{Deserialize, Serialize};

/// The model to start from: a LLaVA directory, or a vision encoder and a decoder with a fresh projector.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A LLaVA directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// A vision encoder's directory, or those of several that see each image side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision: Option<Encoders>,
    /// A decoder's directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<PathBuf>,
    /// The kind of the fresh projector between them; `mlp2x_gelu` if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projector: Option<String>,
    /// The resolutions, as height and width, of which the best one for an image is cut into tiles (LLaVA-NeXT); without
    /// them a model of two parts does not cut images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_grid_pinpoints: Option<Vec<[usize; 2]>>,
    /// `pad` pads images to a square before they are resized, as in LLaVA-1.5's second stage; by default the model's
    /// own image processor decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_aspect_ratio: Option<String>,
    /// The largest number of pixels of an image; larger images are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
}

/// A vision encoder's directory or hub name, or several, whose features are joined by channel on the first one's grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a vision encoder's directory, or a list of them")]
pub enum Encoders {
    /// One.
    One(PathBuf),
    /// Several, in the order in which their features are joined.
    Many(Vec<PathBuf>),
}

impl Encoders {
    /// All of them.
    pub fn all(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

impl ModelConfig {
    /// The options of assembling the model of its parts, with a fresh projector drawn from `seed`; the first vision encoder
    /// is given apart from them.
    pub fn assembly(&self, seed: u64) -> AssembleOptions {
        let mut options = AssembleOptions { seed, ..AssembleOptions::default() };
        if let Some(projector) = &self.projector {
            options.projector = projector.clone();
        }
        options.image_grid_pinpoints = self.image_grid_pinpoints.clone().unwrap_or_default();
        options.fused_vision = self.vision.iter().flat_map(|vision| vision.all().iter().skip(1)).cloned().collect();
        options
    }

    /// The configuration of the model, without its weights; with a fresh projector drawn from `seed`.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file and the key.
    pub fn config(&self, seed: u64) -> Result<LlavaConfig, CheckpointError> {
        match (&self.checkpoint, self.first_vision(), &self.llm) {
            (Some(dir), _, _) => LlavaConfig::open(dir),
            (None, Some(vision), Some(llm)) => LlavaConfig::of_parts(vision, llm, &self.assembly(seed)),
            // `Recipe::open` checks this, but a recipe built in code may not have been checked.
            _ => Err(CheckpointError::Mismatch("[model] needs either `checkpoint`, or `vision` and `llm`".into())),
        }
    }

    /// The directory of the first vision encoder, if the model is assembled of its parts.
    pub fn first_vision(&self) -> Option<&Path> {
        Some(self.vision.as_ref()?.all().first()?)
    }
}
