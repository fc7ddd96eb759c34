//! Runs `basic demo`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use basic_study::demo::report::render_table;
use basic_study::demo::{
    Changes, DemoConfig, Ended, FULL_SEEDS, MINUTES_A_RUN, REAL_SEEDS, RealConfig, RealEnded, SEEDS, SETTINGS,
    SeedDone, run, run_real, runs_left, sweep,
};
use basic_study::studies::Event;
use serde_json::json;

use super::train::losses;
use crate::args::Demo;
use crate::output::{bar, print_json, say, tell};
use crate::signals::stop_at_ctrl_c;

/// Trains both arms, prints a line for each seed, and what they show.
pub fn demo(args: Demo) -> Result<()> {
    if let Some(dir) = args.real.clone() {
        return real(args, dir);
    }
    if let Some(only) = args.only.as_ref().filter(|only| SETTINGS.iter().all(|(name, _)| name != only)) {
        bail!("--only {only}: the settings are few and many");
    }
    if args.validate_every.is_some() && !args.full && args.sweep.is_empty() {
        bail!("--validate-every: only --full and --sweep ask the validation split");
    }
    let seeds = match (args.seeds, args.sweep.is_empty()) {
        (Some(seeds), _) => seeds,
        (None, false) => 1,
        (None, true) if args.full => FULL_SEEDS,
        (None, true) => SEEDS,
    };
    let config = DemoConfig {
        out: args.out.unwrap_or_else(|| "runs/demo".into()),
        seeds: seeds.into(),
        device: args.device.device,
        full: args.full,
        only: args.only,
        changes: Changes {
            lambda_das: args.lambda_das,
            lambda_sds: args.lambda_sds,
            pretrain_steps: args.pretrain_steps,
            pretrain_lr: args.pretrain_lr,
            finetune_steps: args.finetune_steps,
        },
        overwrite: args.overwrite,
        validate_every: args.validate_every.unwrap_or(40),
        revision: crate::revision(),
        stop: stop_at_ctrl_c("finishing the running steps")?,
    };
    let line = |text: &str| match args.json {
        false => say!("{text}"),
        // Standard output is for the JSON, and a program that reads it needs no lines beside it.
        true if std::io::stderr().is_terminal() => tell!("{text}"),
        true => {}
    };
    // One bar over the training steps of all runs, of which several go on at a time.
    let current = Mutex::new(bar("start", 1));
    let progress = || -> MutexGuard<'_, _> { current.lock().unwrap_or_else(PoisonError::into_inner) };
    let observer = |event: Event<'_>| match event {
        // Nothing is read or made yet, and what is wrong with the options has been told.
        Event::Part("demo", steps) => {
            if args.sweep.is_empty() {
                line(&start(&config));
            }
            *progress() = bar("demo", steps);
        }
        Event::Step(step) => {
            let bar = progress();
            bar.inc(1);
            bar.set_message(losses(step));
        }
        Event::Warning(text) => progress().suspend(|| tell!("{text}")),
        Event::Part(..) | Event::Done(_) | Event::Line(_) => {}
    };
    if !args.sweep.is_empty() {
        let rows = sweep(&config, &args.sweep, &observer)?;
        if args.json {
            print_json(&json!({ "rows": rows }))?;
        } else {
            rows.iter().try_for_each(print_json)?;
        }
        if config.stop.load(Ordering::SeqCst) {
            tell!("stopped: the rows hold the runs that were done");
        }
        return Ok(());
    }
    let told = |seed: &SeedDone<'_>| progress().suspend(|| line(&seed.line()));
    let Ended { summary, stopped } = run(&config, &observer, &told)?;
    progress().finish_and_clear();
    let Some(summary) = summary else {
        if args.json {
            return print_json(&json!({ "stopped": true }));
        }
        line("stopped before both arms were done with a seed: there is nothing to show");
        return Ok(());
    };
    if args.json {
        return print_json(&summary);
    }
    if stopped {
        let done = summary.conclusion.as_ref().map_or(0, |conclusion| conclusion.seeds.len());
        say!("stopped with {done} of {} seeds done", summary.seeds);
    }
    say!("");
    say!("{}", render_table(&summary));
    say!("report: {}", config.out.join("report.html").display());
    Ok(())
}

/// The demo on real backbones.
fn real(args: Demo, dir: PathBuf) -> Result<()> {
    let seeds = args.seeds.unwrap_or(REAL_SEEDS);
    let out = args.out.unwrap_or_else(|| "runs/demo-real".into());
    let config = RealConfig {
        dir,
        out: out.clone(),
        seeds: seeds.into(),
        device: args.device.device,
        revision: crate::revision(),
        stop: stop_at_ctrl_c("finishing the running step and saving")?,
    };
    let minutes = runs_left(&config)? * MINUTES_A_RUN;
    if !args.json {
        say!(
            "LLaVA and BASIC side by side on {}: SmolLM2-135M and CLIP ViT-B/16, 3,000 captions of 2,300 pictures, the pretrain stage, {}. {}",
            config.dir.display(),
            if seeds == 1 { "one seed".into() } else { format!("{seeds} seeds") },
            match minutes {
                0 => "All of its results are there.".into(),
                minutes =>
                    format!("About {minutes} minutes on two cores; Ctrl-C ends early, and the same command goes on."),
            }
        );
    }
    let current = Mutex::new(bar("start", 1));
    let progress = || -> MutexGuard<'_, _> { current.lock().unwrap_or_else(PoisonError::into_inner) };
    let observer = |event: Event<'_>| match event {
        Event::Part("demo", steps) => *progress() = bar("demo", steps),
        Event::Step(step) => {
            let bar = progress();
            bar.inc(1);
            bar.set_message(losses(step));
        }
        Event::Line(text) | Event::Warning(text) => progress().suspend(|| tell!("{text}")),
        Event::Part(..) | Event::Done(_) => {}
    };
    let RealEnded { summary, shown, stopped } = run_real(&config, &observer)?;
    progress().finish_and_clear();
    if args.json {
        return print_json(&summary);
    }
    if stopped {
        say!("stopped with {} of {} runs done: the same command goes on", summary.done, summary.of);
    }
    if let Some(shown) = shown {
        say!("{shown}");
        say!("docs/evidence.md says what more seeds have shown.");
    }
    say!("tables: {}", out.join("table.md").display());
    say!("        {}", out.join("table.html").display());
    Ok(())
}

/// What is about to be done: the first line.
fn start(config: &DemoConfig) -> String {
    let what = match (config.full, config.only.as_deref()) {
        (true, None) => "few captions and many, both stages",
        (true, Some("few")) => "few captions, both stages",
        (true, Some(_)) => "many captions, both stages",
        (false, Some("many")) => "many captions, the pretrain stage",
        (false, _) => "few captions, the pretrain stage",
    };
    let seeds = if config.seeds == 1 { "one seed".into() } else { format!("{} seeds", config.seeds) };
    let page = config.out.join("report.html");
    format!(
        "LLaVA and BASIC side by side: {what}, {seeds}. Each seed adds a line here and a row to {}; Ctrl-C ends early and shows \
         what there is.",
        page.display()
    )
}
