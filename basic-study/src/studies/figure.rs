//! A quantity against a factor's numbers or the decoder's layers: lines with intervals, as positions that the template draws.

use serde::Serialize;

use super::summary::{Column, Row, Rows};
use crate::report::plot::{nice_step, tick_label};

/// The drawing's size and the edges of the plot inside it, in SVG units.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 40.0;
const RIGHT: f64 = 348.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 186.0;
/// Where the largest number is this many times the smallest, the axis is logarithmic.
const LOGARITHMIC_FROM: f64 = 20.0;
/// How far lines' points of the same place stand from each other.
const APART: f64 = 4.0;
/// Lines with colours of their own.
const COLOURS: usize = 6;

/// A drawing.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    title: String,
    /// The same in words.
    description: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_label: String,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    /// The height of the baseline that is no point itself.
    reference: Option<String>,
    /// What the bars at points are.
    bars: &'static str,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Tick {
    at: String,
    label: String,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Which colour.
    colour: usize,
    path: String,
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Point {
    x: String,
    y: String,
    low: String,
    high: String,
    told: String,
}

/// What bars are.
const MEAN: &str = "95% interval of the mean";
const PAIRED: &str = "95% interval of the difference, paired by seed";

/// A point in the quantity's own units.
struct Found {
    x: f64,
    mean: f64,
    margin: f64,
}

/// A group's figure of one column over the cells' numbers.
pub(super) fn figure(group: &Rows, at: usize, column: &Column) -> Option<Figure> {
    let factor = column.unit.factor();
    let find = |row: &&Row| {
        let value = row.entries.get(at)?.as_ref()?.value;
        let margin = value.margin().unwrap_or(0.0);
        Some(Found { x: row.x?, mean: value.mean * factor, margin: margin * factor })
    };
    let mut names: Vec<&str> = Vec::new();
    for row in group.rows.iter().filter(|row| row.x.is_some()) {
        if !names.contains(&row.series.as_str()) {
            names.push(&row.series);
        }
    }
    let series: Vec<(&str, Vec<Found>)> = names
        .into_iter()
        .map(|name| (name, group.rows.iter().filter(|row| row.series == name).filter_map(|row| find(&row)).collect()))
        .collect();
    let reference = group.rows.iter().find(|row| row.x.is_none() && row.is_baseline());
    let reference = reference.and_then(|row| Some(row.entries.get(at)?.as_ref()?.value.mean * factor));
    let title = format!("{}: {}", column.stage, column.label);
    drawing(title, group.axis.clone().unwrap_or_default(), &series, reference, MEAN)
}

/// How far a grid's lines are from the one that they are compared with; `None` where they are not.
pub(super) fn differences(group: &Rows, at: usize, column: &Column) -> Option<Figure> {
    let factor = column.unit.factor();
    let find = |row: &Row| {
        let difference = row.entries.get(at)?.as_ref()?.difference?;
        let [low, high] = difference.interval?;
        Some(Found { x: row.x?, mean: difference.mean * factor, margin: (high - low) / 2.0 * factor })
    };
    let lines = group.means.iter().map(|mean| {
        let points = group.rows.iter().filter(|row| row.series == mean.series).filter_map(find).collect();
        (mean.series.as_str(), points)
    });
    // A line that is compared keeps the colour that it has beside the others.
    let series: Vec<(&str, Vec<Found>)> = lines.collect();
    let title = format!("{}: {}, difference", column.stage, column.label);
    drawing(title, group.axis.clone().unwrap_or_default(), &series, Some(0.0), PAIRED)
}

