//! Compares the observer with the definitions of docs/method.md, written out on the host.

use basic_core::ops::attention;
use basic_core::{
    Basic, DeviceSpec, Heads, ImageSpan, LayerWeights, ModelShape, Objective, Observed, PatchWeights, Seen, Supervised,
    Supervision, SupervisionLayout, Target,
};
use burn::tensor::{Device, Int, Tensor, TensorData};

const B: usize = 2;
const T: usize = 9;
const D: usize = 3;
const HEADS: usize = 2;
const LAYERS: usize = 4;
/// Width of a head.
const W: usize = 4;

fn devices() -> Vec<Device> {
    [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().flat_map(DeviceSpec::open).collect()
}

/// Two samples: the first with two images, the second with one image and no text after it (the last two
/// positions are padding).
fn layout() -> SupervisionLayout {
    let image = |sample, positions: [usize; 2], text_rows: &[usize]| ImageSpan {
        sample,
        row: sample,
        positions: positions.to_vec(),
        text_rows: text_rows.to_vec(),
    };
    let images = vec![image(0, [1, 2], &[3, 6, 7, 8]), image(0, [4, 5], &[6, 7, 8]), image(1, [5, 6], &[])];
    SupervisionLayout { batch: B, sequence: T, images }
}

/// A fixed sequence of numbers between 0 and 1.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| next()).collect()
}

fn hidden(layer: usize) -> Vec<f32> {
    numbers(B * T * D, layer as u32)
}

/// Queries and keys, `[B, T, HEADS, W]` each, spread widely enough that attention is far from uniform.
fn queries_and_keys(layer: usize) -> [Vec<f32>; 2] {
    [100, 200].map(|seed| numbers(B * T * HEADS * W, seed + layer as u32).iter().map(|x| 6.0 * x - 3.0).collect())
}

