//! Compares sums over replicas with a single device, on the CPU: for a single layer, and for the fixtures' LLaVA.

use std::path::Path;
use std::sync::Arc;

use basic_core::{DeviceSpec, Objective};
use basic_data::{ImageSource, Sample, prepare};
use basic_models::nn::{Llava, LossCounts};
use basic_models::processor::{Message, Role, Style};
use basic_models::{Batch, Checkpoint, ImageTokens};
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::*;
use crate::recipe::Part;
use crate::trainable::set_trainable;

/// The largest difference caused by summing f32 values in another order, relative to the largest gradient.
const ROUNDING: f32 = 1e-5;

pub(super) fn replicas(world: usize) -> Replicas {
    Replicas::open(&vec![DeviceSpec::Cpu; world]).unwrap()
}

/// A module's gradients in its order; `None` for parameters without one.
pub(super) fn values<M: Module>(module: &M, grads: &GradientsParams) -> Vec<Option<Vec<f32>>> {
    struct Read<'a>(&'a GradientsParams, Vec<Option<Vec<f32>>>);
    impl ModuleVisitor for Read<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(self.0.get::<D>(param.id).map(|grad| grad.try_into_vec_as::<f32>().unwrap()));
        }
    }
    let mut read = Read(grads, Vec::new());
    module.visit(&mut read);
    read.1
}

#[track_caller]
fn assert_near(found: &[Option<Vec<f32>>], expected: &[Option<Vec<f32>>]) {
    assert_eq!(found.len(), expected.len());
    let largest_of = |values: &[f32]| values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // Some gradients are zero except for rounding (a bias of the keys does not change the softmax), so their error is
    // measured relative to the others.
    let overall = expected.iter().flatten().map(|values| largest_of(values)).fold(0.0_f32, f32::max);
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.is_some(), expected.is_some(), "the same parameters have a gradient");
        let (Some(found), Some(expected)) = (found, expected) else { continue };
        let largest = largest_of(expected).max(1e-3 * overall);
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= ROUNDING * largest, "{f} against {e}, of {largest}");
        }
    }
}

/// The gradients of `sum((x W + b)^2) / rows` over rows of ones, twos, ..
fn layer_gradients(layer: &Linear, rows: std::ops::Range<usize>, device: &Device) -> GradientsParams {
    let x: Vec<f32> = rows.clone().flat_map(|row| [row as f32 / 3.0, 1.0 - row as f32, 0.1]).collect();
    let x = Tensor::<2>::from_data(TensorData::new(x, [rows.len(), 3]), &device.clone().without_autodiff());
    let loss = layer.forward(Tensor::from_inner(x)).square().sum().div_scalar(8.0);
    GradientsParams::from_grads(loss.backward(), layer)
}

#[test]
fn a_layers_gradients_over_replicas_are_those_of_the_whole_batch_and_the_same_bits_every_time() {
    let device = Device::flex().autodiff();
    let layer: Linear = LinearConfig::new(3, 5).init(&device);
    let own = layer.clone().fork(&device);
    let whole = values(&layer, &layer_gradients(&own, 0..8, &device));
    for world in [2, 4] {
        let run = || {
            let body = |collective: Arc<dyn Collective>, device: &Device| {
                let own = layer.clone().fork(device);
                let share = 8 / world;
                let rows = collective.rank() * share..(collective.rank() + 1) * share;
                let grads = layer_gradients(&own, rows, device);
                collective.sum_gradients(&own, grads).map(|sums| values(&own, &sums))
            };
            replicas(world).run::<_, CollectiveError>(body).unwrap()
        };
        let first = run();
        assert_eq!(first.len(), world);
        for sums in &first {
            assert_near(sums, &whole);
            assert_eq!(sums, &first[0], "all replicas have the same bits");
        }
        assert_eq!(run(), first, "and every run");
    }
}

