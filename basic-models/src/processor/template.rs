//! Chat templates (Jinja), with the same settings as in transformers.

use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Kwargs, Value, ViaDeserialize};
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::json;

use super::bounds;
use super::config::read_json_if_exists;
use super::marks::{Ends, Marks, trailing};
use super::program::Program;
use super::today::strftime_now;
use super::{Message, PLACEHOLDER, ProcessorError, RenderedPiece, Result, Role, SpecialTokens, wanted};
use crate::outside;

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    program: Arc<Program>,
    origin: String,
    takes_lists: bool,
}

/// The form in which a message's content is passed to the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// `[{"type": "image"}, {"type": "text", "text": ..}]`
    Parts,
    /// The text with its image placeholders.
    Text,
}

impl ChatTemplate {
    /// Compiles a template; errors name its `origin`.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Template`].
    pub fn new(source: &str, origin: impl Into<String>) -> Result<Self> {
        let origin = origin.into();
        let mut environment = Environment::new();
        environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime_now(&format));
        environment.add_filter("tojson", to_json);
        let takes_lists = ["content[", "'type'", "\"type\"", ".type"].iter().any(|mark| source.contains(mark));
        // transformers' own tag around answers; its content is rendered.
        let source = source.replace("endgeneration", "endif");
        let source = ["{% generation", "{%- generation", "{%+ generation"]
            .iter()
            .fold(source, |source, tag| source.replace(tag, &tag.replace("generation", "if true")));
        let fail = |e: Error| ProcessorError::Template { origin: origin.clone(), message: describe(&e) };
        let program = Program::new(environment, source).map_err(fail)?;
        Ok(Self { program: Arc::new(program), origin, takes_lists })
    }

    /// The template of a checkpoint: chat_template.jinja, otherwise chat_template.json, otherwise `"chat_template"` in
    /// tokenizer_config.json (of several, the one named "default"); `None` if there is none.
    ///
    /// # Errors
    /// Returns `Read`, `Json` or `Template`, which name the file.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        Self::source(dir)?.map(|(source, origin)| Self::new(&source, origin)).transpose()
    }

    /// The text of the template that [`ChatTemplate::load`] compiles, and the file that it comes from.
    pub(crate) fn source(dir: &Path) -> Result<Option<(String, String)>> {
        let path = dir.join("chat_template.jinja");
        match outside::read_text(&path) {
            Ok(source) => return Ok(Some((source, path.display().to_string()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ProcessorError::Read { path, source }),
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = dir.join(name);
            let json = read_json_if_exists(&path)?.unwrap_or_default();
            let template = &json["chat_template"];
            let one = |template: &serde_json::Value| template["name"].is_string() && template["template"].is_string();
            let source = match template {
                serde_json::Value::Null => None,
                serde_json::Value::String(source) => Some(source.as_str()),
                serde_json::Value::Array(named) if named.iter().all(one) => {
                    let default = named.iter().find(|template| template["name"] == "default");
                    default.and_then(|template| template["template"].as_str())
                }
                _ => {
                    let supported = "a text, or a list of objects with a \"name\" and a \"template\"";
                    return Err(wanted::wrong(&path, "chat_template", template, supported));
                }
            };
            if let Some(source) = source {
                return Ok(Some((source.to_owned(), path.display().to_string())));
            }
        }
        Ok(None)
    }

    /// The conversation's pieces. An answer, which is supervised, is what its message appends to the prompt before it.
    pub(super) fn pieces(&self, messages: &[Message], specials: &SpecialTokens) -> Result<Vec<RenderedPiece>> {
        let (marks, messages) = Marks::new(messages, specials)?;
        let content = self.content_for(&marks, &messages, false, specials)?;
        if let Some(pieces) = self.pieces_of_one_rendering(&marks, &messages, content, specials)? {
            return Ok(pieces);
        }
        let mut pieces = Vec::new();
        let mut done = String::new();
        for (turn, _) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let prompt = self.render(&messages[..turn], content, true, specials)?;
            pieces.push(marks.piece(self.appended(&done, &prompt, turn)?, false));
            done = self.render(&messages[..=turn], content, false, specials)?;
            pieces.push(marks.piece(self.appended(&prompt, &done, turn)?, true));
        }
        Ok(pieces)
    }

    /// The conversation, up to where the assistant's answer begins.
    pub(super) fn prompt(&self, messages: &[Message], specials: &SpecialTokens) -> Result<RenderedPiece> {
        let (marks, messages) = Marks::new(messages, specials)?;
        let content = self.content_for(&marks, &messages, true, specials)?;
        Ok(marks.piece(&self.render(&messages, content, true, specials)?, false))
    }

    /// The pieces of a conversation with several answers, from a single rendering of the whole and the positions of the
    /// answers in it; `None` if these cannot be determined.
    ///
    /// A mark at the end of each turn shows where the turn ends in the rendering. What the template writes between
    /// a question and its answer, and between an answer and the next question, is the same in each round and known
    /// from the first one.
    fn pieces_of_one_rendering(
        &self,
        marks: &Marks,
        messages: &[Message],
        content: Content,
        specials: &SpecialTokens,
    ) -> Result<Option<Vec<RenderedPiece>>> {
        let answers = messages.iter().filter(|message| message.role == Role::Assistant).count();
        let (Some(ends), true) = (Ends::new(messages), answers > 1) else { return Ok(None) };
        let Ok(whole) = self.render(messages, content, false, specials) else { return Ok(None) };
        let marked: Vec<Message> = messages.iter().map(|message| ends.mark(message)).collect();
        // A template may fail on the marks; then rendering without them reports what is wrong, if anything is.
        let render = |turns: usize, generate| self.render(&marked[..turns], content, generate, specials).ok();
        let first = usize::from(messages[0].role == Role::System) + 1;
        let last = messages.len() - 1;
        let (Some(text), Some(asked), Some(asked_last), Some(answered)) =
            (render(messages.len(), false), render(first, true), render(last, true), render(first + 1, false))
        else {
            return Ok(None);
        };
        let (text, places) = ends.places(&text);
        let tail = |rendered: &str, message: &Message| ends.tail(rendered, message).map(str::to_owned);
        let header = tail(&asked, &messages[first - 1]);
        let (Some(header), Some(ending)) = (header.clone(), tail(&answered, &messages[first])) else { return Ok(None) };
        let same = tail(&asked_last, &messages[last - 1]).is_some_and(|tail| tail == header);
        if text != whole || places.len() != 2 * answers || !same {
            return Ok(None);
        }
        let mut pieces = Vec::new();
        let mut done = 0;
        for (round, place) in places.chunks(2).enumerate() {
            let (question, answer) = (&messages[first - 1 + 2 * round], &messages[first + 2 * round]);
            let (asked, said) = (place[0], place[1]);
            let between = &whole[asked..said];
            let space = trailing(&question.content);
            let asked =
                asked + between.strip_prefix(space).filter(|rest| rest.starts_with(&header)).map_or(0, |_| space.len());
            if !whole[asked..said].starts_with(&header) {
                return Ok(None);
            }
            let begin = asked + header.len();
            let end = match first + 2 * round == last {
                true => whole.len(),
                false => {
                    let after = &whole[said..];
                    let space = trailing(&answer.content);
                    let space =
                        after.strip_prefix(space).filter(|rest| rest.starts_with(&ending)).map_or(0, |_| space.len());
                    match after[space..].starts_with(&ending) {
                        true => said + space + ending.len(),
                        false => return Ok(None),
                    }
                }
            };
            pieces.push(marks.piece(&whole[done..begin], false));
            pieces.push(marks.piece(&whole[begin..end], true));
            done = end;
        }
        Ok(Some(pieces))
    }

    /// What `whole` has after `prefix`.
    fn appended<'a>(&self, prefix: &str, whole: &'a str, turn: usize) -> Result<&'a str> {
        whole.strip_prefix(prefix).ok_or_else(|| {
            let same = prefix.chars().zip(whole.chars()).take_while(|(a, b)| a == b);
            let at = same.map(|(c, _)| c.len_utf8()).sum();
            let excerpt = |text: &str| text.get(at..).unwrap_or_default().chars().take(24).collect();
            ProcessorError::NotAPrefix {
                origin: self.origin.clone(),
                turn,
                at,
                prompt: excerpt(prefix),
                whole: excerpt(whole),
            }
        })
    }

    /// Chooses lists of parts if the template reads them, and plain texts if it does not mention any, fails on
    /// them, or prints the list.
    fn content_for(
        &self,
        marks: &Marks,
        messages: &[Message],
        generate: bool,
        specials: &SpecialTokens,
    ) -> Result<Content> {
        if !self.takes_lists {
            return Ok(Content::Text);
        }
        let whole = |pick: fn(&Message) -> usize| messages.iter().map(pick).sum::<usize>();
        let printed = |text: &str| text.matches("\"type\":").count();
        let reads_parts = |text: &str| {
            marks.images(text, &specials.image).max(marks.images(text, PLACEHOLDER)) >= whole(Message::images)
                && printed(text) <= whole(|m| m.content.matches("\"type\":").count())
        };
        match self.render(messages, Content::Parts, generate, specials) {
            Ok(text) if reads_parts(&text) => Ok(Content::Parts),
            Ok(_) => Ok(Content::Text),
            // If the template refuses the conversation in both forms, the message about the first one
            // is the relevant one.
            Err(refused) => match self.render(messages, Content::Text, generate, specials) {
                Ok(_) => Ok(Content::Text),
                Err(_) => Err(refused),
            },
        }
    }

    fn render(
        &self,
        messages: &[Message],
        content: Content,
        generate: bool,
        specials: &SpecialTokens,
    ) -> Result<String> {
        let fail = |e: Error| ProcessorError::Template { origin: self.origin.clone(), message: describe(&e) };
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .map(|message| match content {
                Content::Parts => {
                    json!({ "role": message.role.name(), "content": parts(message) })
                }
                Content::Text => json!({ "role": message.role.name(), "content": message.content }),
            })
            .collect();
        let mut names = context! { messages, add_generation_prompt => generate, tools => (), documents => () };
        let tokens = [
            ("bos_token", &specials.bos),
            ("eos_token", &specials.eos),
            ("pad_token", &specials.pad),
            ("unk_token", &specials.unk),
        ];
        for (name, token) in tokens {
            if let Some(token) = token {
                names = context! { ..Value::from_iter([(name, token.as_str())]), ..names };
            }
        }
        self.program.render(names).map_err(fail)
    }
}

