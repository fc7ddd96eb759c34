//! Compares packed batches with the same samples one per row: losses, gradients, patch weights, positions and masks.

use std::collections::HashMap;

use basic_core::{Basic, DeviceSpec, Objective};
use basic_models::nn::{InitScheme, Llava, packed_positions, seeded_init};
use basic_models::{Batch, ImageTokens, LlavaConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

const IMAGE: u32 = 39;
const PATCHES: usize = 4;

fn devices() -> Vec<Device> {
    [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().flat_map(DeviceSpec::open).map(Device::autodiff).collect()
}

/// A decoder of a family. Mistral's has a window of 5 positions; the dynamic one stretches its positions beyond 8.
fn model(family: &str, device: &Device) -> Llava {
    let own = match family {
        "mistral" => r#""model_type": "mistral", "sliding_window": 5, "max_position_embeddings": 64"#,
        "dynamic" => {
            r#""model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
               "max_position_embeddings": 8"#
        }
        _ => r#""model_type": "llama", "max_position_embeddings": 64"#,
    };
    let config = format!(
        r#"{{"model_type": "llava", "image_token_index": 39,
            "text_config": {{{own}, "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32,
                             "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}},
            "vision_config": {{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                               "num_attention_heads": 2, "image_size": 8, "patch_size": 4}}}}"#
    );
    let config = LlavaConfig::from_json(&config).unwrap();
    seeded_init(config.init(device), InitScheme::Normal { std: 0.3 }, 5, device)
}

fn pixels(seed: usize) -> Vec<f32> {
    (0..3 * 8 * 8).map(|i| (((i * 7 + seed * 13) % 23) as f32) / 11.0 - 1.0).collect()
}

/// `text` ids with images at the positions `at` of the text (ascending). The loss covers all text
/// positions from `answer` on.
fn sample(text: usize, at: &[usize], answer: usize, seed: usize) -> ImageTokens {
    let mut tokens = ImageTokens::default();
    for position in 0..text {
        if at.contains(&position) {
            let start = tokens.ids.len();
            tokens.ids.extend([IMAGE; PATCHES]);
            tokens.images.push((start..start + PATCHES).collect());
            tokens.pixels.push(pixels(seed + tokens.images.len()));
        }
        tokens.ids.push(((seed * 5 + position * 3) % 37 + 1) as u32);
    }
    let label = |(p, id): (usize, &u32)| if p >= answer && *id != IMAGE { i64::from(*id) } else { -100 };
    tokens.labels = tokens.ids.iter().enumerate().map(label).collect();
    tokens
}

/// One image; text only; two images; an image with no text after it; a sample with a loss at every position; one image.
fn samples() -> Vec<ImageTokens> {
    let mut last = sample(3, &[2], 0, 40);
    last.ids.pop();
    last.labels.pop();
    vec![
        sample(7, &[1], 6, 0),
        sample(5, &[], 2, 10),
        sample(9, &[0, 4], 12, 20),
        last,
        sample(6, &[], 0, 50),
        sample(4, &[2], 7, 60),
    ]
}

/// The results of a batch: lm, das, sds, the patch weights by image, the gradients by parameter.
struct Outcome {
    losses: [f32; 3],
    weights: Vec<f32>,
    gradients: Vec<f32>,
}

struct Read {
    grads: GradientsParams,
    values: Vec<f32>,
}

impl ModuleVisitor for Read {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.grads.remove::<D>(param.id) {
            Some(grad) => self.values.extend(grad.cast(DType::F32).into_data().try_to_vec::<f32>().unwrap()),
            None => self.values.extend(vec![0.0; param.dims().iter().product()]),
        }
    }
}

fn outcome(model: &Llava, batch: &Batch) -> Outcome {
    let objective = Basic { lambda_sds: 0.5, ..Basic::default() }.into();
    let forward = model.forward(batch, &objective).unwrap();
    let weights = forward.targets().unwrap().weights.clone();
    let parts = model.losses(batch, forward, &objective);
    let losses = ["lm", "das", "sds"].map(|name| parts.get(name).unwrap().clone().into_scalar::<f32>());
    let grads = GradientsParams::from_grads(parts.total().backward(), model);
    let mut read = Read { grads, values: Vec::new() };
    model.visit(&mut read);
    Outcome { losses, weights: weights.into_data().try_to_vec().unwrap(), gradients: read.values }
}

/// The relative distance between two lists.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let between = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    between / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-12)
}

