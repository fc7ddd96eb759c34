//! The replacement experiment: answers questions with each visual embedding replaced by its nearest token embedding.

use std::collections::BTreeMap;

use basic_data::{DataError, ImageSource, VisionCache};
use basic_models::generate::{GenerationConfig, GenerationDefaults, generate};
use basic_models::processor::{Message, PLACEHOLDER, Role, Style, render_prompt, tokenize_prompt};
use basic_models::{ImageTokens, LlavaConfig};
use burn::tensor::{DType, Tensor};
use serde::Serialize;

use super::{Asked, Case, Cases, Lens, LensError, LensOptions};
use crate::benchmarks::Metric;
use crate::questions::normalize;

/// How many prompts are answered in one batch.
const BATCH: usize = 32;
/// MiB of patch features to cache, because a file of questions has several about one image.
const CACHE: usize = 256;

/// Exact match with and without the replacement.
#[derive(Debug, Clone, Serialize)]
pub struct Replacement {
    /// How many questions with an image were asked.
    pub questions: usize,
    /// Exact match of the model as it is, with its 95% bootstrap interval.
    pub accuracy: Metric,
    /// Exact match with every visual embedding replaced by its nearest token's embedding.
    pub replaced: Metric,
    /// Exact match without and with the replacement, by question type.
    pub per_type: BTreeMap<String, [f64; 2]>,
    /// The share of questions with the same answer in both, up to case, spaces and a final period.
    pub same: f64,
    /// The answers to every question.
    #[serde(skip)]
    pub answers: Vec<ReplacedAnswer>,
}

/// A question's two answers.
#[derive(Debug, Clone, Serialize)]
pub struct ReplacedAnswer {
    /// The sample, by its index and id.
    pub sample: String,
    /// The image.
    pub image: String,
    /// The question: the last turn before the answer.
    pub question: String,
    /// The true answer.
    pub expected: String,
    /// The model's answer.
    pub answer: String,
    /// The model's answer after the replacement.
    pub replaced: String,
    /// The texts of the tokens that replaced the visual embeddings.
    pub tokens: String,
    #[serde(skip)]
    category: String,
}

/// The prompt with these tokens in place of the visual embeddings, image by image. The decoder embeds them like any
/// text token: with the embedding's own length, and for Gemma with its scale.
pub fn replaced_prompt(prompt: &ImageTokens, nearest: &[u32]) -> ImageTokens {
    let mut ids = prompt.ids.clone();
    for (position, id) in prompt.images.iter().flatten().zip(nearest) {
        ids[*position] = *id;
    }
    ImageTokens { ids, ..ImageTokens::default() }
}

/// Checks by a model's configuration that its visual embeddings can be replaced by their nearest tokens.
///
/// # Errors
///
/// [`LensError::Tiles`] for a model that cuts images into tiles; [`LensError::OwnGrids`] for one that the lens cannot
/// read.
pub fn check_replaceable(config: &LlavaConfig) -> Result<(), LensError> {
    LensOptions::nearest().check(config)?;
    match config.tiling().cuts() {
        true => Err(LensError::Tiles),
        false => Ok(()),
    }
}

impl Lens<'_> {
    /// The nearest token, by cosine, of every visual embedding that the projector computes from patch features.
    ///
    /// # Errors
    ///
    /// [`LensError::NotFinite`] for visual embeddings that are NaN or infinite; [`LensError::Read`] if the device
    /// fails; [`LensError::Tiles`] for a model that cuts images into tiles.
    pub fn nearest_tokens(&self, features: Tensor<2>) -> Result<Vec<u32>, LensError> {
        check_replaceable(&self.checkpoint().config)?;
        let v = self.model().multi_modal_projector.forward(features).without_autodiff().cast(DType::F32);
        let asked = Asked { top: 1, all: false, end: None };
        let rows = self.vocabulary().read(self.model(), &v, 0, &asked)?;
        Ok(rows.into_iter().filter_map(|row| row.nearest.first().map(|(id, _)| *id)).collect())
    }
}

