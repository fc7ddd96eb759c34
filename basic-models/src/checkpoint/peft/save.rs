//! Writing.

use std::collections::BTreeMap;

use burn::tensor::DType;

use super::super::names::{LORA_A, Layout, Slot, slots};
use super::super::write::{SaveOptions, gather_apart, write_single};
use super::super::{CheckpointError, FloatType, StagedDir};
use super::config::{Adapted, document};
use super::{CONFIG, TENSORS};
use crate::adapters::adapters;
use crate::config::{Family, VisionFamily};
use crate::nn::Llava;

/// Writes a model's adapters as `peft` does, so that `PeftModel.from_pretrained(base, dir)` loads them onto
/// transformers' `LlavaForConditionalGeneration`; the caller commits the directory.
///
/// `whole` are the parts that were trained without adapters (`multi_modal_projector`): they are written whole, as
/// PEFT's `modules_to_save`. `base` is the model below: a directory or a hub name. Tensors are written in `dtype`.
///
/// # Errors
///
/// [`CheckpointError::Mismatch`] where the model has no adapters, or a whole part has some; I/O errors.
pub fn save_adapters(
    model: &Llava,
    whole: &[&str],
    base: &str,
    staged: &StagedDir,
    dtype: DType,
) -> Result<(), CheckpointError> {
    let config = model.config();
    if config.text_config.family == Family::Phi3 {
        // transformers' Phi-3 has one matrix for q, k and v: the three adapters are no adapter of it.
        let reason = "adapters of Phi-3 have no place in PEFT's layout: save the merged model instead";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", staged.named(CONFIG).display())));
    }
    let dinov2 = config.vision_config.family == VisionFamily::Dinov2;
    let belongs =
        |name: &str| whole.iter().any(|part| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.')));
    let mut found = BTreeMap::new();
    let scales: BTreeMap<String, f64> =
        adapters(model, "").into_iter().map(|(n, adapter)| (n, adapter.scale)).collect();
    let all = slots(model, "");
    for slot in all.iter().filter(|slot| slot.name.ends_with(LORA_A)) {
        let Some(layer) = slot.name.strip_suffix(LORA_A) else { continue };
        if belongs(&slot.name) {
            return Err(CheckpointError::Mismatch(format!("{layer} has an adapter and is to be saved whole: do one")));
        }
        let scale = scales.get(&format!("{layer}.weight")).copied().unwrap_or_default();
        found.insert(layer.to_string(), Adapted { rank: slot.shape[0], scale });
    }
    if found.is_empty() {
        return Err(CheckpointError::Mismatch("the model has no adapters to save: save the model".into()));
    }
    let document = document(&all, &found, whole, base, dinov2);
    staged.write(CONFIG, format!("{document:#}\n").as_bytes())?;
    let wanted = |slot: &Slot| slot.is_adapter() || belongs(&slot.name);
    let tensors = gather_apart(model, FloatType::of(dtype), &wanted);
    let options = SaveOptions { dinov2, ..SaveOptions::new(dtype) };
    write_single(staged, TENSORS, tensors, Layout::Adapters, &options)
}
