//! Compares the value and the gradients of VIRAL's term with PyTorch's (f64, tests/reference/viral_fixtures.py); the
//! layers are reported as a decoder does.

use basic_core::methods::viral::{Head, Similarity, Viral};
use basic_core::{
    Basic, DeviceSpec, Heads, ImageSpan, Losses, Objective, Seen, Supervised, Supervision, SupervisionLayout,
};
use burn::module::Param;
use burn::nn::LinearConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;

const D: usize = 5;
const W: usize = 6;
const HIDDEN: usize = 7;
const IMAGES: usize = 4;
const M: usize = 4;
/// The positions of a row: those of an image, then two of text.
const T: usize = 6;
const LAYERS: usize = 3;
const IMAGE_SAMPLES: usize = 3;

/// The same hash of index and seed as in the script, in [-1, 1).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let hash = |i: u64| {
        let mut h = (i * 0x9E37_79B1 + seed * 0x85EB_CA6B) & 0xFFFF_FFFF;
        for (shift, factor) in [(16, 0x85EB_CA6B_u64), (13, 0xC2B2_AE35)] {
            h = ((h ^ (h >> shift)) * factor) & 0xFFFF_FFFF;
        }
        h ^ (h >> 16)
    };
    (0..count as u64).map(|i| ((hash(i) >> 8) as f64 / f64::from(1 << 23) - 1.0) as f32).collect()
}

fn rows(n: usize, d: usize, seed: u64, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(numbers(n * d, seed), [n, d]), device)
}

fn devices() -> Vec<Device> {
    [DeviceSpec::Cpu, DeviceSpec::NdArray].iter().flat_map(DeviceSpec::open).map(Device::autodiff).collect()
}

/// One image per row; the second and the third belong to one sample, the last has no text after it.
fn layout() -> SupervisionLayout {
    let image = |(row, sample): (usize, usize)| ImageSpan {
        sample,
        row,
        positions: (0..M).collect(),
        text_rows: if sample == 2 { Vec::new() } else { vec![4, 5] },
    };
    SupervisionLayout { batch: IMAGES, sequence: T, images: [0, 1, 1, 2].into_iter().enumerate().map(image).collect() }
}

fn head(device: &Device) -> Head {
    let widths = [D, HIDDEN, HIDDEN, W];
    let mut head = Head::new(widths, device);
    for (index, layer) in head.layers.iter_mut().enumerate() {
        let (i, o) = (widths[index], widths[index + 1]);
        *layer = LinearConfig::new(i, o).init(device);
        layer.weight = Param::from_tensor(rows(i, o, 10 + index as u64, device));
        let bias = TensorData::new(numbers(o, 20 + index as u64), [o]);
        layer.bias = Some(Param::from_tensor(Tensor::from_data(bias, device)));
    }
    head
}

/// The image rows of layer 2's output, the heads, and the losses after a pass over all layers.
struct Pass {
    rows: Tensor<2>,
    heads: Heads,
    losses: Losses,
}

fn pass(objective: &Objective, grid: usize, device: &Device) -> Pass {
    let plain = device.clone().without_autodiff();
    let rows_of_images = rows(IMAGES * M, D, 1, device).require_grad();
    let text = rows(IMAGES * (T - M), D, 3, device);
    let hidden = Tensor::cat(vec![rows_of_images.clone().reshape([IMAGES, M, D]), text.reshape([IMAGES, T - M, D])], 1); // [B, T, d]
    let mut supervision = Supervision::new(objective, LAYERS, &layout(), device).unwrap();
    for layer in 0..LAYERS {
        let zeros = || Tensor::<4>::zeros([IMAGES, T, 1, 2], &plain);
        let lse = Tensor::<3>::zeros([IMAGES, 1, T], &plain);
        let seen = Seen { q: zeros(), k: zeros(), lse, first: Tensor::<2, Int>::zeros([1, T], &plain), cap: None };
        // The outputs of the other layers must not matter.
        let output = if layer == 1 { hidden.clone() } else { hidden.clone() * 100.0 };
        if supervision.wants(layer) {
            supervision.observe(layer, &output, &seen);
        }
    }
    let heads = Heads { viral: Some(head(device)) };
    let features = rows(IMAGES * grid * grid, W, 2, &plain);
    let losses = losses(objective, supervision, &heads, &features, device);
    Pass { rows: rows_of_images, heads, losses }
}

/// The losses of a batch after the pass that `supervision` has observed.
fn losses(
    objective: &Objective,
    supervision: Supervision,
    heads: &Heads,
    features: &Tensor<2>,
    device: &Device,
) -> Losses {
    let (v, table, layout) = (rows(IMAGES * M, D, 4, device), rows(9, D, 5, device), layout());
    let supervised = Supervised {
        v: &v,
        table: &table,
        features: Some(features),
        other_features: None,
        heads,
        layout: &layout,
        image_samples: IMAGE_SAMPLES,
    };
    objective.losses(Tensor::zeros([1], device), Some(supervised), Some(&supervision.finish()))
}

fn only(viral: Viral) -> Objective {
    Objective { viral: Some(viral), ..Objective::llava() }
}

