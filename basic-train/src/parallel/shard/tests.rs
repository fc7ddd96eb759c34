//! Compares divided gradients and updates with those of replicas that hold everything.

use std::path::Path;
use std::sync::Arc;

use basic_models::Checkpoint;
use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device};

use super::super::tests::{llava_gradients, replicas, samples};
use super::*;
use crate::optim::{Group, Optimizer, OptimizerConfig};
use crate::recipe::Part;
use crate::trainable::set_trainable;

/// Sizes that no number of ranks divides: 15, 7 and 1 elements.
#[derive(Module, Debug)]
struct Three {
    wide: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
    scalar: Param<Tensor<1>>,
}

fn three(dtype: DType, device: &Device) -> Three {
    let device = device.clone().autodiff();
    let range = |n: usize| (0..n).map(|i| (i as f32 - 3.0) / 8.0).collect::<Vec<_>>();
    let flat = |n: usize| Tensor::<1>::from_data(&range(n)[..], (&device, dtype));
    Three {
        wide: Param::from_tensor(flat(15).reshape([3, 5])),
        bias: Param::from_tensor(flat(7)),
        scalar: Param::from_tensor(flat(1)),
    }
}

fn value<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

/// Gradients of a pass, which differ by rank, step and pass. The bias has one on the last rank alone.
fn gradients(module: &Three, rank: usize, world: usize, step: usize, pass: usize) -> GradientsParams {
    let mut grads = GradientsParams::new();
    let like = |n: usize, seed: usize| {
        let at = |i: usize| ((i * 7 + seed * 13 + rank * 5 + step * 3 + pass * 11) % 17) as f32 / 17.0 - 0.4;
        let values: Vec<f32> = (0..n).map(at).collect();
        let dtype = module.wide.val().dtype();
        Tensor::<1>::from_data(&values[..], (&module.bias.val().device().without_autodiff(), dtype))
    };
    grads.register(module.wide.id, like(15, 1).reshape([3, 5]));
    if rank + 1 == world {
        grads.register(module.bias.id, like(7, 2));
    }
    grads
}

/// What a rank ends with: its parameters, the norms of its last step, and the sizes of its state.
type Ended = (Vec<Vec<f32>>, Vec<(String, f64)>, Vec<(String, usize)>);

/// Trains for three steps, in which rank r has `passes[r]` passes.
fn train(world: usize, shard: Shard, dtype: DType, passes: &[usize], clip: f64) -> Vec<Ended> {
    let module = three(dtype, &Device::flex());
    let config = OptimizerConfig { max_grad_norm: clip, weight_decay: 0.1, ..OptimizerConfig::default() };
    let group = |prefix: &str, rate| Group { prefix: prefix.into(), rate, weight_decay: 0.3 };
    let body = |collective: Arc<dyn Collective>, device: &Device| {
        let mut module = module.clone().fork(device);
        let mut optimizer = Optimizer::new(&config).with_groups(vec![group("wide", 1e-2), group("bias", 3e-2)]);
        let mut norms = Vec::new();
        for step in 0..3 {
            let (rank, own) = (collective.rank(), passes[collective.rank() % passes.len()]);
            let mut held = StepGradients::begin(&*collective, shard, &module, own)?;
            for pass in 0..own {
                held.take(&module, gradients(&module, rank, world, step, pass));
                held.end_pass(&module)?;
            }
            let reduced = held.reduce(&module)?;
            let readout = reduced.read_out::<_, Failed>(&module, &*collective, Vec::new()).map_err(|e| e.0)?;
            module = optimizer.apply_reduced(module, reduced, &readout, 1.0, &*collective)?;
            norms = readout.norms;
        }
        assert!(module.wide.is_require_grad() && module.scalar.is_require_grad());
        assert_eq!(optimizer.updates().into_iter().collect::<Vec<_>>(), [("bias".into(), 3), ("wide".into(), 3)]);
        let held = optimizer.states().iter().map(|(name, state)| (name.clone(), state.second.dims()[0])).collect();
        let values = vec![value(module.wide.val()), value(module.bias.val()), value(module.scalar.val())];
        Ok((values, norms, held))
    };
    replicas(world).run::<_, CollectiveError>(body).unwrap()
}