/// Answers the first question of every sample by greedy decoding, once with the image and once with its nearest tokens.
/// A sample's first answer is taken as the true one. `progress` is called with the number of questions answered so far.
///
/// # Errors
///
/// [`LensError`] that names the file and the sample, or the image.
pub fn replacement(
    lens: &mut Lens<'_>,
    cases: &Cases,
    indices: &[usize],
    style: &Style,
    max_new_tokens: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Replacement, LensError> {
    let checkpoint = lens.checkpoint();
    let eos = GenerationDefaults::load(&checkpoint.dir)?.end_ids(checkpoint);
    let settings = GenerationConfig::greedy(max_new_tokens, eos.clone(), checkpoint.pad_id());
    let mut cache = VisionCache::new(CACHE);
    let mut answers = Vec::new();
    for chunk in indices.chunks(BATCH) {
        let asked: Vec<Asking> = chunk
            .iter()
            .filter_map(|index| Asking::of(cases.get(*index), lens, style).transpose())
            .collect::<Result<_, _>>()?;
        let images: Vec<ImageSource> = asked.iter().flat_map(|one| one.images.clone()).collect();
        let Some(features) = cache.features(lens.model(), checkpoint, &images)? else { continue };
        let nearest = lens.nearest_tokens(features.clone())?;
        let mut rest = nearest.as_slice();
        let replaced: Vec<(ImageTokens, &[u32])> = asked
            .iter()
            .map(|one| {
                let (own, others) =
                    rest.split_at(one.prompt.images.iter().map(Vec::len).sum::<usize>().min(rest.len()));
                rest = others;
                (replaced_prompt(&one.prompt, own), own)
            })
            .collect();
        let prompts: Vec<ImageTokens> = asked.iter().map(|one| one.prompt.clone()).collect();
        let plain = generate(lens.model(), &prompts, Some(features), &settings)?;
        let tokens: Vec<ImageTokens> = replaced.iter().map(|(prompt, _)| prompt.clone()).collect();
        let other = generate(lens.model(), &tokens, None, &settings)?;
        let text = |ids: Vec<u32>| {
            let ids: Vec<u32> = ids.into_iter().filter(|id| !eos.contains(id)).collect();
            Ok::<_, LensError>(checkpoint.tokenizer.decode(&ids, true)?.trim().to_string())
        };
        for (((one, plain), other), (_, own)) in asked.into_iter().zip(plain).zip(other).zip(&replaced) {
            let words: Vec<String> = own.iter().map(|id| lens.text(*id).text.trim().to_string()).collect();
            answers.push(ReplacedAnswer {
                sample: one.sample,
                image: one.images.first().map(ToString::to_string).unwrap_or_default(),
                question: one.question,
                expected: one.expected,
                answer: text(plain.ids)?,
                replaced: text(other.ids)?,
                tokens: words.join(" "),
                category: one.category,
            });
        }
        progress(answers.len());
    }
    Ok(scored(answers))
}

/// A question with its prompt.
struct Asking {
    sample: String,
    images: Vec<ImageSource>,
    question: String,
    expected: String,
    category: String,
    prompt: ImageTokens,
}

impl Asking {
    /// The first question of a case; `None` if its prompt has no image.
    fn of(case: Result<Case, LensError>, lens: &Lens<'_>, style: &Style) -> Result<Option<Self>, LensError> {
        let Case { sample, category, .. } = case?;
        let Some(turn) = sample.messages.iter().position(|message| message.role == Role::Assistant) else {
            return Ok(None);
        };
        let turns = &sample.messages[..turn];
        let shown: usize = turns.iter().map(Message::images).sum();
        if shown == 0 {
            return Ok(None);
        }
        let checkpoint = lens.checkpoint();
        let tokenizer = &checkpoint.tokenizer;
        let images: Vec<ImageSource> = sample.images.iter().take(shown).cloned().collect();
        let tiles = ImageSource::tiles_of(&images, checkpoint)?;
        let prompt = render_prompt(style, turns, tokenizer.specials())
            .and_then(|text| tokenize_prompt(tokenizer, text, &tiles))
            .map_err(|source| DataError::Conversation {
                path: sample.file.to_path_buf(),
                place: sample.place.clone(),
                source,
            })?;
        let question = turns.last().map(|turn| turn.content.replace(PLACEHOLDER, "").trim().to_string());
        Ok(Some(Self {
            images,
            question: question.unwrap_or_default(),
            expected: sample.messages[turn].content.clone(),
            sample: sample.place,
            category,
            prompt: prompt.into(),
        }))
    }
}

fn scored(answers: Vec<ReplacedAnswer>) -> Replacement {
    let right = |said: &str, expected: &str| f64::from(u8::from(normalize(said) == normalize(expected)));
    let plain: Vec<f64> = answers.iter().map(|one| right(&one.answer, &one.expected)).collect();
    let replaced: Vec<f64> = answers.iter().map(|one| right(&one.replaced, &one.expected)).collect();
    let same: f64 = answers.iter().map(|one| right(&one.answer, &one.replaced)).sum();
    let mut per_type: BTreeMap<String, ([f64; 2], usize)> = BTreeMap::new();
    for (one, credits) in answers.iter().zip(plain.iter().zip(&replaced)) {
        let (sums, n) = per_type.entry(one.category.clone()).or_default();
        sums[0] += credits.0;
        sums[1] += credits.1;
        *n += 1;
    }
    Replacement {
        questions: answers.len(),
        accuracy: Metric::mean("exact match", &plain),
        replaced: Metric::mean("exact match, replaced", &replaced),
        per_type: per_type.into_iter().map(|(kind, (sums, n))| (kind, sums.map(|sum| sum / n as f64))).collect(),
        same: same / answers.len().max(1) as f64,
        answers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_tokens_take_the_places_of_the_images() {
        let prompt = ImageTokens {
            ids: vec![1, 9, 9, 5, 9, 9, 2],
            images: vec![vec![1, 2], vec![4, 5]],
            ..ImageTokens::default()
        };
        let replaced = replaced_prompt(&prompt, &[11, 12, 13, 14]);
        assert_eq!(replaced.ids, [1, 11, 12, 5, 13, 14, 2]);
        assert!(replaced.images.is_empty());
    }

    #[test]
    fn both_scores_are_exact_match_and_same_compares_the_answers() {
        let answer = |category: &str, expected: &str, answer: &str, replaced: &str| ReplacedAnswer {
            sample: String::new(),
            image: String::new(),
            question: String::new(),
            expected: expected.into(),
            answer: answer.into(),
            replaced: replaced.into(),
            tokens: String::new(),
            category: category.into(),
        };
        let scores = scored(vec![
            answer("a", "red", "Red.", "blue"),
            answer("a", "two", "two", "two"),
            answer("b", "left", "right", "right"),
            answer("b", "left", "right", "left"),
        ]);
        assert_eq!((scores.accuracy.value, scores.replaced.value, scores.same), (0.5, 0.5, 0.5));
        assert_eq!((scores.per_type["a"], scores.per_type["b"]), ([1.0, 0.5], [0.0, 0.5]));
    }
}
