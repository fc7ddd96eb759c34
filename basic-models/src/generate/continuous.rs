//! A batch that sequences join and leave at any token, for serving.
//!
//! Each row has a cache of its own, allocated once. A prompt is computed by itself, as [`generate`](super::generate)
//! computes a single one; each further token is computed for all rows together. What another row's cache holds of a
//! prompt's beginning (the turns before, the same image, another answer to the same prompt) is copied from it.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::sampling::{Chooser, largest};
use super::{Finish, GenerateError, GenerationConfig};
use crate::config::{DecoderConfig, Tiles};
use crate::input::{Batch, ImageTokens};
use crate::nn::{KvCache, Llava};
use crate::processor::Prompt;

/// A prompt, with its images, and how its answer's tokens are chosen.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// The prompt's tokens and the places of its images.
    pub prompt: Arc<Prompt>,
    /// The pixel values of each image, CHW, tile after tile.
    pub pixels: Vec<Arc<[f32]>>,
    /// The length of the answer, its end tokens, and how tokens are chosen.
    pub config: GenerationConfig,
    /// The random stream that the answer draws from, so that several answers to one prompt differ.
    pub stream: u64,
    /// Subtracted from a token's logit for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of each token that the answer has.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the most likely tokens are reported at each step; `None` for no log-probabilities.
    pub logprobs: Option<usize>,
}

/// Log-probabilities by the model's own distribution, before penalties, temperature and filters.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    /// That of the token that was chosen.
    pub chosen: f32,
    /// The most likely tokens, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// A new token of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct NextToken {
    /// The id.
    pub id: u32,
    /// Set on the last token; the row is free again then.
    pub finish: Option<Finish>,
    /// Set if the sequence asked for them.
    pub logprobs: Option<LogProbs>,
}

/// A row's number, and its new token or why it has none.
pub type RowToken = (usize, Result<NextToken, GenerateError>);

/// The result of [`ContinuousBatch::join`].
#[derive(Debug)]
pub struct Joined {
    /// The row that the sequence has until its last token, or until [`ContinuousBatch::leave`].
    pub row: usize,
    /// The first token.
    pub token: NextToken,
    /// How many of the prompt's tokens were copied from a cache and not computed.
    pub reused: usize,
}

/// Rows that generate together; see the module's description.
#[derive(Debug)]
pub struct ContinuousBatch<'m> {
    model: &'m Llava,
    context: usize,
    rows: Vec<Row>,
    clock: u64,
}

#[derive(Debug)]
struct Row {
    cache: KvCache,
    /// The tokens whose keys and values the cache holds, and the images among them.
    ids: Vec<u32>,
    images: Vec<(std::ops::Range<usize>, Arc<[f32]>)>,
    /// How many of the tokens are the prompt, which was computed as one sequence of that length.
    prompt: usize,
    answer: Option<Answering>,
    used: u64,
}

/// The state of an answer that is being generated.
struct Answering {
    chooser: Chooser,
    sequence: Sequence,
    counts: Vec<(u32, u32)>,
    step: usize,
    last: u32,
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").field("step", &self.step).finish_non_exhaustive()
    }
}

/// The bytes of keys and values of `rows` sequences of `context` positions in `dtype`, or `None` beyond 64 bits.
pub fn cache_bytes(config: &crate::DecoderConfig, rows: usize, context: usize, dtype: DType) -> Option<u64> {
    [2, config.num_hidden_layers, config.kv_heads(), config.head_dim(), dtype.size(), rows, context]
        .into_iter()
        .try_fold(1u64, |bytes, factor| bytes.checked_mul(u64::try_from(factor).ok()?))
}