/// Causal attention probabilities `[B, HEADS, T, T]`, written out.
fn probabilities(layer: usize) -> Vec<f64> {
    let [q, k] = queries_and_keys(layer);
    let mut all = Vec::new();
    for sample in 0..B {
        for head in 0..HEADS {
            let row = |x: &[f32], t: usize| x[((sample * T + t) * HEADS + head) * W..][..W].to_vec();
            for t in 0..T {
                let dot = |j: usize| -> f64 {
                    row(&q, t).iter().zip(row(&k, j)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
                };
                let e: Vec<f64> = (0..=t).map(|j| (dot(j) / (W as f64).sqrt()).exp()).collect();
                let sum: f64 = e.iter().sum();
                all.extend((0..T).map(|j| e.get(j).map_or(0.0, |e| e / sum)));
            }
        }
    }
    all
}

/// What is observed of layers with these outputs, `[B, T, D]`.
fn watch(method: &Basic, outputs: impl Fn(usize) -> Vec<f32>, device: &Device) -> Observed {
    watch_in(&layout(), method, outputs, device)
}

fn watch_in(
    layout: &SupervisionLayout,
    method: &Basic,
    outputs: impl Fn(usize) -> Vec<f32>,
    device: &Device,
) -> Observed {
    let mut supervision = Supervision::new(&method.clone().into(), LAYERS, layout, device).unwrap();
    for layer in 0..LAYERS {
        let h = Tensor::from_data(TensorData::new(outputs(layer), [B, T, D]), device);
        let [q, k] =
            queries_and_keys(layer).map(|x| Tensor::<4>::from_data(TensorData::new(x, [B, T, HEADS, W]), device));
        let first = Tensor::<2, Int>::zeros([1, T], device);
        let lse = attention(q.clone(), k.clone(), k.clone(), first.clone()).lse;
        let seen = Seen { q, k, lse, first, cap: None };
        supervision.observe(layer, &h, &seen);
        // Activation recompute runs a layer twice; the second run must not count.
        supervision.observe(layer, &h, &seen);
    }
    supervision.finish()
}

fn observed(method: &Basic, device: &Device) -> (Vec<f32>, Vec<f32>) {
    let targets = watch(method, hidden, device).targets().unwrap().clone();
    let read = |data: TensorData| data.try_to_vec::<f32>().unwrap();
    (read(targets.embeddings.into_data()), read(targets.weights.into_data()))
}

fn expected(method: &Basic, k: usize) -> (Vec<f32>, Vec<f32>) {
    let w = method.layer_weights.weights(k);
    let probabilities: Vec<Vec<f64>> = (0..LAYERS).map(probabilities).collect();
    let (mut embeddings, mut weights) = (Vec::new(), Vec::new());
    for image in layout().images {
        let mut a = Vec::new();
        for i in &image.positions {
            for c in 0..D {
                let at = (image.sample * T + i) * D + c;
                embeddings.push((0..k).map(|h| w[h] * f64::from(hidden(h)[at])).sum::<f64>() as f32);
            }
            let mut mass = 0.0;
            for layer in probabilities.iter().take(k) {
                for j in &image.text_rows {
                    for head in 0..HEADS {
                        let at = ((image.sample * HEADS + head) * T + j) * T + i;
                        mass += layer[at] / HEADS as f64;
                    }
                }
            }
            a.push(mass / (k * image.text_rows.len().max(1)) as f64);
        }
        if method.patch_weights == PatchWeights::Uniform {
            let mean = a.iter().sum::<f64>() / a.len() as f64;
            a.fill(mean);
        }
        weights.extend(a.into_iter().map(|x| x as f32));
    }
    (embeddings, weights)
}

#[test]
fn the_observer_adds_up_what_the_method_defines_for_every_knob() {
    for device in devices() {
        for k in [None, Some(1), Some(4)] {
            for layer_weights in [LayerWeights::Increasing, LayerWeights::Constant, LayerWeights::Decreasing] {
                for patch_weights in [PatchWeights::Attention, PatchWeights::Uniform] {
                    let method = Basic { k, layer_weights, patch_weights, ..Basic::default() };
                    let (ours, a) = observed(&method, &device);
                    let (theirs, b) = expected(&method, k.unwrap_or(LAYERS / 2));
                    let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-6);
                    assert!(ours.len() == theirs.len() && near(&ours, &theirs), "{method:?}");
                    assert!(a.len() == b.len() && near(&a, &b), "{method:?}: {a:?} is not {b:?}");
                }
            }
        }
    }
}

#[test]
fn an_image_without_text_after_it_weighs_nothing_and_its_sample_is_not_counted() {
    assert_eq!(layout().image_samples(), 1);
    for device in devices() {
        let (_, a) = observed(&Basic::default(), &device);
        assert_eq!(&a[4..], &[0.0, 0.0]);
        assert!(a[..4].iter().all(|a| *a > 0.0));
    }
}

#[test]
fn images_without_any_text_after_them_weigh_nothing() {
    let layout = || {
        let mut layout = layout();
        layout.images.iter_mut().for_each(|image| image.text_rows.clear());
        layout
    };
    assert_eq!(layout().image_samples(), 0);
    for device in devices() {
        let targets = watch_in(&layout(), &Basic::default(), hidden, &device).targets().unwrap().clone();
        let weights = targets.weights.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(weights, [0.0; 6]);
        assert_eq!(targets.embeddings.dims(), [6, D]);
    }
}

#[test]
fn nothing_is_observed_without_images_or_without_supervision() {
    let device = DeviceSpec::Cpu.open().unwrap();
    let none = SupervisionLayout { batch: 1, sequence: 4, images: Vec::new() };
    assert!(Supervision::new(&Objective::default(), 4, &none, &device).is_none());
    assert!(Supervision::new(&Objective::llava(), 4, &layout(), &device).is_none());
    let model = ModelShape { layers: 4, width: D, visual_tokens: 4, features: [4, D], patches: true, tiled: false };
    let wrong = Objective::from(Basic { k: Some(5), ..Basic::default() });
    assert!(wrong.check(&model).is_err() && Objective::default().check(&model).is_ok());
}

