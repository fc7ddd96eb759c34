//! Counts the FLOPs of a training step, from which MFU (model FLOPs utilization) is computed.
//!
//! A product `[m, k] x [k, n]` takes `2 m k n` FLOPs. The forward pass takes, per layer and position, with width d, h
//! query heads and h_kv key-value heads of width e, and MLP width f:
//!
//! ```text
//! decoder    2 (2 d h e + 2 d h_kv e + 3 d f), and 4 h e for each key that the position sees (its own included)
//! encoder    2 (4 d d + 2 d f), 3 d f if the MLP is gated, and 4 d for each of the image's positions; patches 2 channels patch^2 d
//! projector  2 in out, per layer and visual token
//! head       2 d V, per target token: the loss is computed on these rows alone
//! ```
//!
//! In the backward pass, a product costs as much as its forward pass for the gradient of its input, and the same again
//! for the gradient of its weights. Frozen weights (LoRA's base included) cost only the first, because the gradient
//! passes through them on its way to the projector; parts before the first trained one cost nothing. The products of
//! attention have two inputs and no weights, so they cost twice their forward pass wherever a gradient passes.
//!
//! As is usual, the following are not counted: norms, activations, rotary positions, the optimizer, adapters, padding,
//! the second run of recomputed activations, and the supervision methods' own losses, so that runs with and without
//! supervision are measured by the same rule.

use basic_models::{LlavaConfig, VisionConfig};

use crate::recipe::Part;

/// The amounts that a step computes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchCounts {
    /// Number of positions of each sequence, including visual tokens but no padding; of each sample if samples are
    /// packed.
    pub lengths: Vec<usize>,
    /// Number of target tokens.
    pub labels: usize,
    /// Number of visual embeddings that the projector made.
    pub patches: usize,
    /// Number of images, or tiles of images, that the vision encoder ran on, which is smaller if a frozen encoder's features are cached.
    pub encoded: usize,
}

/// FLOPs of a model's training steps.
#[derive(Debug, Clone)]
pub struct ModelFlops {
    config: LlavaConfig,
    vision: bool,
    fused_vision: bool,
    projector: bool,
    decoder: bool,
}

impl ModelFlops {
    /// For a model whose parts in `trained` are fully trained; all others are frozen or have adapters.
    pub fn new(config: &LlavaConfig, trained: &[Part]) -> Self {
        let trains = |part| trained.contains(&part);
        Self {
            config: config.clone(),
            vision: trains(Part::Vision),
            fused_vision: config.is_fused() && trains(Part::FusedVision),
            projector: trains(Part::Projector),
            decoder: trains(Part::Decoder),
        }
    }

    /// The FLOPs of a step, forward and backward.
    pub fn step(&self, counts: &BatchCounts) -> f64 {
        // The total cost of a trained or a frozen part relative to its forward pass.
        let weights = |trained: bool| if trained { 3.0 } else { 2.0 };
        let tokens: usize = counts.lengths.iter().sum();
        let decoder = self.decoder_products(tokens) + self.head(counts.labels);
        let attention: f64 = counts.lengths.iter().map(|length| self.decoder_attention(*length)).sum();
        weights(self.decoder) * decoder
            + 3.0 * attention
            + self.projector(counts.patches)
            + self.encoders(counts.encoded)
    }

    /// The encoders' forward passes, and the backward passes of those that are trained.
    fn encoders(&self, images: usize) -> f64 {
        let trained = [self.vision, self.fused_vision];
        let each = self.config.encoders().enumerate().map(|(index, vision)| match trained[index.min(1)] {
            // The pixels need no gradient, so the patch embedding costs only twice its forward pass.
            true => 3.0 * self.encoder(vision, images) - patches(vision, images),
            false => self.encoder(vision, images),
        });
        each.sum()
    }

    fn trains_an_encoder(&self) -> bool {
        self.vision || self.fused_vision
    }

