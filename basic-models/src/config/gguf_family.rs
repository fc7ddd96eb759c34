//! How llama.cpp computes a decoder family.

use super::Activation;

/// How llama.cpp (`src/models/`) computes a family. What it cannot compute is refused when a checkpoint is written as
/// GGUF.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufFamily {
    /// The value of `general.architecture`. The first family of an architecture is the one that a file is read as.
    pub architecture: &'static str,
    /// The two halves of each head's rows in the query and key matrices are interleaved.
    pub interleaved: bool,
    /// The rotary frequencies may be divided by a tensor (Llama 3's scaling).
    pub frequency_divisors: bool,
    /// A part of each head may be rotated.
    pub partial_rotary: bool,
    /// The attention's output may have a bias.
    pub output_bias: bool,
    /// The MLP may have biases.
    pub mlp_bias: bool,
    /// The output head may differ from the embedding table.
    pub own_head: bool,
    /// The heads must be together as wide as the decoder.
    pub heads_fill_width: bool,
    /// The MLP's activation.
    pub activation: Activation,
}

/// What llama.cpp does for most families.
pub(super) const GGUF: GgufFamily = GgufFamily {
    architecture: "",
    interleaved: false,
    frequency_divisors: false,
    partial_rotary: false,
    output_bias: false,
    mlp_bias: false,
    own_head: true,
    heads_fill_width: false,
    activation: Activation::Silu,
};

/// Llama's, which Mistral's models share.
pub(super) const GGUF_LLAMA: GgufFamily = GgufFamily {
    architecture: "llama",
    interleaved: true,
    frequency_divisors: true,
    output_bias: true,
    mlp_bias: true,
    ..GGUF
};
