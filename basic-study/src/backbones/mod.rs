//! Makes the small backbones that the demo starts from: a vision encoder and a Llama, pretrained separately on the
//! train split of Shapes by `basic backbones --out DIR --seed S`.

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

/// The side of the patch grid: 6 x 6 patches of 10 x 10 pixels in an image of 60 x 60.
pub const PATCHES_PER_SIDE: usize = 6;

/// The seed and the number of training steps of the backbones.
#[derive(Debug, Clone, Serialize)]
pub struct BackboneConfig {
    /// The seed of the weights and the data.
    pub seed: u64,
    /// The number of training steps of the decoder.
    pub language_steps: usize,
    /// The number of training steps of the vision encoder.
    pub vision_steps: usize,
}

/// The backbones' scores on validation scenes, which were not in their training data.
#[derive(Debug, Clone, Serialize)]
pub struct BackboneScores {
    /// The configuration that they were trained with.
    pub config: BackboneConfig,
    /// The decoder's scores.
    pub language: LanguageScores,
    /// The vision encoder's scores.
    pub vision: VisionEncoderScores,
}

/// Why backbones could not be trained or written.
#[derive(Debug, Error)]
pub enum BackboneError {
    /// A checkpoint file could not be written, or a path exists already.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device failed while a tensor was read.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
    /// The tokenizer or the image processor failed.
    #[error(transparent)]
    Processor(#[from] basic_models::processor::ProcessorError),
    /// The tokenizer could not be built.
    #[error("the word-level tokenizer could not be built: {0}")]
    Tokenizer(String),
}

/// A callback for each training step: the stage's name, the step from 1, the number of steps, and the loss.
pub type Progress<'a> = &'a mut dyn FnMut(&str, usize, usize, f32);

/// Pretrains both backbones into `out/vision` and `out/llm` and writes `out/scores.json`.
///
/// # Errors
///
/// [`BackboneError`]. A failed run leaves no partial checkpoint in `out/vision` or `out/llm`.
pub fn make_backbones(
    out: &Path,
    config: &BackboneConfig,
    device: &Device,
    overwrite: bool,
    progress: Progress,
) -> Result<BackboneScores, BackboneError> {
    let path = out.join("scores.json");
    // Checked before an hour of training: both directories, and the file of scores, which lies outside of them.
    for part in ["llm", "vision"] {
        Replaces::new(overwrite, Contents::Checkpoint, Vec::new()).check(&out.join(part))?;
    }
    let scores = basic_models::outside::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let ours = scores.is_some_and(|scores| scores.get("language").is_some() && scores.get("vision").is_some());
    if path.symlink_metadata().is_ok() && !overwrite {
        return Err(CheckpointError::Exists(path).into());
    }
    if path.symlink_metadata().is_ok() && !ours {
        let reason = "is no file of scores, and --overwrite takes nothing else away: choose another directory";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", path.display())).into());
    }
    let language = pretrain_language(&out.join("llm"), config, device, overwrite, progress)?;
    let vision = pretrain_vision_encoder(&out.join("vision"), config, device, overwrite, progress)?;
    let scores = BackboneScores { config: config.clone(), language, vision };
    let text = serde_json::to_string_pretty(&scores).map_err(|e| BackboneError::Tokenizer(e.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(CheckpointError::io(path))?;
    Ok(scores)
}
