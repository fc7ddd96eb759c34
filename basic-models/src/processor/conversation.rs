//! Conversations, and reading them from the format of LLaVA's data sets.

use serde_json::Value;

use super::{PLACEHOLDER, ProcessorError, Result};
use crate::outside::excerpt;

/// The speaker of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// Questions.
    User,
    /// Answers, on which the loss is computed.
    Assistant,
}

impl Role {
    /// The name in chat templates: `system`, `user` or `assistant`.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The speaker.
    pub role: Role,
    /// The text. A question has one [`PLACEHOLDER`] for each image.
    pub content: String,
    /// Whether a [`PLACEHOLDER`] in a question is plain text.
    literal: bool,
}

impl Message {
    /// A turn of a conversation.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), literal: false }
    }

    /// The turn of a sample without images: an `<image>` in it is plain text, for example about HTML.
    #[must_use]
    pub fn without_images(self) -> Self {
        Self { literal: true, ..self }
    }

    /// The turn with another text, in which placeholders mean the same as in this one.
    pub(super) fn with_content(&self, content: String) -> Self {
        Self { content, ..*self }
    }

    /// Whether a [`PLACEHOLDER`] in it stands for an image. This is so in questions of samples that have images; in the
    /// texts of the assistant and the system it is plain text.
    pub fn shows_images(&self) -> bool {
        self.role == Role::User && !self.literal
    }

    /// The number of images in the turn.
    pub fn images(&self) -> usize {
        if self.shows_images() { self.content.matches(PLACEHOLDER).count() } else { 0 }
    }
}

/// Reads LLaVA's `"conversations"`: `[{"from": "human", "value": ..}, {"from": "gpt", "value": ..}, ..]`, with an
/// optional `"system"` turn first. `value` is that list, or a sample that has it under `"conversations"`.
///
/// As in LLaVA's `preprocess_multimodal`, the placeholder of an image is moved to the start of its question, on a line
/// of its own. A question with several placeholders is left unchanged (LLaVA would merge them into one), and so is an
/// answer, in which `<image>` is plain text.
///
/// # Errors
/// Returns [`ProcessorError::Conversation`] if keys, types or speakers are wrong, [`ProcessorError::RoleOrder`] if
/// human and gpt do not alternate, [`ProcessorError::EmptyMessage`] if a turn of the system or gpt is empty,
/// [`ProcessorError::NoMessages`], and [`ProcessorError::Unanswered`] if the last turn is not gpt's.
pub fn from_llava(value: &Value) -> Result<Vec<Message>> {
    read(value, true)
}

/// [`from_llava`] for a sample without images: an `<image>` is plain text and stays where it is.
///
/// # Errors
/// Returns the errors of [`from_llava`].
pub fn from_llava_without_images(value: &Value) -> Result<Vec<Message>> {
    read(value, false)
}

fn read(value: &Value, images: bool) -> Result<Vec<Message>> {
    let wrong = |place: &str, reason: String| ProcessorError::Conversation { place: place.into(), reason };
    let list = match value {
        Value::Object(sample) => sample
            .get("conversations")
            .ok_or_else(|| wrong("the sample", "the key \"conversations\" is missing".into()))?,
        other => other,
    };
    let turns = list.as_array().ok_or_else(|| {
        wrong("conversations", format!("expected a list of {{\"from\", \"value\"}}, found {}", kind(list)))
    })?;
    let mut messages = Vec::with_capacity(turns.len());
    for (i, turn) in turns.iter().enumerate() {
        let text = |key: &str| match turn.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => {
                Err(wrong(&format!("conversations[{i}].{key}"), format!("expected a text, found {}", kind(other))))
            }
            None => Err(wrong(&format!("conversations[{i}]"), format!("the key \"{key}\" is missing"))),
        };
        let role = match text("from")?.as_str() {
            "system" => Role::System,
            "human" => Role::User,
            "gpt" => Role::Assistant,
            other => {
                let reason = format!("unknown speaker {:?}, expected \"human\", \"gpt\" or \"system\"", excerpt(other));
                return Err(wrong(&format!("conversations[{i}].from"), reason));
            }
        };
        let content = text("value")?;
        messages.push(match (images, role) {
            (false, _) => Message::new(role, content).without_images(),
            (true, Role::User) => Message::new(role, image_first(content)),
            (true, _) => Message::new(role, content),
        });
    }
    check_order(&messages)?;
    check_filled(&messages, &[Role::System, Role::Assistant])?;
    check_answered(&messages)?;
    Ok(messages)
}

/// Checks that user and assistant alternate after an optional system turn.
pub(super) fn check_order(messages: &[Message]) -> Result<()> {
    if messages.iter().all(|message| message.role == Role::System) {
        return Err(ProcessorError::NoMessages);
    }
    let system = usize::from(messages[0].role == Role::System);
    for (turn, message) in messages.iter().enumerate() {
        let (expected, name) = match turn {
            0 if system == 1 => (Role::System, "the system"),
            _ if (turn - system).is_multiple_of(2) => (Role::User, "the user (LLaVA's \"human\")"),
            _ => (Role::Assistant, "the assistant (LLaVA's \"gpt\")"),
        };
        if message.role != expected {
            return Err(ProcessorError::RoleOrder { turn, found: message.role.name(), expected: name });
        }
    }
    Ok(())
}

/// Checks that each turn of the given roles has text.
pub(super) fn check_filled(messages: &[Message], roles: &[Role]) -> Result<()> {
    let empty = |message: &Message| roles.contains(&message.role) && message.content.trim().is_empty();
    match messages.iter().position(empty) {
        Some(turn) => Err(ProcessorError::EmptyMessage { turn, role: messages[turn].role.name() }),
        None => Ok(()),
    }
}

/// Checks that the last turn is an answer.
pub(super) fn check_answered(messages: &[Message]) -> Result<()> {
    match messages.last() {
        Some(last) if last.role == Role::Assistant => Ok(()),
        _ => Err(ProcessorError::Unanswered { turn: messages.len().saturating_sub(1) }),
    }
}

/// Moves the placeholder of `text`, if it has only one, to a line before the rest.
fn image_first(text: &str) -> String {
    if text.matches(PLACEHOLDER).count() != 1 {
        return text.to_owned();
    }
    let rest = text.replace(PLACEHOLDER, "");
    strip(&format!("{PLACEHOLDER}\n{}", strip(&rest))).to_owned()
}

/// Python's `str.strip`, which also strips the four separator control characters.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
