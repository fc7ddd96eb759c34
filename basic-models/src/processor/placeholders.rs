//! The image placeholder in texts, and its expansion to one image token per visual embedding.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::{PROCESSOR_FILE, read_json_if_exists, write_json};
use super::{ProcessorError, Result, wanted};

/// The placeholder of an image in conversations and prompts, as in LLaVA's data sets.
pub const PLACEHOLDER: &str = "<image>";

/// Replaces the i-th `token` in `text` by `counts[i]` copies of it, as transformers' `LlavaProcessor` does.
///
/// `token` is the checkpoint's image token, which is [`PLACEHOLDER`] in LLaVA's own checkpoints.
///
/// # Errors
/// Returns [`ProcessorError::PlaceholderCount`] unless there is one placeholder for each count.
pub fn expand_images(text: &str, token: &str, counts: &[usize]) -> Result<String> {
    let placeholders = count_placeholders(text, token);
    if placeholders != counts.len() {
        return Err(ProcessorError::PlaceholderCount { placeholders, images: counts.len(), token: token.into() });
    }
    if counts.is_empty() {
        return Ok(text.to_owned());
    }
    let grown: usize = counts.iter().sum();
    let mut out = String::with_capacity(text.len() + token.len() * grown);
    for (i, part) in text.split(token).enumerate() {
        if let Some(&count) = i.checked_sub(1).and_then(|image| counts.get(image)) {
            (0..count).for_each(|_| out.push_str(token));
        }
        out.push_str(part);
    }
    Ok(out)
}

/// The number of occurrences of `token` in `text`; 0 for an empty token.
pub(super) fn count_placeholders(text: &str, token: &str) -> usize {
    if token.is_empty() { 0 } else { text.matches(token).count() }
}

/// The outputs of the vision encoder that become visual embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureSelect {
    /// Only the patches; the class token is dropped.
    Default,
    /// All outputs.
    Full,
}

/// The settings of `LlavaProcessor` or `LlavaNextProcessor`, which determine the number of image tokens for an image
/// that is not cut into tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorConfig {
    /// The vision encoder's patch size in pixels.
    pub patch_size: usize,
    /// The number of the vision encoder's outputs besides the patches: 1 with a class token (CLIP), otherwise 0.
    pub num_additional_image_tokens: usize,
    /// The outputs that are used.
    pub vision_feature_select_strategy: FeatureSelect,
    /// The token that stands for a visual embedding in texts.
    pub image_token: String,
    /// Whether images are cut into tiles, which is `LlavaNextProcessor`'s work.
    pub tiles: bool,
}

impl ProcessorConfig {
    /// The settings for a CLIP encoder: one class token, which is dropped, and the image token `<image>`.
    pub fn clip(patch_size: usize) -> Self {
        let strategy = FeatureSelect::Default;
        Self {
            patch_size,
            num_additional_image_tokens: 1,
            vision_feature_select_strategy: strategy,
            image_token: PLACEHOLDER.into(),
            tiles: false,
        }
    }

    /// Reads processor_config.json. What it lacks is taken from `fallback`, which the caller makes from the model's
    /// config.json (checkpoints from before transformers 4.46 have no such file).
    ///
    /// # Errors
    /// Returns `Read`, `Json`, or `Unsupported` (a patch size of 0).
    pub fn load(dir: &Path, fallback: Self) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            patch_size: Option<usize>,
            num_additional_image_tokens: Option<usize>,
            vision_feature_select_strategy: Option<FeatureSelect>,
            image_token: Option<String>,
        }
        let path = dir.join(PROCESSOR_FILE);
        let Some(value) = read_json_if_exists(&path)? else {
            return Ok(fallback);
        };
        let file: File = wanted::typed(&path, &value)?;
        if file.patch_size == Some(0) {
            return Err(ProcessorError::Unsupported {
                path,
                key: "patch_size".into(),
                value: "0".into(),
                supported: "1 or more",
            });
        }
        Ok(Self {
            patch_size: file.patch_size.unwrap_or(fallback.patch_size),
            num_additional_image_tokens: file
                .num_additional_image_tokens
                .unwrap_or(fallback.num_additional_image_tokens),
            vision_feature_select_strategy: file
                .vision_feature_select_strategy
                .unwrap_or(fallback.vision_feature_select_strategy),
            image_token: file.image_token.unwrap_or(fallback.image_token),
            tiles: fallback.tiles,
        })
    }

    /// Writes processor_config.json for transformers' `LlavaProcessor` or `LlavaNextProcessor`.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Write`].
    pub fn save(&self, dir: &Path) -> Result<()> {
        let out = json!({
            "processor_class": if self.tiles { "LlavaNextProcessor" } else { "LlavaProcessor" },
            "image_token": self.image_token,
            "patch_size": self.patch_size,
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "num_additional_image_tokens": self.num_additional_image_tokens,
        });
        write_json(&dir.join(PROCESSOR_FILE), &out)
    }

    /// The number of image tokens for an image that has `height` x `width` pixels after image processing.
    pub fn image_tokens(&self, height: usize, width: usize) -> usize {
        let patch = self.patch_size.max(1);
        let all = (height / patch) * (width / patch) + self.num_additional_image_tokens;
        all.saturating_sub(usize::from(self.vision_feature_select_strategy == FeatureSelect::Default))
    }
}
