//! `table.html`: the findings as one page that needs neither a network nor other files.

use serde::Serialize;

use super::column::Column;
use super::figure::{Figure, differences, figure, layers};
use super::summary::{Rows, Summary};
use super::table::{Section, heading, legend, mark, progress, sections};
use crate::pages::{self, PageError};

/// What stands in a study, on its own page and in a report: the template's name, its text, and its style.
pub(crate) const STUDY: (&str, &str, &str) = ("study.html", include_str!("study.html"), include_str!("study.css"));

#[derive(Serialize)]
struct Page {
    title: String,
    style: [&'static str; 2],
    study: StudyView,
    version: String,
}

/// A study as its template shows it.
#[derive(Serialize)]
pub(crate) struct StudyView {
    name: String,
    description: String,
    progress: String,
    legend: String,
    groups: Vec<GroupView>,
}

impl StudyView {
    /// `prefix` makes its ids different from those of other studies in a page.
    pub fn of(summary: &Summary, prefix: &str) -> Self {
        let groups = summary.groups.iter().enumerate();
        Self {
            name: summary.study.clone(),
            description: summary.description.trim().into(),
            progress: progress(summary),
            legend: legend(summary),
            groups: groups.map(|(index, group)| view(summary, format!("{prefix}group-{}", index + 1), group)).collect(),
        }
    }
}

#[derive(Serialize)]
struct GroupView {
    id: String,
    heading: String,
    tables: Vec<TableView>,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct TableView {
    /// Tables with a title are folded away.
    title: Option<String>,
    /// Stages and how many columns each has.
    stages: Vec<(String, usize)>,
    labels: Vec<String>,
    rows: Vec<RowView>,
}

#[derive(Serialize)]
struct RowView {
    name: String,
    baseline: bool,
    seeds: usize,
    entries: Vec<EntryView>,
}

#[derive(Serialize, Default)]
struct EntryView {
    value: String,
    change: String,
    mark: &'static str,
    /// `better`, `worse` or nothing.
    class: &'static str,
}

/// The page as HTML.
pub(super) fn render(summary: &Summary) -> Result<String, PageError> {
    let page = Page {
        title: summary.study.clone(),
        style: [pages::STYLE, STUDY.2],
        study: StudyView::of(summary, ""),
        version: match &summary.revision {
            Some(revision) => format!("basic {}, revision {revision}", summary.version),
            None => format!("basic {}", summary.version),
        },
    };
    pages::render(&[("page.html", include_str!("page.html")), (STUDY.0, STUDY.1)], page)
}

fn view(summary: &Summary, id: String, group: &Rows) -> GroupView {
    let sections = sections(summary, group);
    let drawn = sections.iter().flat_map(|section| -> Vec<Figure> {
        match (section.title.is_none(), section.layers) {
            (true, _) => section.columns.iter().flat_map(|at| main(group, *at, &summary.columns[*at])).collect(),
            (false, true) => layers(group, &section.columns, &summary.columns).into_iter().collect(),
            (false, false) => Vec::new(),
        }
    });
    GroupView {
        id,
        heading: heading(group),
        figures: drawn.collect(),
        tables: sections.iter().map(|section| table(summary, group, section)).collect(),
    }
}

/// A main column's figures: its values, and where lines are compared their differences.
fn main(group: &Rows, at: usize, column: &Column) -> impl Iterator<Item = Figure> + use<> {
    figure(group, at, column).into_iter().chain(differences(group, at, column))
}

fn table(summary: &Summary, group: &Rows, section: &Section) -> TableView {
    let columns = &section.columns;
    let mut stages: Vec<(String, usize)> = Vec::new();
    for at in columns {
        let stage = &summary.columns[*at].stage;
        match stages.last_mut().filter(|(name, _)| name == stage) {
            Some((_, count)) => *count += 1,
            None => stages.push((stage.clone(), 1)),
        }
    }
    let rows = group.all().map(|row| RowView {
        name: row.name.clone(),
        baseline: row.is_baseline(),
        seeds: row.entries.iter().flatten().map(|entry| entry.value.seeds).max().unwrap_or(0),
        entries: columns
            .iter()
            .map(|at| {
                let column = &summary.columns[*at];
                let Some(entry) = &row.entries[*at] else {
                    return EntryView { value: "–".into(), ..EntryView::default() };
                };
                let change = entry.difference.as_ref().map(|d| column.unit.difference(d, entry.value.mean));
                let class = match entry.verdict(column.better) {
                    Some(true) => "better",
                    Some(false) => "worse",
                    None => "",
                };
                let value = column.unit.spread(&entry.value);
                EntryView { value, change: change.unwrap_or_default(), mark: mark(entry, column), class }
            })
            .collect(),
    });
    TableView {
        title: section.title.clone(),
        labels: columns.iter().map(|at| summary.columns[*at].label.clone()).collect(),
        rows: rows.collect(),
        stages,
    }
}
