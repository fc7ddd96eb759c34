//! Generation for batches of prompts, with a key-value cache, greedy or sampled, and streamed.
//!
//! ```text
//! prompts, patch features -> generate            -> Generated { ids, gaps, top5, finish }
//!                         -> generate_text       -> Answer { text, generated }, pieces of text on the way
//! one growing prompt      -> Session::answer     -> the same; what the cache holds already is not computed again
//! question by question    -> Conversation::ask   -> the same; turns are rendered in the checkpoint's style
//! prompts that come and go -> ContinuousBatch     -> a token of each at a time, for serving
//! one prompt, given tokens -> log_likelihoods    -> how likely each continuation is
//! ```

mod config;
mod continuous;
mod conversation;
mod error;
mod likelihood;
mod sampling;
mod session;
mod stream;
mod text;

use std::ops::ControlFlow;

use burn::tensor::{DType, Int, Tensor, TensorData};
use serde::Serialize;

pub use config::{GenerationConfig, GenerationDefaults, Sampling};
pub use continuous::{ContinuousBatch, Joined, LogProbs, NextToken, RowToken, Sequence, cache_bytes};
pub use conversation::Conversation;
pub use error::GenerateError;
pub use likelihood::{Continuation, log_likelihoods};
pub use session::Session;
pub use stream::TextStream;
pub use text::{Answer, Piece, TextOptions, generate_text};

use crate::config::LlavaConfig;
use crate::input::{Batch, ImageTokens};
use crate::nn::{KvCache, Llava};
use sampling::{Chooser, largest};

/// The answer to one prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generated {
    /// The new ids, including the end token.
    pub ids: Vec<u32>,
    /// For each new id, the difference between the largest and the second largest logit, after the repetition penalty.
    pub gaps: Vec<f32>,
    /// The model's five largest logits at the first step, with their ids.
    pub top5: Vec<(u32, f32)>,
    /// Why the sequence ended.
    pub finish: Finish,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// An end token or a stop string was generated.
    Stop,
    /// The number of new tokens was reached.
    #[default]
    Length,
    /// The caller cancelled it.
    Cancelled,
}

/// A new token of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The index of the prompt, from 0.
    pub row: usize,
    /// The id.
    pub id: u32,
    /// Set on the row's last token.
    pub finish: Option<Finish>,
}

/// What an observer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// This row, which then counts as [`Finish::Stop`].
    Row,
    /// All rows; those that have not ended count as [`Finish::Cancelled`].
    All,
}

/// Answers a batch of prompts. Prompts of different lengths are padded on the left. `features` are the patch features
/// of the prompts' images in order, `[M, vision hidden]` ([`Llava::encode`]).
///
/// # Errors
///
/// Returns a [`GenerateError`] for an empty or overlong prompt, images that do not fit the prompts, or a
/// setting out of range.
pub fn generate(
    model: &Llava,
    prompts: &[ImageTokens],
    features: Option<Tensor<2>>,
    config: &GenerationConfig,
) -> Result<Vec<Generated>, GenerateError> {
    generate_with(model, prompts, features, config, &mut |_| ControlFlow::Continue(()))
}

/// [`generate`] with an observer, which gets each token as it is chosen, rows in order within a step, and can
/// end the generation.
///
/// # Errors
///
/// Returns the errors of [`generate`].
pub fn generate_with(
    model: &Llava,
    prompts: &[ImageTokens],
    features: Option<Tensor<2>>,
    config: &GenerationConfig,
    observer: &mut dyn FnMut(Token) -> ControlFlow<Halt>,
) -> Result<Vec<Generated>, GenerateError> {
    let capacity = check(model, prompts, features.as_ref(), config)?;
    let (text, device) = (&model.config().text_config, model.device().without_autodiff());
    let mut cache = KvCache::new(text, prompts.len(), capacity, model.dtype(), &device);
    run(model, prompts, features, config, &mut cache, observer)
}

/// Checks that a prompt and its new tokens fit the context.
///
/// # Errors
///
/// Returns [`GenerateError::TooLong`] if they do not.
pub fn check_context(config: &LlavaConfig, prompt: usize, new: usize) -> Result<(), GenerateError> {
    let context = config.text_config.context();
    if prompt.saturating_add(new) > context { Err(GenerateError::TooLong { prompt, new, context }) } else { Ok(()) }
}

/// Checks the caller's arguments and returns the number of positions that the cache must have room for.
fn check(
    model: &Llava,
    prompts: &[ImageTokens],
    features: Option<&Tensor<2>>,
    config: &GenerationConfig,
) -> Result<usize, GenerateError> {
    config.validate()?;
    check_length(model, prompts, config.max_new_tokens)?;
    check_features(model, prompts, features)?;
    let width = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    Ok(width + config.max_new_tokens)
}

