//! Runs `basic data shapes` and `basic backbones`.

use anyhow::Result;
use basic_data::shapes::write_dataset;
use basic_study::backbones::{BackboneConfig, make_backbones};

use crate::args::{Backbones, Shapes};
use crate::output::{bar, print_json, say};

/// Runs `basic data shapes`.
pub fn shapes(args: Shapes) -> Result<()> {
    let written = write_dataset(&args.out, args.train, args.validation, args.eval, args.seed)?;
    if args.json {
        return print_json(&written);
    }
    say!(
        "{}: {} train, {} validation and {} eval scenes, {} eval questions",
        args.out.display(),
        written.train,
        written.validation,
        written.eval,
        written.eval_questions
    );
    Ok(())
}

/// Runs `basic backbones`.
pub fn backbones(args: Backbones) -> Result<()> {
    let device = args.device.device.open()?;
    let config =
        BackboneConfig { seed: args.seed, language_steps: args.language_steps, vision_steps: args.vision_steps };
    let progress = bar("backbones", 0);
    let scores = make_backbones(&args.out, &config, &device, args.overwrite, &mut |stage, step, steps, loss| {
        if step == 1 {
            progress.reset();
        }
        progress.set_prefix(stage.to_string());
        progress.set_length(steps as u64);
        progress.set_position(step as u64);
        progress.set_message(format!("loss {loss:.3}"));
    })?;
    progress.finish();
    print_json(&scores)
}
