//! Low-rank adapters (LoRA) on the linear layers of a frozen part, with a dense or a quantized base (QLoRA).
//!
//! [`attach`] freezes a part and adds adapters to its targets; Burn computes `W + scale * A B` whenever a layer reads
//! its weight. [`checkpoint::save_adapters`](crate::checkpoint::save_adapters) writes them in the format of `peft`, and
//! [`checkpoint::AdapterFiles`](crate::checkpoint::AdapterFiles) reads that format.

mod attach;
mod collect;
mod quantize;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use attach::{Factors, attach_factors};
pub use attach::{attach, targets};
pub(crate) use collect::{Adapter, adapters, dense, merged};

/// The settings of a part's adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank of the factors (PEFT's `r`).
    pub rank: usize,
    /// The numerator of the scale `alpha / rank` (PEFT's `lora_alpha`).
    pub alpha: f64,
    /// The linear layers that get adapters, by their last names (`q_proj`, `down_proj`); if empty, all of the part's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// How the targets' own weights are quantized; by default they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
}

impl Default for LoraConfig {
    /// The settings of LLaVA's `finetune_lora.sh`.
    fn default() -> Self {
        Self { rank: 128, alpha: 256.0, targets: Vec::new(), quantize: None }
    }
}

/// A symmetric integer type for frozen weights, with a scale per block along the output axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quantization {
    /// The number of bits of a value: 8 or 4.
    pub bits: u8,
    /// The number of values that share a scale; it must divide the number of outputs of every target.
    pub block: u8,
}

impl Default for Quantization {
    fn default() -> Self {
        Self { bits: 4, block: 64 }
    }
}

/// Why adapters cannot be attached.
#[derive(Debug, Error, PartialEq)]
pub enum AdapterError {
    /// A target that the part does not have.
    #[error("{prefix} has no linear layer {target}: its linear layers are {known}", known = .known.join(", "))]
    UnknownTarget {
        /// The part.
        prefix: String,
        /// The target's name.
        target: String,
        /// The names of the part's linear layers.
        known: Vec<String>,
    },
    /// A part without linear layers.
    #[error("{0} has no linear layers to put adapters on")]
    NoTargets(String),
    /// A part that has adapters already.
    #[error("{0} has adapters already: merge them first, or start from the model below them")]
    Attached(String),
    /// A rank, alpha or quantization that is out of range.
    #[error("{key} = {value}: {reason}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// A matrix that cannot be divided into whole blocks.
    #[error(
        "{name} has {outputs} outputs, which blocks of {block} do not divide: choose another block (`block` of the part in a recipe), or other targets"
    )]
    Block {
        /// The matrix.
        name: String,
        /// The number of its outputs.
        outputs: usize,
        /// The size of a block.
        block: u8,
    },
}

impl LoraConfig {
    /// Checks the settings without a model.
    ///
    /// # Errors
    ///
    /// Returns [`AdapterError::Invalid`], which names the key.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let invalid =
            |key, value: String, reason: &str| Err(AdapterError::Invalid { key, value, reason: reason.to_string() });
        if self.rank == 0 {
            return invalid("rank", "0".into(), "must be at least 1");
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return invalid("alpha", self.alpha.to_string(), "must be a finite number above 0");
        }
        match self.quantize {
            Some(Quantization { bits, .. }) if bits != 8 && bits != 4 => {
                invalid("quantize.bits", bits.to_string(), "must be 8 or 4")
            }
            Some(Quantization { block: 0, .. }) => invalid("quantize.block", "0".into(), "must be at least 1"),
            _ => Ok(()),
        }
    }
}
