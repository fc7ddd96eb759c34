//! The configurations of Hugging Face checkpoints, with the defaults of transformers' classes for absent keys.

mod activation;
mod decoder;
mod family;
mod llava;
mod projector;
mod rope;
mod section;
#[cfg(test)]
mod tests;
mod vision;

use thiserror::Error;

pub use activation::Activation;
pub use decoder::{DecoderConfig, TokenIds};
pub use family::Family;
pub use llava::{BASIC_MODEL_TYPE, FeatureLayers, LlavaConfig, SelectStrategy};
pub use projector::ProjectorKind;
pub use rope::{Rope, RopeKind};
pub use vision::{VisionConfig, VisionFamily};

/// A configuration that is unreadable or asks for what is not built.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json: {0}")]
    Parse(#[from] serde_json::Error),
    /// A key of the wrong type, or a missing one.
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
        /// What would be.
        supported: &'static str,
    },
    /// Sizes that contradict each other.
    #[error("config.json: {0}")]
    Inconsistent(String),
}

fn unsupported(key: &str, value: impl ToString, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported { key: key.into(), value: value.to_string(), supported }
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
