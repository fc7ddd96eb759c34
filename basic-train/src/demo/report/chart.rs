//! Loss curves as inline SVG: positions and paths, which the template draws.

use serde::Serialize;

use super::numbers;
use super::statistics::{BASIC, LLAVA, runs};
use crate::demo::summary::{CurvePoint, Setting, Stage};

/// The drawing's size and the edges of the plot inside it, in SVG units.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 216.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 332.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 182.0;
/// A curve is thinned to about this many points, which is more than its width in pixels can show.
const MOST_POINTS: usize = 300;
/// The running mean spans one part in this many of the curve.
const SMOOTHING: usize = 32;
/// Where the largest loss is this many times the smallest, the axis is logarithmic.
const LOGARITHMIC_FROM: f64 = 20.0;

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
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// Ticks of the step axis.
    x_ticks: Vec<Tick>,
    /// Ticks of the loss axis.
    y_ticks: Vec<Tick>,
    /// The curves; empty where the loss was not computed.
    lines: Vec<Line>,
}

/// A labelled position on an axis.
#[derive(Debug, Serialize)]
struct Tick {
    at: String,
    label: String,
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

/// The figures of a setting: pretrain, then finetune.
pub(super) fn figures(setting: &Setting) -> Vec<Figure> {
    vec![
        figure(setting, "Pretrain", |setting, arm| {
            runs(setting, arm).iter().map(|run| (run.seed, &run.pretrain)).collect()
        }),
        figure(setting, "Finetune", |setting, arm| {
            runs(setting, arm).iter().map(|run| (run.seed, &run.finetune)).collect()
        }),
    ]
}

fn figure(
    setting: &Setting,
    title: &'static str,
    stages: for<'a> fn(&'a Setting, &str) -> Vec<(u64, &'a Stage)>,
) -> Figure {
    let longest = [LLAVA, BASIC].iter().flat_map(|arm| stages(setting, arm)).map(|(_, stage)| stage.curve.len()).max();
    let half = longest.unwrap_or(0) / SMOOTHING / 2;
    let curves = |arms: &[&'static str], loss: fn(&CurvePoint) -> f64| -> Vec<Curve> {
        let of = |arm: &'static str| {
            stages(setting, arm).into_iter().map(move |(seed, stage)| Curve {
                arm,
                seed,
                points: running_mean(&stage.curve, half, loss),
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

/// Centred running means over `2 * half + 1` points, fewer near the ends; what is not finite is left out.
fn running_mean(curve: &[CurvePoint], half: usize, loss: fn(&CurvePoint) -> f64) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> =
        curve.iter().map(|point| (point.step as f64, loss(point))).filter(|(_, value)| value.is_finite()).collect();
    let last = finite.len().saturating_sub(1);
    let stride = finite.len().div_ceil(MOST_POINTS).max(1);
    (0..finite.len())
        .filter(|index| index % stride == 0 || *index == last)
        .map(|index| {
            let reach = half.min(index).min(last - index);
            let window = &finite[index - reach..=index + reach];
            (finite[index].0, window.iter().map(|(_, value)| value).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

fn panel(title: &'static str, curves: Vec<Curve>) -> Panel {
    let last_step = curves.iter().flat_map(|curve| &curve.points).map(|&(step, _)| step).fold(1.0, f64::max);
    let axis = Axis::of(curves.iter().flat_map(|curve| &curve.points).map(|&(_, value)| value));
    let x_of = |step: f64| LEFT + (RIGHT - LEFT) * step / last_step;
    let y_of = |value: f64| BOTTOM - (BOTTOM - TOP) * axis.place(value);
    let lines = curves.iter().map(|curve| {
        let corners = curve.points.iter().enumerate().map(|(index, &(step, value))| {
            let command = if index == 0 { 'M' } else { 'L' };
            format!("{command}{:.1} {:.1}", x_of(step), y_of(value))
        });
        Line { arm: curve.arm, path: corners.collect() }
    });
    let step = nice_step(last_step / 4.0).max(1.0);
    let steps = (0..=(last_step / step).floor() as usize).map(|index| index as f64 * step);
    Panel {
        title,
        description: describe(&curves),
        scale: if axis.logarithmic { "logarithmic axis" } else { "" },
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        right: RIGHT,
        top: TOP,
        bottom: BOTTOM,
        x_ticks: steps
            .map(|step| Tick { at: format!("{:.1}", x_of(step)), label: numbers::thousands(step as usize) })
            .collect(),
        y_ticks: axis
            .ticks
            .iter()
            .map(|&value| Tick { at: format!("{:.1}", y_of(value)), label: tick_label(value) })
            .collect(),
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

/// The loss axis: linear from 0, or logarithmic.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (smallest, largest) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if smallest > 0.0 && largest / smallest > LOGARITHMIC_FROM {
            Self::logarithmic(smallest, largest)
        } else {
            Self::linear(smallest, largest)
        }
    }

    fn linear(smallest: f64, largest: f64) -> Self {
        let low_reach = smallest.min(0.0);
        let step = nice_step(((largest - low_reach) / 4.0).max(f64::MIN_POSITIVE));
        let (from, to) = ((low_reach / step).floor() as i64, (largest / step).ceil().max(1.0) as i64);
        let ticks: Vec<f64> = (from..=to).map(|index| index as f64 * step).collect();
        Self { low: from as f64 * step, high: to as f64 * step, logarithmic: false, ticks }
    }

    fn logarithmic(smallest: f64, largest: f64) -> Self {
        let decades = smallest.log10().floor() as i32..=largest.log10().ceil() as i32;
        let mut rungs: Vec<f64> =
            decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade))).collect();
        let low = rungs.iter().copied().filter(|rung| *rung <= smallest).fold(smallest, |_, rung| rung);
        let high = rungs.iter().copied().find(|rung| *rung >= largest).unwrap_or(largest);
        rungs.retain(|rung| (low..=high).contains(rung));
        if rungs.len() > 7 {
            rungs.retain(|rung| (rung.log10() - rung.log10().round()).abs() < 1e-9);
        }
        Self { low, high, logarithmic: true, ticks: rungs }
    }

    /// 0 at the axis's low end, 1 at its high end.
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

/// The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least `rough`.
pub(crate) fn nice_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let digits = [1.0, 2.0, 2.5, 5.0, 10.0];
    let digit = digits.into_iter().find(|digit| digit * power >= rough * (1.0 - 1e-9)).unwrap_or(10.0);
    digit * power
}

/// A tick's value without binary noise or trailing zeros.
pub(crate) fn tick_label(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-4..1e6).contains(&size) {
        return format!("{value:.0e}").replace('-', "−");
    }
    let text = format!("{value:.5}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "−")
}
