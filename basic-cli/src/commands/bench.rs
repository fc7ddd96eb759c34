//! Runs `basic bench`.

use anyhow::{Context, Result};
use basic_models::adapters::{LoraConfig, Quantization};
use basic_train::bench::{BenchConfig, PRESETS, bench as run};
use basic_train::recipe::Stage;

use crate::args::{ArmArg, Bench, StageArg};
use crate::output::{print_json, say};

/// Times training steps.
pub fn bench(args: Bench) -> Result<()> {
    let preset = PRESETS.into_iter().find(|p| p.name == args.preset).context("unknown preset")?;
    // Flex and its matrix products run on rayon's global thread pool.
    rayon::ThreadPoolBuilder::new().num_threads(args.threads.into()).build_global().context("--threads")?;
    let device = args.device.device.open()?;
    let config = BenchConfig {
        preset,
        supervised: args.arm == ArmArg::Basic,
        stage: match args.stage {
            StageArg::Pretrain => Stage::Pretrain,
            StageArg::Finetune => Stage::Finetune,
        },
        threads: args.threads.into(),
        warmup: args.warmup,
        steps: args.steps,
        dtype: args.dtype.into(),
        spec: args.device.device,
        checkpoint: args.checkpoint,
        adapters: args.lora.map(|rank| LoraConfig {
            rank: rank.into(),
            alpha: 2.0 * f64::from(rank),
            targets: Vec::new(),
            quantize: args.bits.map(|bits| Quantization { bits, block: args.block }),
        }),
        recompute: args.recompute,
        micro_batch: args.micro_batch,
    };
    let report = run(&config, &device, &mut |step, seconds| {
        if !args.json {
            say!("step {step}: {seconds:.3} s");
        }
    })?;
    if args.json {
        return print_json(&report);
    }
    say!(
        "{} {} {:?}: {:.3} s a step, {:.2} samples/s, {:.0} MiB at most",
        report.preset,
        report.arm,
        report.stage,
        report.step_s,
        report.samples_per_s,
        report.peak_gpu_mib.or(report.peak_rss_mib).unwrap_or_default()
    );
    Ok(())
}
