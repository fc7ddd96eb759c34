//! From a conversation to text, each piece with its role: does the loss fall on it or not?

use super::conversation::{check_answered, check_order};
use super::placeholders::count_placeholders;
use super::{ChatTemplate, Message, PLACEHOLDER, ProcessorError, Result, Role, SpecialTokens};

const VICUNA_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// How a conversation is written as text.
#[derive(Debug, Clone)]
pub enum Style {
    /// LLaVA's pretraining format: the image, the caption, a line break; the question is dropped. The loss falls on
    /// the caption and the line break.
    Plain,
    /// LLaVA's `vicuna_v1`: `SYSTEM USER: .. ASSISTANT: ..</s>USER: ..`. The loss falls on the answers and `</s>`
    /// (the tokenizer's end-of-sequence token). A system turn replaces the system text.
    VicunaV1,
    /// The checkpoint's own chat template. The loss falls on what an assistant turn appends to the prompt before it.
    Template(Box<ChatTemplate>),
}

impl From<ChatTemplate> for Style {
    fn from(template: ChatTemplate) -> Self {
        Self::Template(Box::new(template))
    }
}

/// A stretch of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text, with one image token of the tokenizer for each image.
    pub text: String,
    /// Whether the loss falls on it.
    pub supervised: bool,
}

impl Piece {
    /// A piece without loss.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self { text: text.into(), supervised: false }
    }

    /// A piece with loss.
    pub fn answer(text: impl Into<String>) -> Self {
        Self { text: text.into(), supervised: true }
    }
}

/// Renders a conversation to train on. The concatenated texts are the sample; supervised pieces are the answers, from
/// right after the generation prompt on: a space between the two belongs to the answer, since the model has to
/// generate it (and LLaVA's masks for Llama have it so).
///
/// # Errors
/// [`ProcessorError::NoMessages`], `RoleOrder`, `EmptyMessage` or `Unanswered` for a conversation that can't be
/// trained on; `Conversation` for one that doesn't fit [`Style::Plain`]; `MissingToken` where `vicuna_v1` has no
/// end-of-sequence token; `Template` or `NotAPrefix` for a chat template's failure.
pub fn render(style: &Style, messages: &[Message], specials: &SpecialTokens) -> Result<Vec<Piece>> {
    check_order(messages)?;
    check_answered(messages)?;
    let pieces = match style {
        Style::Plain => {
            let images = plain_images(messages)?;
            vec![Piece::prompt(images), Piece::answer(format!("{}\n", messages[messages.len() - 1].content))]
        }
        Style::VicunaV1 => vicuna(messages, specials)?,
        Style::Template(template) => template.pieces(messages, specials)?,
    };
    let own_token = |mut piece: Piece| {
        piece.text = with_image_token(piece.text, specials);
        piece
    };
    Ok(pieces.into_iter().map(own_token).collect())
}

/// Renders a conversation whose last turn is the user's, up to where the assistant's answer begins.
///
/// # Errors
/// As [`render`], except that the last turn must not be an answer.
pub fn render_prompt(style: &Style, messages: &[Message], specials: &SpecialTokens) -> Result<String> {
    check_order(messages)?;
    if check_answered(messages).is_ok() {
        let turn = messages.len() - 1;
        return Err(ProcessorError::RoleOrder { turn, found: "assistant", expected: "the user's question last" });
    }
    let text = match style {
        Style::Plain => plain_images(messages)?,
        Style::VicunaV1 => vicuna(messages, specials)?.into_iter().map(|piece| piece.text).collect(),
        Style::Template(template) => template.prompt(messages, specials)?,
    };
    Ok(with_image_token(text, specials))
}

/// The placeholders of a plain sample's question, without its text.
fn plain_images(messages: &[Message]) -> Result<String> {
    let fail = |reason: &str| ProcessorError::Conversation { place: "style plain".into(), reason: reason.into() };
    if messages.len() > 2 || messages[0].role != Role::User {
        return Err(fail("expected one question with an image and one caption; use vicuna_v1 for conversations"));
    }
    match count_placeholders(&messages[0].content, PLACEHOLDER) {
        0 => Err(fail("the question has no <image>; use vicuna_v1 for samples without images")),
        images => Ok(PLACEHOLDER.repeat(images)),
    }
}

/// Pieces up to the last message, and the generation prompt where that is the user's.
fn vicuna(messages: &[Message], specials: &SpecialTokens) -> Result<Vec<Piece>> {
    let eos = specials.eos.as_deref();
    let eos = eos.ok_or(ProcessorError::MissingToken { what: "end-of-sequence", named: String::new() })?;
    let mut pieces = Vec::with_capacity(messages.len());
    let mut prompt = String::new();
    for (i, message) in messages.iter().enumerate() {
        match message.role {
            Role::System => prompt = format!("{} ", message.content),
            Role::User => {
                if i == 0 {
                    prompt = format!("{VICUNA_SYSTEM} ");
                }
                prompt += &format!("USER: {} ASSISTANT:", message.content);
                pieces.push(Piece::prompt(std::mem::take(&mut prompt)));
            }
            Role::Assistant => pieces.push(Piece::answer(format!(" {}{eos}", message.content))),
        }
    }
    Ok(pieces)
}

/// Conversations say `<image>`; the checkpoint may call its token otherwise.
fn with_image_token(text: String, specials: &SpecialTokens) -> String {
    if specials.image == PLACEHOLDER { text } else { text.replace(PLACEHOLDER, &specials.image) }
}
