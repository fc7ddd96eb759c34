//! Tests of the records of a run: each measurement against plain arithmetic, each file as its reader sees it.

mod evaluation;
mod events;

use std::fs;

use basic_core::{ImageSpan, Losses, Objective, SupervisionLayout, Targets};
use basic_models::{DecoderConfig, LlavaConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::Value;

use super::flops::{BatchCounts, ModelFlops};
use super::memory::{Memory, peak_rss_mib};
use super::peak::Peak;
use super::*;
use crate::recipe::Part;

/// The metrics of a step, as a trainer would report them.
fn metrics(step: usize) -> StepMetrics {
    StepMetrics {
        step,
        losses: losses(0.1 * step as f32, [0.25, 0.5]),
        total: 1.5,
        lr: 1e-3,
        grad_norm: 2.0,
        grad_norms: [("projector", 2.0)].into(),
        tokens: 30,
        speed: Speed { samples_per_s: 10.0, ..Speed::default() },
        seconds: 0.5,
        ..StepMetrics::default()
    }
}

/// The losses of BASIC.
fn losses<T: Default + Copy>(lm: T, values: [T; 2]) -> Losses<T> {
    let mut all = Objective::default().zeros(&Device::flex()).map(|_, _| T::default());
    all.lm = lm;
    all.terms.iter_mut().zip(values).for_each(|(term, value)| term.value = value);
    all
}

fn evaluation_of(step: usize) -> Evaluation {
    let predictions = vec![Sampled {
        prompt: "USER: <image>\nwhat? ASSISTANT:".into(),
        images: vec!["a.png".into()],
        expected: "red | blue".into(),
        answer: "red".into(),
    }];
    let losses = losses(2.5, [0.5, 0.0]);
    Evaluation { step, losses, total: 3.0, samples: 4, tokens: 40, seconds: 0.1, predictions }
}

fn steps(path: &std::path::Path) -> Vec<usize> {
    let lines = fs::read_to_string(path).unwrap();
    assert!(lines.is_empty() || lines.ends_with('\n'));
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap() as usize).collect()
}

#[test]
fn a_resumed_run_continues_its_lines_after_the_checkpoints_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut jsonl = Jsonl::create(dir.path()).unwrap();
    for step in 1..=7 {
        jsonl.step(&metrics(step)).unwrap();
        if step % 2 == 0 {
            jsonl.evaluation(&evaluation_of(step)).unwrap();
        }
    }
    let path = dir.path().join("metrics.jsonl");
    let five = fs::read_to_string(&path).unwrap().lines().take(5).map(|line| format!("{line}\n")).collect::<String>();
    // The process was killed while it wrote a line.
    fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\":8,\"lm\":0.").unwrap();
    let mut jsonl = Jsonl::resume(dir.path(), 5).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), five, "what stays is the same bytes");
    assert_eq!(steps(&dir.path().join("eval.jsonl")), [2, 4]);
    jsonl.step(&metrics(6)).unwrap();
    jsonl.evaluation(&evaluation_of(6)).unwrap();
    assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
    assert_eq!(steps(&dir.path().join("eval.jsonl")), [2, 4, 6]);
    // A file that was lost is started again.
    fs::remove_file(&path).unwrap();
    Jsonl::resume(dir.path(), 6).unwrap().step(&metrics(7)).unwrap();
    assert_eq!(steps(&path), [7]);
}

#[test]
fn watchers_are_asked_in_order_and_the_first_error_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let both: Vec<Box<dyn Watcher>> = vec![
        Box::new(Jsonl::create(dir.path()).unwrap()),
        Box::new(TensorBoard::create(&dir.path().join("tensorboard"), 0).unwrap()),
    ];
    let mut both = Watchers(both);
    both.step(&metrics(1)).unwrap();
    both.evaluation(&evaluation_of(1)).unwrap();
    both.text(0, "recipe", "text").unwrap();
    assert_eq!(steps(&dir.path().join("metrics.jsonl")), [1]);
    assert_eq!(fs::read_dir(dir.path().join("tensorboard")).unwrap().count(), 1);
    let missing = TensorBoard::create(&dir.path().join("metrics.jsonl/x"), 0).unwrap_err().to_string();
    assert!(missing.contains("metrics.jsonl/x"), "{missing}");
}

