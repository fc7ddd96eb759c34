//! Computes plots for SVG: frames, axes, ticks and paths. The templates draw them at these positions.

use serde::Serialize;

use super::numbers;

/// A drawing's size and the edges of the plot inside it, in SVG units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Frame {
    pub width: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
}

impl Frame {
    /// The frame for curves over the steps of a run.
    pub(crate) const CURVES: Self =
        Self { width: 340.0, height: 216.0, left: 44.0, right: 332.0, top: 10.0, bottom: 182.0 };
    /// The frame for points with intervals.
    pub(crate) const POINTS: Self =
        Self { width: 360.0, height: 230.0, left: 44.0, right: 352.0, top: 12.0, bottom: 192.0 };
    /// The frame for a row of dots in a table.
    pub(crate) const STRIP: Self = Self { width: 180.0, height: 22.0, left: 8.0, right: 172.0, top: 4.0, bottom: 18.0 };
}

/// Half the width of a long label, in SVG units.
const EDGE: f64 = 18.0;
/// The distance of the outermost ticks of [`Axis::through`] from the frame, in SVG units.
const INSET: f64 = 12.0;
/// [`Axis::of`] and [`Axis::through`] are logarithmic if the largest value is more than this many times the smallest.
const LOGARITHMIC_FROM: f64 = 20.0;

/// An axis: the values at its ends, and its ticks with their labels.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    pub(crate) logarithmic: bool,
    /// The distance of both ends from the frame, in SVG units.
    #[serde(skip)]
    inset: f64,
    #[serde(skip)]
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis that includes 0, or a logarithmic axis if the values span a wide range above 0.
    pub(crate) fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (smallest, largest) = extent(values.clone());
        match smallest > 0.0 && largest.max(0.0) / smallest > LOGARITHMIC_FROM {
            true => Self::rungs(smallest, largest),
            false => Self::with_zero(values),
        }
    }

    /// A linear axis that includes 0.
    pub(crate) fn with_zero(values: impl Iterator<Item = f64>) -> Self {
        let (smallest, largest) = extent(values);
        Self::even(smallest.min(0.0), largest.max(0.0), 4.0)
    }

    /// A linear axis over the range of the values.
    pub(crate) fn tight(values: impl Iterator<Item = f64>) -> Self {
        let (smallest, largest) = extent(values);
        Self::even(smallest, largest, 5.0)
    }

    /// A linear axis with 0 in the middle.
    pub(crate) fn around_zero(values: impl Iterator<Item = f64>) -> Self {
        let reach = values.filter(|value| value.is_finite()).fold(0.0, |reach: f64, value| reach.max(value.abs()));
        let reach = reach.ceil().max(1.0);
        Self::ticked([-reach, 0.0, reach].map(|value| (value, tick_label(value))).into(), false, 0.0)
    }

    /// A logarithmic axis over the values above 0; `None` if these are fewer than two different ones.
    pub(crate) fn logarithmic(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (smallest, largest) = extent(values.filter(|value| *value > 0.0));
        (smallest < largest).then(|| Self::rungs(smallest, largest))
    }

    /// An axis for the steps of a run, from 0.
    pub(crate) fn steps(last: f64) -> Self {
        let step = nice_step(last / 4.0).max(1.0);
        let ticks = (0..=(last / step).floor() as usize).map(|index| index as f64 * step);
        let ticks = ticks.map(|step| (step, numbers::thousands(step as usize))).collect();
        Self { low: 0.0, high: last, logarithmic: false, inset: 0.0, ticks }
    }

    /// An axis with a tick at each value, logarithmic if they are far apart; `None` for fewer than two values.
    pub(crate) fn through(places: impl Iterator<Item = f64>) -> Option<Self> {
        let mut places: Vec<f64> = places.collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let (first, last) = (*places.first()?, *places.last()?);
        let logarithmic = first > 0.0 && last / first > LOGARITHMIC_FROM;
        (places.len() > 1).then(|| Self::ticked(places.iter().map(|x| (*x, short(*x))).collect(), logarithmic, INSET))
    }

    fn even(smallest: f64, largest: f64, parts: f64) -> Self {
        // Without any finite value, the axis is that of 0.
        let (smallest, largest) = if smallest <= largest { (smallest, largest) } else { (0.0, 0.0) };
        let reach = match (largest > smallest, smallest == 0.0) {
            (true, _) => largest - smallest,
            // If all values are equal, the range is as large as the value.
            (false, false) if smallest.is_finite() => smallest.abs(),
            _ => 1.0,
        };
        let step = nice_step(reach / parts);
        let from = (smallest / step).floor() as i64;
        let to = ((largest / step).ceil() as i64).max(from + 1);
        let tick = |index: i64| (index as f64 * step, tick_label(index as f64 * step));
        Self::ticked((from..=to).map(tick).collect(), false, 0.0)
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
        let ticks = rungs.into_iter().map(|rung| (rung, tick_label(rung))).collect();
        Self { low, high, logarithmic: true, inset: 0.0, ticks }
    }

    /// An axis that ends at its outermost ticks.
    fn ticked(ticks: Vec<(f64, String)>, logarithmic: bool, inset: f64) -> Self {
        let end = |tick: Option<&(f64, String)>| tick.map_or(0.0, |(value, _)| *value);
        Self { low: end(ticks.first()), high: end(ticks.last()), logarithmic, inset, ticks }
    }

    /// The position of a value along the axis: 0 at its low end, 1 at its high end.
    fn place(&self, value: f64) -> f64 {
        match self.logarithmic {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    /// The label of the last tick.
    pub(crate) fn last_label(&self) -> &str {
        self.ticks.last().map_or("", |(_, label)| label)
    }
}

/// A plot of values `y` over values `x`.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) frame: Frame,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
}

