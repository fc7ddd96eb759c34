//! Applies the lens to one prompt: the nearest tokens, norms, angles and attention of its visual embeddings.

use std::collections::BTreeMap;

use basic_core::{Basic, Targets};
use basic_data::ImageSource;
use basic_models::nn::Llava;
use basic_models::{Batch, Checkpoint, ImageTokens, LlavaConfig};
use burn::tensor::{DType, Int, Tensor, TensorData, TensorReadError};
use serde::Serialize;

use super::trace::{LayerRows, trace};
use super::{Asked, Grid, LensError, Meaning, Rule, TokenText, TokenTexts, Truth, Vocabulary};

/// A token's id, and its similarity (cosine) or probability.
pub type Near = (u32, f32);

/// What the lens computes.
#[derive(Debug, Clone)]
pub struct LensOptions {
    /// Gives k and the layer weights for V^ and a; the weights of the losses are not used.
    pub basic: Basic,
    /// How many tokens are listed per visual embedding.
    pub top: usize,
    /// Whether tokens are also ranked by inner product and by logits, not only by cosine.
    pub all: bool,
    /// The layers to read, where 0 is the projector's output; `None` for all.
    pub layers: Option<Vec<usize>>,
    /// The rule for meaningful visual embeddings.
    pub meaning: Meaning,
}

/// The token lens of a loaded model.
#[derive(Debug)]
pub struct Lens<'a> {
    model: &'a Llava,
    checkpoint: &'a Checkpoint,
    options: LensOptions,
    vocabulary: Vocabulary,
    texts: TokenTexts<'a>,
    grid: Grid,
    k: usize,
}

/// The lens's result for a prompt.
#[derive(Debug, Clone, Serialize)]
pub struct Reading {
    /// The prompt's images, in order.
    pub images: Vec<ImageReading>,
    /// Every token that occurs in the images' layers, and the end token, by id.
    pub tokens: BTreeMap<u32, TokenText>,
}

/// The lens's result for one image. Lists have one entry per visual embedding.
#[derive(Debug, Clone, Serialize)]
pub struct ImageReading {
    /// The number of text positions after the image (n).
    pub text_rows: usize,
    /// The patch weights a_i, from the attention of the first k layers; 0 if no text follows the image.
    pub attention: Vec<f32>,
    /// For visual embeddings that are queries of a resampler: how much each of them attends to each patch of the grid, row
    /// by row, in the resampler's last layer that reads the patches, as the mean over the heads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<Vec<f32>>,
    /// The layers, in order.
    pub layers: Vec<LayerReading>,
    /// The sum over the V^_i at length 1: `d` numbers.
    #[serde(skip)]
    pub target_direction: Vec<f32>,
}

/// The lens's result for one image at one layer. Lists have one entry per visual embedding.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReading {
    /// 0 for the projector's output, h for decoder layer h.
    pub layer: usize,
    /// The length (L2 norm) of v_i or V~_h.
    pub norm: Vec<f32>,
    /// The angle to V^ in degrees, 0 to 180.
    pub angle: Vec<f32>,
    /// This layer's attention from the text after the image; `None` at layer 0.
    pub attention: Option<Vec<f32>>,
    /// The tokens with the highest cosine with rows of E, and the cosine.
    pub nearest: Vec<Vec<Near>>,
    /// The tokens with the highest probability in `softmax(x E^T)`, and the probability; empty unless requested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Vec<Near>>,
    /// The tokens with the highest probability by the logits, and the probability; empty unless requested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logits: Vec<Vec<Near>>,
    /// Whether the nearest token is meaningful; `None` if the embedding doesn't count.
    pub meaningful: Vec<Option<bool>>,
    /// The share of meaningful embeddings among those that count; `None` if none counts.
    pub meaningful_share: Option<f64>,
    /// The share of embeddings whose nearest token is the end token; `None` without an end token.
    pub end_share: Option<f64>,
    /// The mean cosine with the end token; `None` without an end token.
    pub end_cosine: Option<f64>,
    /// The sum over the embeddings at length 1: `d` numbers.
    #[serde(skip)]
    pub direction: Vec<f32>,
}

impl<'a> Lens<'a> {
    /// A lens for a loaded checkpoint.
    ///
    /// # Errors
    ///
    /// [`LensError::Layer`] and [`LensError::Objective`] if a layer or k is beyond the decoder's layers.
    pub fn new(model: &'a Llava, checkpoint: &'a Checkpoint, options: LensOptions) -> Result<Self, LensError> {
        let last = check(&checkpoint.config, &options)?;
        let k = options.basic.resolve_k(last)?;
        let texts = TokenTexts::new(&checkpoint.tokenizer);
        let (vocabulary, grid) = (Vocabulary::of(model)?, Grid::of(&checkpoint.config));
        Ok(Self { model, checkpoint, options, vocabulary, texts, grid, k })
    }

