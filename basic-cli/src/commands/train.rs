//! Runs `basic train`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use basic_data::LoaderError;
use basic_models::outside::excerpt;
use basic_train::BatchError;
use basic_train::parallel::Group;
use basic_train::plan::{Plan, PlanError, PlanOptions};
use basic_train::recipe::Recipe;
use basic_train::train::{Outcome, RunInfo, RunOptions, Status, TrainError, can_go_on, lacks, run};
use basic_train::watch::StepMetrics;
use indicatif::ProgressBar;

use super::checkpoint::host;
use super::own_device;
use crate::args::{Train, Ui};
use crate::output::{bar, print_json, print_text, say, tell};
use crate::signals::stop_at_ctrl_c;

/// Runs `basic train`, also as one of several processes that were launched together.
pub fn train(args: Train) -> Result<()> {
    // A plan is for any number of them.
    let launched = if args.plan { None } else { Group::join()? };
    match &launched {
        None => run_recipe(args, None),
        Some(group) => group.run(|| run_recipe(args, Some(group)), crate::message),
    }
}

fn run_recipe(mut args: Train, launched: Option<&Group>) -> Result<()> {
    let leads = launched.is_none_or(|group| group.collective.rank() == 0);
    let recipe = match (&args.recipe, &args.resume) {
        (Some(recipe), _) => Recipe::open(recipe, &args.sets)?,
        (None, Some(run)) => {
            let info = RunInfo::open(run)?;
            // A plan says what the run takes, whatever is left of it.
            let done = info.status == Status::Done && !args.plan;
            match lacks(run).filter(|_| done) {
                None if done => {
                    if leads {
                        say!("checkpoint: {} (the run was done already)", run.display());
                    }
                    return Ok(());
                }
                Some(lacks) if !can_go_on(run) => anyhow::bail!(
                    "{}: the run was done, but its checkpoint is not whole any more and no state is there to go on from: \
                     {lacks}: train it again with --overwrite",
                    run.display()
                ),
                Some(lacks) if leads => tell!("warning: {lacks}; the run was done and goes on from its last state"),
                Some(_) | None => {}
            }
            // Processes that were launched together have one device each, whatever the run had before.
            if launched.is_none() && args.device.is_none() && args.devices.is_empty() {
                args.devices = info.devices;
            }
            info.recipe
        }
        // clap already requires one of the two.
        (None, None) => anyhow::bail!("give a recipe, or --resume and the directory of a run"),
    };
    let origin = origin(&args);
    if args.plan {
        return plan(recipe, &args).map_err(|error| named(error, &origin));
    }
    let mut recipe = recipe;
    if let Some(group) = launched {
        recipe.device = own_device(group, &args.devices, args.device.take().unwrap_or(recipe.device))?;
    }
    let stop = stop_at_ctrl_c("finishing the step and saving")?;
    let options = RunOptions {
        devices: args.device.map_or(args.devices, |device| vec![device]),
        out: args.resume.clone().or(args.out),
        overwrite: args.overwrite,
        resume: args.resume.is_some(),
        memory: args.memory,
        force: args.force,
        stop: Some(stop),
        group: launched.map(|group| group.collective.clone()),
        revision: crate::revision(),
    };
    let terminal = std::io::stderr().is_terminal();
    let plain = args.ui.map_or(!terminal || launched.is_some(), |ui| ui == Ui::Plain);
    let progress = if plain || !leads { ProgressBar::hidden() } else { bar("train", 0) };
    let (mut broken, mut left_out) = (0, 0);
    // Each process would warn of the same.
    let mut warn = |text: &str| {
        if leads {
            tell!("warning: {text}");
        }
    };
    let outcome = run(&recipe, &options, &mut warn, &mut |step, steps| {
        broken = step.skipped_samples;
        left_out += step.left_out.len();
        progress.set_length(steps as u64);
        progress.set_position(step.step as u64);
        progress.set_message(losses(step));
        let shown = step.step == 1 || step.step == steps || (step.step as u64).is_multiple_of(args.log_every);
        if plain && shown {
            // A failed write must not end a run of days: training continues, and the command fails at its end.
            say!("{}", line(step, steps));
        }
    });
    let outcome = outcome.map_err(|error| named(error.into(), &origin))?;
    if !leads {
        return Ok(());
    }
    if broken > 0 || left_out > 0 {
        say!(
            "left out: {broken} broken samples in all, {left_out} draws since the run began or went on: left_out in metrics.jsonl"
        );
    }
    match outcome {
        Outcome::Done(out) => {
            progress.finish();
            say!("checkpoint: {}", out.display());
        }
        Outcome::Stopped { out, step, steps } => {
            progress.abandon();
            let out = out.display();
            say!("stopped after step {step} of {steps}: `basic train --resume {out}` goes on");
        }
    }
    Ok(())
}

