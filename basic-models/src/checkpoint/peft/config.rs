//! Writes `adapter_config.json`; scaling.rs reads it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::super::names::{Layout, in_pooling_head};
use crate::config::VisionNames;
use crate::parameters::Slot;

/// The adapter of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Adapted {
    pub rank: usize,
    pub scale: f64,
}

impl Adapted {
    /// PEFT's `lora_alpha`. The scale comes from a device that computes in f32, so a value close to an
    /// integer is rounded to it.
    fn alpha(self) -> f64 {
        let alpha = self.scale * self.rank as f64;
        let whole = alpha.round();
        if (alpha - whole).abs() <= 1e-6 * whole.abs() { whole } else { alpha }
    }
}

/// The parts of the model, with the prefix by which PEFT's regular expression finds their linear layers.
const PARTS: [(&str, &str); 4] = [
    ("vision_tower.", r"vision_tower\..*encoder\..*\."),
    ("fused_vision_towers.", r"fused_vision_towers\..*encoder\..*\."),
    ("multi_modal_projector.", r"multi_modal_projector\.(?:.*\.)?"),
    ("language_model.", r"language_model\..*\."),
];

/// The document for the adapters `found`, by the names of their layers, of a model with the parameters `all`.
pub(super) fn document(
    all: &[Slot],
    found: &BTreeMap<String, Adapted>,
    whole: &[&str],
    base: &str,
    vision: Option<&VisionNames>,
) -> Value {
    let module = |layer: &str| {
        let disk = Layout::Adapters.disk(layer, vision);
        disk.strip_prefix("base_model.model.").map(str::to_string).unwrap_or(disk)
    };
    // The value that most layers have is the general one; the others are patterns.
    let rank = most(found.values().map(|adapted| adapted.rank)).unwrap_or_default();
    let at_rank = found.values().filter(|adapted| adapted.rank == rank);
    let alpha = most(at_rank.map(|adapted| adapted.alpha().to_bits())).map_or(0.0, f64::from_bits);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (layer, adapted) in found {
        if adapted.rank != rank {
            ranks.insert(module(layer), json!(adapted.rank));
        }
        if adapted.alpha() != alpha {
            alphas.insert(module(layer), number(adapted.alpha()));
        }
    }
    let targets = match expression(all, found, &module) {
        Some(expression) => json!(expression),
        None => json!(found.keys().map(|layer| module(layer)).collect::<Vec<_>>()),
    };
    json!({
        "peft_type": "LORA",
        "task_type": null,
        "auto_mapping": {
            "base_model_class": "LlavaForConditionalGeneration",
            "parent_library": "transformers.models.llava.modeling_llava",
        },
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": targets,
        "modules_to_save": if whole.is_empty() { Value::Null } else { json!(whole) },
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "lora_dropout": 0.0,
        "use_dora": false,
        "use_rslora": false,
    })
}

/// Writes integers without a decimal point, as in PEFT's own files.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn most<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// A regular expression for exactly the layers with adapters, if these are all layers with the same last names in their
/// parts. PEFT's list of last names would not do, because the vision encoder has a q_proj just like the decoder.
fn expression(all: &[Slot], found: &BTreeMap<String, Adapted>, module: &dyn Fn(&str) -> String) -> Option<String> {
    let mut parts = Vec::new();
    for (prefix, place) in PARTS {
        let leaf = |layer: &str| module(layer).rsplit('.').next().map(str::to_string);
        let leaves: BTreeSet<String> = found.keys().filter(|l| l.starts_with(prefix)).filter_map(|l| leaf(l)).collect();
        if leaves.is_empty() {
            continue;
        }
        let linear = all.iter().filter(|slot| slot.transposed && !slot.is_adapter() && slot.name.starts_with(prefix));
        let layers = linear.filter_map(|slot| slot.name.strip_suffix(".weight"));
        // The expression of an encoder's layers needs their folder in the modules' names.
        let is_vision = prefix.starts_with("vision_tower") || prefix.starts_with("fused_vision");
        let apart = |layer: &&String| layer.starts_with(prefix) && !module(layer).contains("encoder.");
        if is_vision && found.keys().any(|layer| apart(&layer)) {
            return None;
        }
        // The expression does not match the pooling head.
        let mut layers = layers.filter(|layer| !in_pooling_head(layer));
        if !layers.all(|layer| !leaf(layer).is_some_and(|leaf| leaves.contains(&leaf)) || found.contains_key(layer)) {
            return None;
        }
        parts.push(format!("{place}(?:{})", leaves.into_iter().collect::<Vec<_>>().join("|")));
    }
    match &parts[..] {
        [one] => Some(format!(r"(?:.*\.)?{one}")),
        _ => Some(format!(r"(?:.*\.)?(?:{})", parts.join("|"))),
    }
}
