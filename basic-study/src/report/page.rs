//! Fills the templates of the report.

use serde::Serialize;
use serde_json::Value;

use super::evaluations::{Table, tables};
use super::figures::{Figure, figures};
use super::recipe::{RecipeRow, rows};
use super::runs::Run;
use super::samples::{Samples, samples};
use super::{Options, ReportError};
use crate::pages::{self, Template, numbers};
use crate::studies::Summary;
use crate::studies::page::{STUDY, StudyView};

const TEMPLATES: [Template; 6] = [
    ("page.html", include_str!("page.html")),
    ("key.html", include_str!("key.html")),
    ("figure.html", include_str!("figure.html")),
    ("evaluations.html", include_str!("evaluations.html")),
    ("samples.html", include_str!("samples.html")),
    (STUDY.0, STUDY.1),
];
/// The number of colours for runs. Further runs repeat the colours with dashed lines.
const COLOURS: usize = 8;

#[derive(Serialize)]
struct Page<'a> {
    style: [&'static str; 3],
    script: &'static str,
    title: String,
    runs: Vec<RunView>,
    notes: Vec<String>,
    /// The indices of the training runs.
    training: Vec<usize>,
    differences: Vec<RecipeRow>,
    recipe: Vec<RecipeRow>,
    figures: &'a [Figure],
    /// The points of every panel, for reading off values.
    points: Vec<Points<'a>>,
    tables: Vec<Table>,
    samples: Vec<Samples>,
    studies: Vec<StudyView>,
    version: &'static str,
}

#[derive(Serialize)]
struct Points<'a> {
    id: &'a str,
    series: Vec<(usize, &'a [f64], &'a [f64])>,
}

#[derive(Serialize)]
struct RunView {
    place: usize,
    name: String,
    /// The CSS classes for its colour.
    class: String,
    curves: bool,
    status: String,
    stage: String,
    steps: String,
    samples: String,
    time: String,
    version: String,
    skipped: String,
}

pub(super) fn render(runs: &[Run], studies: &[Summary], options: &Options) -> Result<String, ReportError> {
    let training: Vec<usize> = (0..runs.len()).filter(|i| runs[*i].recipe().is_some()).collect();
    let recipes: Vec<&Value> = runs.iter().filter_map(Run::recipe).collect();
    let recipe = rows(&recipes);
    let differences = rows(&recipes).into_iter().filter(RecipeRow::differs).collect();
    let figures = figures(runs);
    let panels = figures.iter().flat_map(|figure| &figure.panels);
    let points = panels.map(|panel| Points {
        id: &panel.id,
        series: panel.series.iter().map(|series| (series.run, &series.steps[..], &series.values[..])).collect(),
    });
    let unfinished = runs.iter().flat_map(|run| {
        let told = |path: &std::path::PathBuf| {
            format!("{}: the evaluation in {} is not finished, so it is not shown.", run.name, path.display())
        };
        run.unfinished.iter().map(told)
    });
    let page = Page {
        style: [pages::STYLE, include_str!("report.css"), STUDY.2],
        script: include_str!("report.js"),
        title: title(runs, studies),
        runs: runs.iter().enumerate().map(|(place, run)| view(place, run)).collect(),
        notes: unfinished.collect(),
        training,
        differences,
        recipe,
        points: points.collect(),
        tables: tables(runs),
        samples: if options.samples == 0 { Vec::new() } else { samples(runs, options) },
        studies: studies
            .iter()
            .enumerate()
            .map(|(index, study)| StudyView::of(study, &format!("study-{}-", index + 1)))
            .collect(),
        version: env!("CARGO_PKG_VERSION"),
        figures: &figures,
    };
    Ok(pages::render(&TEMPLATES, page)?)
}

fn title(runs: &[Run], studies: &[Summary]) -> String {
    match (runs, studies) {
        ([], [study]) => study.study.clone(),
        ([], studies) => format!("{} studies", studies.len()),
        ([run], _) => run.name.clone(),
        (runs, _) => format!("{} runs side by side", runs.len()),
    }
}

fn view(place: usize, run: &Run) -> RunView {
    let of = |key: &str| run.info.as_ref().and_then(|info| info.get(key)).cloned().unwrap_or_default();
    let text = |value: Value| value.as_str().map_or_else(|| numbers::MISSING.to_string(), String::from);
    let done = run.steps.last().map_or(0, |step| step.step);
    let steps = match of("steps").as_u64() {
        Some(all) if all as usize != done => {
            format!("{} of {}", numbers::thousands(done), numbers::thousands(all as usize))
        }
        _ if done == 0 => numbers::MISSING.to_string(),
        _ => numbers::thousands(done),
    };
    // The time in run.json is only that since the last start of the run; the sum over the steps is complete.
    let seconds: f64 = run.steps.iter().filter_map(|step| step.value("seconds")).sum();
    let skipped = run.steps.last().and_then(|step| step.value("skipped_steps")).unwrap_or(0.0);
    let revision =
        of("revision").as_str().map(|revision| format!(", {}", revision.chars().take(12).collect::<String>()));
    RunView {
        place,
        name: run.name.clone(),
        class: format!("run-{}{}", place % COLOURS, if place >= COLOURS { " dashed" } else { "" }),
        curves: !run.steps.is_empty() || !run.held_out.is_empty(),
        status: text(of("status")),
        stage: text(run.recipe().and_then(|recipe| recipe.get("stage")).cloned().unwrap_or_default()),
        steps,
        samples: of("samples").as_u64().map_or_else(|| numbers::MISSING.into(), |n| numbers::thousands(n as usize)),
        time: if run.steps.is_empty() { numbers::MISSING.into() } else { numbers::duration(seconds) },
        version: text(of("version")) + &revision.unwrap_or_default(),
        skipped: if run.steps.is_empty() { numbers::MISSING.into() } else { numbers::thousands(skipped as usize) },
    }
}
