//! Compares `parallel.shard`'s settings with each other and with one device: the losses, and the parameters at the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tests::fixtures::read_json;
use tests::project::{Project, losses};
use tests::runs::killed_behind;
use tests::{args, run};

const BINARY: &str = env!("CARGO_BIN_EXE_basic-under-test");

/// The relative difference of losses that are summed in another order.
const ROUNDING: f64 = 1e-5;

/// Trains with so many replicas. The last state is kept, so that the trained parameters can be read from it.
fn train(project: &Project, out: &str, ranks: usize, more: &[&str]) -> PathBuf {
    let devices = vec!["cpu"; ranks].join(",");
    let common = ["--devices", &devices, "--set", "checkpoint.every=100", "--set", "train.batch_size=7"];
    project.train(out, &[&common, more].concat())
}

fn shard(setting: &str) -> [String; 2] {
    ["--set".into(), format!("parallel.shard=\"{setting}\"")]
}

fn state(out: &Path) -> PathBuf {
    let mut states: Vec<PathBuf> =
        fs::read_dir(out.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    states.sort();
    states.pop().unwrap()
}

/// The bytes of the trained parameters at the end.
fn trained(out: &Path) -> Vec<u8> {
    fs::read(state(out).join("trained.safetensors")).unwrap()
}

/// The largest difference between the trained parameters of two runs, in steps of the learning rate.
fn apart(one: &Path, other: &Path, rate: f64) -> f64 {
    let read = |out: &Path| -> BTreeMap<String, Vec<f32>> {
        let bytes = trained(out);
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.tensors()
            .into_iter()
            .map(|(name, view)| (name, view.data().chunks_exact(4).map(number).collect()))
            .collect()
    };
    let (one, other) = (read(one), read(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let pairs = one.values().flatten().zip(other.values().flatten());
    pairs.map(|(a, b)| f64::from((a - b).abs()) / rate).fold(0.0, f64::max)
}

fn assert_near(one: &Path, other: &Path, tolerance: f64, what: &str) {
    let (one, other) = (losses(one), losses(other));
    assert_eq!(one.len(), other.len(), "{what}");
    let mut largest = 0.0_f64;
    for (a, b) in one.iter().flatten().zip(other.iter().flatten()) {
        largest = largest.max((a - b).abs() / a.abs().max(1e-3));
    }
    println!("{what}: losses {largest:.1e} apart");
    assert!(largest <= tolerance, "{what}: {largest}");
}

const PLAIN: [&str; 2] = ["--set", "optimizer.max_grad_norm=0"];
const LORA: [&str; 4] = ["--set", "parts.decoder.mode=\"lora\"", "--set", "parts.decoder.rank=3"];
const QLORA: [&str; 8] = [
    "--set",
    "parts.decoder.mode=\"qlora\"",
    "--set",
    "parts.decoder.rank=3",
    "--set",
    "parts.decoder.bits=8",
    "--set",
    "parts.decoder.block=8",
];
const VIRAL: [&str; 2] = ["--set", "objective.viral.head_width=8"];
const RECOMPUTE: [&str; 2] = ["--set", "train.recompute=true"];

#[test]
fn every_setting_has_the_same_bits_where_the_sums_have_the_same_order() {
    for (stage, more) in [
        ("pretrain", PLAIN.to_vec()),
        ("finetune", PLAIN.to_vec()),
        ("finetune", [&PLAIN[..], &RECOMPUTE].concat()),
        ("finetune", [&PLAIN[..], &LORA, &RECOMPUTE].concat()),
        ("finetune", [&PLAIN[..], &["--set", "train.trainable=[\"vision\", \"projector\", \"decoder\"]"]].concat()),
        ("finetune", [&PLAIN[..], &["--set", "loader.packing=true"]].concat()),
        ("finetune", [&PLAIN[..], &QLORA, &RECOMPUTE].concat()),
        ("finetune", [&PLAIN[..], &VIRAL].concat()),
        ("pretrain", [&PLAIN[..], &VIRAL, &RECOMPUTE].concat()),
    ] {
        let project = Project::new(BINARY, stage, 3);
        // Seven samples have no equal shares of two, three or four, and one of the samples is text alone.
        for ranks in [2, 3, 4] {
            let of = |setting: &str| {
                let shard = shard(setting);
                let more = [&more[..], &[&shard[0], &shard[1]]].concat();
                train(&project, &format!("{setting}-{ranks}"), ranks, &more)
            };
            let whole = of("none");
            for setting in ["optimizer", "gradients"] {
                let parts = of(setting);
                let what = format!("{stage} {more:?}, {setting} on {ranks}");
                assert!(trained(&parts) == trained(&whole), "{what}: other parameters");
                assert_eq!(losses(&parts), losses(&whole), "{what}");
            }
            if ranks == 4 {
                let one = train(&project, "one", 1, &more);
                assert_near(&whole, &one, ROUNDING, &format!("{stage} {more:?} on one device"));
            }
        }
    }
}

#[test]
fn accumulation_and_clipping_differ_by_their_rounding() {
    let project = Project::new(BINARY, "finetune", 4);
    for more in [
        vec!["--set", "train.micro_batch=1"],
        vec!["--set", "train.micro_batch=2", "--set", "train.recompute=true"],
        vec!["--set", "train.micro_batch=1", "--set", "optimizer.max_grad_norm=0"],
        [&["--set", "train.micro_batch=1", "--set", "loader.packing=true"], &LORA[..]].concat(),
    ] {
        let one = train(&project, "one", 1, &[&["--overwrite"], &more[..]].concat());
        for ranks in [2, 3] {
            let of = |setting: &str| {
                let shard = shard(setting);
                let more = [&more[..], &[&shard[0], &shard[1], "--overwrite"]].concat();
                train(&project, setting, ranks, &more)
            };
            let whole = of("none");
            for setting in ["optimizer", "gradients"] {
                let parts = of(setting);
                let what = format!("{more:?}, {setting} on {ranks}");
                assert_near(&parts, &whole, 1e-6, &what);
                assert_near(&parts, &one, ROUNDING, &format!("{what}, and one device"));
                // An element whose gradient is almost zero may move by another fraction of the learning rate.
                let apart = apart(&parts, &whole, 1e-4);
                println!("{what}: parameters {apart:.1e} rates apart");
                assert!(apart <= 0.1, "{what}: {apart}");
                if setting == "optimizer" && more.contains(&"optimizer.max_grad_norm=0") {
                    assert!(trained(&parts) == trained(&whole), "{what}: a rank's passes are added up first");
                }
            }
        }
    }
}

#[test]
fn bf16_trains_with_divided_master_weights() {
    let project = Project::new(BINARY, "finetune", 4);
    let of = |setting: &str, ranks: usize| {
        let shard = shard(setting);
        let more = ["--set", "train.dtype=\"bfloat16\"", &shard[0], &shard[1]];
        train(&project, &format!("{setting}-{ranks}"), ranks, &more)
    };
    let one = of("none", 1);
    for ranks in [2, 3] {
        let [whole, state, parts] = ["none", "optimizer", "gradients"].map(|setting| of(setting, ranks));
        assert!(trained(&parts) == trained(&state), "one pass a rank is summed in the same order");
        // bf16 has eight bits; losses of a few units are 1e-2 apart where a value is rounded to the other side.
        assert_near(&parts, &whole, 1e-2, &format!("bf16 on {ranks}, divided and whole"));
        assert_near(&parts, &one, 1e-2, &format!("bf16 on {ranks} and on one"));
    }
}

#[test]
fn a_state_of_four_ranks_goes_on_with_two_and_then_with_one_and_of_one_with_three() {
    let project = Project::new(BINARY, "finetune", 6);
    let every = ["--set", "checkpoint.every=2", "--set", "checkpoint.keep_last=9"];
    let whole = train(&project, "whole", 1, &every);
    let resume = |out: &Path, ranks: usize| {
        let devices = vec!["cpu"; ranks].join(",");
        run(BINARY, args!["train", "--resume", out, "--devices", devices]).succeeded();
    };
    let optimizer = |out: &Path| {
        let names = fs::read_dir(state(out)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("optimizer")).collect();
        names.sort();
        names
    };

    let down = train(&project, "down", 4, &every);
    assert_eq!(
        optimizer(&down),
        (1..=4).map(|r| format!("optimizer-0000{r}-of-00004.safetensors")).collect::<Vec<_>>()
    );
    killed_behind(&down, 2);
    resume(&down, 2);
    assert_eq!(optimizer(&down), ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"]);
    killed_behind(&down, 4);
    resume(&down, 1);
    assert_eq!(optimizer(&down), ["optimizer.safetensors"]);
    assert_near(&down, &whole, ROUNDING, "4, 2 and 1 ranks");

    let up = train(&project, "up", 1, &every);
    killed_behind(&up, 4);
    resume(&up, 3);
    assert_eq!(optimizer(&up).len(), 3);
    assert_near(&up, &whole, ROUNDING, "1 and 3 ranks");

    // With the same ranks, and what is divided only, the continuation has the bits of a run that was never stopped.
    let never = train(&project, "never", 3, &every);
    let stopped = train(&project, "stopped", 3, &every);
    killed_behind(&stopped, 4);
    resume(&stopped, 3);
    assert!(trained(&stopped) == trained(&never), "resuming changes nothing");
    assert_eq!(losses(&stopped), losses(&never));
}

#[test]
fn a_damaged_piece_makes_a_state_unusable_and_the_state_before_it_is_used() {
    let project = Project::new(BINARY, "finetune", 4);
    let out = train(&project, "out", 2, &["--set", "checkpoint.every=2"]);
    killed_behind(&out, 4);
    let piece = out.join("checkpoints/step-00000004/optimizer-00002-of-00002.safetensors");
    let resume = || run(BINARY, args!["train", "--resume", out, "--devices", "cpu,cpu"]);
    let bytes = fs::read(&piece).unwrap();
    fs::write(&piece, [&bytes[..bytes.len() - 1], &[!bytes[bytes.len() - 1]]].concat()).unwrap();
    let ran = resume();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("optimizer-00002-of-00002.safetensors is damaged"), "{}", ran.stderr);
    killed_behind(&out, 2);
    let record = out.join("checkpoints/step-00000002/state.json");
    assert_eq!(read_json(&record)["files"].as_object().unwrap().len(), 4, "two pieces, parameters and images");
    fs::remove_file(record.with_file_name("optimizer-00001-of-00002.safetensors")).unwrap();
    // A warning about the state, and the error that no other is left.
    let ran = resume();
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    for mention in ["optimizer-00001-of-00002.safetensors", "start the run anew"] {
        assert!(ran.stderr.contains(mention), "{mention} is not in {}", ran.stderr);
    }
}
