//! Tests of the composed model with small random weights: batches, padding, several images, generation.

use basic_core::{DeviceSpec, Objective};
use basic_models::generate::{GenerateError, GenerationConfig, generate};
use basic_models::nn::{InitScheme, Llava, seeded_init};
use basic_models::{Batch, DecoderConfig, ImageTokens, LlavaConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};

const IMAGE: u32 = 39;

fn model(device: &Device) -> Llava {
    let config = LlavaConfig::from_json(
        r#"{"model_type": "llava", "image_token_index": 39,
            "text_config": {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4,
                            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
            "vision_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}}"#,
    )
    .unwrap();
    // The weights are large enough that attention and logits are far from uniform.
    seeded_init(config.init(device), InitScheme::Normal { std: 0.3 }, 5, device)
}

fn pixels(seed: usize) -> Vec<f32> {
    (0..3 * 8 * 8).map(|i| (((i * 7 + seed * 13) % 23) as f32) / 11.0 - 1.0).collect()
}

/// Text ids, with an image of 4 patches at `at` if given; the last two ids are the answer.
fn sample(text: &[u32], at: Option<usize>, seed: usize) -> ImageTokens {
    let mut ids = text.to_vec();
    let mut images = Vec::new();
    if let Some(at) = at {
        ids.splice(at..at, [IMAGE; 4]);
        images.push((at..at + 4).collect());
    }
    let answer = ids.len() - 2;
    let labels = ids.iter().enumerate().map(|(p, id)| if p >= answer { i64::from(*id) } else { -100 }).collect();
    ImageTokens {
        ids,
        labels,
        images,
        pixels: at.map(|_| pixels(seed)).into_iter().collect(),
        ..ImageTokens::default()
    }
}

fn samples() -> Vec<ImageTokens> {
    vec![
        sample(&[1, 5, 6, 7, 8], Some(1), 0),
        sample(&[1, 9, 10], None, 0),
        sample(&[1, 11, 12, 13, 14, 15, 16], Some(3), 1),
    ]
}

fn losses(model: &Llava, samples: &[ImageTokens]) -> [f64; 3] {
    let batch = Batch::collate(samples, 0, [3, 8, 8], &model.device());
    let objective = Objective::default();
    let forward = model.forward(&batch, &objective).unwrap();
    let parts = model.losses(&batch, forward, &objective);
    ["lm", "das", "sds"].map(|name| f64::from(parts.get(name).unwrap().clone().into_scalar::<f32>()))
}

#[test]
fn padding_changes_no_loss() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = model(&device);
    let together = losses(&model, &samples());
    let apart: Vec<[f64; 3]> = samples().iter().map(|s| losses(&model, std::slice::from_ref(s))).collect();
    // Each sample has two answer tokens, so the mean over tokens is the mean over samples. Two samples have an image.
    let lm = apart.iter().map(|l| l[0]).sum::<f64>() / 3.0;
    let das = (apart[0][1] + apart[2][1]) / 2.0;
    let sds = (apart[0][2] + apart[2][2]) / 2.0;
    for (ours, theirs) in together.iter().zip([lm, das, sds]) {
        assert!((ours - theirs).abs() < 1e-5 * (1.0 + theirs.abs()), "{ours} is not {theirs}");
    }
    assert_eq!(&apart[1][1..], &[0.0, 0.0], "a text-only sample has no supervision");
    assert!(together.iter().all(|loss| *loss > 0.0));
}

#[test]
fn a_batch_of_prompts_of_different_lengths_is_answered_as_each_alone() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = model(&device);
    let settings = GenerationConfig::greedy(8, vec![2], 0);
    let features = |samples: &[ImageTokens]| {
        let all: Vec<f32> = samples.iter().flat_map(|s| s.pixels.iter().flatten().copied()).collect();
        let count = all.len() / (3 * 8 * 8);
        (count > 0).then(|| {
            let pixels = Tensor::<4>::from_data(TensorData::new(all, [count, 3, 8, 8]), &device);
            model.encode(pixels)
        })
    };
    let together = generate(&model, &samples(), features(&samples()), &settings).unwrap();
    for (sample, ours) in samples().iter().zip(together) {
        let one = std::slice::from_ref(sample);
        let alone = generate(&model, one, features(one), &settings).unwrap().remove(0);
        assert_eq!(ours.ids, alone.ids);
        assert!(ours.ids.len() == 8 || ours.ids.last() == Some(&2));
    }
}

#[test]
fn a_prompt_beyond_the_context_is_an_error_that_gives_the_numbers() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let model = model(&device);
    let settings = GenerationConfig::greedy(60, vec![2], 0);
    let prompt = sample(&[1, 5, 6, 7, 8], None, 0);
    let error = generate(&model, &[prompt], None, &settings).unwrap_err();
    assert!(matches!(error, GenerateError::TooLong { prompt: 5, new: 60, context: 64 }), "{error}");
}

#[test]
fn weights_from_one_seed_are_the_same_on_every_backend() {
    let read = |spec: DeviceSpec| {
        let model = model(&spec.open().unwrap());
        model.language_model.table().into_data().try_to_vec::<f32>().unwrap()
    };
    let first = read(DeviceSpec::Cpu);
    assert!(first.iter().any(|x| *x != first[0]));
    if DeviceSpec::NdArray.open().is_ok() {
        assert_eq!(first, read(DeviceSpec::NdArray));
    }
}

#[test]
fn norms_from_a_seed_scale_by_one_in_every_family() {
    let device = DeviceSpec::Cpu.open().unwrap();
    for (family, weight) in [("llama", 1.0), ("gemma", 0.0)] {
        let text = format!(
            r#"{{"model_type": "{family}", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "head_dim": 6,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}}"#
        );
        let config = DecoderConfig::from_value(&serde_json::from_str(&text).unwrap()).unwrap();
        let decoder = seeded_init(config.init(&device), InitScheme::Normal { std: 0.3 }, 5, &device);
        struct Norms(Vec<f32>);
        impl ModuleVisitor for Norms {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if D == 1 {
                    self.0.extend(param.val().into_data().try_to_vec::<f32>().unwrap());
                }
            }
        }
        let mut norms = Norms(Vec::new());
        decoder.visit(&mut norms);
        // Two norms per layer and the last one, of width 24; Gemma's scale is 1 + weight.
        assert_eq!(norms.0, vec![weight; 5 * 24], "{family}");
    }
}
