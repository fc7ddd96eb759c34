//! Activation functions and their names in config.json.

use super::{ConfigError, unsupported};

/// The activation function of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, exact.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    /// The activation with transformers' name `name`.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Unsupported`], which names `key`.
    pub fn parse(key: &str, name: &str) -> Result<Self, ConfigError> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Self::GeluTanh),
            "quick_gelu" => Ok(Self::QuickGelu),
            other => Err(unsupported(key, other, "silu, gelu, gelu_pytorch_tanh or quick_gelu")),
        }
    }

    /// transformers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::QuickGelu => "quick_gelu",
        }
    }
}
