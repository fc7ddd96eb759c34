//! A quantity against a factor's numbers or the decoder's layers: lines with intervals, as positions that the template draws.

use serde::Serialize;

use super::column::Column;
use super::summary::{Rows, SummaryRow};
use crate::pages::plot::{Axes, Axis, Frame, Plot, position, tick_label};

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
    frame: Frame,
    axes: Axes,
    /// The height of the baseline that is no point itself.
    reference: Option<String>,
    /// What the bars at points are.
    bars: &'static str,
    lines: Vec<Line>,
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
    let find = |row: &&SummaryRow| {
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
    let find = |row: &SummaryRow| {
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
    let point = |row: &SummaryRow, at: usize| {
        let value = row.entries.get(at)?.as_ref()?.value;
        let margin = value.margin().unwrap_or(0.0);
        let layer = all[at].layer.as_ref()?.layer;
        Some(Found { x: layer as f64, mean: value.mean * factor, margin: margin * factor })
    };
    let points = |row: &SummaryRow| columns.iter().filter_map(|at| point(row, *at)).collect::<Vec<_>>();
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
    let x = Axis::through(all().map(|point| point.x))?;
    let ends = all().flat_map(|point| [point.mean - point.margin, point.mean + point.margin]).chain(reference);
    let x_label = format!("{x_label}{}", if x.logarithmic { ", logarithmic" } else { "" });
    let plot = Plot { frame: Frame::POINTS, x, y: Axis::tight(ends) };
    let lines = series.iter().enumerate().map(|(index, (name, points))| {
        // Side by side, for their bars not to hide each other.
        let aside = APART * (index as f64 - (series.len() as f64 - 1.0) / 2.0);
        let means: Vec<(f64, f64)> = points.iter().map(|point| (point.x, point.mean)).collect();
        let drawn = points.iter().map(|point| Point {
            x: position(plot.x(point.x) + aside),
            y: position(plot.y(point.mean)),
            low: position(plot.y(point.mean - point.margin)),
            high: position(plot.y(point.mean + point.margin)),
            told: format!("{name} {}: {:.2} ± {:.2}", tick_label(point.x), point.mean, point.margin).trim().into(),
        });
        Line {
            name: (*name).to_string(),
            colour: index % COLOURS,
            path: plot.path_aside(&means, aside),
            points: drawn.collect(),
        }
    });
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    let told = lines.iter().flat_map(|line| &line.points).map(|point| point.told.as_str());
    Some(Figure {
        title,
        description: told.collect::<Vec<_>>().join("; "),
        frame: plot.frame,
        axes: plot.axes(x_label),
        bars,
        reference: reference.map(|value| position(plot.y(value))),
        lines,
    })
}
