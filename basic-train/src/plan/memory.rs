//! Estimates the bytes that a training step needs, by purpose. docs/memory.md states the formulas and compares them
//! with measurements.

use basic_core::ops::{BLOCK_BUDGET, LINEAR_CROSS_ENTROPY_BUDGET, SEMANTIC_DISTRIBUTION_BUDGET, block_budget};
use basic_models::config::{Activation, DecoderConfig, LayerNorms, ProjectorKind, QkNorm};
use basic_models::{LlavaConfig, VisionConfig};
use serde::Serialize;

use super::parts::{PartCounts, is_zero};
use super::wide::{Wide, wide};
use crate::parallel::shard::LAYERS;
use crate::recipe::{Mode, Part, Shard};

/// What determines a step's memory on one device, besides the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Size of a parameter and of an activation in bytes.
    pub element: u64,
    /// Number of samples that go through the network together.
    pub samples: u64,
    /// Number of positions of each sample, padding included.
    pub positions: u64,
    /// Number of images in these samples.
    pub images: u64,
    /// Whether gradients are summed over several micro-batches before an update.
    pub accumulates: bool,
    /// Number of ranks that share a batch.
    pub ranks: u64,
    /// What each of them holds a share of.
    pub shard: Shard,
    /// Whether the decoder keeps only its layers' inputs and runs each layer again in the backward pass.
    pub recompute: bool,
    /// Whether a supervision method is active.
    pub supervised: bool,
    /// The largest size in bytes of the cache of a frozen vision encoder's features.
    pub vision_cache: u64,
    /// Number of parameters of the second vision encoder that a supervision method compares with.
    #[serde(skip_serializing_if = "is_zero")]
    pub encoder: u64,
    /// Whether the device is a GPU.
    pub gpu: bool,
    /// The device's memory in bytes, which determines the block size on a GPU; 0 if it is not known.
    pub device: u64,
}

/// The memory of a step in bytes, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    /// The parameters, adapters included; quantized ones at their stored size.
    pub weights: u64,
    /// One gradient for each trained parameter, and a sum in f32 if gradients are summed over several passes; if
    /// gradients are divided among ranks, this rank's share of the sums in f32, and without recompute a pass's gradients.
    pub gradients: u64,
    /// AdamW's two moments, in f32: those of all trained parameters, or of this rank's share.
    pub moments: u64,
    /// The f32 copy of trained 16-bit parameters, or of this rank's share.
    pub master_weights: u64,
    /// If gradients are divided among ranks: those of a bucket and their f32 copy while they are summed, and those that
    /// wait for the end of the pass.
    pub buckets: u64,
    /// What the decoder's layers keep for the backward pass.
    pub decoder_activations: u64,
    /// The dense matrices that are made of quantized ones.
    pub composed_weights: u64,
    /// The vision encoder: what its layers keep if it is trained, or the peak within a layer if it is frozen, plus the
    /// cache of its features.
    pub vision: u64,
    /// The projector's activations, the visual embeddings and the supervisory embeddings.
    pub projector_activations: u64,
    /// Chunks of logits, and the gradients that the fused losses keep for their rows.
    pub losses: u64,
    /// The gradients of one layer's activations; on a GPU only what exceeds the memory of the losses.
    pub backward: u64,
    /// An allowance for the program, the driver and the kernels, which no formula describes.
    pub runtime: u64,
    /// The sum of all of these.
    pub total: u64,
}

const MIB: u64 = 1 << 20;
/// The allowance in bytes: for the process on a CPU; for context, kernels and the allocator's slack on a GPU.
const RUNTIME: [u64; 2] = [64 * MIB, 1536 * MIB];
/// The number of blocks of scores or logits that exist at the same time: the CPU's kernels work in place, whereas on a
/// GPU they are composed of operations.
const BLOCKS: [u64; 2] = [1, 3];
/// The number of images that a frozen encoder encodes at once (`basic_data::VisionCache`).
const ENCODED_TOGETHER: u64 = 32;

