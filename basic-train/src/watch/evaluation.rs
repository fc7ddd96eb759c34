//! Evaluates the model during a run: losses on held-out samples, and generated answers to some of them.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use basic_core::{LM, Losses, Objective};
use basic_data::{EncoderStore, ImageSource, Sample, Samples, VisionCache, prepare};
use basic_models::checkpoint::FrozenEncoder;
use basic_models::generate::{GenerateError, GenerationConfig, GenerationDefaults, TextOptions, generate_text};
use basic_models::nn::Llava;
use basic_models::outside::excerpt;
use basic_models::processor::{Message, Role, Style, render_prompt, tokenize_prompt};
use basic_models::{Batch, Checkpoint, CheckpointError, ImageTokens};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::Serialize;
use thiserror::Error;

use crate::batch_error::BatchError;
use crate::train::Stores;

/// How the model is looked at.
#[derive(Debug, Clone)]
pub struct EvaluationOptions {
    /// The largest number of samples that are evaluated, from the beginning of the set.
    pub samples: usize,
    /// Number of samples that are computed together.
    pub batch_size: usize,
    /// The number of these samples for which the model generates an answer.
    pub predictions: usize,
    /// The largest number of tokens in an answer.
    pub max_new_tokens: usize,
    /// The second vision encoder that a supervision method compares with, if one does.
    pub encoder: Option<Arc<FrozenEncoder>>,
    /// Where the features of frozen encoders are kept; nowhere by default.
    pub stores: Stores,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self {
            samples: 256,
            batch_size: 8,
            predictions: 4,
            max_new_tokens: 64,
            encoder: None,
            stores: Stores::default(),
        }
    }
}

/// One line of `eval.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// The step after which the model was evaluated.
    pub step: usize,
    /// The mean cross entropy over the target tokens, and every term of the supervision methods over the samples with
    /// images, unweighted; 0 for a term that is not active.
    #[serde(flatten)]
    pub losses: Losses<f64>,
    /// The objective: the weighted sum of the losses.
    pub total: f64,
    /// Number of samples.
    pub samples: usize,
    /// Number of target tokens.
    pub tokens: usize,
    /// Duration in seconds.
    pub seconds: f64,
    /// Generated answers to the first samples.
    pub predictions: Vec<Sampled>,
}

/// The greedy answer of the model to a sample's last question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sampled {
    /// The prompt.
    pub prompt: String,
    /// The names of the images.
    pub images: Vec<String>,
    /// The answer in the data.
    pub expected: String,
    /// The model's answer.
    pub answer: String,
}

/// Why the model could not be evaluated.
#[derive(Debug, Error)]
pub enum EvaluationError {
    /// The data, the checkpoint, a setting of a supervision method, or the device.
    #[error(transparent)]
    Batch(BatchError),
    /// Generation.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The model gives values that are not finite.
    #[error("the model after step {step}: {}: sample {place}: {source}", file.display())]
    NotFinite {
        /// The step.
        step: usize,
        /// The file of held-out samples.
        file: PathBuf,
        /// The sample for which an answer was generated.
        place: String,
        /// The error of the generation.
        source: GenerateError,
    },
}

impl<E> From<E> for EvaluationError
where
    BatchError: From<E>,
{
    fn from(error: E) -> Self {
        Self::Batch(error.into())
    }
}

