//! The arithmetic that a training step needs: what MFU (model FLOPs utilization) counts.
//!
//! A product `[m, k] x [k, n]` is `2 m k n` FLOPs. Forward, per layer and position, with d the width, h and h_kv the heads,
//! e their width and f the MLP's:
//!
//! ```text
//! decoder    2 (2 d h e + 2 d h_kv e + 3 d f), and 4 h e for each key that the position sees (its own included)
//! encoder    2 (4 d d + 2 d f), and 4 d for each of the image's positions; patches 2 channels patch^2 d
//! projector  2 in out, per layer and visual token
//! head       2 d V, per target token: the loss is computed on these rows alone
//! ```
//!
//! Backward, a product costs once its forward for the gradient of what goes in, and once for that of its weights. Weights
//! that are frozen (LoRA's base too) cost the first alone, since the gradient passes through them on its way to the
//! projector; parts before the first trained one cost nothing. Attention's products have two inputs and no weights:
//! twice their forward wherever a gradient passes.
//!
//! Not counted, as is usual: norms, activations, rotary positions, the optimizer, adapters, padding, what activation
//! recompute runs twice, and the supervision's own losses, so that both arms are measured by the same rule.

use basic_models::LlavaConfig;

use crate::recipe::Part;

/// What a step computes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchCounts {
    /// Positions of each sequence, visual ones included, without padding; of each sample where samples are packed.
    pub lengths: Vec<usize>,
    /// Target tokens.
    pub labels: usize,
    /// Images that the projector ran on.
    pub images: usize,
    /// Images that the vision encoder ran on: fewer where a frozen encoder's features are kept.
    pub encoded: usize,
}

/// FLOPs of a model's training steps.
#[derive(Debug, Clone)]
pub struct ModelFlops {
    config: LlavaConfig,
    vision: bool,
    projector: bool,
    decoder: bool,
}

impl ModelFlops {
    /// For a model of which `trained` is trained whole; all else is frozen, or has adapters.
    pub fn new(config: &LlavaConfig, trained: &[Part]) -> Self {
        let trains = |part| trained.contains(&part);
        Self {
            config: config.clone(),
            vision: trains(Part::Vision),
            projector: trains(Part::Projector),
            decoder: trains(Part::Decoder),
        }
    }

    /// Forward and backward of a step.
    pub fn step(&self, counts: &BatchCounts) -> f64 {
        // Per unit of forward: what a frozen, and what a trained part costs in all.
        let weights = |trained: bool| if trained { 3.0 } else { 2.0 };
        let tokens: usize = counts.lengths.iter().sum();
        let decoder = self.decoder_products(tokens) + self.head(counts.labels);
        let attention: f64 = counts.lengths.iter().map(|length| self.decoder_attention(*length)).sum();
        let encoder = if self.vision { 3.0 } else { 1.0 };
        weights(self.decoder) * decoder
            + 3.0 * attention
            + self.projector(counts.images)
            + encoder * (self.encoder(counts.encoded))
            // The pixels need no gradient.
            - if self.vision { self.patches(counts.encoded) } else { 0.0 }
    }

    /// The forward pass alone.
    pub fn forward(&self, counts: &BatchCounts) -> f64 {
        let tokens: usize = counts.lengths.iter().sum();
        let attention: f64 = counts.lengths.iter().map(|length| self.decoder_attention(*length)).sum();
        let projector: f64 = self.projector_layers().iter().sum::<f64>() * self.visual_tokens(counts.images);
        self.decoder_products(tokens) + self.head(counts.labels) + attention + projector + self.encoder(counts.encoded)
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
            // The first positions see all before them, the later ones a whole window.
            window * (window + 1.0) / 2.0 + (length as f64 - window) * window
        };
        let all: f64 = (0..text.num_hidden_layers).map(|layer| pairs(text.window(layer))).sum();
        4.0 * (text.num_attention_heads * text.head_dim()) as f64 * all
    }

    fn head(&self, labels: usize) -> f64 {
        let text = &self.config.text_config;
        2.0 * text.hidden_size as f64 * text.vocab_size as f64 * labels as f64
    }

    fn visual_tokens(&self, images: usize) -> f64 {
        (images * self.config.visual_tokens()) as f64
    }

    /// FLOPs of the projector's layers, per visual token.
    fn projector_layers(&self) -> Vec<f64> {
        let kind = self.config.projector;
        let d = self.config.text_config.hidden_size as f64;
        let joined = (self.config.feature_width() * kind.shuffle() * kind.shuffle()) as f64;
        (0..kind.layers()).map(|layer| 2.0 * d * if layer == 0 { joined } else { d }).collect()
    }

    fn projector(&self, images: usize) -> f64 {
        let layer = |(index, flops): (usize, f64)| {
            // The features' gradient is of use to the encoder alone.
            let input = self.vision || (self.projector && index > 0);
            flops * (1.0 + f64::from(u8::from(self.projector)) + f64::from(u8::from(input)))
        };
        self.projector_layers().into_iter().enumerate().map(layer).sum::<f64>() * self.visual_tokens(images)
    }

    fn patches(&self, images: usize) -> f64 {
        let vision = &self.config.vision_config;
        let patch = vision.num_channels * vision.patch_size * vision.patch_size;
        2.0 * (patch * vision.hidden_size * vision.num_patches() * images) as f64
    }

    fn encoder(&self, images: usize) -> f64 {
        let vision = &self.config.vision_config;
        // The layers behind the last one that is projected do not run. The configuration was validated: it names some.
        let layers = self.config.feature_layers().unwrap_or_default().into_iter().max().unwrap_or(0) as f64;
        let positions = (vision.num_patches() + vision.special_positions()) as f64;
        let (d, f) = (vision.hidden_size as f64, vision.intermediate_size as f64);
        let layer = positions * (2.0 * (4.0 * d * d + 2.0 * d * f) + 4.0 * d * positions);
        layer * layers * images as f64 + self.patches(images)
    }
}
