//! The decoder's pretraining on the embedded world's text: descriptions, and noisy rasters of concept words, each
//! followed by a caption or by questions and answers. No image and no vision encoder is involved.

use std::path::Path;

use basic_models::checkpoint::{Layout, StagedDir, write_tensors};
use basic_models::nn::{InitScheme, LlamaDecoder, Mask, RotaryTables, seeded_init};
use basic_models::processor::Tokenizer;
use basic_models::{CheckpointError, LlamaConfig};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;

use super::tokenizer::{CHAT_TEMPLATE, EOS, PAD, tokenizer_config, tokenizer_json, tokens};
use super::{BackboneConfig, BackboneError, PATCHES_PER_SIDE, Progress};
use crate::optim::{Optimizer, OptimizerConfig, Schedule};
use crate::shapes::{Scene, Split, caption, description_document, raster_document, sample_scenes};

const BATCH: usize = 32;
/// A document ends before the turn that would make it longer: batches stay free of padding.
const MAX_TOKENS: usize = 104;
/// Scenes of the train split that documents are drawn from.
const SCENES: usize = 20_000;
/// Gaussian noise on a raster's embeddings, in units of the table's root mean square.
const EMBEDDING_NOISE: f32 = 0.5;

/// What the decoder reached on documents about validation scenes.
#[derive(Debug, Clone, Serialize)]
pub struct LanguageScores {
    /// Mean cross entropy in the last 50 training steps.
    pub loss: f32,
    /// Answers right, every token of them, after a description.
    pub from_description: f32,
    /// Answers right after a noisy raster.
    pub from_raster: f32,
}

/// A Llama with its output head.
#[derive(Module, Debug)]
struct LanguageModel {
    language_model: LlamaDecoder,
    lm_head: Linear,
}

/// The decoder's size.
fn config(vocabulary: usize) -> LlamaConfig {
    LlamaConfig {
        vocab_size: vocabulary,
        hidden_size: 128,
        intermediate_size: 344,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: Some(4),
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        pad_token_id: Some(PAD),
        ..LlamaConfig::default()
    }
}

/// A document: token ids, which of them are a raster's words, and which are answers.
struct Document {
    ids: Vec<u32>,
    raster: Vec<bool>,
    answers: Vec<std::ops::Range<usize>>,
}

/// Pretrains the decoder and writes it to `out` as a Hugging Face `LlamaForCausalLM` directory.
///
/// # Errors
///
/// [`BackboneError`]; nothing half-written stays under the final name.
pub fn pretrain_language(
    out: &Path,
    backbone: &BackboneConfig,
    device: &Device,
    overwrite: bool,
    progress: Progress,
) -> Result<LanguageScores, BackboneError> {
    let staged = StagedDir::new(out, overwrite)?;
    let written = |e: serde_json::Error| BackboneError::Tokenizer(e.to_string());
    let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).map_err(written);
    staged.write("tokenizer.json", pretty(&tokenizer_json())?.as_bytes())?;
    staged.write("tokenizer_config.json", pretty(&tokenizer_config())?.as_bytes())?;
    staged.write("chat_template.jinja", CHAT_TEMPLATE.as_bytes())?;
    let tokenizer = Tokenizer::load(staged.path(), &Default::default())?;

    let config = config(tokens().len());
    let device = device.clone().autodiff();
    let head = LinearConfig::new(config.hidden_size, config.vocab_size).with_bias(false);
    let model = LanguageModel { language_model: config.init(&device), lm_head: head.init(&device) };
    let mut model = seeded_init(model, InitScheme::Normal { std: 0.04 }, backbone.seed, &device);
    let mut optimizer = Optimizer::new(&OptimizerConfig { beta2: 0.98, ..OptimizerConfig::default() });
    let schedule = Schedule::default();
    let scenes = sample_scenes(Split::Train, SCENES, backbone.seed);
    let mut rng = ChaCha8Rng::seed_from_u64(backbone.seed ^ 0x1a2b);
    let steps = backbone.language_steps;
    let mut recent = Vec::new();
    for step in 0..steps {
        let documents = draw(&scenes, BATCH, &tokenizer, &mut rng)?;
        let loss = loss(&model, &config, &documents, &mut rng, &device);
        let lr = 2e-3 * schedule.factor(step, steps);
        let readout;
        (model, readout) = optimizer.step(model, &loss, &[], lr)?;
        recent.push(readout.values[0]);
        progress("decoder", step + 1, steps, readout.values[0]);
    }
    let tail = &recent[recent.len().saturating_sub(50)..];
    let validation = sample_scenes(Split::Validation, 200, backbone.seed);
    let scores = LanguageScores {
        loss: tail.iter().sum::<f32>() / tail.len().max(1) as f32,
        from_description: answered(&model, &config, &validation, false, &tokenizer, &device)?,
        from_raster: answered(&model, &config, &validation, true, &tokenizer, &device)?,
    };

    let mut value = serde_json::to_value(&config).map_err(written)?;
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
        documents.push(document(&scene, rng.random::<f64>(), tokenizer, rng)?);
    }
    Ok(documents)
}

