//! Parameters by part, and what is trained of each, from the network's shapes: no weight is made.

use basic_models::LlavaConfig;
use basic_models::adapters::{LoraConfig, Quantization};
use basic_models::checkpoint::{Slot, slots};
use burn::tensor::Device;
use serde::Serialize;

use super::wide::{Wide, wide};
use crate::recipe::{Mode, Part, PartConfig, Recipe};

/// A part's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartCounts {
    /// Which part.
    pub part: Part,
    /// How it is trained.
    pub mode: Mode,
    /// Parameters, without adapters.
    pub parameters: u64,
    /// What is trained: all of them, or the adapters.
    pub trained: u64,
    /// Its peak learning rate, where it is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Rank of the adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Parameters of the matrices that have adapters.
    #[serde(skip_serializing_if = "is_zero")]
    pub adapted: u64,
    /// The largest of these matrices.
    #[serde(skip)]
    pub(super) widest: u64,
    /// Bits of the elements of these matrices, where they are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// How many of these elements share a scale.
    #[serde(skip)]
    pub(super) block: u8,
    /// In a decoder's layers: whether the inputs of q, k and v, of gate and up, and of down are kept.
    #[serde(skip)]
    pub(super) inputs: [bool; 3],
}

pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The parts of the model that a recipe trains or not, in the model's order; `features` is the width of what a
/// supervision method's head is compared with.
pub(super) fn count(recipe: &Recipe, config: &LlavaConfig, features: usize, device: &Device) -> Vec<PartCounts> {
    // The weights of `init` are lazy: nothing is allocated.
    let mut model = config.init(device);
    model.heads = recipe.objective.heads(config.text_config.hidden_size, features, device);
    let slots = slots(&model, "");
    let there = |part: &Part| *part != Part::Head || recipe.objective.has_head();
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
            widest: 0,
            bits: (mode == Mode::Qlora).then(|| config.bits.unwrap_or(Quantization::default().bits)),
            block: config.block.unwrap_or(Quantization::default().block),
            inputs: [mode == Mode::Full; 3],
        };
        for slot in slots.iter().filter(|slot| adapts && adapted(slot, config.targets.as_deref())) {
            let factors = (rank as u64).saturating_mul((slot.shape[0] + slot.shape[1]) as u64);
            this.trained = this.trained.saturating_add(factors);
            this.adapted += size(slot);
            this.widest = this.widest.max(size(slot));
            for (input, names) in this.inputs.iter_mut().zip(INPUTS) {
                *input |= names.contains(&layer(slot));
            }
        }
        this
    }

    /// Bytes of the part as it is held, adapters included; `element` is the size of what is not quantized. A GPU packs
    /// quantized elements; the CPU's backends take a byte for each, of 4 bits as of 8.
    pub(super) fn weights(&self, element: u64, gpu: bool) -> Wide {
        let quantized = self.bits.map_or(0, |_| self.adapted);
        let adapters = if self.rank.is_some() { self.trained } else { 0 };
        // With an f32 scale a block.
        let scales = quantized / u64::from(self.block.max(1)) * 4;
        let bits = if gpu { u64::from(self.bits.unwrap_or(8)) } else { 8 };
        (wide(self.parameters - quantized) + adapters) * element + wide(quantized) * bits / 8u64 + scales
    }
}

/// The matrices of a decoder's layer that read the same input.
const INPUTS: [&[&str]; 3] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["down_proj"]];

fn size(slot: &Slot) -> u64 {
    slot.shape.iter().map(|n| *n as u64).product()
}

/// The layer that a parameter belongs to, by its own name.
fn layer(slot: &Slot) -> &str {
    slot.name.rsplit('.').nth(1).unwrap_or_default()
}

/// Whether a parameter is the matrix of a linear layer that gets an adapter: of all, where no targets are named, but the
/// output head and a vision encoder's pooling head.
fn adapted(slot: &Slot, targets: Option<&[String]>) -> bool {
    let head = slot.name.starts_with("lm_head.") || slot.name.starts_with("vision_tower.head.");
    let wanted = |targets: &[String]| targets.iter().any(|target| target == layer(slot));
    slot.transposed && targets.map_or(!head, wanted)
}
