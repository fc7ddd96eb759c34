//! Pretrains the vision encoder by dense attribute prediction: for every patch it predicts whether an object covers it,
//! and the colour, shape and size of that object. No language is involved.

use std::path::Path;

use basic_data::shapes::{Colour, Scene, Shape, Size, Split, patch_truth, render, sample_scenes};
use basic_models::checkpoint::{Contents, Layout, Replaces, StagedDir, write_tensors};
use basic_models::nn::{InitScheme, VisionEncoder, seeded_init};
use basic_models::processor::{ImageProcessor, ImageProcessorConfig};
use basic_models::{CheckpointError, VisionConfig};
use basic_train::optim::{Optimizer, OptimizerConfig, Schedule};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::{BackboneConfig, BackboneError, PATCHES_PER_SIDE, Progress};

const BATCH: usize = 32;
const SCENES: usize = 20_000;
const PATCHES: usize = PATCHES_PER_SIDE * PATCHES_PER_SIDE;

/// The vision encoder's scores on validation scenes.
#[derive(Debug, Clone, Serialize)]
pub struct VisionEncoderScores {
    /// The mean loss of the last 50 training steps.
    pub loss: f32,
    /// The share of object patches whose colour is predicted right.
    pub colour: f32,
    /// The share of object patches whose shape is predicted right.
    pub shape: f32,
    /// The share of object patches whose size is predicted right.
    pub size: f32,
}

/// The vision encoder with one head per attribute. Only the encoder is saved.
#[derive(Module, Debug)]
struct Attributes {
    vision_tower: VisionEncoder,
    present: Linear,
    colour: Linear,
    shape: Linear,
    size: Linear,
}

fn config() -> VisionConfig {
    VisionConfig {
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        image_size: 60,
        patch_size: 60 / PATCHES_PER_SIDE,
        projection_dim: 128,
        ..VisionConfig::default()
    }
}

/// A batch: the pixels and, for each attribute, the labelled rows of `[B * patches]` with their labels.
struct Labelled {
    pixels: Tensor<4>,
    targets: [(Vec<i64>, Vec<i64>); 4],
}

/// Pretrains the vision encoder and writes it to `out` as a Hugging Face `CLIPVisionModel` directory.
///
/// # Errors
///
/// [`BackboneError`]. A failed run leaves no partial checkpoint at `out`.
pub fn pretrain_vision_encoder(
    out: &Path,
    backbone: &BackboneConfig,
    device: &Device,
    overwrite: bool,
    progress: Progress,
) -> Result<VisionEncoderScores, BackboneError> {
    let staged = StagedDir::replacing(out, Replaces::new(overwrite, Contents::Checkpoint, Vec::new()))?;
    let config = config();
    let images = ImageProcessor::new(ImageProcessorConfig::clip(config.image_size as u32));
    let device = device.clone().autodiff();
    let head = |n| LinearConfig::new(config.hidden_size, n).init(&device);
    let model = Attributes {
        vision_tower: config.init(&device),
        present: head(2),
        colour: head(Colour::ALL.len()),
        shape: head(Shape::ALL.len()),
        size: head(Size::ALL.len()),
    };
    let mut model = seeded_init(model, InitScheme::Normal { std: 0.04 }, backbone.seed, &device);
    let mut optimizer = Optimizer::new(&OptimizerConfig::default());
    let schedule = Schedule::default();
    let scenes = sample_scenes(Split::Train, SCENES, backbone.seed);
    let mut rng = ChaCha8Rng::seed_from_u64(backbone.seed ^ 0x3c4d);
    let steps = backbone.vision_steps;
    let mut recent = Vec::new();
    for step in 0..steps {
        let drawn: Vec<(Scene, u64)> = (0..BATCH)
            .filter_map(|_| Some((scenes.choose(&mut rng)?.clone(), u64::from(rng.random::<u32>()))))
            .collect();
        let batch = label(&drawn, &images, &config, &device)?;
        let logits = logits(&model, batch.pixels, config.num_hidden_layers);
        let mut total = Tensor::<1>::zeros([1], &device.clone().without_autodiff());
        for (scores, (rows, labels)) in logits.into_iter().zip(batch.targets) {
            total = total + cross_entropy(scores, rows, labels, &device);
        }
        let lr = 1e-3 * schedule.factor(step, steps);
        let readout;
        (model, readout) = optimizer.step(model, &total, &[], lr)?;
        recent.push(readout.values[0]);
        progress("vision encoder", step + 1, steps, readout.values[0]);
    }
    let tail = &recent[recent.len().saturating_sub(50)..];
    let loss = tail.iter().sum::<f32>() / tail.len().max(1) as f32;
    let validation: Vec<(Scene, u64)> =
        sample_scenes(Split::Validation, 200, backbone.seed).into_iter().zip(1_000_000..).collect();
    let [_, colour, shape, size] = accuracies(&model, &validation, &images, &config, &device)?;

    let mut value = config.to_value();
    value["architectures"] = json!(["CLIPVisionModel"]);
    value["dtype"] = json!("float16");
    staged.write("config.json", format!("{value:#}\n").as_bytes())?;
    images.save(staged.path())?;
    write_tensors(&staged, &model.vision_tower, "vision_tower", Layout::Vision, DType::F16)?;
    staged.commit().map_err(|e: CheckpointError| e)?;
    Ok(VisionEncoderScores { loss, colour, shape, size })
}