/// The images and texts of a message in order. The line break after a placeholder is dropped, because
/// templates write their own.
fn parts(message: &Message) -> Vec<serde_json::Value> {
    let mut parts = Vec::new();
    let stretches: Vec<&str> = match message.shows_images() {
        true => message.content.split(PLACEHOLDER).collect(),
        false => vec![&message.content],
    };
    for (i, text) in stretches.into_iter().enumerate() {
        let text = if i == 0 {
            text
        } else {
            parts.push(json!({ "type": "image" }));
            text.strip_prefix('\n').unwrap_or(text)
        };
        if !text.is_empty() {
            parts.push(json!({ "type": "text", "text": text }));
        }
    }
    parts
}

/// The message with its cause and the line.
fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("it takes more than the {} steps that one rendering may take", bounds::FUEL);
    }
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!(
        "{}{line}",
        error.detail().map_or_else(
            || error.kind().to_string(),
            |detail| format!("{}: {}", error.kind(), outside::excerpt(&detail.lines().collect::<Vec<_>>().join(" ")))
        )
    )
}

/// Python's `json.dumps(x, ensure_ascii=False, indent=..)`, because Jinja's own filter escapes HTML.
fn to_json(value: ViaDeserialize<serde_json::Value>, options: Kwargs) -> std::result::Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Bounded(Vec::new());
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value.0, &mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => serde::Serialize::serialize(&value.0, &mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out.0).into_owned())
}

/// A buffer that cannot exceed the size of a template's value: with indentation, deeply nested values become large.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > bounds::VALUE {
            return Err(std::io::Error::other(format!("it makes a value of more than {} bytes", bounds::VALUE)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A formatter with `", "` and `": "` as separators.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
