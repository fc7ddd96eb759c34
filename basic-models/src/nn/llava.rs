//! LLaVA: a vision encoder, a projector and a decoder. Encode, project, splice, decode, loss.

use basic_core::ops::{HeadLayout, embedding, linear as ops_linear, linear_cross_entropy};
use basic_core::{Heads, Losses, ModelShape, Objective, ObjectiveError, Observed, Supervised, Supervision, Targets};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};

use super::linear::linear;
use super::positions::on_grid;
use super::{Decoder, KvCache, Masks, Projector, RotaryTables, VisionEncoder, packed_positions};
use crate::config::LlavaConfig;
use crate::input::Batch;

/// The composed model (transformers' `LlavaForConditionalGeneration`, or `LlavaNextForConditionalGeneration` if images
/// are cut into tiles).
#[derive(Module, Debug)]
pub struct Llava {
    /// The vision encoder.
    pub vision_tower: VisionEncoder,
    /// The other vision encoders, whose features are joined to the first one's; mostly none.
    pub fused_vision_towers: Vec<VisionEncoder>,
    /// The projector, whose output BASIC supervises.
    pub multi_modal_projector: Projector,
    /// The decoder.
    pub language_model: Decoder,
    /// The output head; `None` if it is the embedding table.
    pub lm_head: Option<Linear>,
    /// The supervision methods' trainable heads, which are not part of a checkpoint.
    pub heads: Heads,
    #[module(skip)]
    config: LlavaConfig,
}

/// The result of a forward pass over a batch.
#[derive(Debug)]
pub struct Forward {
    /// The decoder's output after the final norm, `[B, T, d]`.
    pub hidden: Tensor<3>,
    /// What the losses need of the images.
    pub visual: Visual,
}

impl Forward {
    /// The supervisory embeddings and patch weights; `None` if no method computed any.
    pub fn targets(&self) -> Option<&Targets> {
        self.visual.targets()
    }
}

/// The images' part of what the supervision methods compute their terms from; empty for a text-only batch.
#[derive(Debug, Default)]
pub struct Visual {
    /// Visual embeddings `[M, d]` of all images in sample order.
    pub v: Option<Tensor<2>>,
    /// Patch features of the images, before the projector.
    pub features: Option<Tensor<2>>,
    /// What the methods collected from the layers; `None` if nothing is supervised.
    pub observed: Option<Observed>,
}

impl Visual {
    /// The supervisory embeddings and patch weights; `None` if no method computed any.
    pub fn targets(&self) -> Option<&Targets> {
        self.observed.as_ref().and_then(Observed::targets)
    }
}

/// The counts that a batch's losses are divided by: its own, or those of the larger batch that it is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LossCounts {
    /// The number of target tokens.
    pub tokens: usize,
    /// The number of samples that have an image with text after it.
    pub image_samples: usize,
}

impl LossCounts {
    /// The counts of this batch.
    pub fn of(batch: &Batch) -> Self {
        Self { tokens: batch.label_count(), image_samples: batch.layout.image_samples() }
    }

    /// Turns the mean over the batch's own target tokens into its share of the mean over all.
    pub fn share(self, lm: Tensor<1>, batch: &Batch) -> Tensor<1> {
        let own = batch.label_count();
        if own == self.tokens { lm } else { lm.mul_scalar(own as f64 / self.tokens.max(1) as f64) }
    }
}

impl std::ops::Add for LossCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { tokens: self.tokens + other.tokens, image_samples: self.image_samples + other.image_samples }
    }
}

impl LlavaConfig {
    /// The sizes of the model that the supervision methods need.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            layers: self.text_config.num_hidden_layers,
            width: self.text_config.hidden_size,
            visual_tokens: self.visual_tokens(),
            features: [self.features(), self.feature_width()],
            patches: self.projector.queries().is_none() || self.projector.pooled_side().is_some(),
            tiled: self.tiling().varies(),
        }
    }

    /// Builds the model. A weight is allocated only when it is first used or loaded.
    pub fn init(&self, device: &Device) -> Llava {
        let text = &self.text_config;
        let head = LinearConfig::new(text.hidden_size, text.vocab_size).with_bias(false);
        Llava {
            vision_tower: self.vision_config.init(device),
            fused_vision_towers: self.fused_vision_configs.iter().map(|config| config.init(device)).collect(),
            multi_modal_projector: Projector::new(self, device),
            language_model: text.init(device),
            lm_head: (!self.tied()).then(|| head.init(device)),
            heads: Heads::default(),
            config: self.clone(),
        }
    }
}

impl Llava {
    /// The model's configuration.
    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    /// The model without the supervision methods' heads, as a checkpoint stores it.
    #[must_use]
    pub fn without_heads(&self) -> Self {
        Self { heads: Heads::default(), ..self.clone() }
    }

    /// The device of the decoder's weights.
    pub fn device(&self) -> Device {
        self.language_model.table().device()
    }

    /// The parameters' type.
    pub fn dtype(&self) -> DType {
        self.language_model.table().dtype()
    }

