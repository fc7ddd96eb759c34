//! The special tokens of a checkpoint, by text and by id.

use super::PLACEHOLDER;

/// The texts of the special tokens that prompts and templates need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<String>,
    /// Ends a sequence or an answer.
    pub eos: Option<String>,
    /// Fills up a batch.
    pub pad: Option<String>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<String>,
    /// Stands for visual embeddings.
    pub image: String,
    /// Every other special token of the tokenizer, such as `<|im_start|>`. Where users or data sets write one of all
    /// these, it is text.
    pub others: Vec<String>,
}

impl Default for SpecialTokens {
    /// No special tokens but the image token, [`PLACEHOLDER`].
    fn default() -> Self {
        Self { bos: None, eos: None, pad: None, unk: None, image: PLACEHOLDER.into(), others: Vec::new() }
    }
}

impl SpecialTokens {
    /// All of them; one may come twice.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        let named = [&self.bos, &self.eos, &self.pad, &self.unk].into_iter().flatten().chain([&self.image]);
        named.chain(&self.others).map(String::as_str)
    }
}

/// Token ids that the model's config.json names (`bos_token_id`, ..., `image_token_index`). Those that the
/// tokenizer's own files name win, except for the image token: the model looks for the id in its configuration.
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
