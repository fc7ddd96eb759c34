//! Runs `basic demo`.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};
use basic_study::demo::report::render_table;
use basic_study::demo::{Changes, DemoConfig, SETTINGS, run, sweep};
use basic_study::studies::Event;

use super::train::losses;
use crate::args::Demo;
use crate::output::{bar, print_json, say, tell};

/// Trains both arms, and prints the table and the path of the report.
pub fn demo(args: Demo) -> Result<()> {
    if let Some(only) = args.only.as_ref().filter(|only| SETTINGS.iter().all(|(name, _)| name != only)) {
        bail!("--only {only}: the settings are few and many");
    }
    let config = DemoConfig {
        out: args.out,
        seeds: args.seeds.into(),
        device: args.device.device,
        only: args.only,
        changes: Changes {
            lambda_das: args.lambda_das,
            lambda_sds: args.lambda_sds,
            pretrain_steps: args.pretrain_steps,
            pretrain_lr: args.pretrain_lr,
            finetune_steps: args.finetune_steps,
        },
        overwrite: args.overwrite,
        validate_every: args.validate_every,
        revision: crate::revision(),
    };
    let current = Mutex::new(bar("start", 1));
    let observer = |event: Event<'_>| {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Part(name, length) => {
                current.finish();
                *current = bar(name, length);
            }
            Event::Step(step) => {
                current.set_position(step.step as u64);
                current.set_message(losses(step));
            }
            Event::Done(done) => current.set_position(done as u64),
            Event::Warning(text) => tell!("{text}"),
            // The progress bar shows the same.
            Event::Line(_) => {}
        }
    };
    if !args.sweep.is_empty() {
        for row in sweep(&config, &args.sweep, &observer)? {
            print_json(&row)?;
        }
        return Ok(());
    }
    let summary = run(&config, &observer)?;
    current.lock().unwrap_or_else(PoisonError::into_inner).finish();
    if args.json {
        return print_json(&summary);
    }
    say!("{}", render_table(&summary));
    say!("report: {}", config.out.join("report.html").display());
    Ok(())
}
