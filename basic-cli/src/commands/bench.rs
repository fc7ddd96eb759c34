//! Runs `basic bench`.

use anyhow::{Context, Result};
use basic_models::adapters::{LoraConfig, Quantization};
use basic_train::bench::{BenchConfig, PRESETS, bench as run};
use basic_train::parallel::{Group, Replicas};
use basic_train::recipe::{Shard, Stage};

use super::own_device;
use crate::args::{ArmArg, Bench, ShardArg, StageArg};
use crate::output::{print_json, say};

/// Times training steps, also as one of the processes that `mpirun`, `srun` or `torchrun` has launched.
pub fn bench(args: Bench) -> Result<()> {
    match &Group::join()? {
        None => time(args, None),
        Some(group) => group.run(|| time(args, Some(group)), crate::message),
    }
}

fn time(mut args: Bench, launched: Option<&Group>) -> Result<()> {
    let replicas = match launched {
        None => Replicas::open(&[args.device.device])?,
        Some(group) => {
            args.device.device = own_device(group, &[], args.device.device)?;
            Replicas::launched(args.device.device, group.collective.clone())?
        }
    };
    let preset = PRESETS.into_iter().find(|p| p.name == args.preset).context("unknown preset")?;
    // Flex and its matrix products run on rayon's global thread pool.
    rayon::ThreadPoolBuilder::new().num_threads(args.threads.into()).build_global().context("--threads")?;
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
        shard: match args.shard {
            ShardArg::None => Shard::None,
            ShardArg::Optimizer => Shard::Optimizer,
            ShardArg::Gradients => Shard::Gradients,
        },
    };
    let leads = replicas.leads();
    let reports = replicas.run(|collective, device| {
        run(&config, &*collective, device, &mut |step, seconds| {
            if leads && !args.json {
                say!("step {step}: {seconds:.3} s");
            }
        })
    })?;
    let Some(report) = reports.into_iter().next().filter(|_| leads) else { return Ok(()) };
    if args.json {
        return print_json(&report);
    }
    say!(
        "{}{} {} {:?}: {:.3} s a step, {:.2} samples/s, {:.0} MiB at most",
        if report.ranks > 1 { format!("{} ranks, ", report.ranks) } else { String::new() },
        report.preset,
        report.arm,
        report.stage,
        report.step_s,
        report.samples_per_s,
        report.peak_gpu_mib.or(report.peak_rss_mib).unwrap_or_default()
    );
    Ok(())
}