#[test]
fn half_type_gradients_are_summed_in_f32_and_keep_their_type() {
    let device = Device::flex();
    // 1 + 3 x 2^-9 is 1.0059 in bf16's 8 bits; added one by one in bf16, each 2^-9 is lost.
    let body = |collective: Arc<dyn Collective>, _: &Device| {
        let layer = LinearConfig::new(1, 1).with_bias(false).init(&device);
        let value = if collective.rank() == 0 { 1.0 } else { 1.0 / 512.0 };
        let mut grads = GradientsParams::new();
        let grad = Tensor::<2>::full([1, 1], value, (&device, DType::BF16));
        grads.register(layer.weight.id, grad);
        let sums = collective.sum_gradients(&layer, grads)?;
        let sum = sums.get::<2>(layer.weight.id).unwrap();
        Ok((sum.dtype(), sum.try_into_vec_as::<f32>().unwrap()))
    };
    for (dtype, sum) in replicas(4).run::<_, CollectiveError>(body).unwrap() {
        assert_eq!((dtype, &sum[..]), (DType::BF16, &[1.0078125_f32][..]));
    }
}

/// Fixture samples: three with images and five with text only, so that the last of four replicas has no image.
pub(super) fn samples(checkpoint: &Checkpoint) -> Vec<ImageTokens> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images");
    let all: [(&[&str], &str, &str); 8] = [
        (&["a.png"], "<image>\nwhat is in the picture?", "a small red circle"),
        (&[], "is the grass green?", "it is"),
        (&["b.png", "c.png"], "<image> and <image>: which is larger?", "the first one"),
        (&["d.png"], "what does <image> show?", "one yellow star. the dog sits on the grass"),
        (&[], "how many triangles?", "two green triangles and one yellow star."),
        (&[], "and the dog?", "the dog sits on the grass."),
        (&[], "is the grass red?", "it is green"),
        (&[], "is the star blue?", "yellow"),
    ];
    let sample = |(images, question, answer): &(&[&str], &str, &str)| {
        let images = images.iter().map(|name| ImageSource::File(root.join(name))).collect();
        let messages = vec![Message::new(Role::User, *question), Message::new(Role::Assistant, *answer)];
        let sample =
            Sample { file: Path::new("test").into(), place: String::new(), images, messages, dropped_turns: 0 };
        let mut prepared = prepare(&sample, checkpoint, &Style::vicuna_v1()).unwrap();
        for image in &prepared.images {
            prepared.tokens.pixels.push(image.pixels(checkpoint).unwrap().data);
        }
        prepared.tokens
    };
    all.iter().map(sample).collect()
}

/// The gradients of a share of the global batch; the losses are divided by the global counts.
pub(super) fn llava_gradients(
    model: &Llava,
    checkpoint: &Checkpoint,
    share: &[ImageTokens],
    counts: [f64; 2],
) -> (GradientsParams, [f64; 2]) {
    let objective = Objective::default();
    let batch = Batch::collate(share, checkpoint.pad_id(), checkpoint.image_shape(), &model.device());
    let forward = model.forward(&batch, &objective).unwrap();
    let counts = LossCounts { tokens: counts[0] as usize, image_samples: counts[1] as usize };
    let parts = model.losses_over(&batch, forward, &objective, counts);
    let total = parts.total();
    let losses = [&parts.lm, &total].map(|t| f64::from(t.clone().try_into_scalar::<f32>().unwrap()));
    // Text alone does not reach the projector.
    let grads = total.is_tracked().then(|| GradientsParams::from_grads(total.backward(), model));
    (grads.unwrap_or_default(), losses)
}