impl<'m> ContinuousBatch<'m> {
    /// A batch of `rows` rows, each with room for `context` positions, at most the model's own.
    pub fn new(model: &'m Llava, rows: usize, context: usize) -> Self {
        let text = &model.config().text_config;
        let context = context.min(text.context());
        let device = model.device().without_autodiff();
        let row = |_| Row {
            cache: KvCache::new(text, 1, context, model.dtype(), &device),
            ids: Vec::new(),
            images: Vec::new(),
            prompt: 0,
            answer: None,
            used: 0,
        };
        Self { model, context, rows: (0..rows).map(row).collect(), clock: 0 }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The positions that each row has room for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The number of rows that generate.
    pub fn active(&self) -> usize {
        self.rows.iter().filter(|row| row.answer.is_some()).count()
    }

    /// Computes a prompt and chooses the first token of its answer; `None` if no row is free.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`generate`](super::generate) for this sequence; the other rows are as before.
    pub fn join(&mut self, sequence: Sequence) -> Result<Option<Joined>, GenerateError> {
        self.check(&sequence)?;
        let Some((row, source, shared)) = self.place(&sequence) else { return Ok(None) };
        self.clock += 1;
        if source == row {
            self.rows[row].cache.truncate(shared);
        } else if let Ok([to, from]) = self.rows.get_disjoint_mut([row, source]) {
            to.cache.copy_from(&from.cache, shared);
        }
        let target = &mut self.rows[row];
        // Nothing counts as held until it is computed, so that an error leaves the row empty.
        target.ids.clear();
        target.images.clear();
        target.used = self.clock;
        let logits = logits_after(self.model, &sequence, shared, &mut target.cache)?;
        target.ids.extend(&sequence.prompt.ids);
        target.prompt = sequence.prompt.ids.len();
        target.images.extend(sequence.prompt.image_positions.iter().cloned().zip(sequence.pixels.iter().cloned()));
        let vocabulary = logits.len();
        let stream = usize::try_from(sequence.stream).unwrap_or(usize::MAX);
        let chooser = Chooser::new(&sequence.config, stream, &sequence.prompt.ids, vocabulary);
        let mut answer = Answering { chooser, sequence, counts: Vec::new(), step: 0, last: 0 };
        let token = answer.choose(&logits)?;
        target.answer = token.finish.is_none().then_some(answer);
        Ok(Some(Joined { row, token, reused: shared }))
    }

    /// Generates the next token of every row that is answering, with the rows' numbers. A row whose logits are not finite
    /// has an error instead, and is free again.
    ///
    /// # Errors
    ///
    /// Returns [`GenerateError::Read`] if the device fails; then no row has a new token.
    pub fn step(&mut self) -> Result<Vec<RowToken>, GenerateError> {
        let mut busy: Vec<(usize, &mut Row)> =
            self.rows.iter_mut().enumerate().filter(|(_, row)| row.answer.is_some()).collect();
        if busy.is_empty() {
            return Ok(Vec::new());
        }
        let last: Vec<u32> = busy.iter().filter_map(|(_, row)| Some(row.answer.as_ref()?.last)).collect();
        let device = self.model.device().without_autodiff();
        let ids: Vec<i64> = last.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [last.len()]), &device);
        let embeddings = self.model.language_model.embed(ids);
        let mut caches: Vec<&mut KvCache> = busy.iter_mut().map(|(_, row)| &mut row.cache).collect();
        let hidden = self.model.decode_each(embeddings, &mut caches);
        busy.iter_mut().zip(last).for_each(|((_, row), id)| row.ids.push(id));
        let logits = self.model.logits(hidden).cast(DType::F32);
        let vocabulary = logits.dims()[1].max(1);
        let scores = logits.try_into_vec_as::<f32>()?;
        let mut chosen = Vec::with_capacity(busy.len());
        for ((index, row), logits) in busy.into_iter().zip(scores.chunks_exact(vocabulary)) {
            let Some(answer) = &mut row.answer else { continue };
            let token = answer.choose(logits);
            if !token.as_ref().is_ok_and(|token| token.finish.is_none()) {
                row.answer = None;
            }
            chosen.push((index, token));
        }
        Ok(chosen)
    }

    /// Frees a row before its answer is complete.
    pub fn leave(&mut self, row: usize) {
        if let Some(row) = self.rows.get_mut(row) {
            row.answer = None;
        }
    }

    fn check(&self, sequence: &Sequence) -> Result<(), GenerateError> {
        sequence.config.validate()?;
        let (prompt, new, context) = (sequence.prompt.ids.len(), sequence.config.max_new_tokens, self.context);
        if prompt == 0 {
            return Err(GenerateError::EmptyPrompt(0));
        }
        if prompt.saturating_add(new) > context {
            return Err(GenerateError::TooLong { prompt, new, context });
        }
        let positions = sequence.prompt.image_positions.iter().map(ExactSizeIterator::len).sum();
        let tiles = &sequence.prompt.tiles;
        let rows = tiles.iter().map(Tiles::tokens).sum();
        let values = self.model.config().image_shape().iter().product::<usize>();
        let fits = |(pixels, tiles): (&Arc<[f32]>, &Tiles)| pixels.len() == tiles.count().saturating_mul(values);
        if !sequence.pixels.iter().zip(tiles).all(fits) {
            let found = sequence.pixels.iter().map(|pixels| pixels.len()).sum::<usize>() / values.max(1);
            return Err(GenerateError::Features { positions, rows: found });
        }
        if positions != rows
            || sequence.prompt.image_positions.len() != sequence.pixels.len()
            || tiles.len() != sequence.pixels.len()
        {
            return Err(GenerateError::Features { positions, rows });
        }
        Ok(())
    }

    /// The row that a sequence gets, the row whose cache holds the most of its prompt's beginning, and how much.
    fn place(&self, sequence: &Sequence) -> Option<(usize, usize, usize)> {
        let free = || self.rows.iter().enumerate().filter(|(_, row)| row.answer.is_none());
        let (oldest, _) = free().min_by_key(|(_, row)| row.used)?;
        let config = &self.model.config().text_config;
        let shared: Vec<usize> = self.rows.iter().map(|row| row.shared(sequence, config)).collect();
        let best = |rows: &mut dyn Iterator<Item = usize>| rows.max_by_key(|row| shared[*row]);
        // A free row that goes on with most of what it holds keeps its place. A row that holds more than that, such as
        // another conversation with the same instructions, is left as it is.
        if let Some(own) = best(&mut free().map(|(index, _)| index))
            && shared[own] > 0
            && shared[own].saturating_mul(2) >= self.rows[own].ids.len()
            && self.rows.iter().enumerate().all(|(row, _)| shared[row] <= shared[own])
        {
            return Some((own, own, shared[own]));
        }
        let source = best(&mut (0..self.rows.len())).filter(|source| shared[*source] > 0).unwrap_or(oldest);
        Some((oldest, source, shared[source]))
    }
}