/// An error of reading, which the CPU never has.
struct Failed(CollectiveError);

impl From<TensorReadError> for Failed {
    fn from(error: TensorReadError) -> Self {
        panic!("{error}")
    }
}

impl From<CollectiveError> for Failed {
    fn from(error: CollectiveError) -> Self {
        Self(error)
    }
}

#[test]
fn a_divided_update_has_the_bits_of_a_whole_one_and_holds_a_share_of_its_state() {
    for world in [2, 3, 4] {
        let whole = train(world, Shard::None, DType::F32, &[1], 0.0);
        for shard in [Shard::Optimizer, Shard::Gradients] {
            let parts = train(world, shard, DType::F32, &[1], 0.0);
            for (rank, ended) in parts.iter().enumerate() {
                assert_eq!(ended.0, whole[0].0, "rank {rank} of {world}, {shard:?}");
                for ((name, norm), (expected, whole)) in ended.1.iter().zip(&whole[0].1) {
                    assert!(name == expected && (norm - whole).abs() <= 1e-6 * whole, "{name}: {norm} and {whole}");
                }
            }
            // The scalar never has a gradient, but it has a place in its bucket of one parameter.
            let held =
                |name: &str| parts.iter().flat_map(|end| &end.2).filter(|(n, _)| n == name).map(|(_, n)| n).sum();
            assert_eq!((held("wide"), held("bias"), held("scalar")), (15_usize, 7_usize, 0_usize), "each element once");
        }
        assert_eq!(whole[0].0[2], value(three(DType::F32, &Device::flex()).scalar.val()), "it is not updated");
    }
}

#[test]
fn ranks_with_fewer_passes_take_part_with_empty_ones() {
    for passes in [[3, 1, 2], [0, 2, 1], [1, 0, 1]] {
        let of = |shard| train(3, shard, DType::F32, &passes, 1.0);
        let whole = of(Shard::None);
        for shard in [Shard::Optimizer, Shard::Gradients] {
            for (values, ..) in of(shard) {
                for (found, expected) in values.iter().flatten().zip(whole[0].0.iter().flatten()) {
                    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} and {expected}");
                }
            }
        }
    }
}

#[test]
fn sixteen_bit_parameters_have_divided_master_weights() {
    for world in [2, 3] {
        let [parts, state] =
            [Shard::Gradients, Shard::Optimizer].map(|shard| train(world, shard, DType::BF16, &[1], 1.0));
        assert_eq!(parts, state, "one pass a rank is summed in the same order");
        // The whole gradient is rounded to bf16 once more. After three steps of 1e-2 to 3e-2 in which AdamW moves by at
        // most its rate, values below 1.5 may be rounded to the next bf16, 2^-7 away.
        let whole = train(world, Shard::None, DType::BF16, &[1], 1.0);
        for (found, expected) in parts[0].0.iter().flatten().zip(whole[0].0.iter().flatten()) {
            assert!((found - expected).abs() <= 1.0 / 128.0, "{found} and {expected}");
        }
    }
}

#[test]
fn the_pieces_of_all_ranks_are_every_parameter_once_and_layers_come_first_from_the_last() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let model = checkpoint.load(DType::F32, &Device::flex().autodiff()).unwrap();
    let model = set_trainable(model, &[Part::Vision, Part::Projector, Part::Decoder]);
    for world in 1..=5 {
        let layouts: Vec<Layout> = (0..world).map(|rank| Layout::of(&model, rank, world)).collect();
        let names: Vec<&str> = layouts[0].buckets().iter().map(|bucket| bucket.name.as_str()).collect();
        let layers = checkpoint.config.text_config.num_hidden_layers;
        let first: Vec<String> = (0..layers).rev().map(|layer| format!("language_model.layers.{layer}")).collect();
        assert_eq!(names[..layers], first);
        for name in ["multi_modal_projector", "language_model.embed_tokens", "lm_head"] {
            assert_eq!(names.iter().filter(|other| **other == name).count(), 1, "{name} in {names:?}");
        }
        for (index, bucket) in layouts[0].buckets().iter().enumerate() {
            assert!(bucket.padded % world == 0 && bucket.padded - bucket.elements() < world, "{}", bucket.name);
            for member in &bucket.members {
                let mut next = 0;
                for layout in &layouts {
                    let bucket = &layout.buckets()[index];
                    let piece = layout.piece(bucket, member);
                    assert_eq!(piece.of.len(), piece.at.len());
                    assert!(piece.at.end <= layout.part(bucket));
                    if !piece.of.is_empty() {
                        assert_eq!(piece.of.start, next, "{}", member.name);
                        next = piece.of.end;
                    }
                }
                assert_eq!(next, member.dims.iter().product::<usize>(), "{}", member.name);
            }
        }
    }
}

