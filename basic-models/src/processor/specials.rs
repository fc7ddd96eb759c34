//! The special tokens of a checkpoint, as texts and as ids.

use super::PLACEHOLDER;

/// The texts of the special tokens that prompts and templates need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token that begins a sequence.
    pub bos: Option<String>,
    /// The token that ends a sequence or an answer.
    pub eos: Option<String>,
    /// The token that pads a batch.
    pub pad: Option<String>,
    /// The token for texts that the vocabulary lacks.
    pub unk: Option<String>,
    /// The token that stands for a visual embedding.
    pub image: String,
    /// Every other special token of the tokenizer, such as `<|im_start|>`. In a text of a user or a data set, all these
    /// tokens are plain text.
    pub others: Vec<String>,
}

impl Default for SpecialTokens {
    /// No special tokens but the image token, [`PLACEHOLDER`].
    fn default() -> Self {
        Self { bos: None, eos: None, pad: None, unk: None, image: PLACEHOLDER.into(), others: Vec::new() }
    }
}

impl SpecialTokens {
    /// All special tokens; a token may occur twice.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        let named = [&self.bos, &self.eos, &self.pad, &self.unk].into_iter().flatten().chain([&self.image]);
        named.chain(&self.others).map(String::as_str)
    }
}

/// Token ids in the model's config.json (`bos_token_id`, ..., `image_token_index`). Those in the tokenizer's own files
/// take precedence, except for the image token: the model uses the id of its configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `pad_token_id`.
    pub pad: Option<u32>,
    /// `image_token_index` or `image_token_id`.
    pub image: Option<u32>,
}
