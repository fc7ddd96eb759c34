//! LLaVA: vision encoder, projector, decoder. Encode, project, splice, decode, loss.

use basic_core::ops::{HeadLayout, embedding, linear as ops_linear, linear_cross_entropy};
use basic_core::{Heads, Losses, ModelShape, Objective, ObjectiveError, Observed, Supervised, Supervision, Targets};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};

use super::linear::linear;
use super::{Decoder, KvCache, Masks, Projector, RotaryTables, VisionEncoder, packed_positions};
use crate::config::LlavaConfig;
use crate::input::Batch;

/// The composed model (transformers' `LlavaForConditionalGeneration`).
#[derive(Module, Debug)]
pub struct Llava {
    /// The vision encoder.
    pub vision_tower: VisionEncoder,
    /// The projector: what BASIC supervises.
    pub multi_modal_projector: Projector,
    /// The decoder.
    pub language_model: Decoder,
    /// The output head; `None` where it is the embedding table.
    pub lm_head: Option<Linear>,
    /// The supervision methods' trainable heads; no part of a checkpoint.
    pub heads: Heads,
    #[module(skip)]
    config: LlavaConfig,
}

/// What one forward pass over a batch gives.
#[derive(Debug)]
pub struct Forward {
    /// The decoder's output after the final norm, `[B, T, d]`.
    pub hidden: Tensor<3>,
    /// What became of the images.
    pub visual: Visual,
}

impl Forward {
    /// The supervisory embeddings and patch weights; `None` where no method made any.
    pub fn targets(&self) -> Option<&Targets> {
        self.visual.targets()
    }
}

/// What the supervision methods compute their terms from; empty for a text-only batch.
#[derive(Debug, Default)]
pub struct Visual {
    /// Visual embeddings `[M, d]` of all images in sample order.
    pub v: Option<Tensor<2>>,
    /// Patch features of the images, before the projector.
    pub features: Option<Tensor<2>>,
    /// What the methods saw of the layers; `None` where nothing is supervised.
    pub observed: Option<Observed>,
}

impl Visual {
    /// The supervisory embeddings and patch weights; `None` where no method made any.
    pub fn targets(&self) -> Option<&Targets> {
        self.observed.as_ref().and_then(Observed::targets)
    }
}

/// What the losses of a batch are averaged over: its own, or where it is a part of a larger one, that one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LossCounts {
    /// Target tokens.
    pub tokens: usize,
    /// Samples that have an image with text after it.
    pub image_samples: usize,
}

impl LossCounts {
    /// A batch's own.
    pub fn of(batch: &Batch) -> Self {
        Self { tokens: batch.label_count(), image_samples: batch.layout.image_samples() }
    }

    /// Turns a mean over the batch's own target tokens into its share of the mean over all.
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
    /// What the supervision methods must know of the model.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            layers: self.text_config.num_hidden_layers,
            width: self.text_config.hidden_size,
            visual_tokens: self.visual_tokens(),
            features: [self.features(), self.feature_width()],
        }
    }

    /// A model with lazily made weights: nothing is allocated until a weight is used or loaded.
    pub fn init(&self, device: &Device) -> Llava {
        let text = &self.text_config;
        let head = LinearConfig::new(text.hidden_size, text.vocab_size).with_bias(false);
        Llava {
            vision_tower: self.vision_config.init(device),
            multi_modal_projector: Projector::new(self, device),
            language_model: text.init(device),
            lm_head: (!self.tied()).then(|| head.init(device)),
            heads: Heads::default(),
            config: self.clone(),
        }
    }
}

impl Llava {
    /// The configuration it was built from.
    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    /// The model alone, as a checkpoint holds it.
    #[must_use]
    pub fn without_heads(&self) -> Self {
        Self { heads: Heads::default(), ..self.clone() }
    }

    /// Where the decoder's weights are.
    pub fn device(&self) -> Device {
        self.language_model.table().device()
    }

    /// The parameters' type.
    pub fn dtype(&self) -> DType {
        self.language_model.table().dtype()
    }

    /// Patch features of the chosen layers side by side, the first position dropped where the config says so.
    ///
    /// # Shapes
    /// - pixels: `[N, channels, H, W]`
    /// - output: `[N * positions, feature width]`
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<2> {
        // The config was validated when it was read: the layers exist.
        let layers = self.config.feature_layers().unwrap_or_default();
        let states = self.vision_tower.hidden_states(pixels.cast(self.dtype()), &layers);
        let features = Tensor::cat(states, 2);
        let [n, positions, width] = features.dims();
        let first = usize::from(self.config.drops_first());
        features.narrow(1, first, positions - first).reshape([n * (positions - first), width])
    }

    /// Patch features of a batch's images, given or encoded, `[images * positions, feature width]`.
    pub fn features(&self, batch: &Batch) -> Option<Tensor<2>> {
        match (&batch.features, &batch.pixels) {
            (Some(features), _) => Some(features.clone()),
            (None, Some(pixels)) => Some(self.encode(pixels.clone())),
            (None, None) => None,
        }
    }

