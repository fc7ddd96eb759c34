//! The curves of several runs over their steps. Each panel is drawn with a linear and with a logarithmic axis.

use basic_core::methods::TERMS;
use basic_core::{LM, TOTAL};
use serde::Serialize;

use super::runs::{Run, Step};
use crate::pages::numbers;
use crate::pages::plot::{Axes, Axis, Frame, Plot};
use crate::pages::series::{MOST_POINTS, SMOOTHING, extremes, half, running_mean};

/// Curves with at most this many points get a dot at each point.
const FEW: usize = 40;

/// A figure: a group of panels.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub id: &'static str,
    pub title: &'static str,
    pub note: String,
    pub panels: Vec<Panel>,
}

/// The curves of one quantity over the steps.
#[derive(Debug, Serialize)]
pub(super) struct Panel {
    /// The panel's id in the HTML page.
    pub id: String,
    pub title: &'static str,
    frame: Frame,
    last_step: f64,
    /// The linear scale, then the logarithmic one if there are values above 0.
    scales: Vec<Scale>,
    /// The points of the curves, for reading off values.
    pub series: Vec<Series>,
}

#[derive(Debug, Serialize)]
struct Scale {
    kind: &'static str,
    axis: Axis,
    axes: Axes,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    run: usize,
    /// The running mean.
    path: String,
    /// Every step, or the extremes of neighbouring steps; empty if the curve is not smoothed.
    raw: String,
    /// A dot at each point, if they are few.
    dots: String,
}

/// The points of a run's curve as they are drawn.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    pub run: usize,
    pub name: String,
    pub steps: Vec<f64>,
    pub values: Vec<f64>,
    /// The last value, as text.
    pub end: String,
}

/// A key of the metrics that is drawn, its heading, and whether it is smoothed.
type Quantity = (&'static str, &'static str, bool);

/// The losses: the language-model loss, the terms of every supervision method, and the objective.
fn losses(smoothed: bool) -> Vec<Quantity> {
    let terms = TERMS.iter().map(|term| (term.name, term.title));
    let all = [(LM, "Language-model loss (lm)")].into_iter().chain(terms).chain([(TOTAL, "Objective (total)")]);
    all.map(|(key, title)| (key, title, smoothed)).collect()
}

const OPTIMIZER: [Quantity; 4] = [
    ("lr", "Learning rate", false),
    ("grad_norm", "Gradient norm, before clipping", true),
    ("attention_mass", "Attention mass on the image", true),
    ("cosine", "Cosine between v and V^", true),
];
/// The figures that have at least one curve.
pub(super) fn figures(runs: &[Run]) -> Vec<Figure> {
    let smoothed = note(&runs.iter().map(|run| run.steps.len()).filter(|steps| *steps > 0).collect::<Vec<_>>());
    let held_out: Vec<Quantity> = [("accuracy", "Accuracy", false)].into_iter().chain(losses(false)).collect();
    let all = [
        (
            "losses",
            "Losses",
            format!("{smoothed} The terms of the supervision methods are unweighted."),
            panels("train", runs, |run| &run.steps, &losses(true)),
        ),
        (
            "optimizer",
            "Optimizer and alignment",
            "The learning rate is not smoothed.".into(),
            panels("train", runs, |run| &run.steps, &OPTIMIZER),
        ),
        (
            "held-out",
            "Evaluation on held-out samples during training",
            "Every evaluation of [eval], not smoothed.".into(),
            panels("held-out", runs, |run| &run.held_out, &held_out),
        ),
    ];
    let figure = |(id, title, note, panels): (_, _, _, Vec<Panel>)| {
        (!panels.is_empty()).then_some(Figure { id, title, note, panels })
    };
    all.into_iter().filter_map(figure).collect()
}

/// A sentence that says how the curves of runs with these numbers of steps are smoothed and thinned.
fn note(lengths: &[usize]) -> String {
    let mut windows: Vec<usize> = lengths.iter().map(|steps| 2 * half(*steps) + 1).collect();
    windows.sort_unstable();
    let over = match windows[..] {
        [] | [.., 1] => return "Every recorded step.".into(),
        [first, .., last] if first < last => format!("{first} to {last} steps, 1/{SMOOTHING} of each run"),
        [width, ..] => format!("{width} steps"),
    };
    let thinned = match lengths.iter().any(|steps| *steps > MOST_POINTS) {
        true => ", of long runs the lowest and the highest of neighbouring ones",
        false => "",
    };
    format!(
        "Lines are centred running means over {over}, with fewer steps at the ends; the pale lines behind them are the individual steps{thinned}."
    )
}

