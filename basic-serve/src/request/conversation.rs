//! The messages of a chat request, as turns in the checkpoint's conversation style, with their images.

use basic_data::{ImageBase, ImageSource};
use basic_models::Checkpoint;
use basic_models::processor::{Message, PLACEHOLDER, Prompt, Role, Style, render_prompt, tokenize_prompt};
use serde_json::Value;

use super::fields::{Fields, expected};
use super::images;
use super::sampling::may_fit;
use crate::engine::Engine;
use crate::error::ApiError;

/// The most messages of a request.
const MOST_MESSAGES: usize = 4096;
/// The most parts of a message.
const MOST_PARTS: usize = 1024;

/// The turns of a request, and their images in order with the fields that have them.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    messages: Vec<Message>,
    pub images: Vec<(String, ImageSource)>,
}

/// How turns are written: by the checkpoint's chat template, or else in vicuna_v1, as `basic chat` writes them.
pub(crate) fn style(checkpoint: &Checkpoint) -> Style {
    checkpoint.template.clone().map_or_else(Style::vicuna_v1, Style::from)
}

impl Turns {
    /// Reads `messages`.
    pub fn read(messages: Value, most_images: usize, files: Option<&ImageBase>) -> Result<Self, ApiError> {
        let list = match messages {
            Value::Array(list) if !list.is_empty() && list.len() <= MOST_MESSAGES => list,
            other => {
                let wanted = format!("a list of 1 to {MOST_MESSAGES} messages");
                return Err(ApiError::field("messages", expected(&wanted, &other)));
            }
        };
        let mut turns = Self::default();
        for (index, message) in list.into_iter().enumerate() {
            turns.turn(message, &format!("messages[{index}]"), most_images, files)?;
        }
        Ok(turns)
    }

    /// A single question about an image.
    pub fn question(field: &str, image: ImageSource, question: &str) -> Self {
        let content = if question.is_empty() { PLACEHOLDER.into() } else { format!("{PLACEHOLDER}\n{question}") };
        Self { messages: vec![Message::new(Role::User, content)], images: vec![(field.into(), image)] }
    }

    /// The prompt up to where the answer begins.
    pub fn prompt(&self, engine: &Engine) -> Result<Prompt, ApiError> {
        let checkpoint = &engine.checkpoint;
        may_fit(engine, self.messages.iter().map(|message| message.content.len()).sum(), "messages")?;
        let (style, tokenizer) = (style(checkpoint), &checkpoint.tokenizer);
        let fail = |error: basic_models::processor::ProcessorError| ApiError::field("messages", error.to_string());
        let text = render_prompt(&style, &self.messages, tokenizer.specials()).map_err(fail)?;
        tokenize_prompt(tokenizer, text, &images::tiles(checkpoint, &self.images)?).map_err(fail)
    }

    fn turn(
        &mut self,
        message: Value,
        path: &str,
        most_images: usize,
        files: Option<&ImageBase>,
    ) -> Result<(), ApiError> {
        let mut fields = Fields::of(message, path)?;
        let role = match fields.text("role")?.as_deref() {
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool" | "function") => return Err(fields.error("role", "this server calls no tools")),
            Some(_) => return Err(fields.error("role", "expected \"system\", \"user\" or \"assistant\"")),
            None => return Err(fields.error("role", "is missing").coded("missing_required_parameter")),
        };
        let content = fields.path("content");
        let parts = match fields.need("content")? {
            Value::String(text) => vec![Part::Text(text)],
            Value::Array(list) if list.len() <= MOST_PARTS => {
                let parts = list.into_iter().enumerate();
                parts
                    .map(|(index, part)| Part::read(part, &format!("{content}[{index}]"), files))
                    .collect::<Result<_, _>>()?
            }
            other => {
                return Err(ApiError::field(
                    content,
                    expected(&format!("a text or at most {MOST_PARTS} parts"), &other),
                ));
            }
        };
        fields.only("tool_calls", |calls| calls.as_array().is_some_and(Vec::is_empty))?;
        fields.end()?;
        self.add(role, parts, &content, most_images)
    }

    fn add(&mut self, role: Role, parts: Vec<Part>, content: &str, most_images: usize) -> Result<(), ApiError> {
        let shown = parts.iter().filter(|part| matches!(part, Part::Image(..))).count();
        if shown > 0 && role != Role::User {
            return Err(ApiError::field(content, "only the user's messages show images"));
        }
        if self.images.len() + shown > most_images {
            let message = format!("the request has more than the {most_images} images that this server takes");
            return Err(ApiError::field(content, message));
        }
        let mut written = String::new();
        for part in parts {
            // Texts beside each other are paragraphs; a picture has a line of its own, as in LLaVA's data.
            if !written.is_empty() && !written.ends_with('\n') {
                written.push('\n');
            }
            match part {
                Part::Image(field, source) => {
                    written.push_str(PLACEHOLDER);
                    written.push('\n');
                    self.images.push((field, *source));
                }
                Part::Text(text) if shown > 0 && text.contains(PLACEHOLDER) => {
                    let message = format!(
                        "a text beside an image must not contain {PLACEHOLDER}, which stands for an image: send it in a \
                         message of its own"
                    );
                    return Err(ApiError::field(content, message));
                }
                Part::Text(text) => written.push_str(&text),
            }
        }
        if shown > 0 {
            written.truncate(written.trim_end_matches('\n').len());
        }
        if shown == 1 && !written.starts_with(PLACEHOLDER) {
            // LLaVA trains with a single image before the question, wherever the data has it.
            let text = written.replace(PLACEHOLDER, "");
            written = format!("{PLACEHOLDER}\n{}", text.trim());
        }
        let message = Message::new(role, written);
        self.messages.push(if shown > 0 { message } else { message.without_images() });
        Ok(())
    }
}