/// Computes the losses on held-out samples without gradients, and greedy answers to the first of them. The model is not
/// changed.
///
/// # Errors
///
/// [`EvaluationError`] that names the sample.
pub fn evaluate(
    step: usize,
    model: &Llava,
    checkpoint: &Checkpoint,
    data: &dyn Samples,
    style: &Style,
    objective: &Objective,
    options: &EvaluationOptions,
) -> Result<Evaluation, EvaluationError> {
    let start = Instant::now();
    let model = model.clone().valid();
    // Features are not kept in memory, because a trained encoder gives different ones at every evaluation.
    let kept = |store: &Option<EncoderStore>| VisionCache::new(0).with_store(store.clone());
    let (mut cache, mut cache_of_other) = (kept(&options.stores.own), kept(&options.stores.other));
    let count = options.samples.min(data.len());
    let samples: Vec<Sample> = (0..count).map(|index| data.sample(index)).collect::<Result<_, _>>()?;
    // Sums over the target tokens for the cross entropy, and over the samples with images for the terms.
    let mut sums = objective.zeros(&model.device()).map(|_, _| 0.0_f64);
    let (mut tokens, mut image_samples) = (0, 0);
    for chunk in samples.chunks(options.batch_size.max(1)) {
        let mut all = Vec::with_capacity(chunk.len());
        let mut images = Vec::new();
        for sample in chunk {
            let prepared = prepare(sample, checkpoint, style)?;
            images.extend(prepared.images);
            all.push(prepared.tokens);
        }
        let mut batch = Batch::collate(&all, checkpoint.pad_id(), checkpoint.image_shape(), &model.device());
        batch.features = cache.features(&model, checkpoint, &images)?;
        if let Some(encoder) = &options.encoder {
            batch.other_features = cache_of_other.features_by(encoder, &images).map_err(CheckpointError::from)?;
        }
        let forward = model.forward(&batch, objective)?;
        let losses = model.losses(&batch, forward, objective);
        let values: Vec<Tensor<1>> = losses.named().map(|(_, value)| value.clone()).collect();
        let mut values = Tensor::cat(values, 0).try_into_vec_as::<f32>()?.into_iter();
        let (labels, pictured) = (batch.label_count(), batch.layout.image_samples());
        let weighted = losses.map(|name, _| {
            let weight = if name == LM { labels } else { pictured };
            values.next().map_or(f64::NAN, |value| f64::from(value) * weight as f64)
        });
        sums = sums.plus(weighted);
        tokens += labels;
        image_samples += pictured;
    }
    let losses = sums.map(|name, sum| sum / if name == LM { tokens } else { image_samples }.max(1) as f64);
    let total = losses.total();
    let shown = &samples[..options.predictions.min(samples.len())];
    let predictions = answers(step, &model, checkpoint, shown, style, options, &mut cache)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Evaluation { step, losses, total, samples: samples.len(), tokens, seconds, predictions })
}

/// Generates the model's answer to the last question of each sample.
fn answers(
    step: usize,
    model: &Llava,
    checkpoint: &Checkpoint,
    samples: &[Sample],
    style: &Style,
    options: &EvaluationOptions,
    cache: &mut VisionCache,
) -> Result<Vec<Sampled>, EvaluationError> {
    let eos = GenerationDefaults::load(&checkpoint.dir)?.end_ids(checkpoint);
    let settings = GenerationConfig::greedy(options.max_new_tokens, eos, checkpoint.pad_id());
    let stop: Vec<String> = style.stops().iter().map(ToString::to_string).collect();
    let text = TextOptions { tokenizer: &checkpoint.tokenizer, stop: &stop };
    let mut found = Vec::with_capacity(samples.len());
    for sample in samples {
        let Some(last) = sample.messages.iter().rposition(|message| message.role == Role::Assistant) else { continue };
        let turns = &sample.messages[..last];
        let rendered = render_prompt(style, turns, checkpoint.tokenizer.specials())?;
        // Turns after the last answer may have images too, which do not belong to the prompt.
        let images: usize = turns.iter().map(Message::images).sum();
        let sources = &sample.images[..images.min(sample.images.len())];
        let prompt = rendered.text.clone();
        let tiles = ImageSource::tiles_of(sources, checkpoint).map_err(|error| sample.image_error(error))?;
        let tokens = tokenize_prompt(&checkpoint.tokenizer, rendered, &tiles)?;
        // A conversation that already fills the context leaves no room for an answer.
        let room = checkpoint.config.text_config.context().saturating_sub(tokens.ids.len());
        if room == 0 {
            continue;
        }
        let settings = GenerationConfig { max_new_tokens: options.max_new_tokens.min(room), ..settings.clone() };
        let prompts = [ImageTokens::from(tokens)];
        let features = cache.features(model, checkpoint, sources).map_err(|e| sample.image_error(e))?;
        let mut go_on = |_: basic_models::generate::Piece<'_>| ControlFlow::Continue(());
        let answer = generate_text(model, &prompts, features, &settings, &text, &mut go_on);
        let answer = answer.map_err(|source| match source {
            GenerateError::NotFinite { .. } => EvaluationError::NotFinite {
                step,
                file: sample.file.to_path_buf(),
                place: excerpt(&sample.place),
                source,
            },
            other => other.into(),
        })?;
        found.push(Sampled {
            prompt,
            images: sources.iter().map(ToString::to_string).collect(),
            expected: sample.messages[last].content.trim().to_string(),
            answer: answer.first().map(|answer| answer.text.trim().to_string()).unwrap_or_default(),
        });
    }
    Ok(found)
}

impl Evaluation {
    /// The predictions formatted as a Markdown table.
    pub fn markdown(&self) -> String {
        // A `|` would end a cell, and a line break would end the row.
        let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
        let mut table = String::from("| images | prompt | expected | answer |\n|---|---|---|---|\n");
        for Sampled { prompt, images, expected, answer } in &self.predictions {
            let cells = [images.join(", "), prompt.clone(), expected.clone(), answer.clone()].map(|text| cell(&text));
            table += &format!("| {} |\n", cells.join(" | "));
        }
        table
    }
}