    /// Patch features of the chosen layers side by side, without the positions that the configuration drops. The features
    /// of several encoders are joined by channel, on the grid of the first one's patches: the others' are interpolated to
    /// it, bilinearly, where they have another grid.
    ///
    /// # Shapes
    /// - pixels: `[N, channels, H, W]`, the sizes of [`LlavaConfig::image_shape`]
    /// - output: `[N * positions, feature width]`
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<2> {
        let config = &self.config;
        let [n, values, ..] = pixels.dims();
        let towers = [&self.vision_tower].into_iter().chain(&self.fused_vision_towers);
        let mut first = 0;
        let each = towers.zip(config.encoders()).map(|(tower, encoder)| {
            let own = match config.is_fused() {
                false => pixels.clone(),
                true => {
                    let [channels, height, width] = encoder.pixel_shape();
                    let length = channels * height * width;
                    let own = pixels.clone().reshape([n, values]).narrow(1, first, length);
                    first += length;
                    own.reshape([n, channels, height, width])
                }
            };
            // The configuration was validated when it was read, so the layers exist.
            let layers = config.feature_layers(encoder).unwrap_or_default();
            let features = Tensor::cat(tower.hidden_states(own.cast(self.dtype()), &layers), 2);
            let (positions, dropped) = (features.dims()[1], config.dropped(encoder));
            let features = features.narrow(1, dropped, positions - dropped);
            on_grid(features, encoder.grid(), config.vision_config.grid())
        });
        let features = Tensor::cat(each.collect(), 2);
        let [n, positions, width] = features.dims();
        features.reshape([n * positions, width])
    }

    /// Patch features of a batch's images, as the batch gives them or encoded now, without the rows that are not kept:
    /// `[images * positions, feature width]` if no image is cut into tiles.
    pub fn features(&self, batch: &Batch) -> Option<Tensor<2>> {
        match (&batch.features, &batch.pixels) {
            (Some(features), _) => Some(features.clone()),
            (None, Some(pixels)) => {
                let features = self.encode(pixels.clone());
                Some(match &batch.kept {
                    Some(rows) => embedding(features, rows.clone()),
                    None => features,
                })
            }
            (None, None) => None,
        }
    }

    /// The visual embeddings v of a batch's images, `[M, d]`.
    pub fn visual_embeddings(&self, batch: &Batch) -> Option<Tensor<2>> {
        Some(self.multi_modal_projector.forward(self.features(batch)?))
    }

    /// The decoder's input embeddings: token embeddings, with v at the image positions, and the newline embedding behind
    /// each row of patches of an image that is cut into tiles.
    ///
    /// # Shapes
    /// - v: `[M, d]`
    /// - output: `[B, T, d]`
    pub fn splice(&self, batch: &Batch, v: Option<Tensor<2>>) -> Tensor<3> {
        let tokens = self.language_model.embed(batch.ids.clone()); // [B * T, d]
        let d = tokens.dims()[1];
        let rows = match v {
            // One selection from [tokens; v; newline]: it is differentiable in all of them, and the embedding of an
            // image token is never used.
            Some(v) => {
                let newline = self.multi_modal_projector.image_newline.as_ref();
                let newline = newline.map(|newline| newline.val().unsqueeze::<2>());
                let rows = [Some(tokens), Some(v), newline].into_iter().flatten().collect();
                embedding(Tensor::cat(rows, 0), batch.splice_rows.clone())
            }
            None => tokens,
        };
        rows.reshape([batch.layout.batch, batch.layout.sequence, d])
    }

    /// Encodes, projects, splices and decodes a batch, observed by the methods of `objective`.
    ///
    /// # Errors
    ///
    /// Returns [`ObjectiveError`] if a setting does not fit the model.
    pub fn forward(&self, batch: &Batch, objective: &Objective) -> Result<Forward, ObjectiveError> {
        let features = self.features(batch);
        let v = features.clone().map(|features| self.multi_modal_projector.forward(features));
        self.forward_from(batch, objective, features, v)
    }

    /// [`Llava::forward`] from given patch features and visual embeddings.
    ///
    /// # Errors
    ///
    /// Returns [`ObjectiveError`] if a setting does not fit the model.
    pub fn forward_from(
        &self,
        batch: &Batch,
        objective: &Objective,
        features: Option<Tensor<2>>,
        v: Option<Tensor<2>>,
    ) -> Result<Forward, ObjectiveError> {
        let mut supervision = self.supervision(batch, objective)?;
        let embeddings = self.splice(batch, v.clone());
        let (masks, rope) = self.positions(batch);
        let hidden = self.language_model.forward(embeddings, &rope, &masks, supervision.as_mut(), None);
        let observed = supervision.map(Supervision::finish);
        Ok(Forward { hidden, visual: Visual { v, features, observed } })
    }

    /// The observer of the layers for the methods of `objective`, for one forward pass over a batch.
    ///
    /// # Errors
    ///
    /// Returns [`ObjectiveError`] if a setting does not fit the model.
    pub fn supervision(&self, batch: &Batch, objective: &Objective) -> Result<Option<Supervision>, ObjectiveError> {
        objective.check(&self.config.shape())?;
        Ok(Supervision::new(objective, self.language_model.num_layers(), &batch.layout, &self.device()))
    }

