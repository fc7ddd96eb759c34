//! Measures the memory that loading takes. It runs in a process of its own, so that the peak is that of this load.
//!
//! `BASIC_LOAD_MB=1000 cargo test --release -p basic-models --test loading_memory -- --nocapture` uses a checkpoint of
//! that size and prints the figures for docs/performance.md.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::time::Instant;

use basic_core::DeviceSpec;
use basic_models::LlavaConfig;
use basic_models::checkpoint::{Layout, StagedDir, TensorFiles, slots, write_tensors};
use burn::tensor::{DType, Device};
use safetensors::tensor::{Metadata, TensorInfo};

/// Resident memory in bytes: now (`VmRSS`) or the peak since [`reset`] (`VmHWM`).
fn memory(key: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Resets the peak to the current memory.
fn reset() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// A Llama of about `bytes` in bf16, with a CLIP that is too small to matter; its largest tensor is a tenth of it.
fn config(bytes: usize) -> LlavaConfig {
    // 2 tables of 16 d^2 and 10 layers of 4 d^2 + 3 * 3 d^2.
    let d = ((bytes as f64 / 2.0 / 162.0).sqrt() as usize).next_multiple_of(16);
    LlavaConfig::from_json(&format!(
        r#"{{"model_type": "llava", "image_token_index": 1,
            "text_config": {{"vocab_size": {}, "hidden_size": {d}, "intermediate_size": {}, "num_hidden_layers": 10,
                             "num_attention_heads": 8}},
            "vision_config": {{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                               "num_attention_heads": 2, "image_size": 8, "patch_size": 4}}}}"#,
        16 * d,
        3 * d
    ))
    .unwrap()
}

/// Writes zeros as a sparse file, because only the sizes matter.
fn write(dir: &Path, config: &LlavaConfig, device: &Device) -> usize {
    let mut end = 0;
    let infos = slots(&config.init(device), "").into_iter().map(|slot| {
        let start = end;
        end += slot.shape.iter().product::<usize>() * 2;
        let info = TensorInfo { dtype: safetensors::Dtype::BF16, shape: slot.shape, data_offsets: (start, end) };
        (Layout::Llava.disk(&slot.name, None), info)
    });
    let header = serde_json::to_vec(&Metadata::new(None, infos.collect()).unwrap()).unwrap();
    let path = dir.join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((8 + header.len() + end) as u64).unwrap();
    end
}

#[test]
fn loading_peaks_below_1_3_times_the_model_and_saving_adds_no_more_than_its_largest_tensor_twice() {
    let megabytes = std::env::var("BASIC_LOAD_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(150usize);
    let device = DeviceSpec::Cpu.open().unwrap();
    let config = config(megabytes * 1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let bytes = write(dir.path(), &config, &device);
    if !reset() {
        eprintln!("SKIPPED: /proc/self/clear_refs cannot be written");
        return;
    }
    for (dtype, factor) in [(DType::BF16, 1), (DType::F32, 2)] {
        let before = memory("VmRSS:");
        reset();
        let started = Instant::now();
        let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
        let model = files.load(config.init(&device), "", dtype, &device).unwrap();
        let (seconds, peak) = (started.elapsed().as_secs_f64(), memory("VmHWM:") - before);
        let size = bytes * factor;
        println!(
            "{} MB of bf16 to {}: peak {:.3} of {} MB, {seconds:.2} s",
            bytes / 1_000_000,
            dtype.name(),
            peak as f64 / size as f64,
            size / 1_000_000
        );
        assert!(peak as f64 <= 1.3 * size as f64, "{peak} bytes at the peak for {size}");
        assert!(peak >= size, "the model itself is in memory");

        let before = memory("VmRSS:");
        reset();
        let started = Instant::now();
        let staged = StagedDir::new(&dir.path().join("out"), true).unwrap();
        write_tensors(&staged, &model, "", Layout::Llava, DType::BF16).unwrap();
        let (seconds, more) = (started.elapsed().as_secs_f64(), memory("VmHWM:") - before);
        // The largest tensor is the embedding table, 16 of 162 parts.
        let largest = size * 16 / 162;
        println!(
            "saved as bf16: {} MB more, {seconds:.2} s; the largest tensor has {} MB",
            more / 1_000_000,
            largest / 1_000_000
        );
        // The host's copy of a tensor, and Burn's second one if the allocator's alignment does not suit it.
        assert!(more <= 2 * largest + (64 << 20), "{more} bytes more for a largest tensor of {largest}");
    }
}
