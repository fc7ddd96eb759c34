//! Pretrains the decoder on texts about Shapes scenes: descriptions and noisy rasters of concept words, each followed
//! by a caption or by questions and answers. Neither images nor a vision encoder are involved.

use std::path::Path;

use basic_data::shapes::{Scene, Split, sample_scenes};
use basic_models::checkpoint::{Contents, Layout, Replaces, StagedDir, write_tensors};
use basic_models::nn::{Decoder, InitScheme, Masks, RotaryTables, seeded_init};
use basic_models::processor::Tokenizer;
use basic_models::{CheckpointError, DecoderConfig};
use basic_train::optim::{Optimizer, OptimizerConfig, Schedule, add_gradients, read_out};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;

use super::document::{Document, Kind, document, gaussian};
use super::tokenizer::{CHAT_TEMPLATE, PAD, tokenizer_config, tokenizer_json, tokens};
use super::{BackboneConfig, BackboneError, Progress};

const BATCH: usize = 24;
/// How many scenes of the train split documents are drawn from.
const SCENES: usize = 20_000;
const PEAK_RATE: f64 = 2e-3;
/// The standard deviation of the Gaussian noise on a raster's embeddings, in units of the embedding table's RMS.
const EMBEDDING_NOISE: f32 = 0.4;

/// The decoder's scores on documents about validation scenes.
#[derive(Debug, Clone, Serialize)]
pub struct LanguageScores {
    /// The mean cross entropy of the last 50 training steps.
    pub loss: f32,
    /// The share of answers to questions about a description whose every token is right.
    pub from_description: f32,
    /// The same share for questions about a noisy raster.
    pub from_raster: f32,
}

/// A Llama whose output head is tied to its embedding table, as in most small models.
#[derive(Module, Debug)]
struct LanguageModel {
    language_model: Decoder,
}

impl LanguageModel {
    /// Logits `[N, V]` of hidden states `[N, d]`.
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.language_model.table().transpose())
    }
}

/// The decoder's configuration.
fn config(vocabulary: usize) -> DecoderConfig {
    DecoderConfig {
        vocab_size: vocabulary,
        hidden_size: 128,
        intermediate_size: 344,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: Some(4),
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        pad_token_id: Some(PAD),
        ..DecoderConfig::default()
    }
}

/// Pretrains the decoder and writes it to `out` as a Hugging Face `LlamaForCausalLM` directory.
///
/// # Errors
///
/// [`BackboneError`]. A failed run leaves no partial checkpoint at `out`.
pub fn pretrain_language(
    out: &Path,
    backbone: &BackboneConfig,
    device: &Device,
    overwrite: bool,
    progress: Progress,
) -> Result<LanguageScores, BackboneError> {
    let staged = StagedDir::replacing(out, Replaces::new(overwrite, Contents::Checkpoint, Vec::new()))?;
    let written = |e: serde_json::Error| BackboneError::Tokenizer(e.to_string());
    let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).map_err(written);
    staged.write("tokenizer.json", pretty(&tokenizer_json())?.as_bytes())?;
    staged.write("tokenizer_config.json", pretty(&tokenizer_config())?.as_bytes())?;
    staged.write("chat_template.jinja", CHAT_TEMPLATE.as_bytes())?;
    let tokenizer = Tokenizer::load(staged.path(), &Default::default())?;

    let config = config(tokens().len());
    let device = device.clone().autodiff();
    let model = LanguageModel { language_model: config.init(&device) };
    let mut model = seeded_init(model, InitScheme::Normal { std: 0.04 }, backbone.seed, &device);
    let mut optimizer = Optimizer::new(&OptimizerConfig { beta2: 0.98, ..OptimizerConfig::default() });
    let schedule = Schedule::default();
    let scenes = sample_scenes(Split::Train, SCENES, backbone.seed);
    let simple: Vec<Scene> = scenes.iter().filter(|scene| scene.objects().len() <= 2).cloned().collect();
    let mut rng = ChaCha8Rng::seed_from_u64(backbone.seed ^ 0x1a2b);
    let steps = backbone.language_steps;
    let mut recent = Vec::new();
    for step in 0..steps {
        // The first sixth of the steps uses scenes with few objects, on which looking up a word is learned faster.
        let pool = if step * 6 < steps { &simple } else { &scenes };
        let documents = draw(pool, BATCH, &tokenizer, &mut rng)?;
        let noise = rng.random::<u64>();
        let (grads, loss) = gradients(&model, &config, &documents, noise, &device)?;
        let readout = read_out(&model, &grads, Vec::new())?;
        model = optimizer.apply(model, grads, &readout, PEAK_RATE * schedule.factor(step, steps));
        recent.push(loss);
        progress("decoder", step + 1, steps, loss);
    }
    let tail = &recent[recent.len().saturating_sub(50)..];
    let validation = sample_scenes(Split::Validation, 200, backbone.seed);
    let scores = LanguageScores {
        loss: tail.iter().sum::<f32>() / tail.len().max(1) as f32,
        from_description: answered(&model, &config, &validation, false, &tokenizer, &device)?,
        from_raster: answered(&model, &config, &validation, true, &tokenizer, &device)?,
    };

    let mut value = config.to_value();
    value["architectures"] = json!(["LlamaForCausalLM"]);
    value["dtype"] = json!("float16");
    staged.write("config.json", pretty(&value)?.as_bytes())?;
    let generation = json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0});
    staged.write("generation_config.json", pretty(&generation)?.as_bytes())?;
    write_tensors(&staged, &model, "", Layout::Decoder, DType::F16)?;
    staged.commit().map_err(|e: CheckpointError| e)?;
    Ok(scores)
}

