//! Runs `basic ablate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use basic_study::studies::{AblateOptions, Ablated, Event, ablate as run, list};
use basic_train::parallel::Group;
use serde_json::json;

use super::own_device;
use crate::args::Ablate;
use crate::output::{print_json, say, tell};
use crate::signals::stop_at_ctrl_c;

/// A study's processes wait for each other at its end alone, for as long as the longest share takes.
const PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs a study, or lists its cells; also as one of several processes that were launched together.
pub fn ablate(args: Ablate) -> Result<()> {
    let launched = if args.list { None } else { Group::join()? };
    match &launched {
        None => run_study(args, None),
        Some(group) => group.run(|| run_study(args, Some(group)), crate::message),
    }
}

fn run_study(mut args: Ablate, launched: Option<&Group>) -> Result<()> {
    if let Some(group) = launched {
        args.device = own_device(group, &args.devices, args.device)?;
        group.collective.set_time_limit(PATIENCE);
    }
    let leads = launched.is_none_or(|group| group.collective.rank() == 0);
    let stem = args.study.file_stem().unwrap_or_default();
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(stem));
    let options = AblateOptions {
        out: out.clone(),
        sets: args.sets,
        only: args.only,
        devices: if args.devices.is_empty() { vec![args.device] } else { args.devices },
        group: launched.map(|group| group.collective.clone()),
        stop: Arc::new(AtomicBool::new(false)),
        revision: crate::revision(),
    };
    if args.list {
        return show(&args.study, &options, args.json);
    }
    let options = AblateOptions { stop: stop_at_ctrl_c("finishing the running steps and saving")?, ..options };
    let observer = |event: Event<'_>| {
        if let Event::Line(text) | Event::Warning(text) = event {
            tell!("{text}");
        }
    };
    let Ablated { summary, stopped } = run(&args.study, &options, &observer)?;
    if !leads {
        return Ok(());
    }
    if args.json {
        return print_json(&summary);
    }
    if stopped {
        say!("stopped with {} of {} stage runs done: the same command goes on", summary.done, summary.of);
    }
    say!("tables: {}", out.join("table.md").display());
    say!("        {}", out.join("table.html").display());
    Ok(())
}

fn show(study: &Path, options: &AblateOptions, json: bool) -> Result<()> {
    let cells = list(study, options)?;
    if json {
        return print_json(&json!({"cells": cells}));
    }
    for cell in &cells {
        let stages = cell.stages.iter().map(|(name, hash, done)| {
            let state = if *done { "done" } else { "-" };
            format!("{name} {hash} {state:<4}")
        });
        say!("{:<40} seed {:<4} {}", cell.cell, cell.seed, stages.collect::<Vec<_>>().join("  ").trim_end());
    }
    let done = cells.iter().filter(|cell| cell.stages.iter().all(|(_, _, done)| *done)).count();
    say!("{done} of {} cells and seeds are done", cells.len());
    Ok(())
}
