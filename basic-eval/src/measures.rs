//! Measures a model in ways that do not need its answers: how many visual embeddings have a true word as their nearest
//! token, how long the visual embeddings are, and the mean loss over given batches. Studies report these numbers.

use basic_data::shapes::{SceneRecord, patch_truth, true_words};
use basic_data::{ImageBase, ImageNameError, ImageSource, VisionCache};
use basic_models::nn::Llava;
use basic_models::{Batch, Checkpoint, CheckpointError};
use burn::tensor::{DType, Tensor, TensorReadError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use thiserror::Error;

use crate::lens::{Grid, Place, TokenTexts};

/// Why an analysis failed.
#[derive(Debug, Error)]
pub enum AnalysisError {
    /// The checkpoint or an image could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A scene's image is missing, or it does not lie below its folder.
    #[error("scene: {0}")]
    Image(#[from] ImageNameError),
    /// The device failed while a tensor was read.
    #[error("a tensor could not be read from the device: {0}")]
    Read(#[from] TensorReadError),
}

/// How many visual embeddings have a nearest token that is true of the image. The paper counts such embeddings too: 74
/// of 576 for LLaVA, 217 for BASIC.
#[derive(Debug, Clone, Serialize)]
pub struct Grounding {
    /// How many patches that an object covers were examined.
    pub patches: usize,
    /// The share of them whose nearest token, by cosine over the whole embedding table, names the colour, shape or size
    /// of the object that covers the patch.
    pub share: f64,
    /// The same share with the embeddings shuffled among the object patches: what word frequencies alone would give.
    pub chance: f64,
    /// The mean length (L2 norm) of the visual embeddings of all patches.
    pub v_norm: f64,
    /// The mean length (L2 norm) of the token embeddings.
    pub token_norm: f64,
}

/// Finds the nearest token of every patch that an object covers in the given scenes, and counts how often it is true.
///
/// # Errors
///
/// An [`AnalysisError`] that names the image that could not be read.
pub fn grounding(
    model: &Llava,
    checkpoint: &Checkpoint,
    scenes: &[SceneRecord],
    base: &ImageBase,
    cache: &mut VisionCache,
) -> Result<Grounding, AnalysisError> {
    let table = model.language_model.table().without_autodiff().cast(DType::F32);
    let lengths = table.clone().square().sum_dim(1).sqrt();
    let token_norm = f64::from(lengths.clone().mean().try_into_scalar::<f32>()?);
    let directions = (table / lengths.clamp_min(1e-12)).transpose(); // [d, V]
    let grid = Grid::of(&checkpoint.config);
    let mut texts = TokenTexts::new(&checkpoint.tokenizer);
    let mut nearest: Vec<String> = Vec::new();
    let mut truths: Vec<[&'static str; 3]> = Vec::new();
    let (mut norms, mut rows) = (0.0, 0usize);
    for chunk in scenes.chunks(32) {
        let files = chunk.iter().map(|scene| base.file(&scene.image).map(ImageSource::from));
        let files: Vec<ImageSource> = files.collect::<Result<_, _>>()?;
        let Some(features) = cache.features(model, checkpoint, &files)? else { continue };
        let v: Tensor<2> = model.multi_modal_projector.forward(features).without_autodiff().cast(DType::F32);
        let lengths = v.clone().square().sum_dim(1).sqrt();
        rows += v.dims()[0];
        norms += f64::from(lengths.sum().try_into_scalar::<f32>()?);
        // v is not normalized: its length scales all cosines of a row alike and does not change the nearest token.
        let best = v.matmul(directions.clone()).argmax(1).try_into_vec_as::<i64>()?;
        let mut first = 0;
        for (scene, tiles) in chunk.iter().zip(ImageSource::tiles_of(&files, checkpoint)?) {
            // The base image is the first of an image's tiles.
            let start = first;
            first += tiles.patches();
            let covered = patch_truth(&scene.scene, scene.render_seed, grid.side);
            for (embedding, place) in grid.places.iter().enumerate() {
                let Place::Patch { row, column } = place else { continue };
                let object = covered.get(row * grid.side + column).copied().flatten();
                let object = object.and_then(|i| scene.scene.objects().get(i));
                if let (Some(object), Some(id)) = (object, best.get(start + embedding)) {
                    nearest.push(texts.get(*id as u32).folded.clone());
                    truths.push(true_words(object));
                }
            }
        }
    }
    let share = |words: &[String]| {
        let hits = words.iter().zip(&truths).filter(|(word, truth)| truth.contains(&word.as_str())).count();
        hits as f64 / truths.len().max(1) as f64
    };
    let found = share(&nearest);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let shuffles = 20;
    let mut chance = 0.0;
    for _ in 0..shuffles {
        nearest.shuffle(&mut rng);
        chance += share(&nearest) / f64::from(shuffles);
    }
    Ok(Grounding { patches: truths.len(), share: found, chance, v_norm: norms / rows.max(1) as f64, token_norm })
}

/// The mean lengths (L2 norms) of the visual embeddings of several batches, and of the token embeddings.
///
/// # Errors
///
/// [`AnalysisError::Read`] if the device fails.
pub fn mean_lengths(model: &Llava, batches: &[Batch]) -> Result<[f64; 2], AnalysisError> {
    let length = |rows: Tensor<2>| rows.without_autodiff().cast(DType::F32).square().sum_dim(1).sqrt();
    let tokens = f64::from(length(model.language_model.table()).mean().try_into_scalar::<f32>()?);
    let (mut sum, mut rows) = (0.0, 0usize);
    for v in batches.iter().filter_map(|batch| model.visual_embeddings(batch)) {
        rows += v.dims()[0];
        sum += f64::from(length(v).sum().try_into_scalar::<f32>()?);
    }
    Ok([sum / rows.max(1) as f64, tokens])
}

/// The mean cross entropy over the target tokens of several batches.
///
/// # Errors
///
/// [`AnalysisError::Read`] if the device fails.
pub fn mean_loss(model: &Llava, batches: &[Batch]) -> Result<f64, AnalysisError> {
    let (mut sum, mut tokens) = (0.0, 0usize);
    let objective = basic_core::Objective::llava();
    for batch in batches {
        // LLaVA's objective has no setting that could be out of range, so this does not fail.
        let Ok(forward) = model.forward(batch, &objective) else { continue };
        let loss = model.lm_loss(batch, forward.hidden).try_into_scalar::<f32>()?;
        sum += f64::from(loss) * batch.label_count() as f64;
        tokens += batch.label_count();
    }
    Ok(sum / tokens.max(1) as f64)
}