fn pack<'a>(samples: &'a [ImageTokens], rows: &[&[usize]], device: &Device) -> Batch {
    let rows: Vec<Vec<&'a ImageTokens>> = rows.iter().map(|row| row.iter().map(|i| &samples[*i]).collect()).collect();
    Batch::pack(&rows, 0, [3, 8, 8], device)
}

#[test]
fn packed_samples_have_the_losses_gradients_and_patch_weights_of_the_same_samples_one_a_row() {
    // In the order of the samples, so that images and sums over parameters have the same order too.
    let packings: [&[&[usize]]; 3] = [&[&[0, 1, 2], &[3, 4, 5]], &[&[0], &[1, 2, 3], &[4, 5]], &[&[0, 1, 2, 3, 4, 5]]];
    for device in devices() {
        for family in ["llama", "mistral", "dynamic"] {
            let model = model(family, &device);
            let samples = samples();
            let apart = outcome(&model, &Batch::collate(&samples, 0, [3, 8, 8], &device));
            assert!(apart.losses.iter().all(|loss| *loss > 1e-3), "{:?}", apart.losses);
            for rows in packings {
                let batch = pack(&samples, rows, &device);
                let packed = outcome(&model, &batch);
                for (ours, theirs) in packed.losses.iter().zip(apart.losses) {
                    assert!((ours - theirs).abs() < 1e-5 * (1.0 + theirs.abs()), "{family} {rows:?}: {ours}, {theirs}");
                }
                let weights = distance(&packed.weights, &apart.weights);
                assert!(weights < 1e-5, "{family} {rows:?}: attention mass {weights}");
                let gradients = distance(&packed.gradients, &apart.gradients);
                assert!(gradients < 1e-4, "{family} {rows:?}: gradients {gradients}");
            }
        }
    }
}

#[test]
fn another_neighbour_in_the_row_changes_nothing_of_a_sample() {
    // If a sample could see its neighbour, another neighbour would change its hidden states.
    let device = DeviceSpec::Cpu.open().unwrap();
    for family in ["llama", "mistral"] {
        let model = model(family, &device);
        let all = samples();
        let hidden = |rows: &[&[usize]], from: usize| {
            let batch = pack(&all, rows, &device);
            let hidden = model.forward(&batch, &Objective::llava()).unwrap().hidden;
            let length = all[2].ids.len();
            hidden.narrow(0, 0, 1).narrow(1, from, length).into_data().try_to_vec::<f32>().unwrap()
        };
        let behind_one = hidden(&[&[1, 2]], all[1].ids.len());
        let behind_another = hidden(&[&[0, 2]], all[0].ids.len());
        let before = hidden(&[&[2, 4]], 0);
        assert!(distance(&behind_another, &behind_one) < 1e-5 && distance(&before, &behind_one) < 1e-5, "{family}");
    }
}

#[test]
fn a_packed_batch_counts_targets_and_image_samples_as_its_samples_do() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let samples = samples();
    let apart = Batch::collate(&samples, 0, [3, 8, 8], &device);
    let packed = pack(&samples, &[&[0, 1, 2, 3, 4, 5]], &device);
    let targets: usize = samples.iter().map(ImageTokens::targets).sum();
    assert_eq!((apart.label_count(), packed.label_count()), (targets, targets));
    let supervising = samples.iter().filter(|sample| sample.supervises()).count();
    assert_eq!(supervising, 3, "the sample whose image nothing follows does not count");
    assert_eq!((apart.layout.image_samples(), packed.layout.image_samples()), (supervising, supervising));
    assert_eq!((apart.packing(), packed.samples_per_row), (None, vec![6]));
    assert_eq!(apart.lengths, packed.lengths);
    // The text rows of each image stay within its sample.
    let mut starts: HashMap<usize, usize> = HashMap::new();
    let mut start = 0;
    for (sample, length) in packed.lengths.iter().enumerate() {
        starts.insert(sample, start);
        start += length;
    }
    for (a, b) in apart.layout.images.iter().zip(&packed.layout.images) {
        let moved = |rows: &[usize]| rows.iter().map(|row| row + starts[&a.sample]).collect::<Vec<_>>();
        assert_eq!((a.sample, b.row), (b.sample, 0));
        assert_eq!((moved(&a.positions), moved(&a.text_rows)), (b.positions.clone(), b.text_rows.clone()));
    }
}

#[test]
fn positions_restart_with_each_sample_and_padding_has_none() {
    assert_eq!(packed_positions(&[vec![2, 3], vec![4]], 6), [vec![0, 1, 0, 1, 2, 0], vec![0, 1, 2, 3, 0, 0]]);
}