/// A quantity over the layers, a line for each cell. `columns` are those of the quantity.
pub(super) fn layers(group: &Rows, columns: &[usize], all: &[Column]) -> Option<Figure> {
    let first = &all[*columns.first()?];
    let factor = first.unit.factor();
    let point = |row: &Row, at: usize| {
        let value = row.entries.get(at)?.as_ref()?.value;
        let margin = value.margin().unwrap_or(0.0);
        let layer = all[at].layer.as_ref()?.layer;
        Some(Found { x: layer as f64, mean: value.mean * factor, margin: margin * factor })
    };
    let points = |row: &Row| columns.iter().filter_map(|at| point(row, *at)).collect::<Vec<_>>();
    let series: Vec<(&str, Vec<Found>)> = group
        .rows
        .iter()
        .map(|row| (row.name.as_str(), points(row)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let title = format!("{}: {}", first.stage, first.layer.as_ref()?.quantity);
    drawing(title, "layer".into(), &series, None, MEAN)
}

/// The drawing of series of points; `None` where they have fewer than two places.
fn drawing(
    title: String,
    x_label: String,
    series: &[(&str, Vec<Found>)],
    reference: Option<f64>,
    bars: &'static str,
) -> Option<Figure> {
    let all = || series.iter().flat_map(|(_, points)| points);
    let mut xs: Vec<f64> = all().map(|point| point.x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let (first, last) = (*xs.first()?, *xs.last()?);
    if xs.len() < 2 {
        return None;
    }
    let logarithmic = first > 0.0 && last / first > LOGARITHMIC_FROM;
    let place =
        |x: f64| if logarithmic { (x / first).ln() / (last / first).ln() } else { (x - first) / (last - first) };
    // The outermost points keep clear of the frame.
    let x_of = |x: f64| LEFT + 12.0 + (RIGHT - LEFT - 24.0) * place(x);
    let ends = all().flat_map(|point| [point.mean - point.margin, point.mean + point.margin]).chain(reference);
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), value| (l.min(value), h.max(value)));
    let step = nice_step(((high - low) / 5.0).max(1e-9));
    let (from, to) = ((low / step).floor() as i64, ((high / step).ceil() as i64).max((low / step).floor() as i64 + 1));
    let y_of = |y: f64| BOTTOM - (BOTTOM - TOP) * (y / step - from as f64) / (to - from) as f64;
    let number = |value: f64| format!("{value:.1}");
    let lines = series.iter().enumerate().map(|(index, (name, points))| {
        // Side by side, for their bars not to hide each other.
        let aside = APART * (index as f64 - (series.len() as f64 - 1.0) / 2.0);
        let corners = points.iter().enumerate().map(|(at, point)| {
            format!("{}{:.1} {:.1}", if at == 0 { 'M' } else { 'L' }, x_of(point.x) + aside, y_of(point.mean))
        });
        let drawn = points.iter().map(|point| Point {
            x: number(x_of(point.x) + aside),
            y: number(y_of(point.mean)),
            low: number(y_of(point.mean - point.margin)),
            high: number(y_of(point.mean + point.margin)),
            told: format!("{name} {}: {:.2} ± {:.2}", tick_label(point.x), point.mean, point.margin).trim().into(),
        });
        Line { name: (*name).to_string(), colour: index % COLOURS, path: corners.collect(), points: drawn.collect() }
    });
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    let told = lines.iter().flat_map(|line| &line.points).map(|point| point.told.as_str());
    Some(Figure {
        title,
        description: told.collect::<Vec<_>>().join("; "),
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        right: RIGHT,
        top: TOP,
        bottom: BOTTOM,
        x_label: format!("{x_label}{}", if logarithmic { ", logarithmic" } else { "" }),
        x_ticks: xs.iter().map(|x| Tick { at: number(x_of(*x)), label: short(*x) }).collect(),
        y_ticks: (from..=to)
            .map(|at| Tick { at: number(y_of(at as f64 * step)), label: tick_label(at as f64 * step) })
            .collect(),
        bars,
        reference: reference.map(|value| number(y_of(value))),
        lines,
    })
}

/// `20k` for 20000.
fn short(value: f64) -> String {
    if value >= 1000.0 && value % 100.0 == 0.0 { format!("{}k", tick_label(value / 1000.0)) } else { tick_label(value) }
}
