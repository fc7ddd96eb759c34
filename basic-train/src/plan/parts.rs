//! Counts the parameters of each part and those that are trained, from the network's shapes; no weights are allocated.

use std::collections::BTreeMap;

use basic_models::LlavaConfig;
use basic_models::adapters::{LoraConfig, Quantization};
use basic_models::checkpoint::{Slot, in_pooling_head, slots};
use burn::tensor::Device;
use serde::Serialize;

use super::wide::{Wide, wide};
use crate::parallel::shard::bucket_of;
use crate::recipe::{Mode, Part, PartConfig, Recipe};

/// The parameter counts of one part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartCounts {
    /// The part.
    pub part: Part,
    /// How the part is trained.
    pub mode: Mode,
    /// Number of parameters, without adapters.
    pub parameters: u64,
    /// Number of trained parameters: all of the part's, or the adapters'.
    pub trained: u64,
    /// The part's peak learning rate, if it is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The rank of the adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Number of parameters in the matrices that have adapters.
    #[serde(skip_serializing_if = "is_zero")]
    pub adapted: u64,
    /// Bits per element of these matrices, if they are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Number of elements that share a scale.
    #[serde(skip)]
    pub(super) block: u8,
    /// For a decoder's layers: whether the inputs of q, k and v, of gate and up, and of down are kept for the backward
    /// pass.
    #[serde(skip)]
    pub(super) inputs: [bool; 3],
    /// Number of trained parameters in each bucket in which gradients are reduced.
    #[serde(skip)]
    pub(super) buckets: BTreeMap<String, u64>,
}

pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The counts of the model's parts, in the model's order. `features` is the width of the features that a supervision
/// method's head is compared with.
pub(super) fn count(recipe: &Recipe, config: &LlavaConfig, features: usize, device: &Device) -> Vec<PartCounts> {
    // The weights of `init` are lazy, so nothing is allocated.
    let mut model = config.init(device);
    model.heads = recipe.objective.heads(config.text_config.hidden_size, features, device);
    let slots = slots(&model, "");
    let there = |part: &Part| match part {
        Part::Head => recipe.objective.has_head(),
        Part::FusedVision => config.is_fused(),
        _ => true,
    };
    let count = |part: Part| {
        let own = |slot: &&Slot| part.prefixes().iter().any(|prefix| slot.name.starts_with(prefix));
        let own: Vec<&Slot> = slots.iter().filter(own).collect();
        let mode = recipe.mode(part);
        let mut counts = PartCounts::new(part, mode, &own, recipe.parts.of(part));
        counts.lr = (mode != Mode::Frozen).then(|| recipe.part_lr(part));
        counts
    };
    Part::ALL.into_iter().filter(there).map(count).collect()
}

impl PartCounts {
    fn new(part: Part, mode: Mode, slots: &[&Slot], config: &PartConfig) -> Self {
        let parameters = slots.iter().map(|slot| size(slot)).sum();
        let adapts = matches!(mode, Mode::Lora | Mode::Qlora);
        let rank = config.rank.unwrap_or(LoraConfig::default().rank);
        let mut this = Self {
            part,
            mode,
            parameters,
            trained: if mode == Mode::Full { parameters } else { 0 },
            lr: None,
            rank: adapts.then_some(rank),
            adapted: 0,
            bits: (mode == Mode::Qlora).then(|| config.bits.unwrap_or(Quantization::default().bits)),
            block: config.block.unwrap_or(Quantization::default().block),
            inputs: [mode == Mode::Full; 3],
            buckets: BTreeMap::new(),
        };
        for slot in slots.iter().filter(|_| mode == Mode::Full) {
            this.count_in_bucket(slot, size(slot));
        }
        for slot in slots.iter().filter(|slot| adapts && adapted(slot, config.targets.as_deref())) {
            let factors = (rank as u64).saturating_mul((slot.shape[0] + slot.shape[1]) as u64);
            this.trained = this.trained.saturating_add(factors);
            this.count_in_bucket(slot, factors);
            this.adapted += size(slot);
            for (input, names) in this.inputs.iter_mut().zip(INPUTS) {
                *input |= names.contains(&layer(slot));
            }
        }
        this
    }

    fn count_in_bucket(&mut self, slot: &Slot, trained: u64) {
        let count = self.buckets.entry(bucket_of(&slot.name).into()).or_default();
        *count = count.saturating_add(trained);
    }

    /// Bytes of the part in memory, adapters included; `element` is the size of an unquantized element. A GPU packs
    /// quantized elements; the CPU backends use a byte for each, whether it has 4 or 8 bits.
    pub(super) fn weights(&self, element: u64, gpu: bool) -> Wide {
        let quantized = self.bits.map_or(0, |_| self.adapted);
        let adapters = if self.rank.is_some() { self.trained } else { 0 };
        // Each block has an f32 scale.
        let scales = quantized / u64::from(self.block.max(1)) * 4;
        let bits = if gpu { u64::from(self.bits.unwrap_or(8)) } else { 8 };
        (wide(self.parameters - quantized) + adapters) * element + wide(quantized) * bits / 8u64 + scales
    }
}

/// The matrices of a decoder layer, grouped by the input that they share.
const INPUTS: [&[&str]; 3] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["down_proj"]];

fn size(slot: &Slot) -> u64 {
    slot.shape.iter().map(|n| *n as u64).product()
}

/// The name of the layer that a parameter belongs to.
fn layer(slot: &Slot) -> &str {
    slot.name.rsplit('.').nth(1).unwrap_or_default()
}

/// Whether a parameter is the matrix of a linear layer that gets an adapter. If no targets are named, all get one
/// except the output head and a vision encoder's pooling head.
fn adapted(slot: &Slot, targets: Option<&[String]>) -> bool {
    let head = slot.name.starts_with("lm_head.") || in_pooling_head(&slot.name);
    let wanted = |targets: &[String]| targets.iter().any(|target| target == layer(slot));
    slot.transposed && targets.map_or(!head, wanted)
}