/// Checks that no prompt is empty, and that the longest fits the context with `new` tokens after it.
fn check_length(model: &Llava, prompts: &[ImageTokens], new: usize) -> Result<(), GenerateError> {
    if let Some(empty) = prompts.iter().position(|prompt| prompt.ids.is_empty()) {
        return Err(GenerateError::EmptyPrompt(empty));
    }
    let width = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    check_context(model.config(), width, new)
}

/// Checks that there are as many visual embeddings as the prompts have image positions.
fn check_features(model: &Llava, prompts: &[ImageTokens], features: Option<&Tensor<2>>) -> Result<(), GenerateError> {
    let positions = prompts.iter().flat_map(|prompt| &prompt.images).map(Vec::len).sum();
    let (config, features) = (model.config(), features.map_or(0, |features| features.dims()[0]));
    let rows = match config.projector.queries() {
        Some(queries) => features / config.features() * queries,
        // Of an image in tiles, the number of patches depends on its size.
        None => features / config.projector.shuffle().pow(2),
    };
    if positions != rows {
        return Err(GenerateError::Features { positions, rows });
    }
    Ok(())
}

/// Generates after the positions in the cache. The cache may contain some only for a single prompt; for
/// several it is empty.
fn run(
    model: &Llava,
    prompts: &[ImageTokens],
    features: Option<Tensor<2>>,
    config: &GenerationConfig,
    cache: &mut KvCache,
    observer: &mut dyn FnMut(Token) -> ControlFlow<Halt>,
) -> Result<Vec<Generated>, GenerateError> {
    let width = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let mut done = vec![Generated::default(); prompts.len()];
    if prompts.is_empty() || config.max_new_tokens == 0 {
        return Ok(done);
    }
    let padding: Vec<usize> = prompts.iter().map(|prompt| width - prompt.ids.len()).collect();
    let padded: Vec<ImageTokens> =
        prompts.iter().zip(&padding).map(|(prompt, pad)| left_padded(prompt, *pad, config.pad)).collect();
    let device = model.device().without_autodiff();
    let mut batch = Batch::collate(&padded, config.pad, [0; 3], &device);
    batch.features = features;
    let held = cache.len();
    let mut embeddings = model.splice(&batch, model.visual_embeddings(&batch)).narrow(1, held, width - held);
    let vocabulary = model.config().text_config.vocab_size;
    let rows = prompts.iter().enumerate();
    let mut choosers: Vec<Chooser> =
        rows.map(|(row, prompt)| Chooser::new(config, row, &prompt.ids, vocabulary)).collect();
    let mut finished: Vec<Option<Finish>> = vec![None; prompts.len()];
    for step in 0..config.max_new_tokens {
        let hidden = model.decode(embeddings, &padding, cache);
        let logits = model.logits(hidden).cast(DType::F32);
        let vocabulary = logits.dims()[1];
        let scores = logits.try_into_vec_as::<f32>()?;
        let mut next = vec![i64::from(config.pad); prompts.len()];
        let mut cancelled = false;
        for (row, scores) in scores.chunks_exact(vocabulary).enumerate() {
            if finished[row].is_some() || cancelled {
                continue;
            }
            if scores.iter().any(|score| !score.is_finite()) {
                return Err(GenerateError::NotFinite { prompt: row, step });
            }
            if step == 0 {
                done[row].top5 = largest(scores, 5);
            }
            let choice = choosers[row].choose(scores);
            done[row].ids.push(choice.id);
            done[row].gaps.push(choice.gap);
            next[row] = i64::from(choice.id);
            finished[row] = match (config.eos.contains(&choice.id), step + 1 == config.max_new_tokens) {
                (true, _) => Some(Finish::Stop),
                (false, true) => Some(Finish::Length),
                (false, false) => None,
            };
            match observer(Token { row, id: choice.id, finish: finished[row] }) {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Halt::Row) => finished[row] = Some(Finish::Stop),
                ControlFlow::Break(Halt::All) => cancelled = true,
            }
        }
        if cancelled || finished.iter().all(Option::is_some) {
            break;
        }
        let ids = Tensor::<1, Int>::from_data(TensorData::new(next, [prompts.len()]), &device);
        embeddings = model.language_model.embed(ids).unsqueeze_dim(1);
    }
    for (done, finish) in done.iter_mut().zip(finished) {
        done.finish = finish.unwrap_or(Finish::Cancelled);
    }
    Ok(done)
}

fn left_padded(prompt: &ImageTokens, pad: usize, id: u32) -> ImageTokens {
    let mut ids = vec![id; pad];
    ids.extend(&prompt.ids);
    let shift = |positions: &Vec<usize>| positions.iter().map(|p| p + pad).collect();
    let images = prompt.images.iter().map(shift).collect();
    ImageTokens { ids, images, tiles: prompt.tiles.clone(), ..ImageTokens::default() }
}