    /// The FLOPs of the forward pass alone.
    pub fn forward(&self, counts: &BatchCounts) -> f64 {
        let tokens: usize = counts.lengths.iter().sum();
        let attention: f64 = counts.lengths.iter().map(|length| self.decoder_attention(*length)).sum();
        let projector = match self.config.resampler_cost() {
            Some(cost) => cost.flops * self.images(counts.patches),
            None => self.projector_layers().iter().sum::<f64>() * counts.patches as f64,
        };
        let encoders: f64 = self.config.encoders().map(|vision| self.encoder(vision, counts.encoded)).sum();
        self.decoder_products(tokens) + self.head(counts.labels) + attention + projector + encoders
    }

    fn decoder_products(&self, tokens: usize) -> f64 {
        let text = &self.config.text_config;
        let (d, e) = (text.hidden_size as f64, text.head_dim() as f64);
        let heads = (text.num_attention_heads + text.kv_heads()) as f64;
        let layer = 2.0 * (2.0 * d * heads * e + 3.0 * d * text.intermediate_size as f64);
        layer * text.num_hidden_layers as f64 * tokens as f64
    }

    fn decoder_attention(&self, length: usize) -> f64 {
        let text = &self.config.text_config;
        let pairs = |window: Option<usize>| {
            let window = window.unwrap_or(length).min(length) as f64;
            // The first positions attend to all positions before them, the later ones to a whole window.
            window * (window + 1.0) / 2.0 + (length as f64 - window) * window
        };
        let all: f64 = (0..text.num_hidden_layers).map(|layer| pairs(text.window(layer))).sum();
        4.0 * (text.num_attention_heads * text.head_dim()) as f64 * all
    }

    fn head(&self, labels: usize) -> f64 {
        let text = &self.config.text_config;
        2.0 * text.hidden_size as f64 * text.vocab_size as f64 * labels as f64
    }

    /// FLOPs of the projector's layers, per visual token.
    fn projector_layers(&self) -> Vec<f64> {
        let widths = self.config.projector.widths(self.config.feature_width(), self.config.text_config.hidden_size);
        widths.into_iter().map(|[input, output]| 2.0 * input as f64 * output as f64).collect()
    }

    /// The number of images whose visual embeddings a resampler made; it makes as many of each.
    fn images(&self, embeddings: usize) -> f64 {
        embeddings as f64 / self.config.visual_tokens().max(1) as f64
    }

    fn projector(&self, patches: usize) -> f64 {
        if let Some(cost) = self.config.resampler_cost() {
            // Its layers lie behind each other and behind learned queries, so that nearly all of them need both gradients.
            return cost.flops
                * self.images(patches)
                * if self.projector || self.trains_an_encoder() { 3.0 } else { 1.0 };
        }
        let layer = |(index, flops): (usize, f64)| {
            // The gradient of the features is needed only if the encoder is trained.
            let input = self.trains_an_encoder() || (self.projector && index > 0);
            flops * (1.0 + f64::from(u8::from(self.projector)) + f64::from(u8::from(input)))
        };
        self.projector_layers().into_iter().enumerate().map(layer).sum::<f64>() * patches as f64
    }

    fn encoder(&self, vision: &VisionConfig, images: usize) -> f64 {
        // Layers after the last one whose features are used do not run. A validated configuration names at least one
        // layer.
        let layers = self.config.feature_layers(vision).unwrap_or_default().into_iter().max().unwrap_or(0) as f64;
        let positions = (vision.num_patches() + vision.special_positions()) as f64;
        let (d, f) = (vision.hidden_size as f64, vision.intermediate_size as f64);
        let layer = positions * (2.0 * (4.0 * d * d + vision.mlp_matrices() as f64 * d * f) + 4.0 * d * positions);
        layer * layers * images as f64 + patches(vision, images)
    }
}

/// The patch embedding of an encoder.
fn patches(vision: &VisionConfig, images: usize) -> f64 {
    let patch = vision.num_channels * vision.patch_size * vision.patch_size;
    2.0 * (patch * vision.hidden_size * vision.num_patches() * images) as f64
}
