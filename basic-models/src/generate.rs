//! Greedy generation with a key-value cache.

use burn::tensor::{DType, Int, Tensor, TensorData, TensorReadError};
use thiserror::Error;

use crate::input::{Batch, ImageTokens};
use crate::nn::{KvCache, Llava};

/// A generation's settings.
#[derive(Debug, Clone)]
pub struct Greedy {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// A sequence ends with any of these.
    pub eos: Vec<u32>,
    /// Fills up shorter prompts and finished sequences.
    pub pad: u32,
}

/// What one prompt was answered with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generated {
    /// The new ids, the end token included.
    pub ids: Vec<u32>,
    /// Per new id, how far the runner-up's logit was behind.
    pub gaps: Vec<f32>,
    /// The five largest logits of the first step, with their ids.
    pub top5: Vec<(u32, f32)>,
}

/// Why nothing could be generated.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// A prompt without tokens.
    #[error("prompt {0} has no tokens")]
    EmptyPrompt(usize),
    /// Prompt and new tokens exceed the context.
    #[error("a prompt of {prompt} tokens and {new} new ones exceed the model's context of {context}")]
    TooLong {
        /// Tokens of the longest prompt.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// The model's scores are no numbers.
    #[error(
        "step {step}: the logits of prompt {prompt} are not finite: the checkpoint's weights or configuration are broken"
    )]
    NotFinite {
        /// Which prompt, from 0.
        prompt: usize,
        /// The new token, from 0.
        step: usize,
    },
    /// The device failed.
    #[error("logits could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
}

/// Answers a batch of prompts; prompts of different lengths are padded on the left. `features` are the patch features
/// of the prompts' images in order, `[M, vision hidden]` ([`Llava::encode`]).
///
/// # Errors
///
/// [`GenerateError`] for an empty or overlong prompt.
pub fn generate(
    model: &Llava,
    prompts: &[ImageTokens],
    features: Option<Tensor<2>>,
    settings: &Greedy,
) -> Result<Vec<Generated>, GenerateError> {
    if let Some(empty) = prompts.iter().position(|p| p.ids.is_empty()) {
        return Err(GenerateError::EmptyPrompt(empty));
    }
    let mut done = vec![Generated::default(); prompts.len()];
    let width = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let config = &model.config().text_config;
    let capacity = width + settings.max_new_tokens;
    let context = config.context();
    if capacity > context {
        return Err(GenerateError::TooLong { prompt: width, new: settings.max_new_tokens, context });
    }
    if prompts.is_empty() || settings.max_new_tokens == 0 {
        return Ok(done);
    }
    let padding: Vec<usize> = prompts.iter().map(|p| width - p.ids.len()).collect();
    let padded: Vec<ImageTokens> =
        prompts.iter().zip(&padding).map(|(p, pad)| left_padded(p, *pad, settings.pad)).collect();
    let device = model.device().without_autodiff();
    let mut batch = Batch::collate(&padded, settings.pad, [0; 3], &device);
    batch.features = features;
    let mut cache = KvCache::new(config, prompts.len(), capacity, model.dtype(), &device);
    let mut embeddings = model.splice(&batch, model.visual_embeddings(&batch));
    let mut finished = vec![false; prompts.len()];
    for step in 0..settings.max_new_tokens {
        let hidden = model.decode(embeddings, &padding, &mut cache);
        let logits = model.logits(hidden).cast(DType::F32);
        let vocabulary = logits.dims()[1];
        let scores = logits.try_into_vec_as::<f32>()?;
        let mut next = vec![i64::from(settings.pad); prompts.len()];
        for (row, generated) in done.iter_mut().enumerate() {
            if finished[row] {
                continue;
            }
            let scores = &scores[row * vocabulary..(row + 1) * vocabulary];
            if scores.iter().any(|score| !score.is_finite()) {
                return Err(GenerateError::NotFinite { prompt: row, step });
            }
            let top = largest(scores, 5);
            if step == 0 {
                generated.top5 = top.clone();
            }
            let id = top[0].0;
            generated.ids.push(id);
            generated.gaps.push(top.get(1).map_or(f32::INFINITY, |second| top[0].1 - second.1));
            finished[row] = settings.eos.contains(&id);
            next[row] = i64::from(id);
        }
        if finished.iter().all(|f| *f) || step + 1 == settings.max_new_tokens {
            break;
        }
        let ids = Tensor::<1, Int>::from_data(TensorData::new(next, [prompts.len()]), &device);
        embeddings = model.language_model.embed(ids).unsqueeze_dim(1);
    }
    Ok(done)
}

fn left_padded(prompt: &ImageTokens, pad: usize, id: u32) -> ImageTokens {
    let mut ids = vec![id; pad];
    ids.extend(&prompt.ids);
    let shift = |positions: &Vec<usize>| positions.iter().map(|p| p + pad).collect();
    ImageTokens { ids, labels: Vec::new(), images: prompt.images.iter().map(shift).collect(), pixels: Vec::new() }
}

/// The `n` largest scores, largest first; among equals the lower id, as `argmax` takes it.
fn largest(scores: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    for (id, score) in scores.iter().enumerate() {
        let place = best.iter().position(|(_, other)| score > other).unwrap_or(best.len());
        if place < n {
            best.insert(place, (id as u32, *score));
            best.truncate(n);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_scores_come_in_order_and_equals_keep_theirs() {
        assert_eq!(largest(&[1.0, 3.0, 3.0, -1.0], 3), vec![(1, 3.0), (2, 3.0), (0, 1.0)]);
        assert_eq!(largest(&[0.5], 5), vec![(0, 0.5)]);
    }
}
