//! The tables of evaluation scores, with intervals, for all runs side by side.

use basic_eval::benchmarks::{Metric, metrics};
use basic_eval::compare::Set;
use serde::Serialize;

use super::runs::Run;
use crate::pages::numbers;

/// The scores of all runs that have answered one benchmark or file of questions.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub name: String,
    /// The indices of the runs that are its columns.
    pub runs: Vec<usize>,
    /// The number of questions and, if it is recorded, the template or style of the prompts.
    pub caption: String,
    pub rows: Vec<ScoreRow>,
}

/// A measure over all questions, or over those of one type.
#[derive(Debug, Serialize)]
pub(super) struct ScoreRow {
    pub label: String,
    /// "part" for a measure over one type, "whole" for a measure whose parts follow, "" for one without parts.
    pub kind: &'static str,
    pub cells: Vec<Option<Cell>>,
}

/// A score in percent.
#[derive(Debug, Serialize)]
pub(super) struct Cell {
    pub value: String,
    pub interval: String,
    pub questions: String,
    /// The value and the ends of the interval in SVG units, 0 to 100.
    pub at: f64,
    pub low: f64,
    pub high: f64,
}

/// The names of all sets that runs have, without duplicates, in order of appearance.
pub(super) fn names(runs: &[Run]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for set in runs.iter().flat_map(|run| &run.sets) {
        if !names.contains(&set.name.as_str()) {
            names.push(&set.name);
        }
    }
    names
}

/// The runs that have a set called `name`, by index, and that set.
pub(super) fn having<'a>(runs: &'a [Run], name: &str) -> Vec<(usize, &'a Set)> {
    let set = |(place, run): (usize, &'a Run)| Some((place, run.sets.iter().find(|set| set.name == name)?));
    runs.iter().enumerate().filter_map(set).collect()
}

/// A table for every set that comes from an evaluation, also if its true answers are hidden.
pub(super) fn tables(runs: &[Run]) -> Vec<Table> {
    let table = |name: &str| {
        let columns = having(runs, name);
        let scored: Vec<Vec<Metric>> = columns.iter().map(|(_, set)| scores(set)).collect();
        let mut labels: Vec<&str> = Vec::new();
        for metric in scored.iter().flatten() {
            if !labels.contains(&metric.name.as_str()) {
                labels.push(&metric.name);
            }
        }
        // "accuracy, number" becomes a row "number" below the row "accuracy".
        let part = |label: &str| {
            label.split_once(", ").filter(|(whole, _)| labels.contains(whole)).map(|(_, part)| part.to_string())
        };
        let rows = labels.iter().map(|label| ScoreRow {
            label: part(label).unwrap_or_else(|| (*label).to_string()),
            kind: match part(label) {
                Some(_) => "part",
                None if labels
                    .iter()
                    .any(|other| other.strip_prefix(label).is_some_and(|rest| rest.starts_with(", "))) =>
                {
                    "whole"
                }
                None => "",
            },
            cells: scored.iter().map(|metrics| metrics.iter().find(|metric| metric.name == *label).map(cell)).collect(),
        });
        Table {
            name: name.to_string(),
            rows: rows.collect(),
            caption: caption(runs, &columns),
            runs: columns.into_iter().map(|(place, _)| place).collect(),
        }
    };
    let evaluated =
        |name: &&str| having(runs, name).iter().any(|(_, set)| set.record.is_some() || set.measure.is_some());
    names(runs).into_iter().filter(evaluated).map(table).collect()
}

/// A text such as `356 questions, prompts by template`; if the runs differ, one for each run.
fn caption(runs: &[Run], columns: &[(usize, &Set)]) -> String {
    let of = |(_, set): &(usize, &Set)| {
        let prompts = set.record.as_ref().map(|record| format!(", prompts by {}", record.conversation));
        format!("{} questions{}", numbers::thousands(set.judged.len()), prompts.unwrap_or_default())
    };
    let all: Vec<String> = columns.iter().map(of).collect();
    match all.iter().all(|text| *text == all[0]) {
        true => all.into_iter().next().unwrap_or_default(),
        false => {
            let named = columns.iter().zip(all).map(|((place, _), text)| format!("{}: {text}", runs[*place].name));
            named.collect::<Vec<_>>().join("; ")
        }
    }
}

/// The scores in the record, or if there is no record scores computed from the answers.
fn scores(set: &Set) -> Vec<Metric> {
    match (&set.record, &set.measure) {
        (Some(record), _) => record.metrics.clone(),
        (None, Some(measure)) => metrics(measure, &set.judged),
        (None, None) => Vec::new(),
    }
}

fn cell(metric: &Metric) -> Cell {
    // A score in points is shown in points; the bars are drawn as shares of all points.
    let percent = |share: f64| numbers::fixed(metric.points.unwrap_or(100.0) * share, 1);
    let place = |share: f64| (1000.0 * share).round() / 10.0;
    Cell {
        value: percent(metric.value),
        interval: format!("{} to {}", percent(metric.low), percent(metric.high)),
        questions: numbers::thousands(metric.questions),
        at: place(metric.value),
        low: place(metric.low),
        high: place(metric.high),
    }
}
