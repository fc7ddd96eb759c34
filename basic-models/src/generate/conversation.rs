//! A conversation about images, question by question.

use std::ops::ControlFlow;

use burn::tensor::Tensor;

use super::{Answer, GenerateError, GenerationConfig, Piece, Session, TextOptions, check_context};
use crate::Checkpoint;
use crate::config::Tiles;
use crate::nn::Llava;
use crate::processor::{Message, PLACEHOLDER, Role, Style, render_prompt, tokenize_prompt};

/// The turns so far, and a [`Session`] with their keys and values.
#[derive(Debug)]
pub struct Conversation<'a> {
    checkpoint: &'a Checkpoint,
    style: Style,
    session: Session<'a>,
    images: Vec<Tiles>,
    messages: Vec<Message>,
    instructed: bool,
}

impl<'a> Conversation<'a> {
    /// Starts a conversation, with optional instructions (a system turn), about images with the tiles `images` and the
    /// patch features `features`, `[M, vision hidden]`. The first question shows the images before its text.
    pub fn new(
        checkpoint: &'a Checkpoint,
        model: &'a Llava,
        style: Style,
        system: Option<&str>,
        images: Vec<Tiles>,
        features: Option<Tensor<2>>,
    ) -> Self {
        let messages: Vec<Message> = system.map(|text| Message::new(Role::System, text)).into_iter().collect();
        let instructed = !messages.is_empty();
        Self { checkpoint, style, session: Session::new(model, features), images, messages, instructed }
    }

    /// The turns so far, starting with the instructions.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Removes all questions and answers; the instructions and images stay.
    pub fn reset(&mut self) {
        self.messages.truncate(usize::from(self.instructed));
    }

    /// Answers a question with at most `config.max_new_tokens` tokens, and no more than fit in the context. A cancelled
    /// answer is kept as far as it was generated. A question that fails, or whose answer is blank, is removed again.
    ///
    /// # Errors
    ///
    /// Returns a [`GenerateError`] for a question that does not fit the context or the style, or that contains
    /// image placeholders.
    pub fn ask(
        &mut self,
        question: &str,
        config: &GenerationConfig,
        stop: &[String],
        observer: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, GenerateError> {
        let turns = self.messages.len();
        let shown = if turns == usize::from(self.instructed) { self.images.len() } else { 0 };
        let images = format!("{PLACEHOLDER}\n").repeat(shown);
        self.messages.push(Message::new(Role::User, images + question));
        let answered = self.answer(config, stop, observer);
        match &answered {
            Ok(answer) if !answer.text.trim().is_empty() => {
                self.messages.push(Message::new(Role::Assistant, answer.text.trim()));
            }
            _ => self.messages.truncate(turns),
        }
        answered
    }

    fn answer(
        &mut self,
        config: &GenerationConfig,
        stop: &[String],
        observer: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, GenerateError> {
        let checkpoint = self.checkpoint;
        let tokenizer = &checkpoint.tokenizer;
        let text = render_prompt(&self.style, &self.messages, tokenizer.specials())?;
        let prompt = tokenize_prompt(tokenizer, &text, &self.images)?;
        check_context(&checkpoint.config, prompt.ids.len(), 1)?;
        let room = checkpoint.config.text_config.context() - prompt.ids.len();
        let config = GenerationConfig { max_new_tokens: config.max_new_tokens.min(room), ..config.clone() };
        self.session.answer(&prompt.into(), &config, &TextOptions { tokenizer, stop }, observer)
    }
}