/// The axes of a plot in the form that `axes.html` draws.
#[derive(Debug, Serialize)]
pub(crate) struct Axes {
    frame: Frame,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    x_label: String,
}

/// A labelled position on an axis.
#[derive(Debug, Serialize)]
pub(crate) struct Tick {
    at: String,
    label: String,
    /// Whether the tick is so near the right edge that a centred label would leave the drawing.
    edge: bool,
}

impl Plot {
    /// The horizontal position of a value of the x axis, in SVG units.
    pub(crate) fn x(&self, value: f64) -> f64 {
        let (left, right) = (self.frame.left + self.x.inset, self.frame.right - self.x.inset);
        left + (right - left) * self.x.place(value)
    }

    /// The vertical position of a value of the y axis, in SVG units.
    pub(crate) fn y(&self, value: f64) -> f64 {
        self.frame.bottom - (self.frame.bottom - self.frame.top) * self.y.place(value)
    }

    /// An SVG path through points given in units of the axes.
    pub(crate) fn path(&self, points: &[(f64, f64)]) -> String {
        self.path_aside(points, 0.0)
    }

    /// Like [`Plot::path`], shifted right by `aside`, so that lines with the same x values do not overlap.
    pub(crate) fn path_aside(&self, points: &[(f64, f64)], aside: f64) -> String {
        let corners = points.iter().enumerate().map(|(index, &(x, y))| {
            let command = if index == 0 { 'M' } else { 'L' };
            format!("{command}{:.1} {:.1}", self.x(x) + aside, self.y(y))
        });
        corners.collect()
    }

    /// An SVG path with a dot at each point; its style must have round line caps.
    pub(crate) fn dots(&self, points: &[(f64, f64)]) -> String {
        points.iter().map(|&(x, y)| format!("M{:.1} {:.1}h0", self.x(x), self.y(y))).collect()
    }

    /// The axes with their ticks.
    pub(crate) fn axes(&self, x_label: impl Into<String>) -> Axes {
        Axes {
            frame: self.frame,
            x_ticks: self.x_ticks(),
            y_ticks: ticks(&self.y, &|y| self.y(y), &|_| false),
            x_label: x_label.into(),
        }
    }

    /// The ticks of the x axis alone.
    pub(crate) fn x_ticks(&self) -> Vec<Tick> {
        ticks(&self.x, &|x| self.x(x), &|at| at + EDGE > self.frame.width)
    }
}

fn ticks(axis: &Axis, at: &dyn Fn(f64) -> f64, edge: &dyn Fn(f64) -> bool) -> Vec<Tick> {
    let tick = |(value, label): &(f64, String)| {
        let at = at(*value);
        Tick { at: position(at), label: label.clone(), edge: edge(at) }
    };
    axis.ticks.iter().map(tick).collect()
}

/// A position as SVG text.
pub(crate) fn position(at: f64) -> String {
    format!("{at:.1}")
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let digits = [1.0, 2.0, 2.5, 5.0, 10.0];
    let digit = digits.into_iter().find(|digit| digit * power >= rough * (1.0 - 1e-9)).unwrap_or(10.0);
    digit * power
}

/// A tick's value without binary noise or trailing zeros.
pub(crate) fn tick_label(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-4..1e6).contains(&size) {
        // For example 2.5e-5, and 1e-5 instead of 1.0e-5.
        return format!("{value:.1e}").replace(".0e", "e").replace('-', "−");
    }
    let text = format!("{value:.5}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "−")
}

/// `20k` for 20000.
fn short(value: f64) -> String {
    if value >= 1000.0 && value % 100.0 == 0.0 { format!("{}k", tick_label(value / 1000.0)) } else { tick_label(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn an_axis_ends_at_round_numbers_around_its_values() {
        assert_eq!(labels(&Axis::with_zero([0.7, 3.4].into_iter())), ["0", "1", "2", "3", "4"]);
        assert_eq!(labels(&Axis::tight([41.0, 49.5].into_iter())), ["40", "42", "44", "46", "48", "50"]);
        assert_eq!(labels(&Axis::around_zero([1.2, -3.4, f64::NAN].into_iter())), ["−4", "0", "4"]);
        assert_eq!(labels(&Axis::steps(160.0)), ["0", "50", "100", "150"]);
        assert!(Axis::of([0.1, 5.0].into_iter()).logarithmic && !Axis::of([0.1, 1.0].into_iter()).logarithmic);
        // Equal values have an axis too, whose ends differ.
        for values in [vec![2.0, 2.0], vec![0.0]] {
            let axis = Axis::tight(values.iter().copied());
            assert!(axis.low <= values[0] && axis.high > axis.low, "{axis:?}");
        }
    }

    #[test]
    fn places_far_apart_are_logarithmic_and_keep_clear_of_the_frame() {
        let x = Axis::through([20_000.0, 16.0, 345.0, 16.0].into_iter()).unwrap();
        assert_eq!((labels(&x), x.logarithmic), (vec!["16", "345", "20k"], true));
        let plot = Plot { frame: Frame::POINTS, x, y: Axis::with_zero([1.0].into_iter()) };
        let inset = [plot.x(16.0) - Frame::POINTS.left, Frame::POINTS.right - plot.x(20_000.0)];
        assert!(inset.iter().all(|inset| (inset - INSET).abs() < 1e-9), "{inset:?}");
        assert!(Axis::through([3.0, 3.0].into_iter()).is_none());
    }
}
