//! The generations of a conversation: each prompt begins with the previous prompt and its answer.

use std::ops::ControlFlow;

use burn::tensor::Tensor;

use super::text::Texts;
use super::{Answer, GenerateError, GenerationConfig, Piece, TextOptions, check, run};
use crate::input::ImageTokens;
use crate::nn::{KvCache, Llava};

/// Keeps keys and values between the turns of one conversation about the same images.
///
/// A prompt is computed from its first token that differs from the cached ones. If tokenizing an answer's text gives
/// the same ids that were generated, only the new question is computed.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a Llava,
    features: Option<Tensor<2>>,
    cache: Option<KvCache>,
    held: Vec<u32>,
    /// How many of these are the last prompt, which was computed as one sequence of that length.
    prompt: usize,
}

impl<'a> Session<'a> {
    /// An empty session; `features` are the patch features of all images in its prompts, `[M, vision hidden]`.
    pub fn new(model: &'a Llava, features: Option<Tensor<2>>) -> Self {
        Self { model, features, cache: None, held: Vec::new(), prompt: 0 }
    }

    /// The number of a prompt's tokens that need not be computed. The last one always is, because its output gives
    /// the first new token.
    pub fn shared(&self, prompt: &[u32]) -> usize {
        let same = self.held.iter().zip(prompt).take_while(|(held, new)| held == new).count();
        let shared = same.min(prompt.len().saturating_sub(1));
        self.model.config().text_config.reusable(shared, self.prompt, self.held.len(), prompt.len())
    }

    /// Answers a prompt.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`generate_text`](super::generate_text).
    pub fn answer(
        &mut self,
        prompt: &ImageTokens,
        config: &GenerationConfig,
        options: &TextOptions<'_>,
        observer: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, GenerateError> {
        let prompts = std::slice::from_ref(prompt);
        let capacity = check(self.model, prompts, self.features.as_ref(), config)?;
        let shared = self.shared(&prompt.ids);
        let (text, device) = (&self.model.config().text_config, self.model.device().without_autodiff());
        // Nothing counts as cached until the turn is done, so that an error leaves the session empty.
        self.held.clear();
        let mut cache = match self.cache.take() {
            Some(cache) => cache,
            None => KvCache::new(text, 1, capacity, self.model.dtype(), &device),
        };
        cache.truncate(shared);
        if capacity > cache.capacity() {
            // Room for further turns, so that not every turn has to copy the cache.
            cache.reserve(capacity.saturating_mul(2).min(text.context()));
        }
        let mut texts = Texts::new(options, 1, &config.eos, observer);
        let features = self.features.clone();
        let generated = run(self.model, prompts, features, config, &mut cache, &mut |token| texts.take(token))?;
        let answer = texts.finish(generated)?.pop().unwrap_or_default();
        self.held.extend(prompt.ids.iter().chain(&answer.generated.ids).take(cache.len()));
        self.prompt = prompt.ids.len();
        self.cache = Some(cache);
        Ok(answer)
    }
}