#[test]
fn alignment_is_the_attention_mass_per_image_and_the_mean_cosine() {
    let device = Device::flex();
    let v = [[1.0_f32, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]];
    let target = [[2.0_f32, 0.0, 0.0], [-1.0, -1.0, 0.0], [1.0, 0.0, 0.0], [2.0, 1.0, -2.0]];
    let weights = [0.1_f32, 0.2, 0.05, 0.0];
    let targets = Targets {
        embeddings: Tensor::from_data(TensorData::from(target), &device),
        weights: Tensor::from_data(TensorData::from(weights), &device),
    };
    let read = alignment(&Tensor::from_data(TensorData::from(v), &device), &targets);
    let read = read.try_into_vec_as::<f32>().unwrap();
    // Cosines computed by hand: 1, -1, 0 for the zero vector, (2 + 2 - 4) / 9 = 0.
    assert!((read[0] - 0.35).abs() < 1e-6 && read[1].abs() < 1e-6, "{read:?}");
    let image = |positions: Vec<usize>, text_rows: Vec<usize>| ImageSpan { sample: 0, row: 0, positions, text_rows };
    let images = vec![image(vec![0, 1, 2], vec![4]), image(vec![3], vec![])];
    let found = Alignment::new([read[0], 2.0], &SupervisionLayout { batch: 1, sequence: 5, images });
    // The second image has no text after it, so it does not count for the mass.
    assert!((found.attention_mass().unwrap() - 0.35).abs() < 1e-6);
    assert_eq!(found.cosine(), Some(0.5));
    assert_eq!(Alignment::from_sums(found.sums()), found);
    assert_eq!((Alignment::default().attention_mass(), Alignment::default().cosine()), (None, None));
}

#[test]
fn a_token_of_llama_7b_costs_twice_its_layers_weights_and_twice_that_again_backwards() {
    // LLaVA-1.5-7B: 32 layers of 4 d^2 + 3 d f weights.
    let config = LlavaConfig::default();
    let layers = 32.0 * (4.0 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 11008.0);
    let one = BatchCounts { lengths: vec![1], ..BatchCounts::default() };
    // A single position attends to itself: 4 h e per layer.
    let attention = 32.0 * 4.0 * 4096.0;
    let flops = |parts: &[Part], counts: &BatchCounts| ModelFlops::new(&config, parts).step(counts);
    assert_eq!(ModelFlops::new(&config, &[]).forward(&one), 2.0 * layers + attention);
    assert_eq!(flops(&[Part::Projector, Part::Decoder], &one), 6.0 * layers + 3.0 * attention);
    assert_eq!(flops(&[Part::Projector], &one), 4.0 * layers + 3.0 * attention);

    let head = BatchCounts { labels: 3, ..BatchCounts::default() };
    assert_eq!(flops(&[Part::Decoder], &head), 3.0 * 6.0 * 4096.0 * config.text_config.vocab_size as f64);

    // CLIP-L/14 at 336: 577 positions, 23 layers up to the second to last state, 4 d^2 + 8 d^2 weights each.
    let (d, n) = (1024.0, 577.0);
    let patches = 2.0 * 3.0 * 14.0 * 14.0 * d * 576.0;
    let encoder = 23.0 * n * (2.0 * 12.0 * d * d + 4.0 * d * n) + patches;
    let image = BatchCounts { encoded: 1, ..BatchCounts::default() };
    assert_eq!(flops(&[Part::Projector], &image), encoder);
    assert_eq!(flops(&[Part::Vision], &image), 3.0 * encoder - patches);

    let projected = BatchCounts { patches: 576, ..BatchCounts::default() };
    let (first, second) = (576.0 * 2.0 * 1024.0 * 4096.0, 576.0 * 2.0 * 4096.0 * 4096.0);
    assert_eq!(flops(&[Part::Projector], &projected), 2.0 * first + 3.0 * second);
    assert_eq!(flops(&[Part::Decoder], &projected), first + second);
    assert_eq!(flops(&[Part::Projector, Part::Vision], &projected), 3.0 * (first + second));
}

