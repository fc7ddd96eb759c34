//! `basic demo`.

use anyhow::{Result, bail};
use basic_study::demo::report::render_table;
use basic_study::demo::{DemoConfig, Event, Plan, run, sweep};

use super::train::losses;
use crate::args::Demo;
use crate::output::{bar, print_json, say};

/// Trains both arms, prints the table and the report's path.
pub fn demo(args: Demo) -> Result<()> {
    let mut plans = Plan::all();
    if let Some(only) = &args.only {
        plans.retain(|plan| plan.name == *only);
        if plans.is_empty() {
            bail!("--only {only}: the settings are few and many");
        }
    }
    for plan in &mut plans {
        plan.lambda_das = args.lambda_das.unwrap_or(plan.lambda_das);
        plan.lambda_sds = args.lambda_sds.unwrap_or(plan.lambda_sds);
        plan.pretrain_steps = args.pretrain_steps.unwrap_or(plan.pretrain_steps);
        plan.pretrain_lr = args.pretrain_lr.unwrap_or(plan.pretrain_lr);
        plan.finetune_steps = args.finetune_steps.unwrap_or(plan.finetune_steps);
    }
    let config = DemoConfig {
        out: args.out,
        seeds: args.seeds.into(),
        device: args.device.device,
        plans,
        overwrite: args.overwrite,
        scenes: [2000, 150, 300],
        validate_every: args.validate_every,
        revision: crate::revision(),
    };
    let mut current = bar("start", 1);
    let mut observer = |event: Event| match event {
        Event::Stage(name, length) => {
            current.finish();
            current = bar(name, length);
        }
        Event::Step(step) => {
            current.set_position(step.step as u64);
            current.set_message(losses(step));
        }
        Event::Done(done) => current.set_position(done as u64),
    };
    if let (false, Some(plan)) = (args.sweep.is_empty(), config.plans.first()) {
        for row in sweep(&config, plan, &args.sweep, &mut observer)? {
            print_json(&row)?;
        }
        return Ok(());
    }
    let summary = run(&config, &mut observer)?;
    current.finish();
    if args.json {
        return print_json(&summary);
    }
    say!("{}", render_table(&summary));
    say!("report: {}", config.out.join("report.html").display());
    Ok(())
}
