//! Computes the likelihoods of choices as the answer to a question.

use basic_data::{ImageSource, VisionCache};
use basic_models::config::Tiles;
use basic_models::generate::{Continuation, GenerateError, check_context, log_likelihoods};
use basic_models::nn::Llava;
use basic_models::processor::{Example, Message, Role, Style, render, tokenize};
use basic_models::{Checkpoint, ImageTokens};

use super::answerer::tiles_of;
use super::{EvalError, EvalOptions};
use crate::lens::{Lens, LensError, replaced_prompt};

/// The most choices of a question.
const MOST: usize = 1000;

/// Computes the likelihoods of choices as the answer to a question: for each, the sum of the log-probabilities of its
/// tokens and of what ends it.
#[derive(Debug)]
pub struct Ranker<'a> {
    checkpoint: &'a Checkpoint,
    style: Style,
    batch_size: usize,
    lens: Option<&'a Lens<'a>>,
}

/// A question as token ids: what all of its choices share, and how each goes on.
#[derive(Debug)]
struct Prepared {
    shared: ImageTokens,
    continuations: Vec<Continuation>,
}

impl<'a> Ranker<'a> {
    /// A ranker that writes prompts as `options` say, and computes `options.batch_size` choices at a time.
    ///
    /// # Errors
    ///
    /// [`EvalError`] if the chat template cannot be used.
    pub fn new(checkpoint: &'a Checkpoint, options: &EvalOptions) -> Result<Self, EvalError> {
        let style = options.conversation.resolve(checkpoint, false);
        let style = style.map_err(|source| EvalError::Prompt { question: "0".into(), source })?;
        Ok(Self { checkpoint, style, batch_size: options.batch_size, lens: None })
    }

    /// The same with each visual embedding replaced by the embedding of its nearest token, as `lens` finds it.
    #[must_use]
    pub fn replacing(self, lens: &'a Lens<'a>) -> Self {
        Self { lens: Some(lens), ..self }
    }

    /// Checks that the choices can be ranked. `place` names the question in messages; `tiles` are those of its images.
    ///
    /// # Errors
    ///
    /// [`EvalError::Choices`] for fewer than 2 or more than 1,000 choices; [`EvalError`] if the prompt cannot be
    /// rendered, or is too long with one of them.
    pub fn check(&self, place: &str, text: &str, tiles: &[Tiles], choices: &[String]) -> Result<(), EvalError> {
        self.prepare(place, text, tiles, choices).map(drop)
    }

    /// The log-likelihood of each choice, in nats. The question is computed once, and the choices after it.
    ///
    /// # Errors
    ///
    /// Those of [`Ranker::check`]; [`EvalError`] that names the image or the question.
    pub fn rank(
        &self,
        model: &Llava,
        cache: &mut VisionCache,
        place: &str,
        text: &str,
        image: Option<&ImageSource>,
        choices: &[String],
    ) -> Result<Vec<f64>, EvalError> {
        let Prepared { shared, continuations } =
            self.prepare(place, text, &tiles_of(image, self.checkpoint)?, choices)?;
        let images: Vec<ImageSource> = image.into_iter().cloned().collect();
        let features = cache.features(model, self.checkpoint, &images)?;
        let (shared, features) = match (features, self.lens) {
            (Some(features), Some(lens)) => {
                let nearest = lens.nearest_tokens(features);
                let nearest = nearest.map_err(|source| self.replace_error(source, place))?;
                (replaced_prompt(&shared, &nearest), None)
            }
            (features, _) => (shared, features),
        };
        let found = log_likelihoods(model, &shared, features, &continuations, self.batch_size);
        found.map_err(|source| match source {
            GenerateError::NotFinite { .. } => {
                EvalError::Broken { checkpoint: self.checkpoint.dir.clone(), question: place.into(), source }
            }
            source => source.into(),
        })
    }

    fn replace_error(&self, source: LensError, place: &str) -> EvalError {
        EvalError::Replace { checkpoint: self.checkpoint.dir.clone(), question: place.into(), source: Box::new(source) }
    }

    /// Tokenizes the question with each of its choices as the answer.
    fn prepare(&self, place: &str, text: &str, tiles: &[Tiles], choices: &[String]) -> Result<Prepared, EvalError> {
        if choices.len() < 2 || choices.len() > MOST {
            let reason = format!("\"choices\" has {} entries, expected 2 to {MOST}", choices.len());
            return Err(EvalError::Choices { question: place.into(), reason });
        }
        let tokenizer = &self.checkpoint.tokenizer;
        let text = match !tiles.is_empty() && !text.contains("<image>") {
            true => format!("<image>\n{text}"),
            false => text.to_string(),
        };
        let mut examples = Vec::with_capacity(choices.len());
        for choice in choices {
            let turns = [Message::new(Role::User, text.clone()), Message::new(Role::Assistant, choice.clone())];
            let example = render(&self.style, &turns, tokenizer.specials())
                .and_then(|pieces| tokenize(tokenizer, &pieces, tiles))
                .map_err(|source| EvalError::Prompt { question: place.into(), source })?;
            examples.push(example);
        }
        // Up to here the choices are alike, and no token counts.
        let first = &examples[0];
        let alike =
            |at: usize| examples.iter().all(|e| e.ids.get(at) == first.ids.get(at) && e.labels.get(at) == Some(&-100));
        let shared = (0..first.ids.len()).take_while(|at| alike(*at)).count();
        let continuation = |example: &Example| Continuation {
            ids: example.ids[shared..].to_vec(),
            counts: example.labels[shared..].iter().map(|label| *label >= 0).collect(),
        };
        let continuations: Vec<Continuation> = examples.iter().map(continuation).collect();
        let longest = continuations.iter().map(|continuation| continuation.ids.len()).max().unwrap_or(0);
        check_context(&self.checkpoint.config, shared, longest)
            .map_err(|source| EvalError::TooLong { question: place.into(), source })?;
        let mut prompt = ImageTokens::from(first.clone());
        prompt.ids.truncate(shared);
        prompt.labels.clear();
        Ok(Prepared { shared: prompt, continuations })
    }
}