impl Memory {
    /// The memory of a step; numbers that exceed 64 bits become the largest 64-bit number.
    pub fn of(config: &LlavaConfig, parts: &[PartCounts], load: &Load) -> Self {
        let element = load.element;
        let trained = parts.iter().fold(wide(0u64), |sum, part| sum + part.trained);
        let [_, _, decoder, ..] = parts else { return Self::default() };
        let text = &config.text_config;
        let (layers, tokens) = (wide(text.num_hidden_layers), wide(load.samples) * load.positions);
        let stream = tokens * wide(text.hidden_size) * element;
        let layer = tokens * decoder_layer(text, decoder, load);
        // Only quantized matrices are made dense.
        let composed = wide(decoder.bits.map_or(0, |_| decoder.adapted)) * element;
        let weights = parts.iter().fold(wide(0u64), |sum, part| sum + part.weights(element, load.gpu));
        // One layer's activations, and a GPU's blocks of scores.
        let backward = (layer + scores(text, load)).narrow();
        let losses = losses(config, load).narrow();
        // The input and the output of the last norm come on top of the layers.
        let kept = 2 * stream + if load.recompute { layers * stream + layer } else { layers * layer };
        // A share is rounded up, as the padding of the buckets does.
        let ranks = if load.shard == Shard::None { 1 } else { load.ranks };
        let share = |all: Wide| if ranks > 1 { all / ranks + element } else { all };
        let gradients = match load.shard {
            Shard::Gradients if load.recompute => share(4 * trained),
            Shard::Gradients => share(4 * trained) + trained * element,
            // `optim::add_gradients` sums in f32, whatever the parameters' type.
            Shard::None | Shard::Optimizer => trained * (element + if load.accumulates { 4u64 } else { 0 }),
        };
        let mut this = Self {
            weights: (weights + wide(load.encoder) * element).narrow(),
            gradients: gradients.narrow(),
            moments: share(8 * trained).narrow(),
            master_weights: if element < 4 { share(4 * trained).narrow() } else { 0 },
            buckets: buckets(parts, load).narrow(),
            decoder_activations: kept.narrow(),
            composed_weights: if load.recompute { (composed / layers).narrow() } else { composed.narrow() },
            vision: encoders(config, parts, load).narrow(),
            projector_activations: projector(config, load).narrow(),
            losses,
            // A GPU frees its chunks of logits before the layers' backward pass, so only the part beyond them is
            // counted.
            backward: if load.gpu { backward.saturating_sub(losses) } else { backward },
            runtime: RUNTIME[usize::from(load.gpu)],
            total: 0,
        };
        this.total = this.items().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
        this
    }

    /// The name of each number with its value, in order.
    pub fn items(&self) -> [(&'static str, u64); 12] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer moments", self.moments),
            ("master weights", self.master_weights),
            ("gradient buckets", self.buckets),
            ("decoder activations", self.decoder_activations),
            ("composed weights", self.composed_weights),
            ("vision encoder", self.vision),
            ("projector activations", self.projector_activations),
            ("losses", self.losses),
            ("backward pass", self.backward),
            ("runtime", self.runtime),
        ]
    }
}

/// What is held of gradients that are divided among ranks, besides a rank's share of their sums: the largest bucket's in
/// f32 with this rank's part of their sum, their own and joined ones where they are in another type, and the gradients of
/// what is no layer of the decoder, which are reduced when the pass ends.
fn buckets(parts: &[PartCounts], load: &Load) -> Wide {
    if load.shard == Shard::None {
        return wide(0u64);
    }
    let all = || parts.iter().flat_map(|part| &part.buckets);
    let largest = wide(all().map(|(_, count)| *count).max().unwrap_or(0));
    let waits = |name: &str| load.shard == Shard::Gradients && load.recompute && !name.starts_with(LAYERS);
    let waiting = all().filter(|(name, _)| waits(name)).fold(wide(0u64), |sum, (_, count)| sum + *count);
    let joined = if load.element < 4 { load.element } else { 0 };
    let own = if load.shard == Shard::Gradients && load.recompute { load.element } else { 0 };
    largest * (4 + joined + own) + 4 * largest / load.ranks + waiting * load.element
}

/// The blocks of scores of an attention that is composed of operations: a GPU's, and on a CPU the one whose scores have a
/// cap, which takes two blocks more.
fn scores(config: &DecoderConfig, load: &Load) -> Wide {
    let blocks = match (load.gpu, config.score_cap) {
        (false, None) => return wide(0u64),
        (true, None) => BLOCKS[1],
        (_, Some(_)) => BLOCKS[1] + 2,
    };
    let budget = if load.gpu { block_budget(load.device) } else { BLOCK_BUDGET };
    let all = 4 * wide(load.samples) * wide(config.num_attention_heads) * load.positions * load.positions;
    blocks * all.min(wide(budget))
}

/// The bytes that a decoder layer keeps per position.
fn decoder_layer(config: &DecoderConfig, counts: &PartCounts, load: &Load) -> Wide {
    let (d, head, inner) = (wide(config.hidden_size), wide(config.head_dim()), wide(config.intermediate_size));
    let (heads, kv) = (wide(config.num_attention_heads), wide(config.kv_heads()) * head);
    let q = heads * head;
    // The queries, keys, values and output of the attention, and the gate and up projections.
    let mut kept = 2 * q + 2 * kv + 2 * inner;
    if config.family.qk_norm != QkNorm::None {
        kept += q + kv; // the inputs of the norms of queries and keys
    }
    if config.query_scale().is_some() {
        kept += q; // the queries before they are scaled
    }
    kept += match config.hidden_act {
        Activation::Silu => wide(0u64),    // SwiGLU is one operation
        Activation::GeluTanh => 3 * inner, // composed of a cubic and a sigmoid
        _ => inner,
    };
    // A matrix's input is kept if the matrix itself or its adapter has a gradient.
    for (kept_input, width) in counts.inputs.iter().zip([d, d, inner]) {
        kept += if *kept_input { width } else { wide(0u64) };
    }
    // The norms' inputs, which are the residual stream; norms that scale by 1 + weight keep an f32 copy of it.
    let norm = if config.family.norm_plus_one { 4u64 } else { load.element };
    // Norms of the inputs have the residual stream for theirs; norms of the outputs have those outputs besides.
    let norms = if config.family.layer_norms == LayerNorms::Around { 4u64 } else { 2 };
    kept * load.element + norms * d * norm + 4 * heads
}