fn draw(
    scenes: &[Scene],
    count: usize,
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Document>, BackboneError> {
    let pick = |rng: &mut ChaCha8Rng| scenes.choose(rng).cloned();
    let mut documents = Vec::with_capacity(count);
    while documents.len() < count {
        let Some(scene) = pick(rng) else { break };
        documents.push(document(&scene, Kind::draw(rng), tokenizer, rng)?);
    }
    Ok(documents)
}

/// Hidden states after the final norm, `[B * T, d]`; the raster's embeddings carry Gaussian noise.
fn hidden(
    model: &LanguageModel,
    config: &DecoderConfig,
    documents: &[Document],
    rng: &mut impl Rng,
    device: &Device,
) -> (Tensor<2>, usize) {
    let (b, d, vocabulary) = (documents.len(), config.hidden_size, config.vocab_size);
    let t = documents.iter().map(|x| x.ids.len()).max().unwrap_or(0);
    // Each position is a row of weights over the vocabulary: a single word for text, a mixture for a patch.
    let mut shares = vec![0f32; b * t * vocabulary];
    let mut noise = vec![0f32; b * t * d];
    for (row, document) in documents.iter().enumerate() {
        for (p, (id, patch)) in document.ids.iter().zip(&document.raster).enumerate() {
            let at = row * t + p;
            let shares = &mut shares[at * vocabulary..(at + 1) * vocabulary];
            let Some(patch) = patch else {
                shares[*id as usize] = 1.0;
                continue;
            };
            patch.iter().for_each(|(id, share)| shares[*id as usize] += share);
            let length: f32 = patch.iter().map(|(_, share)| share).sum();
            noise[at * d..(at + 1) * d].iter_mut().for_each(|x| *x = length * EMBEDDING_NOISE * gaussian(rng));
        }
    }
    let plain = device.clone().without_autodiff();
    let shares = Tensor::<2>::from_data(TensorData::new(shares, [b * t, vocabulary]), &plain);
    let noise = Tensor::<2>::from_data(TensorData::new(noise, [b * t, d]), &plain);
    let table = model.language_model.table();
    let scale = table.clone().without_autodiff().square().mean().sqrt().reshape([1, 1]);
    let embeddings = shares.matmul(table) + noise * scale;
    let rope = RotaryTables::new(&[(0..t).collect()], config, DType::F32, &plain);
    let masks = Masks::new(config, 0, t, &[0], &plain);
    let out = model.language_model.forward(embeddings.reshape([b, t, d]), &rope, &masks, None, None);
    (out.reshape([b * t, d]), t)
}

/// The gradients and the loss of a batch. Its halves run on two threads, because the matrix products are too small to
/// use two cores.
fn gradients(
    model: &LanguageModel,
    config: &DecoderConfig,
    documents: &[Document],
    noise: u64,
    device: &Device,
) -> Result<(GradientsParams, f32), BackboneError> {
    let total: f32 = documents.iter().flat_map(Document::weights).map(|(_, weight)| weight).sum();
    // Each thread gets its own leaves: Burn merges graphs that share a leaf, and one backward pass would consume both.
    let half = |documents: &[Document], stream: u64, model: LanguageModel| {
        let mut rng = ChaCha8Rng::seed_from_u64(noise);
        rng.set_stream(stream);
        let loss = loss(&model, config, documents, total, &mut rng, device);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        Ok::<_, BackboneError>((grads, loss.try_into_scalar::<f32>()?))
    };
    let (first, second) = documents.split_at(documents.len() / 2);
    let (first, second) = std::thread::scope(|scope| {
        let fork = || model.clone().fork(device);
        let (one, two) = (fork(), fork());
        let other = scope.spawn(|| half(second, 1, two));
        (half(first, 0, one), other.join())
    });
    let (grads, loss) = first?;
    let (more, rest) = second.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok((add_gradients(model, grads, more), loss + rest))
}

/// The weighted cross entropy of documents, divided by `total`; shape `[1]`.
fn loss(
    model: &LanguageModel,
    config: &DecoderConfig,
    documents: &[Document],
    total: f32,
    rng: &mut impl Rng,
    device: &Device,
) -> Tensor<1> {
    let (hidden, t) = hidden(model, config, documents, rng, device);
    let (mut rows, mut labels, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (row, document) in documents.iter().enumerate() {
        for (p, weight) in document.weights() {
            rows.push((row * t + p - 1) as i64);
            labels.push(i64::from(document.ids[p]));
            weights.push(weight);
        }
    }
    let n = rows.len();
    let plain = device.clone().without_autodiff();
    let ints = |v: Vec<i64>| Tensor::<1, Int>::from_data(TensorData::new(v, [n]), &plain);
    let logits = model.logits(hidden.select(0, ints(rows)));
    let scores = log_softmax(logits, 1).gather(1, ints(labels).unsqueeze_dim::<2>(1));
    let weights = Tensor::<2>::from_data(TensorData::new(weights, [n, 1]), &plain);
    (scores * weights).sum().div_scalar(total).neg()
}

/// The share of answers whose every token is the most likely one.
fn answered(
    model: &LanguageModel,
    config: &DecoderConfig,
    scenes: &[Scene],
    raster: bool,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<f32, BackboneError> {
    let model = model.clone().valid();
    let device = device.clone().without_autodiff();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut right, mut all) = (0usize, 0usize);
    for chunk in scenes.chunks(BATCH) {
        let kind = if raster { Kind::RasterQuestions } else { Kind::TextQuestions };
        let documents: Result<Vec<_>, _> = chunk.iter().map(|s| document(s, kind, tokenizer, &mut rng)).collect();
        let documents = documents?;
        let (hidden, t) = hidden(&model, config, &documents, &mut rng, &device);
        let best = model.logits(hidden).argmax(1).try_into_vec_as::<i64>()?;
        for (row, document) in documents.iter().enumerate() {
            for answer in &document.answers {
                // Long answers can be phrased in many ways, so only short ones are counted.
                if answer.len() > 4 {
                    continue;
                }
                all += 1;
                right += usize::from(answer.clone().all(|p| best[row * t + p - 1] == i64::from(document.ids[p])));
            }
        }
    }
    Ok(right as f32 / all.max(1) as f32)
}
