//! The configurations of Hugging Face checkpoints. Absent keys take the defaults of transformers' classes.

mod activation;
#[cfg(test)]
mod bounds;
mod decoder;
mod decoder_file;
mod family;
mod gguf_family;
mod llava;
mod llava_checks;
mod projector;
mod resampler_cost;
mod rope;
mod rope_file;
mod section;
#[cfg(test)]
mod tests;
mod tiling;
mod vision;
mod vision_family;

use thiserror::Error;

pub use activation::Activation;
pub use decoder::{DecoderConfig, EndIds};
pub use family::{Family, LayerNorms, QkNorm, Windows};
pub use gguf_family::GgufFamily;
pub use llava::{BASIC_MODEL_TYPE, FeatureLayers, LlavaConfig, NEXT_MODEL_TYPE, SelectStrategy};
pub use projector::ProjectorKind;
pub(crate) use projector::QFORMER_HEAD;
pub use resampler_cost::ResamplerCost;
pub use rope::{QueryGrowth, Rope, RopeKind};
pub use tiling::{Tiles, Tiling, best_resolution, flexible_grid};
pub use vision::{Biases, VisionConfig};
pub use vision_family::{Positions, VisionFamily, VisionNames};

use crate::outside::excerpt;

/// A configuration that cannot be read or that is not supported.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json: {0}")]
    Parse(#[from] serde_json::Error),
    /// A key is missing or has a value of the wrong type.
    #[error("config.json: {key}: {reason}")]
    Type {
        /// The key, with its section.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that changes the computation and is not supported.
    #[error("config.json: {key} = {value} is not supported: {supported}")]
    Unsupported {
        /// The key, with its section.
        key: String,
        /// Its value.
        value: String,
        /// The supported values.
        supported: &'static str,
    },
    /// A size that is larger than any model's.
    #[error(
        "config.json: {key} = {value} is more than the {most} that are read: no model has as much, fetch the file again"
    )]
    TooLarge {
        /// The key, with its section.
        key: String,
        /// Its value.
        value: String,
        /// The bound.
        most: usize,
    },
    /// Sizes that contradict each other.
    #[error("config.json: {0}")]
    Inconsistent(String),
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported { key: key.into(), value: excerpt(&value.to_string()), supported }
}

/// The largest sizes that config.json may have; docs/limits.md lists them. No model comes near them, and products of
/// sizes within them fit in 64 bits with much room.
mod most {
    pub const LAYERS: usize = 1 << 12;
    pub const WIDTH: usize = 1 << 17;
    pub const INNER: usize = 1 << 20;
    pub const HEADS: usize = 1 << 14;
    pub const HEAD_DIM: usize = 1 << 16;
    pub const VOCABULARY: usize = 1 << 24;
    pub const POSITIONS: usize = 1 << 30;
    pub const SIDE: usize = 1 << 13;
    pub const CHANNELS: usize = 64;
    pub const REGISTERS: usize = 1 << 10;
    pub const VISUAL: usize = 1 << 20;
    pub const FEATURE_LAYERS: usize = 64;
    pub const FUSED_ENCODERS: usize = 8;
    pub const PINPOINTS: usize = 128;
    pub const END_IDS: usize = 1 << 10;
}

fn at_most(section: &str, sizes: &[(&str, usize, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size, most)| size > most) {
        Some((key, size, most)) => {
            let key = if section.is_empty() { key.to_string() } else { format!("{section}.{key}") };
            Err(ConfigError::TooLarge { key, value: size.to_string(), most: *most })
        }
        None => Ok(()),
    }
}

fn positive(section: &str, sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((key, _)) => Err(ConfigError::Inconsistent(format!("{section}.{key} is 0"))),
        None => Ok(()),
    }
}

fn divides(section: &str, part: &str, divisor: usize, whole: &str, size: usize) -> Result<(), ConfigError> {
    if size.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(ConfigError::Inconsistent(format!("{section}.{part} {divisor} does not divide {whole} {size}")))
}

fn above_zero(key: &str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(ConfigError::Inconsistent(format!("{key} is {value}, and must be above 0")))
}
