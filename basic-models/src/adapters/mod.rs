//! Low-rank adapters (LoRA) on the linear layers of a frozen part, with a dense or a quantized base (QLoRA).
//!
//! [`attach`] freezes a part and puts adapters on its targets; Burn composes `W + scale * A B` whenever a layer reads
//! its weight. [`checkpoint::save_adapters`](crate::checkpoint::save_adapters) writes them as `peft` does,
//! [`checkpoint::AdapterFiles`](crate::checkpoint::AdapterFiles) reads what it or `peft` wrote.

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

/// The adapters of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the factors (PEFT's `r`).
    pub rank: usize,
    /// Numerator of the scale `alpha / rank` (PEFT's `lora_alpha`).
    pub alpha: f64,
    /// The linear layers that get adapters, by their last name (`q_proj`, `down_proj`); empty: all of the part's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// How the targets' own weights are held; by default as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
}

impl Default for LoraConfig {
    /// LLaVA's `finetune_lora.sh`.
    fn default() -> Self {
        Self { rank: 128, alpha: 256.0, targets: Vec::new(), quantize: None }
    }
}

/// A symmetric integer type for frozen weights, with a scale per block along the output axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quantization {
    /// Bits of a value: 8 or 4.
    pub bits: u8,
    /// Values that share a scale; it must divide the outputs of every target.
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
        /// The name that was asked for.
        target: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A part without linear layers.
    #[error("{0} has no linear layers to put adapters on")]
    NoTargets(String),
    /// A part that has adapters already.
    #[error("{0} has adapters already: merge them first, or start from the model below them")]
    Attached(String),
    /// A rank, alpha or quantization that makes no sense.
    #[error("{key} = {value}: {reason}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// A matrix that is no whole number of blocks.
    #[error(
        "{name} has {outputs} outputs, which blocks of {block} do not divide: choose another block (`block` of the part in a recipe), or other targets"
    )]
    Block {
        /// The matrix.
        name: String,
        /// Its outputs.
        outputs: usize,
        /// The block.
        block: u8,
    },
}

impl LoraConfig {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Invalid`] that names the key.
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
