//! The findings as Markdown and CSV, and how numbers are written.

use super::column::{Column, LayerOf, Unit};
use super::summary::{Entry, Rows, Summary};
use crate::pages::numbers::{fixed, signed};
use basic_eval::statistics::{Difference, Spread};

impl Unit {
    /// What a number is multiplied by to be in this unit.
    pub(super) fn factor(self) -> f64 {
        if self == Self::Percent { 100.0 } else { 1.0 }
    }

    /// A number in this unit, without its sign's plus.
    pub(super) fn write(self, value: f64) -> String {
        fixed(value * self.factor(), self.decimals(value))
    }

    fn decimals(self, value: f64) -> usize {
        match (self, value.abs()) {
            (Self::Percent, _) => 1,
            (Self::Loss, _) => 3,
            (Self::Plain, size) if size >= 100.0 => 0,
            (Self::Plain, size) if size >= 10.0 => 1,
            (Self::Plain, size) if size >= 1.0 => 2,
            (Self::Plain, _) => 4,
        }
    }

    /// `47.3 ± 2.7`
    pub(super) fn spread(self, spread: &Spread) -> String {
        let decimals = self.decimals(spread.mean);
        let mean = self.write(spread.mean);
        match spread.deviation {
            Some(deviation) => format!("{mean} ± {}", fixed(deviation * self.factor(), decimals)),
            None => mean,
        }
    }

    /// `+4.2 [+1.0, +7.4]`
    pub(super) fn difference(self, difference: &Difference, of: f64) -> String {
        let write = |value: f64| signed(value * self.factor(), self.decimals(of));
        match difference.interval {
            Some([low, high]) => format!("{} [{}, {}]", write(difference.mean), write(low), write(high)),
            None => write(difference.mean),
        }
    }
}

/// What marks an interval that excludes 0.
pub(super) fn mark(entry: &Entry, column: &Column) -> &'static str {
    match entry.verdict(column.better) {
        Some(true) => "▲",
        Some(false) => "▼",
        None => "",
    }
}

/// How the tables are to be read.
pub(super) fn legend(summary: &Summary) -> String {
    let compared: usize = summary.groups.iter().flat_map(|group| &group.rows).filter(|row| !row.is_baseline()).count();
    let rows = if compared == 1 { "row" } else { "rows" };
    format!(
        "Mean ± sample standard deviation over the seeds. Below it the difference to the baseline, paired by seed, with \
         its 95% interval by Student's t. ▲ and ▼ mark intervals that exclude 0, for the better and for the worse. The \
         intervals are not corrected for the number of comparisons: of {compared} {rows} without any effect, one in 20 \
         would be marked in a given column."
    )
}

/// How far the study is.
pub(super) fn progress(summary: &Summary) -> String {
    let Summary { done, of, seeds, .. } = summary;
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let state =
        if done < of { format!("Partial: {done} of {of} stage runs are done.") } else { format!("{of} stage runs.") };
    format!("{state} Seeds {}.", seeds.join(", "))
}

/// A group's heading.
pub(super) fn heading(group: &Rows) -> String {
    let parts = group.setting.iter().chain([&group.name]).cloned();
    parts.collect::<Vec<_>>().join(": ")
}

/// Columns that stand in one table.
pub(super) struct Section {
    /// None for the first table.
    pub title: Option<String>,
    /// Whether its columns are layers.
    pub layers: bool,
    pub columns: Vec<usize>,
}

/// A group's tables: what it is about, details, and each quantity that layers have; of what was measured.
pub(super) fn sections(summary: &Summary, group: &Rows) -> Vec<Section> {
    let measured = |at: &usize| group.rows.iter().any(|row| row.entries[*at].is_some());
    let mut main = Section { title: None, layers: false, columns: Vec::new() };
    let mut details = Section { title: Some("details".into()), layers: false, columns: Vec::new() };
    let mut layers: Vec<Section> = Vec::new();
    for at in 0..summary.columns.len() {
        let column = &summary.columns[at];
        match &column.layer {
            // A first table without numbers says that there are none yet.
            None if column.main => main.columns.push(at),
            _ if !measured(&at) => {}
            None => details.columns.push(at),
            Some(LayerOf { quantity, .. }) => {
                let title = format!("{}: {quantity}, layer by layer", column.stage);
                match layers.iter_mut().find(|section| section.title.as_ref() == Some(&title)) {
                    Some(section) => section.columns.push(at),
                    None => layers.push(Section { title: Some(title), layers: true, columns: vec![at] }),
                }
            }
        }
    }
    [main, details].into_iter().chain(layers).filter(|section| !section.columns.is_empty()).collect()
}