    /// The masks and rotary tables of a training batch.
    pub fn positions(&self, batch: &Batch) -> (Masks, RotaryTables) {
        let (text, t, device) = (&self.config.text_config, batch.layout.sequence, self.device());
        match batch.packing() {
            Some(rows) => (Masks::packed(text, &rows, t, &device), self.rope(&packed_positions(&rows, t))),
            // Padding is on the right, where the causal mask hides it from the real positions.
            None => (Masks::new(text, 0, t, &[0], &device), self.rope(&[(0..t).collect()])),
        }
    }

    /// Runs new positions of a generation after the cached ones.
    ///
    /// # Shapes
    /// - embeddings: `[B, T, d]`; the first `padding[b]` positions of sample b are padding
    /// - output: `[B, d]`, the hidden state of the last position
    pub fn decode(&self, embeddings: Tensor<3>, padding: &[usize], cache: &mut KvCache) -> Tensor<2> {
        let [b, t, d] = embeddings.dims();
        self.decode_positions(embeddings, padding, cache).narrow(1, t - 1, 1).reshape([b, d])
    }

    /// [`Llava::decode`] with the hidden states of all new positions, `[B, T, d]`. A `padding` of one number holds for all
    /// samples.
    pub fn decode_positions(&self, embeddings: Tensor<3>, padding: &[usize], cache: &mut KvCache) -> Tensor<3> {
        let t = embeddings.dims()[1];
        let past = cache.len();
        let positions: Vec<Vec<usize>> = if padding.iter().all(|p| *p == 0) {
            vec![(past..past + t).collect()]
        } else {
            let row = |pad: &usize| (past..past + t).map(|p| p.saturating_sub(*pad)).collect();
            padding.iter().map(row).collect()
        };
        let masks = Masks::new(&self.config.text_config, past, t, padding, &self.device());
        self.language_model.forward(embeddings, &self.rope(&positions), &masks, None, Some(cache))
    }

    /// Runs one new position of each of several sequences after those in its own cache; the lengths may differ.
    ///
    /// # Shapes
    /// - embeddings: `[B, d]`, one row for each cache; a cache holds a single sequence
    /// - output: `[B, d]`, the hidden states
    pub fn decode_each(&self, embeddings: Tensor<2>, caches: &mut [&mut KvCache]) -> Tensor<2> {
        let (text, device) = (&self.config.text_config, self.device());
        let places: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
        let masks: Vec<Masks> = places.iter().map(|past| Masks::new(text, *past, 1, &[0], &device)).collect();
        let (dtype, device) = (self.dtype(), device.without_autodiff());
        let rope = RotaryTables::each(&places, text, dtype, &device);
        self.language_model.forward_each(embeddings, &rope, &masks, caches)
    }

    fn rope(&self, positions: &[Vec<usize>]) -> RotaryTables {
        let text = &self.config.text_config;
        RotaryTables::new(positions, text, self.dtype(), &self.device().without_autodiff())
    }

    /// The logits over the vocabulary.
    ///
    /// # Shapes
    /// - hidden: `[N, d]`
    /// - output: `[N, V]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => linear(head, hidden),
            None => ops_linear(hidden, self.language_model.table().transpose(), None),
        }
    }

    /// The mean cross entropy over the batch's labels, computed only on the rows with a label, `[1]`.
    pub fn lm_loss(&self, batch: &Batch, hidden: Tensor<3>) -> Tensor<1> {
        let [b, t, d] = hidden.dims();
        let rows = hidden.reshape([b * t, d]);
        let (head, layout) = match &self.lm_head {
            Some(head) => (head.weight.val(), HeadLayout::TokenColumns),
            None => (self.language_model.table(), HeadLayout::TokenRows),
        };
        linear_cross_entropy(rows, head, layout, &batch.targets)
    }

    /// The losses of a batch, from the result of its forward pass.
    pub fn losses(&self, batch: &Batch, forward: Forward, objective: &Objective) -> Losses {
        self.losses_over(batch, forward, objective, LossCounts::of(batch))
    }

    /// This batch's share of the losses of a larger batch: the shares of all parts add up to the losses of the whole.
    pub fn losses_over(&self, batch: &Batch, forward: Forward, objective: &Objective, counts: LossCounts) -> Losses {
        let lm = counts.share(self.lm_loss(batch, forward.hidden), batch);
        self.losses_with(lm, batch, &forward.visual, objective, counts)
    }

    /// The language model's loss, given as `lm`, `[1]`, together with the methods' terms.
    pub fn losses_with(
        &self,
        lm: Tensor<1>,
        batch: &Batch,
        visual: &Visual,
        objective: &Objective,
        counts: LossCounts,
    ) -> Losses {
        let table = self.language_model.table();
        let supervised = visual.v.as_ref().map(|v| Supervised {
            v,
            table: &table,
            features: visual.features.as_ref(),
            other_features: batch.other_features.as_ref(),
            heads: &self.heads,
            layout: &batch.layout,
            image_samples: counts.image_samples,
        });
        objective.losses(lm, supervised, visual.observed.as_ref())
    }
}
