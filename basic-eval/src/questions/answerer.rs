//! Turns questions into prompts and generates the answers.

use basic_data::{ImageSource, VisionCache};
use basic_models::config::Tiles;
use basic_models::generate::{GenerateError, GenerationConfig, GenerationDefaults, check_context, generate};
use basic_models::nn::Llava;
use basic_models::processor::{Message, Role, Style, render_prompt, tokenize_prompt};
use basic_models::{Checkpoint, ImageTokens};

use super::{EvalError, EvalOptions};

/// Turns questions into prompts. This needs the tokenizer but no weights, so a bad question is found before the weights
/// are read.
#[derive(Debug)]
pub struct Prompts<'a> {
    checkpoint: &'a Checkpoint,
    style: Style,
    eos: Vec<u32>,
    settings: GenerationConfig,
}

impl<'a> Prompts<'a> {
    /// Prompts that follow `checkpoint`'s chat template and end tokens.
    ///
    /// # Errors
    ///
    /// [`EvalError`] if the chat template or the generation settings cannot be used.
    pub fn new(checkpoint: &'a Checkpoint, options: &EvalOptions) -> Result<Self, EvalError> {
        let style = options.conversation.resolve(checkpoint, false);
        let style = style.map_err(|source| EvalError::Prompt { question: "0".into(), source })?;
        let eos = GenerationDefaults::load(&checkpoint.dir)?.end_ids(checkpoint);
        let settings = GenerationConfig::greedy(options.max_new_tokens, eos.clone(), checkpoint.pad_id());
        Ok(Self { checkpoint, style, eos, settings })
    }

    /// Builds the prompt of a question, so that one that cannot be asked is reported before the first answer. `tiles` are
    /// those of its images.
    ///
    /// # Errors
    ///
    /// [`EvalError`] that names the question if its prompt cannot be rendered or tokenized, or is too long for the model's
    /// context.
    pub fn check(&self, name: &str, text: &str, tiles: &[Tiles]) -> Result<(), EvalError> {
        self.prompt(name, text, tiles).map(drop)
    }

    /// The prompt of one question.
    pub(super) fn prompt(&self, name: &str, text: &str, tiles: &[Tiles]) -> Result<ImageTokens, EvalError> {
        let text = match !tiles.is_empty() && !text.contains("<image>") {
            true => format!("<image>\n{text}"),
            false => text.to_string(),
        };
        let tokenizer = &self.checkpoint.tokenizer;
        let prompt = render_prompt(&self.style, &[Message::new(Role::User, text)], tokenizer.specials())
            .and_then(|text| tokenize_prompt(tokenizer, &text, tiles))
            .map_err(|source| EvalError::Prompt { question: name.into(), source })?;
        check_context(&self.checkpoint.config, prompt.ids.len(), self.settings.max_new_tokens)
            .map_err(|source| EvalError::TooLong { question: name.into(), source })?;
        Ok(prompt.into())
    }
}

/// Answers questions in batches, by greedy decoding.
pub struct Answerer<'a> {
    model: &'a Llava,
    prompts: Prompts<'a>,
    cache: &'a mut VisionCache,
}

impl<'a> Answerer<'a> {
    /// An answerer that follows `checkpoint`'s chat template and end tokens.
    ///
    /// # Errors
    ///
    /// [`EvalError`] if the chat template or the generation settings cannot be used.
    pub fn new(
        model: &'a Llava,
        checkpoint: &'a Checkpoint,
        options: &EvalOptions,
        cache: &'a mut VisionCache,
    ) -> Result<Self, EvalError> {
        Ok(Self { model, prompts: Prompts::new(checkpoint, options)?, cache })
    }

    /// The prompt builder.
    pub fn prompts(&self) -> &Prompts<'a> {
        &self.prompts
    }

    /// The answers to questions, given as (name, text, image), trimmed of surrounding spaces. An image goes before the
    /// text, unless the text contains `<image>`.
    ///
    /// # Errors
    ///
    /// [`EvalError`] that names the image or the question.
    pub fn answer(&mut self, questions: &[(String, &str, Option<&ImageSource>)]) -> Result<Vec<String>, EvalError> {
        let prompt = |(name, text, image): &(String, &str, Option<&ImageSource>)| {
            self.prompts.prompt(name, text, &tiles_of(*image, self.prompts.checkpoint)?)
        };
        let prompts: Result<Vec<_>, EvalError> = questions.iter().map(prompt).collect();
        let images: Vec<ImageSource> = questions.iter().filter_map(|question| question.2.cloned()).collect();
        let features = self.cache.features(self.model, self.prompts.checkpoint, &images)?;
        let generated = generate(self.model, &prompts?, features, &self.prompts.settings);
        let generated = generated.map_err(|source| match source {
            GenerateError::NotFinite { prompt, .. } => EvalError::Broken {
                checkpoint: self.prompts.checkpoint.dir.clone(),
                question: questions.get(prompt).map(|question| question.0.clone()).unwrap_or_default(),
                source,
            },
            source => source.into(),
        })?;
        let texts = questions.iter().zip(generated).map(|(question, generated)| {
            let ids: Vec<u32> = generated.ids.into_iter().filter(|id| !self.prompts.eos.contains(id)).collect();
            let text = self.prompts.checkpoint.tokenizer.decode(&ids, true);
            let text = text.map_err(|source| EvalError::Prompt { question: question.0.clone(), source })?;
            Ok(text.trim().to_string())
        });
        texts.collect()
    }
}

/// The tiles of a question's image, if it has one.
pub(super) fn tiles_of(image: Option<&ImageSource>, checkpoint: &Checkpoint) -> Result<Vec<Tiles>, EvalError> {
    Ok(ImageSource::tiles_of(image.map(std::slice::from_ref).unwrap_or_default(), checkpoint)?)
}
