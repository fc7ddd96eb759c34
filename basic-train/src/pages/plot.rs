//! Curves over steps as SVG: the plot's frame, its axes and paths, for this page and the demo's.

use serde::Serialize;

use crate::demo::report::numbers;

/// The drawing's size and the edges of the plot inside it, in SVG units.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// The one frame that there is.
pub(crate) const FRAME: Frame =
    Frame { width: 340.0, height: 216.0, left: 44.0, right: 332.0, top: 10.0, bottom: 182.0 };
/// Half of a long label's width.
const EDGE: f64 = 18.0;
/// Where the largest value is this many times the smallest, the demo's axis is logarithmic.
const LOGARITHMIC_FROM: f64 = 20.0;

/// A labelled position on an axis.
#[derive(Debug, Serialize)]
pub(crate) struct Tick {
    at: String,
    label: String,
    /// Whether it stands so near the right edge that a centred label would leave the drawing.
    edge: bool,
}

/// A plot of values over steps 0 to `last_step`.
#[derive(Debug)]
pub(crate) struct Plot {
    last_step: f64,
    axis: Axis,
}

impl Plot {
    pub(crate) fn new(last_step: f64, axis: Axis) -> Self {
        Self { last_step, axis }
    }

    fn x(&self, step: f64) -> f64 {
        FRAME.left + (FRAME.right - FRAME.left) * step / self.last_step
    }

    fn y(&self, value: f64) -> f64 {
        FRAME.bottom - (FRAME.bottom - FRAME.top) * self.axis.place(value)
    }

    /// An SVG path through points of step and value.
    pub(crate) fn path(&self, points: &[(f64, f64)]) -> String {
        let corners = points.iter().enumerate().map(|(index, &(step, value))| {
            let command = if index == 0 { 'M' } else { 'L' };
            format!("{command}{:.1} {:.1}", self.x(step), self.y(value))
        });
        corners.collect()
    }

    /// An SVG path with a dot at each point, if its line has round ends.
    pub(crate) fn dots(&self, points: &[(f64, f64)]) -> String {
        points.iter().map(|&(step, value)| format!("M{:.1} {:.1}h0", self.x(step), self.y(value))).collect()
    }

    /// Ticks of the step axis.
    pub(crate) fn x_ticks(&self) -> Vec<Tick> {
        let step = nice_step(self.last_step / 4.0).max(1.0);
        let steps = (0..=(self.last_step / step).floor() as usize).map(|index| index as f64 * step);
        let tick = |step: f64| Tick {
            at: format!("{:.1}", self.x(step)),
            label: numbers::thousands(step as usize),
            edge: self.x(step) > FRAME.right - EDGE,
        };
        steps.map(tick).collect()
    }

    /// Ticks of the value axis.
    pub(crate) fn y_ticks(&self) -> Vec<Tick> {
        let tick = |value: &f64| Tick { at: format!("{:.1}", self.y(*value)), label: tick_label(*value), edge: false };
        self.axis.ticks.iter().map(tick).collect()
    }

    /// The axis.
    pub(crate) fn axis(&self) -> &Axis {
        &self.axis
    }

    /// The axis, for good.
    pub(crate) fn into_axis(self) -> Axis {
        self.axis
    }
}

/// The value axis: linear, with 0, or logarithmic.
#[derive(Debug, Serialize)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    pub(crate) logarithmic: bool,
    #[serde(skip)]
    ticks: Vec<f64>,
}

impl Axis {
    /// The one that suits the values.
    pub(crate) fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (smallest, largest) = extent(values.clone());
        match smallest > 0.0 && largest / smallest > LOGARITHMIC_FROM {
            true => Self::rungs(smallest, largest),
            false => Self::linear(values),
        }
    }

    /// A linear one.
    pub(crate) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (smallest, largest) = extent(values);
        let low_reach = smallest.min(0.0);
        let step = nice_step(((largest - low_reach) / 4.0).max(f64::MIN_POSITIVE));
        let (from, to) = ((low_reach / step).floor() as i64, (largest / step).ceil().max(1.0) as i64);
        let ticks: Vec<f64> = (from..=to).map(|index| index as f64 * step).collect();
        Self { low: from as f64 * step, high: to as f64 * step, logarithmic: false, ticks }
    }

    /// A logarithmic one of those values that are above 0; `None` where they are not two.
    pub(crate) fn logarithmic(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (smallest, largest) = extent(values.filter(|value| *value > 0.0));
        (smallest < largest).then(|| Self::rungs(smallest, largest))
    }

    fn rungs(smallest: f64, largest: f64) -> Self {
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

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)))
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
        // 2.5e-5, and 1e-5 without its zero.
        return format!("{value:.1e}").replace(".0e", "e").replace('-', "−");
    }
    let text = format!("{value:.5}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "−")
}