fn panels(group: &str, runs: &[Run], steps: fn(&Run) -> &Vec<Step>, keys: &[Quantity]) -> Vec<Panel> {
    let panel = |(key, title, smooth): &Quantity| {
        let curve = |(index, run): (usize, &Run)| {
            let points = steps(run).iter().filter_map(|step| Some((step.step as f64, step.value(key)?)));
            let points: Points = points.collect();
            // A term that is switched off is 0 in every step and is not drawn.
            points.iter().any(|(_, value)| *value != 0.0).then_some((index, points))
        };
        let curves = runs.iter().enumerate().filter_map(curve);
        let curves: Vec<Curve<'_>> =
            curves.map(|(index, points)| Curve::new(index, &runs[index].name, &points, *smooth)).collect();
        (!curves.is_empty()).then(|| draw(format!("{group}-{key}"), title, &curves))
    };
    keys.iter().filter_map(panel).collect()
}

/// Steps with their values.
type Points = Vec<(f64, f64)>;

/// A run's curve as it is drawn.
struct Curve<'a> {
    run: usize,
    name: &'a str,
    /// The running mean, thinned.
    mean: Points,
    /// Every step, or the extremes of neighbouring steps; empty if the curve is not smoothed.
    raw: Points,
}

impl<'a> Curve<'a> {
    fn new(run: usize, name: &'a str, points: &[(f64, f64)], smooth: bool) -> Self {
        let half = if smooth { half(points.len()) } else { 0 };
        let raw = if half > 0 { extremes(points) } else { Points::new() };
        Self { run, name, mean: running_mean(points, half), raw }
    }

    fn line(&self, plot: &Plot) -> Line {
        // A logarithmic axis can only show values above 0.
        let shown = |points: &[(f64, f64)]| -> Points {
            points.iter().copied().filter(|(_, value)| !plot.y.logarithmic || *value > 0.0).collect()
        };
        let dots = if self.mean.len() <= FEW { plot.dots(&shown(&self.mean)) } else { String::new() };
        Line { run: self.run, path: plot.path(&shown(&self.mean)), raw: plot.path(&shown(&self.raw)), dots }
    }

    fn series(&self) -> Series {
        Series {
            run: self.run,
            name: self.name.to_string(),
            steps: self.mean.iter().map(|(step, _)| *step).collect(),
            values: self.mean.iter().map(|(_, value)| rounded(*value)).collect(),
            end: self.mean.last().map(|(_, value)| written(*value)).unwrap_or_default(),
        }
    }
}

fn draw(id: String, title: &'static str, curves: &[Curve<'_>]) -> Panel {
    let last_step = curves.iter().flat_map(|curve| &curve.mean).map(|(step, _)| *step).fold(1.0, f64::max);
    let values = || curves.iter().flat_map(|curve| curve.mean.iter().chain(&curve.raw)).map(|(_, value)| *value);
    let scale = |kind: &'static str, axis: Axis| {
        let plot = Plot { frame: Frame::CURVES, x: Axis::steps(last_step), y: axis };
        let lines = curves.iter().map(|curve| curve.line(&plot)).collect();
        Scale { kind, axes: plot.axes("step"), lines, axis: plot.y }
    };
    let mut scales = vec![scale("linear", Axis::with_zero(values()))];
    scales.extend(Axis::logarithmic(values()).map(|axis| scale("logarithmic", axis)));
    Panel { id, title, frame: Frame::CURVES, last_step, scales, series: curves.iter().map(Curve::series).collect() }
}

/// Rounds to five significant digits, more than the page shows, which makes the page smaller.
fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// Writes a value with four significant digits.
pub(super) fn written(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && size < 1e-3 {
        return format!("{value:.3e}").replace('-', "−");
    }
    let decimals = (3 - size.max(1.0).log10().floor() as i32).max(0) as usize;
    numbers::fixed(value, decimals)
}
