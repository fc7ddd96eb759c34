//! The small backbones that the demo starts from: a vision encoder and a Llama, pretrained apart from each other on the
//! embedded world's train split, by `basic backbones --out DIR --seed S`.

mod document;
mod embedded;
mod language;
mod tokenizer;
mod vision_encoder;

use std::path::Path;

use basic_models::CheckpointError;
use basic_models::checkpoint::{Contents, Replaces};
use burn::tensor::{Device, TensorReadError};
use serde::Serialize;
use thiserror::Error;

pub(crate) use embedded::embedded;
pub use embedded::write_backbones;
pub use language::{LanguageScores, pretrain_language};
pub use vision_encoder::{VisionEncoderScores, pretrain_vision_encoder};

/// Side lengths of the patch grid: 6 x 6 patches of 10 pixels in a 60 x 60 image.
pub const PATCHES_PER_SIDE: usize = 6;

/// How long the backbones train.
#[derive(Debug, Clone, Serialize)]
pub struct BackboneConfig {
    /// Seed of weights and data.
    pub seed: u64,
    /// Steps of the decoder.
    pub language_steps: usize,
    /// Steps of the vision encoder.
    pub tower_steps: usize,
}

/// What the backbones reached on validation scenes, which neither has seen.
#[derive(Debug, Clone, Serialize)]
pub struct BackboneScores {
    /// How they were made.
    pub config: BackboneConfig,
    /// The decoder's scores.
    pub language: LanguageScores,
    /// The vision encoder's scores.
    pub tower: VisionEncoderScores,
}

/// Why backbones could not be made.
#[derive(Debug, Error)]
pub enum BackboneError {
    /// Files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// Tokenizer or image processor.
    #[error(transparent)]
    Processor(#[from] basic_models::processor::ProcessorError),
    /// The tokenizer could not be built.
    #[error("the word-level tokenizer could not be built: {0}")]
    Tokenizer(String),
}

/// Reports a step: stage, step from 1, steps, loss.
pub type Progress<'a> = &'a mut dyn FnMut(&str, usize, usize, f32);

/// Pretrains both backbones into `out/vision` and `out/llm` and writes `out/scores.json`.
///
/// # Errors
///
/// [`BackboneError`]; nothing half-written stays under the final names.
pub fn make_backbones(
    out: &Path,
    config: &BackboneConfig,
    device: &Device,
    overwrite: bool,
    progress: Progress,
) -> Result<BackboneScores, BackboneError> {
    let path = out.join("scores.json");
    // Before an hour of training: the second directory, and the scores, which are no part of either.
    for part in ["llm", "vision"] {
        Replaces::new(overwrite, Contents::Checkpoint, Vec::new()).check(&out.join(part))?;
    }
    let scores = basic_models::outside::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let ours = scores.is_some_and(|scores| scores.get("language").is_some() && scores.get("tower").is_some());
    if path.symlink_metadata().is_ok() && !overwrite {
        return Err(CheckpointError::Exists(path).into());
    }
    if path.symlink_metadata().is_ok() && !ours {
        let reason = "is no file of scores, and --overwrite takes nothing else away: choose another directory";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", path.display())).into());
    }
    let language = pretrain_language(&out.join("llm"), config, device, overwrite, progress)?;
    let tower = pretrain_vision_encoder(&out.join("vision"), config, device, overwrite, progress)?;
    let scores = BackboneScores { config: config.clone(), language, tower };
    let text = serde_json::to_string_pretty(&scores).map_err(|e| BackboneError::Tokenizer(e.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(CheckpointError::io(path))?;
    Ok(scores)
}
