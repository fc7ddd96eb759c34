//! Tests of adapters on small parts, without files.

use basic_core::{DeviceSpec, Objective};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::config::LlavaConfig;
use crate::input::{Batch, ImageTokens};
use crate::nn::{InitScheme, Llava, seeded_init};
use crate::parameters::{LORA_A, slots};

fn config() -> LlavaConfig {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain/config.json");
    LlavaConfig::from_json(&std::fs::read_to_string(dir).unwrap()).unwrap()
}

fn model(device: &Device) -> Llava {
    seeded_init(config().init(device), InitScheme::Normal { std: 0.1 }, 7, device)
}

fn lora(rank: usize, targets: &[&str]) -> LoraConfig {
    LoraConfig { rank, alpha: 6.0, targets: targets.iter().map(|t| t.to_string()).collect(), quantize: None }
}

#[test]
fn fresh_adapters_change_nothing_and_are_the_same_from_the_same_seed() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let before = model(&device).language_model;
    let values = |part: &crate::nn::Decoder| -> Vec<(String, Vec<f32>)> {
        let found = adapters(part, "language_model");
        found.into_iter().map(|(name, adapter)| (name, adapter.a.into_data().try_to_vec().unwrap())).collect()
    };
    let all = attach(before.clone(), "language_model", &lora(4, &[]), 1, DType::F32).unwrap();
    let some = attach(before.clone(), "language_model", &lora(4, &["q_proj", "down_proj"]), 1, DType::F32).unwrap();
    let other = attach(before, "language_model", &lora(4, &["q_proj"]), 2, DType::F32).unwrap();
    let (all, some, other) = (values(&all), values(&some), values(&other));
    assert_eq!(all.len(), 7 * 4);
    assert_eq!(some.len(), 2 * 4);
    for adapter in &some {
        assert!(all.contains(adapter), "{}: depends on what else has adapters", adapter.0);
    }
    assert_ne!(some[1].1, some[3].1);
    assert!(other.iter().all(|adapter| !all.contains(adapter)));
    // U(-1/sqrt(in), 1/sqrt(in)) with 48 inputs, so none is above 0.1443; of 192 draws at least one is above 0.13.
    let (_, q) = all.iter().find(|(name, _)| name.ends_with("q_proj.weight")).unwrap();
    let largest = q.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(largest <= 1.0 / 48f32.sqrt() && largest > 0.13, "{largest}");
}

#[test]
fn an_unknown_target_is_an_error_that_lists_what_there_is() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = model(&device);
    let error = attach(model.language_model.clone(), "language_model", &lora(4, &["q_proj", "qkv"]), 1, DType::F32);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no linear layer qkv"), "{error}");
    for known in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] {
        assert!(error.contains(known), "{error}");
    }
    assert_eq!(targets(&model.vision_tower), ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]);
    let twice = attach(model.language_model, "language_model", &lora(4, &[]), 1, DType::F32).unwrap();
    let error = attach(twice, "language_model", &lora(4, &[]), 1, DType::F32).unwrap_err();
    assert_eq!(error, AdapterError::Attached("language_model".into()));
    for bad in [lora(0, &[]), LoraConfig { alpha: f64::NAN, ..lora(1, &[]) }] {
        assert!(matches!(bad.validate(), Err(AdapterError::Invalid { .. })));
    }
}

#[test]
fn factors_are_named_as_peft_names_them() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let part =
        attach(model(&device).language_model, "language_model", &lora(4, &["down_proj"]), 1, DType::F32).unwrap();
    let slots = slots(&part, "language_model");
    let shape = |name: &str| slots.iter().find(|slot| slot.name == name).map(|slot| slot.shape.clone());
    assert_eq!(shape("language_model.layers.1.mlp.down_proj.weight"), Some(vec![48, 96]));
    assert_eq!(shape("language_model.layers.1.mlp.down_proj.lora_A.weight"), Some(vec![4, 96]));
    assert_eq!(shape("language_model.layers.1.mlp.down_proj.lora_B.weight"), Some(vec![48, 4]));
    assert_eq!(slots.iter().filter(|slot| slot.name.ends_with(LORA_A)).count(), 4);
}

#[test]
fn only_the_factors_of_a_part_are_trained() {
    let device = DeviceSpec::Cpu.open().unwrap().autodiff();
    let part = attach(model(&device).language_model, "language_model", &lora(2, &["v_proj"]), 1, DType::F32).unwrap();
    let found = adapters(&part, "");
    assert!(found.values().all(|adapter| adapter.a.is_require_grad() && adapter.b.is_require_grad()));
    assert!(!part.table().is_require_grad());
    assert_eq!(found["layers.0.self_attn.v_proj.weight"].scale, 3.0);
    let trained: usize = found.values().map(|adapter| adapter.a.shape().num_elements() + adapter.b.dims()[1] * 2).sum();
    let whole = model(&device).language_model.num_params();
    assert_eq!(part.num_params(), whole + trained);
}

