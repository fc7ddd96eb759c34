//! Generates answers as text, whole or piece by piece.

use std::ops::ControlFlow;

use burn::tensor::Tensor;

use super::{Finish, GenerateError, Generated, GenerationConfig, Halt, TextStream, Token, generate_with};
use crate::input::ImageTokens;
use crate::nn::Llava;
use crate::processor::{ProcessorError, Tokenizer};

/// How ids are decoded, and which texts end an answer.
#[derive(Debug, Clone, Copy)]
pub struct TextOptions<'a> {
    /// The checkpoint's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The stop strings: an answer's text ends before the first of them, while its ids include it.
    pub stop: &'a [String],
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// The text without special tokens, end token and stop string.
    pub text: String,
    /// The ids and how the generation ended.
    pub generated: Generated,
}

/// What a new token adds to an answer's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The index of the prompt, from 0.
    pub row: usize,
    /// The token.
    pub id: u32,
    /// The text that became final with it: whole characters, possibly none. All pieces of a row make up its text.
    pub text: &'a str,
    /// Set on the row's last token.
    pub finish: Option<Finish>,
}

/// [`generate`](super::generate) with texts: `observer` gets every piece as it is generated, and can cancel.
///
/// # Errors
///
/// Returns the errors of [`generate`](super::generate), and the tokenizer's.
pub fn generate_text(
    model: &Llava,
    prompts: &[ImageTokens],
    features: Option<Tensor<2>>,
    config: &GenerationConfig,
    options: &TextOptions<'_>,
    observer: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
) -> Result<Vec<Answer>, GenerateError> {
    let mut texts = Texts::new(options, prompts.len(), &config.eos, observer);
    let generated = generate_with(model, prompts, features, config, &mut |token| texts.take(token))?;
    texts.finish(generated)
}

/// The texts of a batch's rows while they are generated.
pub(super) struct Texts<'a> {
    streams: Vec<TextStream<'a>>,
    eos: &'a [u32],
    observer: &'a mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    failed: Option<ProcessorError>,
}

impl<'a> Texts<'a> {
    pub fn new(
        options: &TextOptions<'a>,
        rows: usize,
        eos: &'a [u32],
        observer: &'a mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Self {
        let streams = (0..rows).map(|_| TextStream::new(options.tokenizer, options.stop)).collect();
        Self { streams, eos, observer, failed: None }
    }

    /// Passes a token's text to the observer.
    pub fn take(&mut self, token: Token) -> ControlFlow<Halt> {
        let stream = &mut self.streams[token.row];
        let mut text = String::new();
        if !self.eos.contains(&token.id) {
            match stream.push(token.id) {
                Ok(piece) => text.push_str(piece),
                Err(error) => {
                    self.failed = Some(error);
                    return ControlFlow::Break(Halt::All);
                }
            }
        }
        let stopped = stream.stopped();
        let finish = if stopped { Some(Finish::Stop) } else { token.finish };
        if finish.is_some() {
            text.push_str(stream.finish());
        }
        let go_on = (self.observer)(Piece { row: token.row, id: token.id, text: &text, finish });
        match (go_on, stopped) {
            (ControlFlow::Break(()), _) => ControlFlow::Break(Halt::All),
            (ControlFlow::Continue(()), true) => ControlFlow::Break(Halt::Row),
            (ControlFlow::Continue(()), false) => ControlFlow::Continue(()),
        }
    }

    /// Returns the answers with these ids.
    pub fn finish(self, generated: Vec<Generated>) -> Result<Vec<Answer>, GenerateError> {
        match self.failed {
            Some(error) => Err(error.into()),
            None => {
                let texts = self.streams.into_iter().map(TextStream::into_text);
                Ok(texts.zip(generated).map(|(text, generated)| Answer { text, generated }).collect())
            }
        }
    }
}