fn label(
    drawn: &[(Scene, u64)],
    images: &ImageProcessor,
    config: &VisionConfig,
    device: &Device,
) -> Result<Labelled, BackboneError> {
    let side = config.image_size;
    let made: Result<Vec<_>, _> = drawn
        .par_iter()
        .map(|(scene, seed)| {
            let pixels = images.process(&render(scene, *seed))?;
            Ok::<_, BackboneError>((pixels.data, patch_truth(scene, *seed, PATCHES_PER_SIDE)))
        })
        .collect();
    let mut pixels = Vec::with_capacity(drawn.len() * 3 * side * side);
    let mut targets: [(Vec<i64>, Vec<i64>); 4] = Default::default();
    for (index, ((data, truth), (scene, _))) in made?.into_iter().zip(drawn).enumerate() {
        pixels.extend(data);
        for (patch, object) in truth.into_iter().enumerate() {
            let row = (index * PATCHES + patch) as i64;
            let mut push = |slot: usize, label: usize| {
                targets[slot].0.push(row);
                targets[slot].1.push(label as i64);
            };
            push(0, usize::from(object.is_some()));
            if let Some(object) = object.and_then(|i| scene.objects().get(i)) {
                push(1, Colour::ALL.iter().position(|c| *c == object.colour).unwrap_or(0));
                push(2, Shape::ALL.iter().position(|s| *s == object.shape).unwrap_or(0));
                push(3, Size::ALL.iter().position(|s| *s == object.size).unwrap_or(0));
            }
        }
    }
    let shape = [drawn.len(), 3, side, side];
    let plain = device.clone().without_autodiff();
    Ok(Labelled { pixels: Tensor::from_data(TensorData::new(pixels, shape), &plain), targets })
}

/// The logits of each attribute, `[B * patches, classes]`.
fn logits(model: &Attributes, pixels: Tensor<4>, layers: usize) -> [Tensor<2>; 4] {
    let features = Tensor::cat(model.vision_tower.hidden_states(pixels, &[layers]), 2);
    let [b, positions, d] = features.dims();
    let patches = features.narrow(1, 1, positions - 1).reshape([b * (positions - 1), d]);
    [&model.present, &model.colour, &model.shape, &model.size].map(|head| head.forward(patches.clone()))
}

fn cross_entropy(scores: Tensor<2>, rows: Vec<i64>, labels: Vec<i64>, device: &Device) -> Tensor<1> {
    let n = rows.len();
    let plain = device.clone().without_autodiff();
    let ints = |v: Vec<i64>| Tensor::<1, Int>::from_data(TensorData::new(v, [n]), &plain);
    let log_q = log_softmax(scores.select(0, ints(rows)), 1);
    log_q.gather(1, ints(labels).unsqueeze_dim::<2>(1)).mean().neg()
}

fn accuracies(
    model: &Attributes,
    scenes: &[(Scene, u64)],
    images: &ImageProcessor,
    config: &VisionConfig,
    device: &Device,
) -> Result<[f32; 4], BackboneError> {
    let model = model.clone().valid();
    let device = device.clone().without_autodiff();
    let (mut right, mut all) = ([0usize; 4], [0usize; 4]);
    for chunk in scenes.chunks(BATCH) {
        let batch = label(chunk, images, config, &device)?;
        let scores = logits(&model, batch.pixels, config.num_hidden_layers);
        for (slot, (scores, (rows, labels))) in scores.into_iter().zip(batch.targets).enumerate() {
            let best = scores.argmax(1).try_into_vec_as::<i64>()?;
            all[slot] += rows.len();
            right[slot] += rows.iter().zip(&labels).filter(|(row, label)| best[**row as usize] == **label).count();
        }
    }
    Ok(std::array::from_fn(|i| right[i] as f32 / all[i].max(1) as f32))
}
