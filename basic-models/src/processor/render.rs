//! Renders a conversation as text, in pieces that record whether the loss covers them.

use super::conversation::{check_answered, check_filled, check_order};
use super::{ChatTemplate, LlavaStyle, Message, ProcessorError, RenderedPiece, Result, Role, SpecialTokens};

/// How a conversation is written as text.
#[derive(Debug, Clone)]
pub enum Style {
    /// One of LLaVA's own styles. The loss covers the answers and what ends them.
    Named(&'static LlavaStyle),
    /// The checkpoint's own chat template. The loss covers what an assistant turn appends to the prompt before it.
    Template(Box<ChatTemplate>),
}

impl Style {
    /// LLaVA's pretraining format: the image, the caption, a line break; the question is dropped. The loss covers the
    /// caption and the line break.
    pub fn plain() -> Self {
        Self::Named(LlavaStyle::plain())
    }

    /// LLaVA's `vicuna_v1`: `SYSTEM USER: .. ASSISTANT: ..</s>USER: ..`. The loss covers the answers and `</s>` (the
    /// tokenizer's end-of-sequence token). A system turn replaces the system text.
    pub fn vicuna_v1() -> Self {
        Self::Named(LlavaStyle::vicuna_v1())
    }

    /// The texts that end an answer, besides the tokenizer's end-of-sequence token. For a chat template
    /// they are not known.
    pub fn stops(&self) -> &'static [&'static str] {
        match self {
            Self::Named(style) => style.stops(),
            Self::Template(_) => &[],
        }
    }
}

impl From<ChatTemplate> for Style {
    fn from(template: ChatTemplate) -> Self {
        Self::Template(Box::new(template))
    }
}

impl From<&'static LlavaStyle> for Style {
    fn from(style: &'static LlavaStyle) -> Self {
        Self::Named(style)
    }
}

/// Renders a conversation for training. The concatenated pieces are the sample. Supervised pieces are the answers, from
/// directly after the generation prompt on: a space between the two belongs to the answer, because the model has to
/// generate it (LLaVA's masks for Llama do the same).
///
/// # Errors
/// Returns [`ProcessorError::NoMessages`], `RoleOrder`, `EmptyMessage` or `Unanswered` for a conversation that cannot
/// be trained on; `Conversation` for one that does not fit the style; `MissingToken` if a style has no end-of-sequence
/// token; `Template` or `NotAPrefix` if a chat template fails.
pub fn render(style: &Style, messages: &[Message], specials: &SpecialTokens) -> Result<Vec<RenderedPiece>> {
    check_order(messages)?;
    check_answered(messages)?;
    check_filled(messages, &[Role::Assistant])?;
    match style {
        Style::Named(style) => style.pieces(messages, specials),
        Style::Template(template) => template.pieces(messages, specials),
    }
}

/// Renders a conversation whose last turn is the user's, up to where the assistant's answer begins. Empty turns are
/// rendered as the style defines them: LLaVA treats an empty answer as one that is still to come.
///
/// # Errors
/// Returns the errors of [`render`], except that the last turn must not be an answer and that empty
/// answers are allowed.
pub fn render_prompt(style: &Style, messages: &[Message], specials: &SpecialTokens) -> Result<RenderedPiece> {
    check_order(messages)?;
    if check_answered(messages).is_ok() {
        let turn = messages.len() - 1;
        return Err(ProcessorError::RoleOrder { turn, found: "assistant", expected: "the user's question last" });
    }
    match style {
        Style::Named(style) => {
            let mut prompt = RenderedPiece::default();
            style.pieces(messages, specials)?.iter().for_each(|piece| prompt.append(piece));
            Ok(prompt)
        }
        Style::Template(template) => template.prompt(messages, specials),
    }
}