#[test]
fn attention_counts_the_keys_that_are_seen() {
    let text = DecoderConfig { num_hidden_layers: 1, ..DecoderConfig::default() };
    let config = LlavaConfig { text_config: text, ..LlavaConfig::default() };
    let forward = |config: &LlavaConfig, lengths: Vec<usize>| {
        ModelFlops::new(config, &[]).forward(&BatchCounts { lengths, ..BatchCounts::default() })
    };
    let products = forward(&config, vec![1]) - 4.0 * 4096.0;
    // 1 + 2 + .. + 10 keys; two sequences do not attend to each other.
    assert_eq!(forward(&config, vec![10]) - 10.0 * products, 4.0 * 4096.0 * 55.0);
    assert_eq!(forward(&config, vec![4, 6]) - 10.0 * products, 4.0 * 4096.0 * (10.0 + 21.0));
    // A window of 3: 1 + 2 + 3 * 8.
    let text = DecoderConfig { sliding_window: Some(3), ..config.text_config.clone() };
    let windowed = LlavaConfig { text_config: text, ..config };
    assert_eq!(forward(&windowed, vec![10]) - 10.0 * products, 4.0 * 4096.0 * 27.0);
}

#[test]
fn speed_is_work_over_time_and_over_the_peak() {
    let meter = Meter::with_peak(&LlavaConfig::default(), &[Part::Projector, Part::Decoder], Some(2e15));
    let counts = BatchCounts { lengths: vec![700, 300], labels: 50, patches: 576, encoded: 1 };
    let half = meter.work(2, &counts);
    let work = Work::from_sums(half.sums().map(|x| 2.0 * x));
    let speed = meter.speed(work, 0.5);
    assert_eq!((speed.samples_per_s, speed.tokens_per_s), (8.0, 4000.0));
    assert!((speed.mfu.unwrap() - work.flops / 1e15).abs() < 1e-12);
    // 2000 tokens of a 7B model: about 6 x 6.6e9 x 2000 FLOPs.
    assert!((7.5e13..9e13).contains(&work.flops), "{}", work.flops);
    let unknown = Meter::new(&LlavaConfig::default(), &[Part::Projector], &Device::flex(), DType::F32, 1);
    let speed = serde_json::to_value(unknown.speed(work, 0.5)).unwrap();
    assert!(speed.get("mfu").is_none(), "a CPU's peak is not known: {speed}");
}

#[test]
fn gpus_are_known_by_the_names_that_drivers_give() {
    let half = |name: &str| Peak::of(name).and_then(|peak| peak.rate(DType::BF16)).map(|rate| rate / 1e12);
    assert_eq!(half("NVIDIA H100 80GB HBM3"), Some(989.4));
    assert_eq!(half("NVIDIA H100 PCIe"), Some(756.0));
    assert_eq!(half("NVIDIA H100 NVL"), Some(835.5));
    assert_eq!(half("NVIDIA H200"), Some(989.4));
    assert_eq!(half("NVIDIA A100-SXM4-80GB"), Some(312.0));
    assert_eq!(half("NVIDIA L40S"), Some(362.05));
    assert_eq!(half("NVIDIA L4"), Some(121.0));
    assert_eq!(half("NVIDIA GeForce RTX 4090"), Some(165.2));
    assert_eq!(half("NVIDIA RTX 6000 Ada Generation"), Some(364.2));
    for unknown in ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100X9", "llvmpipe (LLVM 15.0.7, 256 bits)", ""] {
        assert_eq!(Peak::of(unknown), None, "{unknown}");
    }
    let t4 = Peak::of("Tesla T4").unwrap();
    assert_eq!((t4.rate(DType::BF16), t4.rate(DType::F16)), (None, Some(65e12)), "no bf16 before Ampere");
    let single = Peak::of("NVIDIA H100 80GB HBM3").and_then(|peak| peak.rate(DType::F32));
    assert!(single.is_some_and(|rate| (rate / 1e12 - 66.9).abs() < 1e-9), "{single:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_in_use_is_at_most_its_high_water_mark() {
    let held = vec![1_u8; 64 << 20];
    let now = Memory::now(&Device::flex());
    let (rss, peak) = (now.rss_mib.unwrap(), peak_rss_mib().unwrap());
    assert!(rss > 64.0 && rss <= peak, "{rss} of {peak} MiB");
    assert_eq!((now.device_mib, now.device_reserved_mib), (None, None), "Flex does not tell");
    assert_eq!(held[held.len() / 2], 1);
}
