//! The errors of this module: what is wrong with a file, a conversation or a template, and what to do about it.

use std::path::PathBuf;

use crate::outside::excerpt;

/// An error of image processing, tokenization or conversation rendering.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// None of the files that could hold a setting exist.
    #[error("{dir} has none of: {names}; it isn't a complete Hugging Face checkpoint, copy the missing file from the model it came from", dir = dir.display())]
    MissingFile {
        /// The checkpoint directory.
        dir: PathBuf,
        /// The file names that were looked for.
        names: &'static str,
    },
    /// A file is not JSON, or does not have the expected form.
    #[error("{path}: not the JSON that is expected here: {reason}", path = path.display(), reason = json_reason(source))]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        source: serde_json::Error,
    },
    /// A key has a value that this library does not support.
    #[error("{path}: \"{key}\" is {value}; supported: {supported}", path = path.display(), key = excerpt(key), value = excerpt(value))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value in the file.
        value: String,
        /// What is supported.
        supported: &'static str,
    },
    /// An image file could not be decoded.
    #[error("cannot decode the image {path}: {source}; replace the file or drop the sample", path = path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoder's message.
        source: image::ImageError,
    },
    /// An image file of 0 bytes.
    #[error("the image {path} is empty (0 bytes); replace the file or drop the sample", path = path.display())]
    EmptyImage {
        /// The file.
        path: PathBuf,
    },
    /// The decoder panicked on an image file.
    #[error("cannot decode the image {path}: the decoder gave up on damaged data ({reason}); replace the file or drop the sample", path = path.display())]
    DecoderGaveUp {
        /// The file.
        path: PathBuf,
        /// The panic's message.
        reason: String,
    },
    /// An image file ends before its data does.
    #[error("the image {path} is truncated: its end marker is missing; replace the file or drop the sample", path = path.display())]
    TruncatedImage {
        /// The file.
        path: PathBuf,
    },
    /// An image file is larger than any image within the pixel limit can be.
    #[error("the image {path} has more than {limit} bytes, more than any image within the limit of {max_pixels} pixels needs; replace the file or raise the limit", path = path.display())]
    ImageFileTooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: u64,
        /// The limit in pixels.
        max_pixels: u64,
    },
    /// An image has more pixels than the limit allows, which guards against decompression bombs.
    #[error("the image {path} has {width} x {height} pixels, more than the limit of {max_pixels}; scale it down or raise the limit", path = path.display())]
    TooManyPixels {
        /// The file.
        path: PathBuf,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The limit, width times height.
        max_pixels: u64,
    },
    /// An image cannot be resized as the settings require.
    #[error("cannot resize an image of {width} x {height} to {new_width} x {new_height}: {reason}")]
    Resize {
        /// The image's width.
        width: u32,
        /// The image's height.
        height: u32,
        /// The width it would get.
        new_width: u64,
        /// The height it would get.
        new_height: u64,
        /// The reason.
        reason: String,
    },
    /// tokenizer.json could not be loaded.
    #[error("{path}: not a tokenizer that this build can load: {message}", path = path.display(), message = said(message))]
    LoadTokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizers library's message.
        message: String,
    },
    /// The tokenizer failed on a text.
    #[error("{path}: the tokenizer failed on {text}: {message}", path = path.display(), message = said(message))]
    Tokenize {
        /// The tokenizer's file.
        path: PathBuf,
        /// The beginning of the text, quoted, and its length; or the ids.
        text: String,
        /// The tokenizers library's message.
        message: String,
    },
    /// The tokenizer lacks a special token that is needed.
    #[error("the tokenizer has no {what} token{named}; add it to tokenizer.json and name it in tokenizer_config.json")]
    MissingToken {
        /// The kind of token: "image", "end-of-sequence", ...
        what: &'static str,
        /// A space and the token's quoted text; empty if the text is not known either.
        named: String,
    },
    /// The number of image placeholders in the text differs from the number of images of the sample.
    #[error(
        "the text has {placeholders} image placeholder(s) \"{token}\" but the sample has {images} image(s); there must be one placeholder for each image"
    )]
    PlaceholderCount {
        /// The number of placeholders in the text.
        placeholders: usize,
        /// The number of images of the sample.
        images: usize,
        /// The placeholder.
        token: String,
    },
    /// Tokenization returned a different number of image tokens than the expanded text contains.
    #[error(
        "the tokenizer made {found} image tokens of a text that holds {expected}; \"{token}\" must be an added token in tokenizer.json"
    )]
    ImageTokenCount {
        /// The number of image tokens among the ids.
        found: usize,
        /// The number of image tokens in the text.
        expected: usize,
        /// The image token.
        token: String,
    },
    /// A sample is not a LLaVA conversation.
    #[error("not a LLaVA conversation: {reason}, at {place}")]
    Conversation {
        /// The place: `conversations[2].from`, ...
        place: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A turn of a conversation has no text.
    #[error("message {turn} (from the {role}) is empty; give it text or drop the sample")]
    EmptyMessage {
        /// The message's index, from 0.
        turn: usize,
        /// Its role.
        role: &'static str,
    },
    /// A conversation's roles do not alternate, or it does not fit the style.
    #[error("message {turn} is from the {found}, expected {expected}")]
    RoleOrder {
        /// The message's index, from 0.
        turn: usize,
        /// Its role.
        found: &'static str,
        /// What is allowed there.
        expected: &'static str,
    },
    /// A conversation for training ends without an answer.
    #[error(
        "the conversation has no answer after message {turn}; a training sample must end with the assistant's answer"
    )]
    Unanswered {
        /// The index of the last message, from 0.
        turn: usize,
    },
    /// The conversation has no messages.
    #[error("the conversation is empty; a sample needs a question and an answer")]
    NoMessages,
    /// There is no conversation style with that name.
    #[error("there is no conversation style {name:?}; the styles are {known}")]
    UnknownStyle {
        /// The name.
        name: String,
        /// The names of all styles.
        known: String,
    },
    /// No token of the sample has a loss.
    #[error(
        "no token of the sample is supervised (of {tokens} tokens); the answers hold no text that the tokenizer keeps"
    )]
    NothingSupervised {
        /// The number of the sample's tokens.
        tokens: usize,
    },
    /// A chat template could not be compiled or rendered.
    #[error("the chat template {origin} failed: {message}")]
    Template {
        /// The template's file.
        origin: String,
        /// The engine's message, with the line.
        message: String,
    },
    /// A chat template changes what it rendered before, so that an answer cannot be separated from the prompt.
    #[error(
        "the chat template {origin} renders message {turn} so that what came before it changes (from byte {at}: {prompt:?} became {whole:?}); labels can't be made with this template, use style vicuna_v1 or a template that only appends"
    )]
    NotAPrefix {
        /// The template's file.
        origin: String,
        /// The message's index, from 0.
        turn: usize,
        /// The first byte that differs.
        at: usize,
        /// The prompt from that byte on.
        prompt: String,
        /// The rendering with the message, from that byte on.
        whole: String,
    },
}

/// A library's message. It may repeat a text or a pattern of any length and is then shortened; this crate's own
/// messages are short, and end with what to do.
fn said(message: &str) -> String {
    if message.len() <= 500 { message.into() } else { excerpt(message) }
}

/// A parser's message, which may repeat a value of any length, with the place of the error.
fn json_reason(source: &serde_json::Error) -> String {
    let whole = source.to_string();
    match excerpt(&whole) {
        short if short == whole => whole,
        short => format!("{short} at line {} column {}", source.line(), source.column()),
    }
}