#[test]
fn llavas_divided_gradients_are_the_bits_of_the_whole_ones_though_a_rank_has_text_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let all = samples(&checkpoint);
    let model = checkpoint.load(DType::F32, &Device::flex().autodiff()).unwrap();
    for parts in [&[Part::Projector][..], &[Part::Projector, Part::Decoder]] {
        let model = set_trainable(model.clone(), parts);
        let body = |collective: Arc<dyn Collective>, device: &Device| {
            let own = model.clone().fork(device);
            let share = &all[collective.rank() * 2..(collective.rank() + 1) * 2];
            let gradients = || llava_gradients(&own, &checkpoint, share, [40.0, 3.0]).0;
            let mut held = StepGradients::begin(&*collective, Shard::Gradients, &own, 1)?;
            held.take(&own, gradients());
            held.end_pass(&own)?;
            let Reduced::Parts(mut parts) = held.reduce(&own)? else { unreachable!("gradients are divided") };
            let sums = collective.sum_gradients(&own, gradients())?;
            let mut compared = 0;
            for index in 0..parts.layout().buckets().len() {
                let whole = collective.all_gather(parts.take(index).unwrap())?;
                for member in &parts.layout().buckets()[index].members {
                    let found = value(whole.clone().slice([member.range.clone()]));
                    let expected = match member.dims.len() {
                        1 => sums.get::<1>(member.id).map(value),
                        _ => sums.get::<2>(member.id).map(value),
                    };
                    assert_eq!(parts.has(member.order), expected.is_some(), "{}", member.name);
                    if let Some(expected) = expected {
                        assert_eq!(found, expected, "{}", member.name);
                        compared += 1;
                    }
                }
            }
            Ok(compared)
        };
        let compared = replicas(4).run::<_, CollectiveError>(body).unwrap();
        assert!(compared.iter().all(|count| *count == compared[0] && *count >= 4), "{compared:?}");
    }
}

#[test]
fn a_gradient_after_its_buckets_sum_is_an_error_that_names_the_bucket() {
    let body = |collective: Arc<dyn Collective>, device: &Device| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain");
        let model = Checkpoint::open(&dir).unwrap().load(DType::F32, device).unwrap();
        let model = set_trainable(model, &[Part::Decoder]);
        let layout = Layout::of(&model, collective.rank(), collective.world());
        let last = layout.buckets()[0].layer.unwrap();
        let member = layout.buckets()[0].members.iter().find(|member| member.dims.len() == 1).unwrap();
        let (id, n): (ParamId, usize) = (member.id, member.range.len());
        let mut reducer = Reducer::new(&*collective, layout);
        reducer.layer_done(last);
        let mut late = GradientsParams::new();
        late.register(id, Tensor::<1>::zeros([n], &device.clone().without_autodiff()));
        reducer.take(&model, late);
        Ok((last, reducer.end_pass().unwrap_err().to_string()))
    };
    for (last, said) in replicas(2).run::<_, CollectiveError>(body).unwrap() {
        assert!(last > 0 && said.contains(&format!("language_model.layers.{last} came after")), "{said}");
    }
}

#[test]
fn the_passes_of_a_step_are_those_of_the_rank_with_the_most() {
    let body = |collective: Arc<dyn Collective>, _: &Device| passes(&*collective, [2, 0, 5][collective.rank()]);
    assert_eq!(replicas(3).run::<_, CollectiveError>(body).unwrap(), [5; 3]);
    assert_eq!(passes(&crate::parallel::Solo, 4), Ok(4));
}
