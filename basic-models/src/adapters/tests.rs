//! Adapters on small parts, without files.

use basic_core::DeviceSpec;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::checkpoint::{LORA_A, slots};
use crate::config::LlavaConfig;
use crate::nn::{InitScheme, Llava, seeded_init};

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
    // U(-1/sqrt(in), 1/sqrt(in)): 48 inputs, so none is above 0.1443; of 192 draws one is above 0.13.
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