#[test]
fn a_merged_weight_is_the_base_and_the_scaled_product() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let base = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
    let a = Tensor::<2>::from_floats([[1.0], [-1.0]], &device);
    let b = Tensor::<2>::from_floats([[1.0, 0.0, 2.0]], &device);
    let merged = merged(base, &Adapter { a, b, scale: 0.5 });
    let values: Vec<f32> = merged.into_data().try_to_vec().unwrap();
    assert_eq!(values, [1.5, 2.0, 4.0, 3.5, 5.0, 5.0]);
}

/// Dequantizes weights and leaves adapters unchanged.
struct Dense;

impl ModuleMapper for Dense {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.base().dtype().is_float() { param } else { param.map(dense).set_require_grad(false) }
    }
}

/// The loss of a text, and the gradients of the factors by their names.
fn loss(model: &Llava) -> (f32, Vec<(String, Vec<f32>)>) {
    let ids: Vec<u32> = (5..25).collect();
    let labels = ids.iter().map(|id| i64::from(*id)).collect();
    let sample = ImageTokens { ids, labels, ..ImageTokens::default() };
    let batch = Batch::collate(&[sample], 0, [3, 28, 28], &model.device());
    let forward = model.forward(&batch, &Objective::llava()).unwrap();
    let lm = model.lm_loss(&batch, forward.hidden);
    let value = lm.clone().into_scalar::<f32>();
    let gradients = lm.backward();
    let found = adapters(&model.language_model, "");
    let gradients = found.into_iter().flat_map(|(name, Adapter { a, b, .. })| {
        [("a", a), ("b", b)].map(|(factor, tensor)| {
            let gradient = tensor.grad(&gradients).expect("a factor has a gradient");
            (format!("{name} {factor}"), gradient.into_data().try_to_vec::<f32>().unwrap())
        })
    });
    (value, gradients.collect())
}

/// A model whose decoder has nonzero adapters on quantized matrices.
fn quantized(bits: u8, block: u8, device: &Device) -> Result<Llava, AdapterError> {
    let mut model = model(device);
    let values = |count: usize, step: usize| (0..count).map(|i| ((i * step) % 101) as f32 / 505.0 - 0.1).collect();
    let sites = slots(&model.language_model, "").into_iter().filter(|slot| slot.transposed);
    let factors = sites.map(|slot| {
        let (a, b) = (values(slot.shape[1] * 3, 37), values(slot.shape[0] * 3, 59));
        (slot.name, Factors { a, b, rank: 3, scale: 0.5 })
    });
    let (factors, quantize) = (factors.collect(), Some(Quantization { bits, block }));
    model = model.freeze();
    model.language_model = attach_factors(model.language_model, "language_model", factors, quantize, DType::F32)?;
    Ok(model)
}

#[test]
fn a_quantized_base_computes_and_learns_as_its_dequantized_twin() {
    for (spec, bits, block) in [(DeviceSpec::Cpu, 8, 8), (DeviceSpec::Cpu, 4, 24), (DeviceSpec::NdArray, 8, 24)] {
        let Ok(device) = spec.open().map(Device::autodiff) else { continue };
        let packed = quantized(bits, block, &device).unwrap();
        let mut twin = packed.clone();
        twin.language_model = twin.language_model.map(&mut Dense);
        let mut held = Vec::new();
        let base = slots(&packed.language_model, "").into_iter().filter(|slot| slot.transposed && !slot.is_adapter());
        held.extend(base.map(|slot| slot.name));
        assert_eq!(held.len(), 7 * 4);
        let (ours, theirs) = (loss(&packed), loss(&twin));
        assert!((ours.0 - theirs.0).abs() <= 1e-5 * theirs.0.abs(), "{spec}, {bits} bits: {} and {}", ours.0, theirs.0);
        assert_eq!(ours.1.len(), 2 * 7 * 4);
        for ((name, ours), (_, theirs)) in ours.1.iter().zip(&theirs.1) {
            let apart: f32 = ours.iter().zip(theirs).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            let size = theirs.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(size > 0.0 && apart <= 1e-4 * size, "{spec}, {bits} bits, {name}: {apart} of {size}");
        }
        // It differs from the model that was not quantized.
        let mut plain = model(&device).freeze();
        plain.language_model = attach(plain.language_model, "language_model", &lora(1, &[]), 1, DType::F32).unwrap();
        assert!((loss(&plain).0 - ours.0).abs() > 1e-6);
    }
}

#[test]
fn quantization_that_does_not_fit_is_an_error() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let error = quantized(8, 32, &device).unwrap_err().to_string();
    assert!(error.contains("has 48 outputs, which blocks of 32 do not divide"), "{error}");
    let three = LoraConfig { quantize: Some(Quantization { bits: 3, block: 8 }), ..lora(1, &[]) };
    assert!(three.validate().unwrap_err().to_string().contains("quantize.bits = 3"));
    if let Ok(device) = DeviceSpec::NdArray.open() {
        let error = quantized(4, 8, &device).unwrap_err().to_string();
        assert!(error.contains("quantize.bits = 4: this device"), "{error}");
    }
}
