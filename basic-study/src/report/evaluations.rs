//! Scores of evaluations side by side, with their intervals.

use basic_eval::benchmarks::{Metric, metrics};
use basic_eval::compare::Set;
use serde::Serialize;

use super::runs::Run;
use crate::pages::numbers;

/// One benchmark or file of questions, as the runs that have it answered it.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub name: String,
    /// Places of the runs that are its columns.
    pub runs: Vec<usize>,
    /// How many questions were answered, and how prompts were written where that is recorded.
    pub caption: String,
    pub rows: Vec<ScoreRow>,
}

/// A measure: over all questions, or over those of a type.
#[derive(Debug, Serialize)]
pub(super) struct ScoreRow {
    pub label: String,
    /// "part" of the questions, "whole" of those whose parts follow, or "" where there are no parts.
    pub kind: &'static str,
    pub cells: Vec<Option<Cell>>,
}

/// A score in percent.
#[derive(Debug, Serialize)]
pub(super) struct Cell {
    pub value: String,
    pub interval: String,
    pub questions: String,
    /// The same in SVG units of 0 to 100.
    pub at: f64,
    pub low: f64,
    pub high: f64,
}

/// The names of the sets that runs have, each once, in order of appearance.
pub(super) fn names(runs: &[Run]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for set in runs.iter().flat_map(|run| &run.sets) {
        if !names.contains(&set.name.as_str()) {
            names.push(&set.name);
        }
    }
    names
}

/// The runs that have the set called `name`, with it.
pub(super) fn having<'a>(runs: &'a [Run], name: &str) -> Vec<(usize, &'a Set)> {
    let set = |(place, run): (usize, &'a Run)| Some((place, run.sets.iter().find(|set| set.name == name)?));
    runs.iter().enumerate().filter_map(set).collect()
}

/// A table for every set that has scores, or that hides them.
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
        // "accuracy, number" is told below "accuracy" as "number".
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

/// `356 questions, prompts by template`; where the runs differ, of each.
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

/// The record's scores, or those of a file that has none.
fn scores(set: &Set) -> Vec<Metric> {
    match (&set.record, &set.measure) {
        (Some(record), _) => record.metrics.clone(),
        (None, Some(measure)) => metrics(measure, &set.judged),
        (None, None) => Vec::new(),
    }
}

fn cell(metric: &Metric) -> Cell {
    let percent = |share: f64| numbers::fixed(100.0 * share, 1);
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