/// One document: `kind` below 0.65 a raster with questions, below 0.85 a raster with a bare caption, else a description.
fn document(scene: &Scene, kind: f64, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) -> Result<Document, BackboneError> {
    let image = "<image>".repeat(PATCHES_PER_SIDE * PATCHES_PER_SIDE);
    let (raster, turns, first, bare) = if kind < 0.65 {
        let (raster, turns) = raster_document(scene, PATCHES_PER_SIDE, rng);
        (raster, turns, format!("{image}\n"), None)
    } else if kind < 0.85 {
        let (raster, _) = raster_document(scene, PATCHES_PER_SIDE, rng);
        (raster, Vec::new(), String::new(), Some(format!("{image}{}", caption(scene, rng))))
    } else {
        let (description, turns) = description_document(scene, rng);
        (Vec::new(), turns, format!("{description} "), None)
    };
    let mut ids = tokenizer.encode(&bare.unwrap_or_default(), true)?;
    let mut answers = Vec::new();
    for (turn, (question, answer)) in turns.iter().enumerate() {
        let lead = if turn == 0 { first.as_str() } else { "" };
        let asked = tokenizer.encode(&format!("USER: {lead}{question} ASSISTANT:"), false)?;
        let said = tokenizer.encode(answer, false)?;
        if turn > 0 && ids.len() + asked.len() + said.len() >= MAX_TOKENS {
            break;
        }
        ids.extend(asked);
        let start = ids.len();
        ids.extend(said);
        ids.push(EOS);
        answers.push(start..ids.len());
    }
    let image_id = tokenizer.image_id()?;
    let flags: Vec<bool> = ids.iter().map(|id| *id == image_id).collect();
    let mut words = raster.iter().map(|word| tokenizer.id_of(word).unwrap_or(PAD));
    for (id, is_raster) in ids.iter_mut().zip(&flags) {
        if *is_raster {
            *id = words.next().unwrap_or(PAD);
        }
    }
    Ok(Document { ids, raster: flags, answers })
}

/// Hidden states after the final norm, `[B * T, d]`; the raster's embeddings carry Gaussian noise.
fn hidden(
    model: &LanguageModel,
    config: &LlamaConfig,
    documents: &[Document],
    rng: &mut impl Rng,
    device: &Device,
) -> (Tensor<2>, usize) {
    let (b, d) = (documents.len(), config.hidden_size);
    let t = documents.iter().map(|x| x.ids.len()).max().unwrap_or(0);
    let mut ids = vec![i64::from(PAD); b * t];
    let mut noise = vec![0f32; b * t * d];
    for (row, document) in documents.iter().enumerate() {
        for (p, (id, raster)) in document.ids.iter().zip(&document.raster).enumerate() {
            ids[row * t + p] = i64::from(*id);
            if *raster {
                let start = (row * t + p) * d;
                noise[start..start + d].iter_mut().for_each(|x| *x = EMBEDDING_NOISE * gaussian(rng));
            }
        }
    }
    let plain = device.clone().without_autodiff();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [b * t]), &plain);
    let noise = Tensor::<2>::from_data(TensorData::new(noise, [b * t, d]), &plain);
    let table = model.language_model.table().without_autodiff();
    let scale = table.square().mean().sqrt().reshape([1, 1]);
    let embeddings = model.language_model.embed(ids) + noise * scale;
    let rope = RotaryTables::new(&[(0..t).collect()], config.head_dim(), config.rope_theta(), DType::F32, &plain);
    let mask = Mask::causal(t, 0, &[0], &plain);
    let out = model.language_model.forward(embeddings.reshape([b, t, d]), &rope, &mask, None, None);
    (out.reshape([b * t, d]), t)
}

fn loss(
    model: &LanguageModel,
    config: &LlamaConfig,
    documents: &[Document],
    rng: &mut impl Rng,
    device: &Device,
) -> Tensor<1> {
    let (hidden, t) = hidden(model, config, documents, rng, device);
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for (row, document) in documents.iter().enumerate() {
        for p in 1..document.ids.len() {
            // A raster's own words are noise: nothing to learn from predicting them.
            if !document.raster[p] {
                rows.push((row * t + p - 1) as i64);
                labels.push(i64::from(document.ids[p]));
            }
        }
    }
    let n = rows.len();
    let plain = device.clone().without_autodiff();
    let ints = |v: Vec<i64>| Tensor::<1, Int>::from_data(TensorData::new(v, [n]), &plain);
    let logits = model.lm_head.forward(hidden.select(0, ints(rows)));
    let scores = log_softmax(logits, 1).gather(1, ints(labels).unsqueeze_dim::<2>(1));
    scores.mean().neg()
}

/// Share of answers whose every token is the most likely one.
fn answered(
    model: &LanguageModel,
    config: &LlamaConfig,
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
        let kind = if raster { 0.0 } else { 1.0 };
        let documents: Result<Vec<_>, _> = chunk.iter().map(|s| document(s, kind, tokenizer, &mut rng)).collect();
        let documents = documents?;
        let (hidden, t) = hidden(&model, config, &documents, &mut rng, &device);
        let best = model.lm_head.forward(hidden).argmax(1).try_into_vec_as::<i64>()?;
        for (row, document) in documents.iter().enumerate() {
            for answer in &document.answers {
                // Captions may be phrased in many ways: only short answers are counted.
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

/// A standard normal draw (Box-Muller).
fn gaussian(rng: &mut impl Rng) -> f32 {
    let u = 1.0 - rng.random::<f32>();
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}