    /// Changes how many tokens are listed, and which layers are read (`None` for all).
    ///
    /// # Errors
    ///
    /// [`LensError::Layer`] if a layer is beyond the decoder's layers; then nothing is changed.
    pub fn focus(&mut self, top: usize, layers: Option<Vec<usize>>) -> Result<(), LensError> {
        let options = LensOptions { top, layers, ..self.options.clone() };
        check(&self.checkpoint.config, &options)?;
        self.options = options;
        Ok(())
    }

    /// The places of the visual embeddings.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The number of supervising layers (k).
    pub fn k(&self) -> usize {
        self.k
    }

    /// The rule for meaningful embeddings.
    pub fn meaning(&self) -> Meaning {
        self.options.meaning
    }

    /// The decoder's embedding table.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The model that the lens reads.
    pub fn model(&self) -> &'a Llava {
        self.model
    }

    /// The checkpoint that the lens reads.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The token that ends an answer: the tokenizer's end token, or else the first in the configuration.
    pub fn end_token(&self) -> Option<u32> {
        let config = || self.checkpoint.config.text_config.eos_ids().into_iter().next();
        self.checkpoint.tokenizer.ids().eos.or_else(config)
    }

    /// The text of a token.
    pub fn text(&mut self, id: u32) -> &TokenText {
        self.texts.get(id)
    }

    /// Reads a prompt with its images; `truths` has the true words of each image for the rule. Of an image that is cut into
    /// tiles, the visual embeddings of the base image are read.
    ///
    /// # Errors
    ///
    /// [`LensError::NoImage`] for a prompt without an image, [`LensError::Size`] for an image of the wrong size,
    /// [`LensError::NotFinite`] for hidden states that are NaN or infinite, and the errors of reading images and
    /// tensors.
    pub fn read(
        &mut self,
        prompt: ImageTokens,
        images: &[ImageSource],
        truths: &[Truth],
    ) -> Result<Reading, LensError> {
        let prompt = ImageTokens { pixels: pixels(self.checkpoint, images)?, ..prompt };
        if prompt.images.is_empty() {
            return Err(LensError::NoImage);
        }
        let device = self.model.device().without_autodiff();
        let batch = Batch::collate(&[prompt], self.checkpoint.pad_id(), self.checkpoint.image_shape(), &device);
        let asked = Asked { top: self.options.top.max(1), all: self.options.all, end: self.end_token() };
        let mut read: Vec<ImageReading> = Vec::new();
        let model = self.model;
        let basic = self.options.basic.clone();
        let shown = shown(&batch, self.grid.places.len());
        let mut visit = |layer: LayerRows, targets: &Targets| -> Result<(), LensError> {
            let (layer, targets) = match &shown {
                Some(rows) => base_images(layer, targets, rows),
                None => (layer, targets.clone()),
            };
            if read.is_empty() {
                read = empty(&batch, &targets)?;
            }
            if self.options.layers.as_ref().is_some_and(|layers| !layers.contains(&layer.layer)) {
                return Ok(());
            }
            let all = self.look(&layer, &targets, &asked, read.len())?;
            for ((image, layer), truth) in
                read.iter_mut().zip(all).zip(truths.iter().chain(std::iter::repeat(&Truth::Any)))
            {
                let layer = self.judged(layer, truth, asked.end);
                image.layers.push(layer);
            }
            Ok(())
        };
        trace(model, &batch, &basic, &mut visit)?;
        self.look_at_queries(&batch, &mut read)?;
        let mut tokens = BTreeMap::new();
        let layers = read.iter().flat_map(|image| &image.layers);
        let ids = layers.flat_map(|layer| layer.nearest.iter().chain(&layer.scores).chain(&layer.logits)).flatten();
        for (id, _) in ids {
            tokens.entry(*id).or_insert_with(|| self.texts.get(*id).clone());
        }
        if let Some(end) = asked.end {
            tokens.entry(end).or_insert_with(|| self.texts.get(end).clone());
        }
        Ok(Reading { images: read, tokens })
    }

    /// Adds where the queries of a resampler look, if there are any.
    fn look_at_queries(&self, batch: &Batch, read: &mut [ImageReading]) -> Result<(), LensError> {
        let config = &self.checkpoint.config;
        let Some(features) = self.model.features(batch) else { return Ok(()) };
        let Some(reads) = self.model.multi_modal_projector.reads(features) else { return Ok(()) };
        // What comes before the patches (CLS, registers) has no place in the grid.
        let patches = config.vision_config.num_patches().min(config.features());
        let [images, queries, positions] = reads.dims();
        let reads = reads.narrow(2, positions - patches, patches);
        let values = reads.without_autodiff().reshape([images * queries * patches]).try_into_vec_as::<f32>()?;
        for (image, own) in read.iter_mut().zip(values.chunks(queries * patches)) {
            image.queries = own.chunks(patches).map(<[f32]>::to_vec).collect();
        }
        Ok(())
    }

    /// One layer's numbers for each image, before the rule for meaningful embeddings is applied.
    fn look(
        &self,
        layer: &LayerRows,
        targets: &Targets,
        asked: &Asked,
        images: usize,
    ) -> Result<Vec<LayerReading>, LensError> {
        let rows = self.vocabulary.read(self.model, &layer.rows, layer.layer, asked)?;
        let angles = angles(&layer.rows, &targets.embeddings)?;
        let m = rows.len() / images.max(1);
        let mut directions = directions(&layer.rows, images)?.into_iter();
        let parts = rows.chunks(m.max(1)).enumerate().map(|(image, rows)| LayerReading {
            layer: layer.layer,
            norm: rows.iter().map(|row| row.norm).collect(),
            angle: angles[image * m..(image + 1) * m].to_vec(),
            attention: layer.attention.as_ref().map(|all| all[image * m..(image + 1) * m].to_vec()),
            nearest: rows.iter().map(|row| row.nearest.clone()).collect(),
            scores: if asked.all { rows.iter().map(|row| row.scores.clone()).collect() } else { Vec::new() },
            logits: if asked.all { rows.iter().map(|row| row.logits.clone()).collect() } else { Vec::new() },
            meaningful: Vec::new(),
            meaningful_share: None,
            end_share: None,
            end_cosine: mean(rows.iter().filter_map(|row| row.end)),
            direction: directions.next().unwrap_or_default(),
        });
        Ok(parts.collect())
    }

    fn judged(&mut self, mut layer: LayerReading, truth: &Truth, end: Option<u32>) -> LayerReading {
        let meaning = self.options.meaning;
        let nearest = layer.nearest.iter().enumerate();
        layer.meaningful = nearest
            .map(|(index, near)| near.first().and_then(|(id, s)| meaning.judge(truth, index, self.texts.get(*id), *s)))
            .collect();
        layer.meaningful_share = share(layer.meaningful.iter().flatten().copied());
        layer.end_share =
            end.and_then(|end| share(layer.nearest.iter().map(|near| near.first().is_some_and(|(id, _)| *id == end))));
        layer
    }
}