fn read<const R: usize>(x: Tensor<R>) -> Vec<f64> {
    x.into_data().try_to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Compares f32 with f64, within 2e-5 of the largest entry.
fn close(ours: &[f64], theirs: &[f64], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(1e-3f64, |top, x| top.max(x.abs()));
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= 2e-5 * scale, "{what}: {ours} is not {theirs} (largest {scale})");
    }
}

#[test]
fn the_term_and_its_gradients_are_those_of_pytorch() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/viral.json")).unwrap();
    for device in devices() {
        for case in fixture["cases"].as_array().unwrap() {
            let similarity: Similarity = serde_json::from_value(case["similarity"].clone()).unwrap();
            let grid = case["grid"].as_u64().unwrap() as usize;
            let what = format!("{similarity:?} from {grid} x {grid}");
            let viral = Viral { layer: Some(2), similarity, weight: 0.25, ..Viral::default() };
            let Pass { rows, heads, losses } = pass(&only(viral), grid, &device);
            let term = losses.terms.last().unwrap();
            assert_eq!((term.name, term.weight), ("viral", 0.25));
            close(&read(term.value.clone()), &[case["value"].as_f64().unwrap()], &what);
            close(&read(losses.total()), &[0.25 * case["value"].as_f64().unwrap()], &what);
            let grads = term.value.backward();
            let theirs = |name: &str| -> Option<Vec<f64>> {
                Some(case["gradients"].get(name)?.as_array()?.iter().flat_map(Value::as_f64).collect())
            };
            close(&read(rows.grad(&grads).unwrap()), &theirs("hidden").unwrap(), &format!("{what}: hidden"));
            for (index, layer) in heads.viral.unwrap().layers.iter().enumerate() {
                let (weight, bias) = (format!("weight{index}"), format!("bias{index}"));
                match theirs(&weight) {
                    Some(expected) => {
                        close(&read(layer.weight.val().grad(&grads).unwrap()), &expected, &format!("{what}: {weight}"));
                        let found = layer.bias.as_ref().unwrap().val().grad(&grads).unwrap();
                        close(&read(found), &theirs(&bias).unwrap(), &format!("{what}: {bias}"));
                    }
                    // The similarity `gram` does not use a head.
                    None => assert!(layer.weight.val().grad(&grads).is_none()),
                }
            }
        }
    }
}

#[test]
fn methods_are_free_to_combine_and_each_gives_what_it_gives_alone() {
    for device in devices() {
        let viral = Viral { layer: Some(2), ..Viral::default() };
        let alone = pass(&only(viral.clone()), 3, &device).losses;
        let basic = pass(&Basic::default().into(), 3, &device).losses;
        let both = pass(&Objective { viral: Some(viral), ..Objective::default() }, 3, &device).losses;
        let names: Vec<&str> = both.named().map(|(name, _)| name).collect();
        assert_eq!(names, ["lm", "das", "sds", "viral"]);
        for (name, from) in [("das", &basic), ("sds", &basic), ("viral", &alone)] {
            let value = |losses: &Losses| read(losses.get(name).unwrap().clone());
            assert_eq!(value(&both), value(from), "{name}");
            assert!(value(&both)[0] != 0.0, "{name}");
        }
        let sum = read(basic.total())[0] + read(alone.total())[0];
        assert!((read(both.total())[0] - sum).abs() < 1e-5);
    }
}

#[test]
fn extremes_stay_finite_and_a_batch_without_images_has_a_term_of_zero() {
    for device in devices() {
        for similarity in [Similarity::Cosine, Similarity::Gram] {
            let objective = only(Viral { layer: Some(2), similarity, ..Viral::default() });
            let layout = SupervisionLayout { batch: 1, sequence: T, images: Vec::new() };
            assert!(Supervision::new(&objective, LAYERS, &layout, &device).is_none());
            let nothing = objective.losses(Tensor::zeros([1], &device), None, None);
            assert_eq!(read(nothing.get("viral").unwrap().clone()), [0.0]);
            for scale in [0.0, 1e-30, 1e15] {
                let plain = device.clone().without_autodiff();
                let rows_of_images = (rows(IMAGES * M, D, 1, &device) * scale).require_grad();
                let features = rows(IMAGES * 4, W, 2, &plain) * scale;
                let mut supervision = Supervision::new(&objective, LAYERS, &self::layout(), &device).unwrap();
                let padding = Tensor::<3>::zeros([IMAGES, T - M, D], &device);
                let hidden = Tensor::cat(vec![rows_of_images.clone().reshape([IMAGES, M, D]), padding], 1);
                let seen = Seen {
                    q: Tensor::zeros([1, 1, 1, 1], &plain),
                    k: Tensor::zeros([1, 1, 1, 1], &plain),
                    lse: Tensor::zeros([1, 1, 1], &plain),
                    first: Tensor::zeros([1, 1], &plain),
                    cap: None,
                };
                supervision.observe(1, &hidden, &seen);
                let heads = Heads { viral: Some(head(&device)) };
                let losses = losses(&objective, supervision, &heads, &features, &device);
                let grads = losses.total().backward();
                let found = [read(losses.total()), read(rows_of_images.grad(&grads).unwrap())].concat();
                assert!(found.iter().all(|x| x.is_finite()), "{similarity:?} at {scale}: {found:?}");
            }
        }
    }
}