impl Row {
    /// How many of the prompt's tokens the cache holds. The last one always has to be computed, because its output gives
    /// the first new token; an image is held as a whole or not at all.
    fn shared(&self, sequence: &Sequence, config: &DecoderConfig) -> usize {
        let prompt = &sequence.prompt;
        let same = self.ids.iter().zip(&prompt.ids).take_while(|(held, new)| held == new).count();
        let shared = same.min(self.cache.len()).min(prompt.ids.len().saturating_sub(1));
        let mut shared = config.reusable(shared, self.prompt, self.ids.len(), prompt.ids.len());
        for (places, pixels) in prompt.image_positions.iter().zip(&sequence.pixels) {
            let held =
                || self.images.iter().any(|(own, held)| own == places && (Arc::ptr_eq(held, pixels) || held == pixels));
            if places.start < shared && (places.end > shared || !held()) {
                shared = places.start;
            }
        }
        shared
    }
}

impl Answering {
    fn choose(&mut self, logits: &[f32]) -> Result<NextToken, GenerateError> {
        if logits.is_empty() || logits.iter().any(|score| !score.is_finite()) {
            return Err(GenerateError::NotFinite { prompt: 0, step: self.step });
        }
        let sequence = &self.sequence;
        let adjusted = self.adjusted(logits);
        let id = self.chooser.choose(adjusted.as_deref().unwrap_or(logits)).id;
        let logprobs = sequence.logprobs.map(|top| LogProbs::of(logits, id, top));
        match self.counts.iter_mut().find(|(seen, _)| *seen == id) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.counts.push((id, 1)),
        }
        self.step += 1;
        self.last = id;
        let finish = match (sequence.config.eos.contains(&id), self.step >= sequence.config.max_new_tokens) {
            (true, _) => Some(Finish::Stop),
            (false, true) => Some(Finish::Length),
            (false, false) => None,
        };
        Ok(NextToken { id, finish, logprobs })
    }

    /// The logits with OpenAI's penalties and biases; `None` if there are none.
    fn adjusted(&self, logits: &[f32]) -> Option<Vec<f32>> {
        let Sequence { frequency_penalty, presence_penalty, logit_bias, .. } = &self.sequence;
        if *frequency_penalty == 0.0 && *presence_penalty == 0.0 && logit_bias.is_empty() {
            return None;
        }
        let mut adjusted = logits.to_vec();
        let penalties = self.counts.iter().map(|(id, n)| (*id, -(frequency_penalty * *n as f32 + presence_penalty)));
        for (id, change) in penalties.chain(logit_bias.iter().copied()) {
            if let Some(score) = adjusted.get_mut(id as usize) {
                *score += change;
            }
        }
        Some(adjusted)
    }
}

impl LogProbs {
    fn of(logits: &[f32], chosen: u32, top: usize) -> Self {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|score| f64::from(score - most).exp()).sum();
        let of = |score: f32| (f64::from(score - most) - sum.ln()) as f32;
        let top = largest(logits, top).into_iter().map(|(id, score)| (id, of(score))).collect();
        Self { chosen: logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |score| of(*score)), top }
    }
}

/// Computes the prompt's positions from `held` on and returns the logits after the last.
fn logits_after(
    model: &Llava,
    sequence: &Sequence,
    held: usize,
    cache: &mut KvCache,
) -> Result<Vec<f32>, GenerateError> {
    let Prompt { ids, image_positions, tiles } = &*sequence.prompt;
    let first = image_positions.iter().take_while(|places| places.start < held).count();
    let rest = Prompt {
        ids: ids[held..].to_vec(),
        image_positions: image_positions[first..].iter().map(|places| places.start - held..places.end - held).collect(),
        tiles: tiles[first..].to_vec(),
    };
    let mut rest = ImageTokens::from(rest);
    rest.pixels = sequence.pixels[first..].iter().map(|pixels| pixels.to_vec()).collect();
    let device = model.device().without_autodiff();
    let batch = Batch::collate(&[rest], 0, model.config().image_shape(), &device);
    let embeddings = model.splice(&batch, model.visual_embeddings(&batch));
    let hidden = model.decode(embeddings, &[0], cache);
    Ok(model.logits(hidden).cast(DType::F32).try_into_vec_as::<f32>()?)
}