/// A part of a message.
#[derive(Debug)]
enum Part {
    Text(String),
    Image(String, Box<ImageSource>),
}

impl Part {
    fn read(part: Value, path: &str, files: Option<&ImageBase>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(part, path)?;
        let kind = fields.text("type")?;
        let read = match kind.as_deref() {
            Some("text") => match fields.text("text")? {
                Some(text) => Self::Text(text),
                None => return Err(fields.error("text", "is missing").coded("missing_required_parameter")),
            },
            Some("image_url") => {
                let field = fields.path("image_url");
                let (url, field) = match fields.need("image_url")? {
                    Value::String(url) => (url, field),
                    image => {
                        let mut image = Fields::of(image, field)?;
                        let field = image.path("url");
                        let Some(url) = image.text("url")? else {
                            return Err(ApiError::field(field, "is missing").coded("missing_required_parameter"));
                        };
                        // The checkpoint's image processor decides the resolution.
                        image.pass_over(&["detail"]);
                        image.end()?;
                        (url, field)
                    }
                };
                let source = images::source(&url, &field, files)?;
                Self::Image(field, Box::new(source))
            }
            Some(other) => {
                let message =
                    format!("expected \"text\" or \"image_url\", found {:?}", basic_models::outside::excerpt(other));
                return Err(fields.error("type", message).coded("unsupported_parameter"));
            }
            None => return Err(fields.error("type", "is missing").coded("missing_required_parameter")),
        };
        fields.end()?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PIXEL: &str = "data:image/png;base64,AQID";

    fn image() -> Value {
        json!({"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}})
    }

    fn text(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    fn contents(messages: Value) -> Vec<String> {
        let turns = Turns::read(messages, 4, None).unwrap();
        turns.messages.iter().map(|message| message.content.clone()).collect()
    }

    #[test]
    fn a_single_image_comes_first_and_several_stay_where_they_are() {
        let one = |parts: Value| contents(json!([{"role": "user", "content": parts}])).remove(0);
        assert_eq!(one(json!([image(), text("What?")])), "<image>\nWhat?");
        assert_eq!(one(json!([text("What?"), image()])), "<image>\nWhat?");
        assert_eq!(one(json!([text("a"), image(), text("b")])), "<image>\na\n\nb");
        assert_eq!(one(json!([image()])), "<image>");
        assert_eq!(one(json!([image(), image(), text("Which?")])), "<image>\n<image>\nWhich?");
        assert_eq!(one(json!([text("First"), image(), text("then"), image()])), "First\n<image>\nthen\n<image>");
        assert_eq!(one(json!([text("a"), text("b")])), "a\nb");
        assert_eq!(one(json!("a \n")), "a \n", "a text is left as it is");
    }

    #[test]
    fn a_placeholder_in_a_text_is_text_or_refused() {
        let turns =
            Turns::read(json!([{"role": "user", "content": "what does <image> do in HTML?"}]), 4, None).unwrap();
        assert_eq!(turns.messages[0].images(), 0);
        let mixed = json!([{"role": "user", "content": [image(), text("an <image> in HTML")]}]);
        assert!(Turns::read(mixed, 4, None).unwrap_err().message.contains("must not contain <image>"));
    }

    #[test]
    fn errors_name_the_field() {
        let message = |value: Value| json!([{"role": "user", "content": "hi"}, value]);
        for (messages, param) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (message(json!({"role": "robot", "content": ""})), "messages[1].role"),
            (message(json!({"content": ""})), "messages[1].role"),
            (message(json!({"role": "tool", "content": ""})), "messages[1].role"),
            (message(json!({"role": "user"})), "messages[1].content"),
            (message(json!({"role": "user", "content": 3})), "messages[1].content"),
            (message(json!({"role": "user", "content": "", "name": "x"})), "messages[1].name"),
            (message(json!({"role": "user", "content": [{"type": "input_audio"}]})), "messages[1].content[0].type"),
            (message(json!({"role": "user", "content": [{"type": "text"}]})), "messages[1].content[0].text"),
            (message(json!({"role": "user", "content": [{"type": "image_url"}]})), "messages[1].content[0].image_url"),
            (message(json!({"role": "assistant", "content": [image()]})), "messages[1].content"),
            (message(json!({"role": "user", "content": vec![image(); 5]})), "messages[1].content"),
            (
                message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})),
                "messages[1].content[0].image_url.url",
            ),
        ] {
            let error = Turns::read(messages.clone(), 4, None).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{messages}: {error:?}");
            assert_eq!(error.status.as_u16(), 400);
        }
    }
}
