//! Writes adapters in the format of `peft`.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};

use super::super::fused::{self, FusedPart};
use super::super::names::Layout;
use super::super::write::{Outgoing, SaveOptions, gather_apart, write_single, write_tensor};
use super::super::{CheckpointError, FloatType, StagedDir};
use super::config::{Adapted, document};
use super::{CONFIG, TENSORS};
use crate::adapters::{Adapter, adapters};
use crate::nn::Llava;
use crate::parameters::{LORA_A, LORA_B, Slot, slots};

/// Writes a model's adapters in the format of `peft`, so that `PeftModel.from_pretrained(base, dir)` loads them onto
/// transformers' `LlavaForConditionalGeneration`. The caller commits the directory.
///
/// `whole` are the parts that were trained without adapters (`multi_modal_projector`); they are written in full, as
/// PEFT's `modules_to_save`. `base` is the base model: a directory or a hub name. Tensors are written in `dtype`.
///
/// If a family's files have one matrix for q, k and v, and one for gate and up, the adapters of its parts are joined to
/// one whose rank is the sum of theirs. Its B is zero where a column belongs to the rows of another part.
///
/// # Errors
///
/// Returns [`CheckpointError::Mismatch`] if the model has no adapters or a part in `whole` has some, and I/O errors.
pub fn save_adapters(
    model: &Llava,
    whole: &[&str],
    base: &str,
    staged: &StagedDir,
    dtype: DType,
) -> Result<(), CheckpointError> {
    let config = model.config();
    let fused = config.text_config.family.fused_on_disk;
    let vision = config.vision_config.family.names;
    let belongs =
        |name: &str| whole.iter().any(|part| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.')));
    let mut layers: BTreeMap<String, Adapter> = BTreeMap::new();
    for (weight, adapter) in adapters(model, "") {
        let layer = weight.strip_suffix(".weight").unwrap_or(&weight);
        if belongs(layer) {
            return Err(CheckpointError::Mismatch(format!("{layer} has an adapter and is to be saved whole: do one")));
        }
        layers.insert(layer.to_string(), adapter);
    }
    if layers.is_empty() {
        return Err(CheckpointError::Mismatch("the model has no adapters to save: save the model".into()));
    }
    let mut all: Vec<Slot> = slots(model, "").into_iter().filter(|slot| !slot.is_adapter()).collect();
    if fused {
        layers = joined(layers, &all);
        let rename = |(name, parts): (String, Vec<Slot>)| Some(Slot { name, ..parts.into_iter().next()? });
        all = fused::join(all).into_iter().filter_map(rename).collect();
    }
    let adapted = |adapter: &Adapter| Adapted { rank: adapter.a.dims()[1], scale: adapter.scale };
    let found = layers.iter().map(|(layer, adapter)| (layer.clone(), adapted(adapter))).collect();
    let mut document = document(&all, &found, whole, base, vision);
    // Without this, PEFT would give a model whose head is its table a head of its own.
    if model.lm_head.is_none() && whole.contains(&"language_model") {
        document["ensure_weight_tying"] = true.into();
    }
    staged.write(CONFIG, format!("{document:#}\n").as_bytes())?;

    let to = FloatType::of(dtype);
    let mut tensors = Vec::new();
    for (layer, Adapter { a, b, .. }) in layers {
        for (suffix, factor) in [(LORA_A, a), (LORA_B, b)] {
            let [rows, columns] = factor.dims();
            let slot = Slot { name: format!("{layer}{suffix}"), shape: vec![columns, rows], transposed: true };
            tensors.push(Outgoing::new(&slot.clone(), move |sink| write_tensor(factor.clone(), &slot, to, sink)));
        }
    }
    tensors.extend(gather_apart(model, to, &|slot| belongs(&slot.name)));
    let options = SaveOptions { vision, fused, ..SaveOptions::new(dtype) };
    write_single(staged, TENSORS, tensors, Layout::Adapters, &options)
}

/// The adapters, joined as for a decoder with fused matrices.
fn joined(layers: BTreeMap<String, Adapter>, all: &[Slot]) -> BTreeMap<String, Adapter> {
    let rows: BTreeMap<&str, usize> = all.iter().map(|slot| (slot.name.as_str(), slot.shape[0])).collect();
    let rows = |name: &str| rows.get(name).copied();
    let mut out = BTreeMap::new();
    let mut members: BTreeMap<String, Vec<(FusedPart, Adapter)>> = BTreeMap::new();
    for (layer, adapter) in layers {
        // The vision encoder's projections have the same names but are not fused.
        match FusedPart::of(&format!("{layer}.weight")).filter(|_| layer.starts_with("language_model.")) {
            Some(part) => {
                let whole = part.whole();
                let whole = whole.strip_suffix(".weight").unwrap_or(&whole).to_string();
                members.entry(whole).or_default().push((part, adapter));
            }
            None => drop(out.insert(layer, adapter)),
        }
    }
    for (whole, mut parts) in members {
        parts.sort_by_key(|(part, _)| part.index);
        let scale = parts[0].1.scale;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (part, adapter) in parts {
            let Some((first, height)) = part.rows(&rows) else { continue };
            let factor = adapter.b.mul_scalar(adapter.scale / scale);
            let ([rank, width], device, dtype) = (factor.dims(), factor.device(), factor.dtype());
            let zeros = |columns: usize| Tensor::<2>::zeros([rank, columns], (&device, dtype));
            let row = [(first > 0).then(|| zeros(first)), Some(factor)];
            let after = height - first - width;
            let row = row.into_iter().flatten().chain((after > 0).then(|| zeros(after)));
            b.push(Tensor::cat(row.collect(), 1));
            a.push(adapter.a);
        }
        out.insert(whole, Adapter { a: Tensor::cat(a, 1), b: Tensor::cat(b, 0), scale });
    }
    out
}