#[test]
fn llavas_gradients_over_replicas_are_those_of_the_whole_batch_though_one_has_text_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let device = Device::flex().autodiff();
    let all = samples(&checkpoint);
    let labels = |share: &[ImageTokens]| share.iter().flat_map(|s| &s.labels).filter(|label| **label >= 0).count();
    for parts in [&[Part::Projector][..], &[Part::Projector, Part::Decoder], &[Part::Vision, Part::Projector]] {
        let model = set_trainable(checkpoint.load(DType::F32, &device).unwrap(), parts);
        let own = model.clone().fork(&device);
        let counts = [labels(&all) as f64, 3.0];
        let (grads, [lm, total]) = llava_gradients(&own, &checkpoint, &all, counts);
        let whole = values(&model, &grads);
        for world in [2, 4] {
            let run = || {
                let body = |collective: Arc<dyn Collective>, device: &Device| {
                    let own = model.clone().fork(device);
                    let size = all.len() / world;
                    let share = &all[collective.rank() * size..(collective.rank() + 1) * size];
                    let images = share.iter().filter(|s| !s.images.is_empty()).count();
                    let mut counts = [labels(share) as f64, images as f64];
                    collective.sum_f64(&mut counts)?;
                    let (grads, mut losses) = llava_gradients(&own, &checkpoint, share, counts);
                    collective.sum_f64(&mut losses)?;
                    let sums = collective.sum_gradients(&own, grads)?;
                    Ok((values(&own, &sums), losses, counts))
                };
                replicas(world).run::<_, CollectiveError>(body).unwrap()
            };
            let first = run();
            for (sums, losses, found) in &first {
                assert_eq!(*found, counts);
                assert!((losses[0] - lm).abs() < 1e-5 * lm && (losses[1] - total).abs() < 1e-5 * total, "{losses:?}");
                assert_near(sums, &whole);
            }
            assert_eq!(run(), first, "the same bits on every run, of {world} replicas");
        }
    }
}

#[test]
fn a_replica_that_fails_stops_the_others_with_its_message() {
    let body = |collective: Arc<dyn Collective>, _: &Device| {
        collective.barrier()?;
        if collective.rank() == 2 {
            let message = "sample 17: no such image".into();
            return Err(CollectiveError::Thread { rank: 2, message });
        }
        // Without the failure, the others would wait forever.
        let heard = collective.barrier().and_then(|()| collective.sum_f64(&mut [1.0])).unwrap_err();
        assert!(heard.to_string().contains("replica 2 failed") && heard.to_string().contains("sample 17"), "{heard}");
        Err::<(), _>(heard)
    };
    let error = replicas(4).run::<(), CollectiveError>(body).unwrap_err();
    assert!(matches!(&error, CollectiveError::Thread { rank: 2, .. }), "the cause, not what follows from it: {error}");
}

#[test]
fn a_replica_that_panics_or_ends_early_or_does_something_else_is_an_error() {
    let panics = |collective: Arc<dyn Collective>, _: &Device| {
        assert!(collective.rank() != 1, "out of memory");
        collective.barrier()
    };
    let error = replicas(2).run::<(), CollectiveError>(panics).unwrap_err().to_string();
    assert!(error.contains("replica 1") && error.contains("out of memory"), "{error}");

    let ends = |collective: Arc<dyn Collective>, _: &Device| match collective.rank() {
        1 => Ok(()),
        _ => collective.barrier(),
    };
    let error = replicas(3).run::<(), CollectiveError>(ends).unwrap_err();
    assert_eq!(error, CollectiveError::Ended { rank: 1 });

    let differs = |collective: Arc<dyn Collective>, _: &Device| {
        let mut values = vec![0.0; 1 + collective.rank() / 2];
        collective.sum_f64(&mut values)
    };
    let error = replicas(4).run::<(), CollectiveError>(differs).unwrap_err().to_string();
    assert!(error.contains("replica 2 brings 2 values, replica 0 1 values"), "{error}");
}

#[test]
fn sums_of_host_values_are_taken_in_rank_order() {
    // 1e16 + 1 - 1e16 is 0 in f64; in another order it is 1.
    let body = |collective: Arc<dyn Collective>, _: &Device| {
        let mut values = [[1e16, 1.0, -1e16][collective.rank()]];
        collective.sum_f64(&mut values).map(|()| values[0])
    };
    for _ in 0..20 {
        assert_eq!(replicas(3).run::<_, CollectiveError>(body).unwrap(), [0.0; 3]);
    }
}