/// `table.md`
pub(super) fn markdown(summary: &Summary) -> String {
    let mut text = format!("# {}\n\n", summary.study);
    for paragraph in [&summary.description, &progress(summary), &legend(summary)] {
        if !paragraph.is_empty() {
            text += &format!("{}\n\n", paragraph.trim());
        }
    }
    // The first tables of all groups stand together.
    let all: Vec<(&Rows, Vec<Section>)> =
        summary.groups.iter().map(|group| (group, sections(summary, group))).collect();
    for first in [true, false] {
        for (group, sections) in &all {
            for Section { title, columns, .. } in sections.iter().filter(|section| section.title.is_none() == first) {
                let title = title.as_ref().map(|title| format!(", {title}")).unwrap_or_default();
                text += &format!("## {}{}\n\n", cell(&heading(group)), cell(&title));
                text += &group_markdown(summary, group, columns);
                text.push('\n');
            }
        }
    }
    text
}

fn group_markdown(summary: &Summary, group: &Rows, columns: &[usize]) -> String {
    let label = |at: &usize| {
        let column = &summary.columns[*at];
        match column.layer {
            Some(_) => cell(&column.label),
            None => cell(&format!("{}: {}", column.stage, column.label)),
        }
    };
    let labels: Vec<String> = columns.iter().map(label).collect();
    let mut text = format!("| | seeds | {} |\n|---|---|{}\n", labels.join(" | "), "---|".repeat(columns.len()));
    for row in group.all() {
        let name = if row.is_baseline() { format!("{} (baseline)", row.name) } else { row.name.clone() };
        let seeds = columns.iter().filter_map(|at| row.entries[*at]).map(|entry| entry.value.seeds).max();
        let written = columns.iter().map(|at| match &row.entries[*at] {
            Some(entry) => entry_text(entry, &summary.columns[*at]),
            None => "–".into(),
        });
        let written: Vec<String> = written.collect();
        text += &format!("| {} | {} | {} |\n", cell(&name), seeds.unwrap_or(0), written.join(" | "));
    }
    text
}

fn entry_text(entry: &Entry, column: &Column) -> String {
    let value = column.unit.spread(&entry.value);
    match &entry.difference {
        Some(difference) => {
            let change = column.unit.difference(difference, entry.value.mean);
            format!("{value}<br>{change} {}", mark(entry, column)).trim_end().to_string()
        }
        None => value,
    }
}

/// A bar would end a cell, a line break the row.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// `table.csv`: one line a cell and quantity, numbers as they are (shares from 0 to 1).
pub(super) fn csv(summary: &Summary) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "setting",
        "factor",
        "cell",
        "stage",
        "metric",
        "seeds",
        "mean",
        "deviation",
        "baseline",
        "difference",
        "low",
        "high",
    ])?;
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for group in &summary.groups {
        for row in group.all() {
            for (entry, column) in row.entries.iter().zip(&summary.columns) {
                let Some(Entry { value, difference }) = entry else { continue };
                let interval = difference.and_then(|difference| difference.interval);
                writer.write_record([
                    group.setting.clone().unwrap_or_default(),
                    group.name.clone(),
                    row.name.clone(),
                    column.stage.clone(),
                    column.metric.clone(),
                    value.seeds.to_string(),
                    value.mean.to_string(),
                    number(value.deviation),
                    row.baseline.clone(),
                    number(difference.map(|difference| difference.mean)),
                    number(interval.map(|[low, _]| low)),
                    number(interval.map(|[_, high]| high)),
                ])?;
            }
        }
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}
