//! Loss curves as inline SVG: positions and paths, which the template draws.

use serde::Serialize;

use super::measures::StageOf;
use super::paired_arms::{BASIC, LLAVA, runs};
use crate::demo::summary::{CurvePoint, Setting, Stage};
use crate::pages::plot::{Axes, Axis, Frame, Plot};
use crate::pages::series::{half, running_mean};

/// One stage's curves: a panel for every loss.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    /// `Pretrain` or `Finetune`.
    pub title: &'static str,
    /// How the curves were smoothed.
    pub note: String,
    /// lm, das and sds.
    pub panels: Vec<Panel>,
}

/// One loss over the steps of a stage.
#[derive(Debug, Serialize)]
pub(super) struct Panel {
    /// What is drawn.
    title: &'static str,
    /// The same in words, for who cannot see it.
    description: String,
    /// What stands in the title's place as a qualification.
    scale: &'static str,
    frame: Frame,
    axes: Axes,
    /// The curves; empty where the loss was not computed.
    lines: Vec<Line>,
}

/// One run's curve.
#[derive(Debug, Serialize)]
struct Line {
    /// The arm's name, which is the class that colours it.
    arm: &'static str,
    /// The SVG path.
    path: String,
}

/// A curve in its own units: step and loss.
struct Curve {
    arm: &'static str,
    seed: u64,
    points: Vec<(f64, f64)>,
}

/// The figures of a setting: pretrain, then finetune; those stages whose losses a summary holds.
pub(super) fn figures(setting: &Setting) -> Vec<Figure> {
    let stages: [(_, StageOf); 2] =
        [("Pretrain", |run| Some(&run.pretrain)), ("Finetune", |run| run.finetune.as_ref())];
    let known = |stage: StageOf| {
        let all = setting.arms.iter().flat_map(|arm| &arm.runs);
        all.filter_map(stage).any(|stage| stage.details.is_some())
    };
    stages.into_iter().filter(|(_, stage)| known(*stage)).map(|(title, stage)| figure(setting, title, stage)).collect()
}

fn figure(setting: &Setting, title: &'static str, stage: StageOf) -> Figure {
    let curves_of = |arm: &str| -> Vec<(u64, &[CurvePoint])> {
        runs(setting, arm).iter().filter_map(|run| Some((run.seed, curve(stage(run)?)?))).collect()
    };
    let longest = [LLAVA, BASIC].into_iter().flat_map(curves_of).map(|(_, curve)| curve.len()).max();
    let half = half(longest.unwrap_or(0));
    let curves = |arms: &[&'static str], loss: fn(&CurvePoint) -> f64| -> Vec<Curve> {
        let of = |arm: &'static str| {
            curves_of(arm).into_iter().map(move |(seed, curve)| Curve {
                arm,
                seed,
                points: running_mean(&finite(curve, loss), half),
            })
        };
        let all = arms.iter().flat_map(|arm| of(arm));
        all.filter(|curve| curve.points.iter().any(|&(_, value)| value != 0.0)).collect()
    };
    let note = if half == 0 {
        "One line per seed.".to_owned()
    } else {
        format!("One line per seed, each a running mean over {} recorded steps.", 2 * half + 1)
    };
    let panels = vec![
        panel("Language-model loss (lm)", curves(&[LLAVA, BASIC], |point| point.lm)),
        panel("Directional alignment (das), BASIC", curves(&[BASIC], |point| point.das)),
        panel("Semantic distribution (sds), BASIC", curves(&[BASIC], |point| point.sds)),
    ];
    Figure { title, note, panels }
}

fn curve(stage: &Stage) -> Option<&[CurvePoint]> {
    stage.details.as_ref().map(|details| details.curve.as_slice())
}

/// The losses that are finite, by step.
fn finite(curve: &[CurvePoint], loss: fn(&CurvePoint) -> f64) -> Vec<(f64, f64)> {
    curve.iter().map(|point| (point.step as f64, loss(point))).filter(|(_, value)| value.is_finite()).collect()
}

fn panel(title: &'static str, curves: Vec<Curve>) -> Panel {
    let last_step = curves.iter().flat_map(|curve| &curve.points).map(|&(step, _)| step).fold(1.0, f64::max);
    let values = curves.iter().flat_map(|curve| &curve.points).map(|&(_, value)| value);
    let plot = Plot { frame: Frame::CURVES, x: Axis::steps(last_step), y: Axis::of(values) };
    let lines = curves.iter().map(|curve| Line { arm: curve.arm, path: plot.path(&curve.points) });
    Panel {
        title,
        description: describe(&curves),
        scale: if plot.y.logarithmic { "logarithmic axis" } else { "" },
        frame: plot.frame,
        axes: plot.axes("step"),
        lines: lines.collect(),
    }
}

/// Where each curve starts and ends.
fn describe(curves: &[Curve]) -> String {
    let ends = curves.iter().filter_map(|curve| {
        let (&(_, from), &(step, to)) = (curve.points.first()?, curve.points.last()?);
        let arm = if curve.arm == BASIC { "BASIC" } else { "LLaVA" };
        Some(format!("{arm}, seed {}: from {from:.3} to {to:.3} at step {step}", curve.seed))
    });
    ends.collect::<Vec<_>>().join("; ")
}