/// The losses das and sds, and their gradients with respect to `v`, if each layer's output is the visual embedding and
/// what `hidden` gives for the layer.
fn terms(method: &Basic, v: &[f32], device: &Device) -> [(f64, Vec<f64>); 2] {
    let layout = layout();
    let outputs = |layer| {
        let mut h = hidden(layer);
        for (row, at) in layout.flat_positions().into_iter().enumerate() {
            for c in 0..D {
                h[at as usize * D + c] += v[row * D + c];
            }
        }
        h
    };
    let observed = watch(method, outputs, device);
    let objective = Objective::from(method.clone());
    let table = Tensor::from_data(TensorData::new(numbers(5 * D, 7), [5, D]), device);
    [0, 1].map(|term| {
        let device = device.clone().autodiff();
        let v = Tensor::<2>::from_data(TensorData::new(v.to_vec(), [v.len() / D, D]), &device).require_grad();
        let supervised = Supervised {
            v: &v,
            table: &table,
            features: None,
            other_features: None,
            heads: &Heads::default(),
            layout: &layout,
            image_samples: layout.image_samples(),
        };
        let losses = objective.losses(Tensor::zeros([1], &device), Some(supervised), Some(&observed));
        let value = losses.terms[term].value.clone();
        let gradient = v.grad(&value.backward()).unwrap();
        let read = |data: TensorData| data.convert::<f64>().try_to_vec::<f64>().unwrap();
        (read(value.into_data())[0], read(gradient.into_data()))
    })
}

/// das and its gradient by the closed form, for targets `[M, d]`.
fn das_by_hand(v: &[f32], targets: &[f64], weights: &[f32]) -> (f64, Vec<f64>) {
    let unit = |row: &[f64]| {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        (row.iter().map(|x| x / length).collect::<Vec<f64>>(), length)
    };
    let (mut sum, mut gradient) = (0.0, Vec::new());
    for (i, a) in weights.iter().enumerate() {
        let row: Vec<f64> = v[i * D..][..D].iter().map(|x| f64::from(*x)).collect();
        let ((u, length), (t, _)) = (unit(&row), unit(&targets[i * D..][..D]));
        let (a, cosine) = (f64::from(*a), u.iter().zip(&t).map(|(u, t)| u * t).sum::<f64>());
        sum += a * u.iter().zip(&t).map(|(u, t)| (u - t) * (u - t)).sum::<f64>();
        gradient.extend(u.iter().zip(&t).map(|(u, t)| a * 2.0 / length * (cosine * u - t)));
    }
    (sum, gradient)
}

#[test]
fn the_refinement_is_what_the_layers_add_and_does_not_see_the_length_of_v() {
    let m = layout().flat_positions().len();
    let short: Vec<f32> = numbers(m * D, 300).iter().map(|x| 2.0 * x - 1.0).collect();
    let long: Vec<f32> = short.iter().map(|x| 8.0 * x).collect();
    let refinement = Basic { target: Target::Refinement, ..Basic::default() };
    for device in devices() {
        // The sum of what the layers add is V^ where v is 0.
        let (added, weights) = observed(&refinement, &device);
        let added: Vec<f64> = added.into_iter().map(f64::from).collect();
        for v in [&short, &long] {
            let (value, gradient) = das_by_hand(v, &added, &weights);
            let [das, sds] = terms(&refinement, v, &device);
            let near = |x: f64, y: f64| (x - y).abs() < 1e-5 * (1.0 + y.abs());
            assert!(near(das.0, value), "{} is not {value}", das.0);
            assert!(das.1.iter().zip(&gradient).all(|(x, y)| near(*x, *y)), "{:?} is not {gradient:?}", das.1);
            assert!(sds.0 > 0.0 && sds.1.iter().all(|x| x.is_finite()));
        }
        let das = |target, v: &[f32]| terms(&Basic { target, ..Basic::default() }, v, &device)[0].0;
        assert!((das(Target::Refinement, &short) - das(Target::Refinement, &long)).abs() < 1e-4);
        assert!(das(Target::Refined, &long) < 0.1 * das(Target::Refined, &short));
    }
}