#[test]
fn tensors_are_summed_one_by_one_however_many_there_are() {
    for count in [0, 1, 2, 5, 7] {
        let body = |collective: Arc<dyn Collective>, device: &Device| {
            let device = device.clone().without_autodiff();
            let tensor = |i: usize| Tensor::<1>::full([i + 1], (10 * collective.rank() + i) as f32, &device);
            let sums = collective.sum((0..count).map(tensor).collect())?;
            Ok(sums.into_iter().map(|sum| sum.try_into_vec_as::<f32>().unwrap()).collect::<Vec<_>>())
        };
        for sums in replicas(3).run::<_, CollectiveError>(body).unwrap() {
            let expected: Vec<Vec<f32>> = (0..count).map(|i| vec![30.0 + 3.0 * i as f32; i + 1]).collect();
            assert_eq!(sums, expected);
        }
    }
}

#[test]
fn parts_of_sums_are_scattered_parts_are_gathered_and_one_replicas_values_go_to_all() {
    for world in [1, 2, 3] {
        for length in [0, 1, 5] {
            let body = |collective: Arc<dyn Collective>, device: &Device| {
                let (device, rank) = (device.clone().without_autodiff(), collective.rank());
                let values = (0..world * length).map(|i| (100 * rank + i) as f32).collect::<Vec<_>>();
                let whole = Tensor::<1>::from_data(TensorData::new(values, [world * length]), &device);
                let part = collective.reduce_scatter(whole.clone())?;
                let gathered = collective.all_gather(part.clone())?;
                let sum = collective.sum(vec![whole.clone()])?.remove(0);
                let last = collective.broadcast(whole, world - 1)?;
                let texts = collective.gather_bytes(&vec![b'x'; rank])?;
                let read = |tensor: Tensor<1>| tensor.try_into_vec_as::<f32>().unwrap();
                Ok((read(part), read(gathered), read(sum), read(last), texts))
            };
            let all = replicas(world).run::<_, CollectiveError>(body).unwrap();
            for (rank, (part, gathered, sum, last, texts)) in all.into_iter().enumerate() {
                assert_eq!(part, sum[rank * length..(rank + 1) * length]);
                assert_eq!(gathered, sum);
                assert_eq!(last, (0..world * length).map(|i| (100 * (world - 1) + i) as f32).collect::<Vec<_>>());
                assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), (0..world).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn all_replicas_hear_of_the_first_that_could_not_do_its_part() {
    let body = |collective: Arc<dyn Collective>, _: &Device| {
        let rank = collective.rank();
        assert_eq!(share(&*collective, Ok::<_, CollectiveError>(vec![7; rank]))?, [vec![], vec![7], vec![7, 7]]);
        assert_eq!(together(&*collective, Ok::<_, CollectiveError>(rank)), Ok(rank));
        let full = || CollectiveError::Thread { rank, message: "the disk is full".into() };
        let said = together(&*collective, if rank == 1 { Err(full()) } else { Ok(()) }).unwrap_err();
        let heard = share(&*collective, if rank == 1 { Err(full()) } else { Ok(vec![1]) }).unwrap_err();
        assert_eq!(said, heard);
        Ok(said)
    };
    let said = replicas(3).run::<_, CollectiveError>(body).unwrap();
    assert!(matches!(&said[1], CollectiveError::Thread { rank: 1, .. }), "its own error: {}", said[1]);
    for said in [&said[0], &said[2]] {
        assert!(matches!(said, CollectiveError::Replica { rank: 1, message } if message.contains("the disk is full")));
    }
}

#[test]
fn devices_that_cannot_train_together_are_named() {
    let open = |specs: &[DeviceSpec]| Replicas::open(specs).map(|r| r.world());
    assert_eq!(open(&[]), Err(ReplicasError::None));
    assert_eq!(open(&[DeviceSpec::Cpu; 3]), Ok(3));
    assert_eq!(open(&[DeviceSpec::Cpu, DeviceSpec::Cuda(0)]), Err(ReplicasError::Mixed("cpu,cuda:0".into())));
    assert_eq!(open(&[DeviceSpec::Auto, DeviceSpec::Auto]), Err(ReplicasError::Mixed("auto,auto".into())));
    assert_eq!(open(&[DeviceSpec::Cuda(1), DeviceSpec::Cuda(1)]), Err(ReplicasError::Twice("cuda:1".into())));
}