/// Checks the options against the configuration, before weights are read; returns the number of decoder layers.
pub(super) fn check(config: &LlavaConfig, options: &LensOptions) -> Result<usize, LensError> {
    let last = config.text_config.num_hidden_layers;
    if config.vision_config.is_flexible() {
        return Err(LensError::OwnGrids);
    }
    options.basic.resolve_k(last)?;
    match options.layers.iter().flatten().find(|layer| **layer > last) {
        Some(layer) => Err(LensError::Layer { layer: *layer, last }),
        None => Ok(last),
    }
}

impl LensOptions {
    /// What the nearest token of each visual embedding takes, and no more.
    pub fn nearest() -> Self {
        let meaning = Meaning { rule: Rule::Word, min_similarity: None };
        Self { basic: Basic::default(), top: 1, all: false, layers: Some(vec![0]), meaning }
    }

    /// Checks k and the layers against a model's configuration, and that the lens can read such a model.
    ///
    /// # Errors
    ///
    /// [`LensError::Layer`], [`LensError::Objective`] and [`LensError::OwnGrids`].
    pub fn check(&self, config: &LlavaConfig) -> Result<(), LensError> {
        check(config, self).map(|_| ())
    }
}

/// The pixel values of the images, which must have the size that the vision encoder takes.
fn pixels(checkpoint: &Checkpoint, images: &[ImageSource]) -> Result<Vec<Vec<f32>>, LensError> {
    let [_, side, _] = checkpoint.image_shape();
    let one = |image: &ImageSource| {
        let pixels = image.pixels(checkpoint)?;
        match (pixels.height, pixels.width) == (side, side) {
            true => Ok(pixels.data),
            false => {
                Err(LensError::Size { image: image.name().into(), height: pixels.height, width: pixels.width, side })
            }
        }
    };
    images.iter().map(one).collect()
}

