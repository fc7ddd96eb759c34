//! Saves the optimizer's state from some ranks and reads it with others.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use super::super::checksum::Checksum;
use super::*;
use crate::optim::OptimizerConfig;

#[derive(Module, Debug)]
struct Two {
    wide: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

fn two() -> Two {
    let device = Device::flex().autodiff();
    Two {
        wide: Param::from_tensor(Tensor::zeros([5, 3], &device)),
        bias: Param::from_tensor(Tensor::zeros([4], &device)),
    }
}

/// A rank's optimizer, whose moments are the numbers of their elements.
fn numbered(layout: &Layout) -> Optimizer {
    let mut optimizer = Optimizer::new(&OptimizerConfig::default());
    let (mut states, mut elsewhere) = (BTreeMap::new(), Vec::new());
    for (bucket, member) in layout.members() {
        let piece = layout.piece(bucket, member).of;
        if piece.is_empty() {
            elsewhere.push(member.name.clone());
            continue;
        }
        let of = |by: f32| {
            let values: Vec<f32> = piece.clone().map(|i| i as f32 * by).collect();
            Tensor::<1>::from_data(TensorData::new(values, [piece.len()]), &Device::flex())
        };
        let state = ParameterState { time: 7, first: of(1.0), second: of(10.0), master: Some(of(100.0)) };
        states.insert(member.name.clone(), state);
    }
    optimizer.set_states(states);
    elsewhere.into_iter().for_each(|name| optimizer.set_elsewhere(name, 7));
    optimizer
}

/// Saves the state of so many ranks; 0 stands for one that is not divided.
fn saved(dir: &Path, module: &Two, ranks: usize) -> Position {
    let mut position = Position::start();
    for rank in 0..ranks.max(1) {
        let layout = Layout::of(module, rank, ranks.max(1));
        let optimizer = numbered(&layout);
        position.updates = optimizer.updates();
        let name = save(dir, &optimizer, (ranks > 0).then_some((&layout, rank, ranks))).unwrap();
        position.files.insert(name, Checksum { bytes: 0, xxh3: String::new() });
    }
    position
}

#[test]
fn a_state_of_any_number_of_ranks_is_read_by_any_other() {
    let module = two();
    for from in [0, 1, 2, 3, 4, 7] {
        let dir = tempfile::tempdir().unwrap();
        let position = saved(dir.path(), &module, from);
        for to in [1, 2, 3, 5] {
            for rank in 0..to {
                let layout = Layout::of(&module, rank, to);
                let mut optimizer = Optimizer::new(&OptimizerConfig::default());
                let moments = Moments::open(dir.path(), &position, &layout).unwrap();
                moments.restore(&position, &layout, &mut optimizer).unwrap();
                let expected = numbered(&layout);
                assert_eq!(optimizer.updates(), position.updates, "from {from} to {to}");
                assert_eq!(optimizer.states().len(), expected.states().len());
                for ((name, found), (_, expected)) in optimizer.states().iter().zip(expected.states()) {
                    let data = |tensor: &Tensor<1>| tensor.to_data();
                    assert_eq!(data(&found.first), data(&expected.first), "{name}: from {from}, {rank} of {to}");
                    assert_eq!(data(&found.second), data(&expected.second), "{name}");
                    assert_eq!(found.master.as_ref().map(data), expected.master.as_ref().map(data), "{name}");
                }
            }
        }
    }
}

#[test]
fn missing_doubled_and_unfitting_pieces_are_named_with_their_file() {
    let module = two();
    let refused = |ranks: usize, change: &dyn Fn(&Path, &mut Position), mentions: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let mut position = saved(dir.path(), &module, ranks);
        change(dir.path(), &mut position);
        let said = match Moments::open(dir.path(), &position, &Layout::of(&module, 0, 1)) {
            Ok(_) => panic!("was not refused: {mentions:?}"),
            Err(error) => error.to_string(),
        };
        mentions.iter().for_each(|mention| assert!(said.contains(mention), "{mention} is not in {said}"));
    };
    refused(3, &|dir, _| std::fs::remove_file(dir.join(file_of(1, 3))).unwrap(), &["optimizer-00002-of-00003"]);
    let unlist = |position: &mut Position, name: &str| drop(position.files.remove(name));
    refused(3, &|_, position| unlist(position, &file_of(2, 3)), &["state.json", "optimizer-00003-of-00003"]);
    refused(0, &|_, position| unlist(position, WHOLE), &["state.json", "does not list optimizer.safetensors"]);
    // 15 and 4 elements on two ranks: the first file of another state has too few elements.
    let copy = |dir: &Path, from: usize, to: usize| {
        let other = tempfile::tempdir().unwrap();
        saved(other.path(), &two(), 3);
        std::fs::copy(other.path().join(file_of(from, 3)), dir.join(file_of(to, 2))).unwrap();
    };
    refused(2, &|dir, _| copy(dir, 0, 0), &["lacks elements", "wide.first"]);
    refused(
        2,
        &|dir, _| copy(dir, 1, 0),
        &["optimizer-00002-of-00002", "elements", "also in optimizer-00001-of-00002"],
    );
    let gone = |_: &Path, position: &mut Position| position.updates.extend([("gone".to_string(), 1)]);
    refused(2, &gone, &["holds gone", "does not train"]);
    let other = |dir: &Path, text: &str| {
        let tensor = Outgoing::new("bias.first".into(), Tensor::<1>::zeros([2], &Device::flex()), false);
        write_with(&dir.join(file_of(0, 2)), vec![tensor], HashMap::from([(PIECES.into(), text.into())])).unwrap();
    };
    refused(2, &|dir, _| other(dir, "{\"bias\": [0, 9]}"), &[&file_of(0, 2), "bias.first is of 9 elements", "has 4"]);
    refused(2, &|dir, _| other(dir, "{\"bias\": [3, 4]}"), &[&file_of(0, 2), "2 elements from 3 on"]);
    refused(2, &|dir, _| other(dir, "{\"bias\": [18446744073709551615, 4]}"), &["bias.first"]);
    refused(2, &|dir, _| other(dir, "{}"), &["does not say where bias.first begins"]);
    refused(2, &|dir, _| other(dir, "0"), &["its pieces"]);
}