/// The vision encoders: what the layers of those that are trained keep, and the highest peak of those that are frozen, of
/// which only the features are kept. They run one after another.
fn encoders(config: &LlavaConfig, parts: &[PartCounts], load: &Load) -> Wide {
    let mode = |part: Part| parts.iter().find(|counts| counts.part == part).map_or(Mode::Frozen, |counts| counts.mode);
    let modes = [mode(Part::Vision), mode(Part::FusedVision)];
    let all_frozen = modes == [Mode::Frozen; 2];
    // Images of which the features are kept are encoded some at a time, the others all at once.
    let together = tiles(config, load);
    let together = if all_frozen { together.min(wide(ENCODED_TOGETHER)) } else { together };
    let (mut kept, mut peak) = (wide(0u64), wide(0u64));
    for (index, vision) in config.encoders().enumerate() {
        match modes[index.min(1)] {
            Mode::Frozen => peak = peak.max(together * frozen_encoder(vision, load)),
            _ => kept += tiles(config, load) * trained_encoder(config, vision, load),
        }
    }
    let features = wide(config.features()) * wide(config.feature_width()) * load.element;
    match all_frozen {
        true => peak + tiles(config, load) * features + load.vision_cache,
        false if config.is_fused() => peak + kept + tiles(config, load) * features,
        false => peak + kept,
    }
}

/// The peak within a layer of a frozen encoder, an image. The probabilities of its attention are materialized, in f32 and
/// in the parameters' type.
fn frozen_encoder(vision: &VisionConfig, load: &Load) -> Wide {
    let (d, inner, heads) =
        (wide(vision.hidden_size), wide(vision.intermediate_size), wide(vision.num_attention_heads));
    let positions = wide(vision.num_patches() + vision.special_positions());
    let attention = 6 * d * load.element + heads * positions * (4 + load.element);
    positions * attention.max((2 * d + 3 * inner) * load.element)
}

/// What the layers of a trained encoder keep, an image.
fn trained_encoder(config: &LlavaConfig, vision: &VisionConfig, load: &Load) -> Wide {
    let (d, inner, heads) =
        (wide(vision.hidden_size), wide(vision.intermediate_size), wide(vision.num_attention_heads));
    let positions = wide(vision.num_patches() + vision.special_positions());
    // Two layer norms with four values each; queries, keys, values and the output; two residuals; the MLP's input, the
    // two factors of its activation and their product; scores, their softmax and its cast.
    let scores = heads * positions * (4 + 2 * load.element);
    let layer = (14 * d + 4 * inner) * load.element + scores;
    let layers = config.feature_layers(vision).unwrap_or_default().into_iter().max().unwrap_or(0) as u64;
    positions * layer * layers
}

/// The images that the vision encoder sees: the tiles of images that are cut, as many as an image can have.
fn tiles(config: &LlavaConfig, load: &Load) -> Wide {
    load.images * wide(config.tiling().most_tiles())
}

fn projector(config: &LlavaConfig, load: &Load) -> Wide {
    if let Some(cost) = config.resampler_cost() {
        let width = wide(config.text_config.hidden_size);
        let v = width * load.element + if load.supervised { 4 * width } else { wide(0u64) };
        return load.images * (wide(cost.kept as u64) * load.element + wide(config.visual_tokens()) * v);
    }
    let (width, shuffle) = (wide(config.text_config.hidden_size), wide(config.projector.shuffle()));
    let input = wide(config.feature_width()) * shuffle * shuffle;
    // The features, the hidden layer before and after its activation, and v; V^ is in f32.
    let hidden = if config.projector == ProjectorKind::FusedMlp { 4 * input + width } else { width };
    let row = (input + 2 * hidden + width) * load.element + if load.supervised { 4 * width } else { wide(0u64) };
    load.images * wide(config.tiling().most_tokens()) * row
}

fn losses(config: &LlavaConfig, load: &Load) -> Wide {
    let (vocabulary, width) = (wide(config.text_config.vocab_size), wide(config.text_config.hidden_size));
    let (tokens, rows) = (wide(load.samples) * load.positions, load.images * wide(config.tiling().most_tokens()));
    // There are at most as many rows as in total, and at least one per chunk.
    let chunk = |budget: usize, rows: Wide| (rows * vocabulary * 4u64).min(wide(budget)).max(vocabulary * 4u64);
    let blocks = BLOCKS[usize::from(load.gpu)];
    let [language, semantic] = match load.gpu {
        true => [block_budget(load.device); 2],
        false => [LINEAR_CROSS_ENTROPY_BUDGET, SEMANTIC_DISTRIBUTION_BUDGET],
    };
    // The losses return the gradients of the rows: the hidden states' in their own type, v's in f32.
    let language = blocks * chunk(language, tokens) + tokens * width * load.element;
    let semantic = blocks * chunk(semantic, 2 * rows) + 2 * rows * width * 4u64;
    if load.supervised && rows > wide(0u64) { language + semantic } else { language }
}