/// A result for each image that has the patch weights and no layers yet.
fn empty(batch: &Batch, targets: &Targets) -> Result<Vec<ImageReading>, TensorReadError> {
    let weights = targets.weights.clone().cast(DType::F32).try_into_vec_as::<f32>()?;
    let each = weights.len() / batch.layout.images.len().max(1);
    let mut weights = weights.into_iter();
    let mut directions = directions(&targets.embeddings, batch.layout.images.len())?.into_iter();
    let images = batch.layout.images.iter().map(|image| ImageReading {
        text_rows: image.text_rows.len(),
        attention: weights.by_ref().take(each).collect(),
        queries: Vec::new(),
        layers: Vec::new(),
        target_direction: directions.next().unwrap_or_default(),
    });
    Ok(images.collect())
}

/// The rows at length 1.
fn unit(rows: &Tensor<2>) -> Tensor<2> {
    rows.clone() / rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12)
}

/// The sum over each image's rows at length 1, all images with equally many.
fn directions(rows: &Tensor<2>, images: usize) -> Result<Vec<Vec<f32>>, TensorReadError> {
    let [all, d] = rows.dims();
    if images == 0 {
        return Ok(Vec::new());
    }
    let sums = unit(rows).reshape([images, all / images, d]).sum_dim(1).reshape([images * d]);
    Ok(sums.try_into_vec_as::<f32>()?.chunks(d).map(<[f32]>::to_vec).collect())
}

/// The rows of the base images' visual embeddings, `m` for each image, among those of all tiles; `None` if there are no
/// others.
fn shown(batch: &Batch, m: usize) -> Option<Vec<usize>> {
    let images = &batch.layout.images;
    let mut first = 0;
    let rows = images.iter().flat_map(|image| {
        let start = first;
        first += image.positions.len();
        start..start + m.min(image.positions.len())
    });
    let rows: Vec<usize> = rows.collect();
    (rows.len() < images.iter().map(|image| image.positions.len()).sum()).then_some(rows)
}

/// A layer's rows and the targets at these rows alone.
fn base_images(layer: LayerRows, targets: &Targets, rows: &[usize]) -> (LayerRows, Targets) {
    let places: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let places = TensorData::new(places, [rows.len()]);
    let places = Tensor::<1, Int>::from_data(places, &layer.rows.device());
    let attention = layer.attention.map(|all| rows.iter().filter_map(|row| all.get(*row).copied()).collect());
    let targets = Targets {
        embeddings: targets.embeddings.clone().select(0, places.clone()),
        weights: targets.weights.clone().select(0, places.clone()),
    };
    (LayerRows { rows: layer.rows.select(0, places), attention, ..layer }, targets)
}

/// The angles between rows, in degrees. They come from `|u - t|` and `|u + t|`, because the arc cosine is inaccurate
/// for small angles.
fn angles(rows: &Tensor<2>, targets: &Tensor<2>) -> Result<Vec<f32>, TensorReadError> {
    let (u, t) = (unit(rows), unit(targets));
    let length = |x: Tensor<2>| x.square().sum_dim(1).sqrt().try_into_vec_as::<f32>();
    let (apart, along) = (length(u.clone() - t.clone())?, length(u + t)?);
    let angle = |(apart, along): (f32, f32)| (2.0 * f64::from(apart).atan2(f64::from(along))).to_degrees() as f32;
    Ok(apart.into_iter().zip(along).map(angle).collect())
}

/// The mean; `None` of no values.
pub(super) fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + f64::from(value), n + 1));
    (n > 0).then(|| sum / n as f64)
}

fn share(values: impl Iterator<Item = bool>) -> Option<f64> {
    mean(values.map(|value| if value { 1.0 } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::angles;

    #[test]
    fn angles_are_right_from_the_smallest_to_the_straight_one() {
        let device = basic_core::DeviceSpec::Cpu.open().unwrap();
        let rows = Tensor::<2>::from_floats([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [1.0, 1e-4]], &device);
        let targets = Tensor::<2>::from_floats([[5.0, 0.0]; 5], &device);
        let found = angles(&rows, &targets).unwrap();
        for (found, expected) in found.iter().zip([0.0, 90.0, 180.0, 45.0, 1e-4f64.atan().to_degrees()]) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} and not {expected}");
        }
    }
}