/// The sources of the recipe's values: its file and `--set`.
fn origin(args: &Train) -> String {
    let file = match (&args.recipe, &args.resume) {
        (Some(recipe), _) => recipe.display().to_string(),
        (None, run) => run.clone().unwrap_or_default().join("run.json").display().to_string(),
    };
    // Whether a value is from the file or from a `--set` can be seen by the key in the error.
    let sets = args.sets.iter().map(|set| format!(" --set {}", excerpt(set)));
    sets.fold(file, |all, set| if all.len() < 500 { all + &set } else { all })
}

/// Adds the recipe's sources to an error about one of its values.
fn named(error: anyhow::Error, origin: &str) -> anyhow::Error {
    let of_recipe = match error.downcast_ref::<TrainError>() {
        Some(TrainError::Plan(plan)) => matches!(plan, PlanError::Objective(_)),
        Some(error) => matches!(
            error,
            TrainError::Batch(BatchError::Objective(_))
                | TrainError::Adapter(_)
                | TrainError::NothingTrained { .. }
                | TrainError::NoOutput
                | TrainError::DoesNotFit { .. }
                | TrainError::Loader(
                    LoaderError::MaxLength { .. } | LoaderError::Start(_) | LoaderError::TooManySkipped { .. }
                )
        ),
        None => matches!(error.downcast_ref::<PlanError>(), Some(PlanError::Objective(_))),
    };
    if of_recipe { anyhow::anyhow!("{origin}: {error}") } else { error }
}

/// Runs `basic train --plan`.
fn plan(mut recipe: Recipe, args: &Train) -> Result<()> {
    recipe.device = args.device.or(args.devices.first().copied()).unwrap_or(recipe.device);
    let devices = args.ranks.map_or(args.devices.len(), |ranks| ranks as usize);
    let options = PlanOptions { memory: args.memory, samples: args.samples, devices };
    let plan = Plan::new(&recipe, &options, &host()?)?;
    if args.json {
        return print_json(&plan);
    }
    print_text(&plan.to_string());
    Ok(())
}

/// The losses and speed of a step, for a progress bar.
pub fn losses(step: &StepMetrics) -> String {
    let terms = step.losses.terms.iter().map(|term| format!("{} {:.4} ", term.name, term.value));
    let samples_per_s = step.speed.samples_per_s;
    format!("lm {:.3} {}{samples_per_s:.0} samples/s", step.losses.lm, terms.collect::<String>())
}

/// A step as a line of plain progress output.
fn line(step: &StepMetrics, steps: usize) -> String {
    let StepMetrics { lr, grad_norm, seconds, .. } = step;
    let skipped = if step.skipped { " skipped: not finite" } else { "" };
    let left = Duration::from_secs_f64((seconds * steps.saturating_sub(step.step) as f64).min(1e9));
    let left = indicatif::HumanDuration(left);
    format!("step {}/{steps} {} lr {lr:.2e} grad {grad_norm:.2} left {left}{skipped}", step.step, losses(step))
}
