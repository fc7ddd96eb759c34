//! Log-likelihoods of given continuations of one prompt.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{GenerateError, check_features, check_length};
use crate::input::{Batch, ImageTokens};
use crate::nn::{KvCache, Llava};

/// Rows of logits that are computed together: with 256,000 tokens these are 128 MiB in f32.
const ROWS: usize = 128;

/// Tokens that may follow a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token, whether its log-probability counts.
    pub counts: Vec<bool>,
}

/// The log-likelihood of each continuation after the prompt, in nats: the sum over its counting tokens of
/// log p(token | prompt, tokens before it). 0 for a continuation without a counting token.
///
/// The prompt is computed once; the continuations then run `batch` at a time after its cached keys and values.
/// With `rope_scaling` of type `dynamic`, the prompt's keys have the angles of the prompt's own length, as in generation.
/// `features` are the patch features of the prompt's images in order, `[M, vision hidden]` ([`Llava::encode`]).
///
/// # Errors
///
/// Returns a [`GenerateError`] for an empty prompt, one that does not fit the context together with a continuation, images
/// that do not fit the prompt, or logits that are not finite; its `prompt` is then the continuation's index.
pub fn log_likelihoods(
    model: &Llava,
    prompt: &ImageTokens,
    features: Option<Tensor<2>>,
    continuations: &[Continuation],
    batch: usize,
) -> Result<Vec<f64>, GenerateError> {
    let longest = continuations.iter().map(|continuation| continuation.ids.len()).max().unwrap_or(0);
    check_length(model, std::slice::from_ref(prompt), longest)?;
    check_features(model, std::slice::from_ref(prompt), features.as_ref())?;
    if longest == 0 {
        return Ok(vec![0.0; continuations.len()]);
    }
    let (text, device) = (&model.config().text_config, model.device().without_autodiff());
    let mut cache = KvCache::new(text, 1, prompt.ids.len(), model.dtype(), &device);
    let mut input = Batch::collate(std::slice::from_ref(prompt), 0, [0; 3], &device);
    input.features = features;
    let embeddings = model.splice(&input, model.visual_embeddings(&input));
    let first = model.logits(model.decode(embeddings, &[0], &mut cache)).cast(DType::F32);
    let first = log_softmax(first, 1).try_into_vec_as::<f32>()?;
    let mut sums: Vec<f64> = continuations
        .iter()
        .map(|Continuation { ids, counts }| match (ids.first(), counts.first()) {
            (Some(id), Some(true)) => first.get(*id as usize).copied().map_or(f64::NAN, f64::from),
            _ => 0.0,
        })
        .collect();
    for (chunk, sums) in continuations.chunks(batch.max(1)).zip(sums.chunks_mut(batch.max(1))) {
        later_tokens(model, &cache, chunk, sums)?;
    }
    match sums.iter().position(|sum| !sum.is_finite()) {
        Some(prompt) => Err(GenerateError::NotFinite { prompt, step: 0 }),
        None => Ok(sums),
    }
}

/// Adds the log-probabilities of all tokens but the first.
fn later_tokens(
    model: &Llava,
    prompt: &KvCache,
    continuations: &[Continuation],
    sums: &mut [f64],
) -> Result<(), GenerateError> {
    let device = model.device().without_autodiff();
    let n = continuations.len();
    let t = continuations.iter().map(|continuation| continuation.ids.len()).max().unwrap_or(0).saturating_sub(1);
    // The rows of `[n, t]` whose next token counts, and that token.
    let mut rows: Vec<(usize, usize, i64)> = Vec::new();
    let mut inputs = vec![0_i64; n * t];
    for (row, Continuation { ids, counts }) in continuations.iter().enumerate() {
        for (at, (next, counts)) in ids.iter().zip(counts).skip(1).enumerate() {
            inputs[row * t + at] = i64::from(ids[at]);
            if *counts {
                rows.push((row, row * t + at, i64::from(*next)));
            }
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let ids = Tensor::<1, Int>::from_data(TensorData::new(inputs, [n * t]), &device);
    let embeddings = model.language_model.embed(ids);
    let d = embeddings.dims()[1];
    // Padding is on the right, where the causal mask hides it from the tokens before it.
    let mut cache = prompt.repeated(n, t);
    let hidden = model.decode_positions(embeddings.reshape([n, t, d]), &[0], &mut cache).reshape([n * t, d]);
    for rows in rows.chunks(ROWS) {
        let places: Vec<i64> = rows.iter().map(|(_, place, _)| *place as i64).collect();
        let targets: Vec<i64> = rows.iter().map(|(.., target)| *target).collect();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, [rows.len()]), &device);
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows.len(), 1]), &device);
        let logits = model.logits(hidden.clone().select(0, places)).cast(DType::F32);
        let found = log_softmax(logits, 1).gather(1, targets).try_into_vec_as::<f32>()?;
        for ((row, ..), found) in rows.iter().zip(found) {
            sums[*row] += f64::from(found);
        }
    }
    Ok(())
}