    /// The visual embeddings v of a batch's images, `[M, d]`.
    pub fn visual_embeddings(&self, batch: &Batch) -> Option<Tensor<2>> {
        Some(self.multi_modal_projector.forward(self.features(batch)?))
    }

    /// The decoder's input embeddings: token embeddings with v in the image positions.
    ///
    /// # Shapes
    /// - v: `[M, d]`
    /// - output: `[B, T, d]`
    pub fn splice(&self, batch: &Batch, v: Option<Tensor<2>>) -> Tensor<3> {
        let tokens = self.language_model.embed(batch.ids.clone()); // [B * T, d]
        let d = tokens.dims()[1];
        let rows = match v {
            // One selection from [tokens; v]: differentiable in both, and an image token's own row is never used.
            Some(v) => embedding(Tensor::cat(vec![tokens, v], 0), batch.splice_rows.clone()),
            None => tokens,
        };
        rows.reshape([batch.layout.batch, batch.layout.sequence, d])
    }

    /// Encodes, projects, splices and decodes a batch, watched by the methods of `objective`.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError`] where a knob does not fit the model.
    pub fn forward(&self, batch: &Batch, objective: &Objective) -> Result<Forward, ObjectiveError> {
        let features = self.features(batch);
        let v = features.clone().map(|features| self.multi_modal_projector.forward(features));
        self.forward_from(batch, objective, features, v)
    }

    /// [`Llava::forward`] from given patch features and visual embeddings.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError`] where a knob does not fit the model.
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

    /// What watches the layers for the methods of `objective`, for one forward pass over a batch.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError`] where a knob does not fit the model.
    pub fn supervision(&self, batch: &Batch, objective: &Objective) -> Result<Option<Supervision>, ObjectiveError> {
        objective.check(&self.config.shape())?;
        Ok(Supervision::new(objective, self.language_model.num_layers(), &batch.layout, &self.device()))
    }

    /// The masks and rotary tables of a training batch.
    pub fn positions(&self, batch: &Batch) -> (Masks, RotaryTables) {
        let (text, t, device) = (&self.config.text_config, batch.layout.sequence, self.device());
        match batch.packing() {
            Some(rows) => (Masks::packed(text, &rows, t, &device), self.rope(&packed_positions(&rows, t))),
            // Padding stands on the right: real positions never see it under the causal mask.
            None => (Masks::new(text, 0, t, &[0], &device), self.rope(&[(0..t).collect()])),
        }
    }

    /// Runs new positions of a generation behind the cached ones.
    ///
    /// # Shapes
    /// - embeddings: `[B, T, d]`; the first `padding[b]` positions of sample b are padding
    /// - output: `[B, d]`, the hidden state of the last position
    pub fn decode(&self, embeddings: Tensor<3>, padding: &[usize], cache: &mut KvCache) -> Tensor<2> {
        let [b, t, d] = embeddings.dims();
        let past = cache.len();
        let positions: Vec<Vec<usize>> = if padding.iter().all(|p| *p == 0) {
            vec![(past..past + t).collect()]
        } else {
            let row = |pad: &usize| (past..past + t).map(|p| p.saturating_sub(*pad)).collect();
            padding.iter().map(row).collect()
        };
        let masks = Masks::new(&self.config.text_config, past, t, padding, &self.device());
        let hidden = self.language_model.forward(embeddings, &self.rope(&positions), &masks, None, Some(cache));
        hidden.narrow(1, t - 1, 1).reshape([b, d])
    }

    fn rope(&self, positions: &[Vec<usize>]) -> RotaryTables {
        let text = &self.config.text_config;
        RotaryTables::new(positions, text.head_dim(), &text.rope, self.dtype(), &self.device().without_autodiff())
    }

    /// Scores over the vocabulary.
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

    /// The mean cross entropy over the batch's labels, computed on the label rows alone, `[1]`.
    pub fn lm_loss(&self, batch: &Batch, hidden: Tensor<3>) -> Tensor<1> {
        let [b, t, d] = hidden.dims();
        let rows = hidden.reshape([b * t, d]);
        let (head, layout) = match &self.lm_head {
            Some(head) => (head.weight.val(), HeadLayout::TokenColumns),
            None => (self.language_model.table(), HeadLayout::TokenRows),
        };
        linear_cross_entropy(rows, head, layout, &batch.targets)
    }

    /// The losses of a batch, from its forward pass.
    pub fn losses(&self, batch: &Batch, forward: Forward, objective: &Objective) -> Losses {
        self.losses_over(batch, forward, objective, LossCounts::of(batch))
    }

    /// This batch's share in the losses of a larger one: the shares of its parts add up to the whole.
    pub fn losses_over(&self, batch: &Batch, forward: Forward, objective: &Objective, counts: LossCounts) -> Losses {
        let lm = counts.share(self.lm_loss(batch, forward.hidden), batch);
        self.losses_with(lm, batch, &forward.visual, objective, counts)
    }

    /// The language model's loss `lm`, `[1]`, with the methods' terms.
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
