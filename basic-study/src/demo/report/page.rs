//! The HTML page: what the templates `page.html`, `conclusion.html` and `setting.html` show.

use std::path::Path;

use serde::Serialize;

use super::chart::{Figure, figures};
use super::measures::{Checkpoint, MeasureRow, accuracy_rows, finetuned, other_rows, overall_rows, write};
use super::paired_arms::{BASIC, Comparison, LLAVA, runs, seeds};
use super::pairs::Pairs;
use super::samples::{Samples, samples};
use super::sentences::{self, Verdict};
use super::strip::{Scale, Strip};
use crate::demo::DemoError;
use crate::demo::summary::{Run, Setting, Stage, Summary};
use crate::pages::{self, Template, numbers};
use crate::studies::Unit;
use basic_eval::statistics::Spread;

const TEMPLATES: [Template; 5] = [
    ("page.html", include_str!("page.html")),
    ("conclusion.html", include_str!("conclusion.html")),
    ("setting.html", include_str!("setting.html")),
    ("strip.html", include_str!("strip.html")),
    ("panel.html", include_str!("panel.html")),
];

#[derive(Serialize)]
struct Page {
    title: &'static str,
    style: [&'static str; 2],
    /// The sentences, and their picture.
    conclusion: Option<ConclusionView>,
    /// Whether there is more than the conclusion to give an overview of.
    overview: bool,
    headline: String,
    compared: [String; 2],
    how_to_read: String,
    several_seeds: bool,
    /// The outermost label of the differences' scale.
    reach: String,
    settings: Vec<SettingView>,
    origin: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct ConclusionView {
    shown: String,
    not_shown: String,
    picture: Pairs,
}

#[derive(Serialize)]
struct SettingView {
    /// Names the section in links.
    id: String,
    name: String,
    description: String,
    facts: Vec<(&'static str, String)>,
    verdicts: Vec<String>,
    outcomes: Vec<Outcome>,
    best_steps: Option<String>,
    finetuned: bool,
    /// The arms above the answers.
    columns: Vec<&'static str>,
    accuracy: Vec<RowView>,
    overall: Vec<RowView>,
    others: Vec<RowView>,
    figures: Vec<Figure>,
    samples: Option<Samples>,
}

/// A row of the overview.
#[derive(Serialize)]
struct Outcome {
    checkpoint: &'static str,
    cells: Cells,
    strip: Strip,
    verdict: &'static str,
}

#[derive(Serialize)]
struct RowView {
    label: String,
    note: &'static str,
    chance: String,
    pretrain: Cells,
    finetune: Option<Cells>,
}

/// Both arms' numbers and their difference.
#[derive(Serialize)]
struct Cells {
    llava: String,
    basic: String,
    change: String,
    /// The arm that the difference favours, which is the class that colours it; may be empty.
    favours: &'static str,
}

/// The page as HTML.
pub(super) fn render(summary: &Summary, images_root: &Path) -> Result<String, DemoError> {
    let page = page(summary, images_root)?;
    Ok(pages::render(&TEMPLATES, page)?)
}

fn page(summary: &Summary, images_root: &Path) -> Result<Page, DemoError> {
    let differences = summary.settings.iter().flat_map(|setting| {
        Checkpoint::of(setting)
            .into_iter()
            .flat_map(|checkpoint| checkpoint.accuracy(setting).by_seed)
            .map(|(_, points)| points)
    });
    let scale = Scale::of(differences);
    let settings = summary
        .settings
        .iter()
        .enumerate()
        .map(|(index, setting)| setting_view(summary, setting, index, &scale, images_root))
        .collect::<Result<_, _>>()?;
    Ok(Page {
        title: "BASIC beside LLaVA",
        style: [pages::STYLE, include_str!("demo.css")],
        conclusion: summary.conclusion.as_ref().map(|conclusion| ConclusionView {
            shown: conclusion.shown.clone(),
            not_shown: conclusion.not_shown.clone(),
            picture: Pairs::of(conclusion),
        }),
        overview: sentences::overview(summary),
        headline: sentences::headline(summary),
        compared: sentences::what_was_compared(summary),
        how_to_read: sentences::how_to_read(summary),
        several_seeds: sentences::any_spread(summary),
        reach: scale.label(),
        settings,
        origin: vec![
            ("Version", format!("basic {}", summary.version)),
            ("Revision", summary.revision.clone().unwrap_or_else(|| "unknown".to_owned())),
            ("Device", sentences::device(summary)),
            ("Time taken", numbers::duration(summary.seconds)),
        ],
    })
}

fn setting_view(
    summary: &Summary,
    setting: &Setting,
    index: usize,
    scale: &Scale,
    images_root: &Path,
) -> Result<SettingView, DemoError> {
    let rows = |rows: &[MeasureRow]| rows.iter().map(row_view).collect();
    Ok(SettingView {
        id: format!("setting-{}", index + 1),
        name: setting.name.clone(),
        description: setting.description.clone(),
        facts: facts(setting),
        verdicts: Checkpoint::of(setting).into_iter().map(|at| sentences::sentence(at, setting)).collect(),
        outcomes: Checkpoint::of(setting).into_iter().map(|at| outcome(setting, at, scale)).collect(),
        best_steps: sentences::best_steps(setting),
        finetuned: finetuned(setting),
        columns: ["LLaVA", "BASIC"].repeat(if finetuned(setting) { 2 } else { 1 }),
        accuracy: rows(&accuracy_rows(summary, setting)),
        overall: rows(&overall_rows(summary, setting)),
        others: rows(&other_rows(setting)),
        figures: figures(setting),
        samples: samples(setting, images_root)?,
    })
}

fn facts(setting: &Setting) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Captioned images (pretrain)", numbers::thousands(setting.captions)),
        ("Steps (pretrain)", steps(setting, |run| Some(&run.pretrain))),
        ("Eval questions", numbers::thousands(setting.eval_questions)),
        ("λ of das, of sds", format!("{}, {}", numbers::knob(setting.lambda_das), numbers::knob(setting.lambda_sds))),
        (if seeds(setting).len() == 1 { "Seed" } else { "Seeds" }, sentences::seed_list(setting)),
    ];
    if let Some(conversations) = setting.conversations {
        facts.insert(1, ("Conversations (finetune)", numbers::thousands(conversations)));
        facts.insert(3, ("Steps (finetune)", steps(setting, |run| run.finetune.as_ref())));
    }
    facts
}

/// The steps of a stage: one number where all runs took as many, the range where they did not.
fn steps(setting: &Setting, stage: fn(&Run) -> Option<&Stage>) -> String {
    let all =
        || [LLAVA, BASIC].into_iter().flat_map(|arm| runs(setting, arm)).filter_map(|run| Some(stage(run)?.steps));
    match (all().min(), all().max()) {
        (Some(fewest), Some(most)) if fewest == most => numbers::thousands(most),
        (Some(fewest), Some(most)) => format!("{} to {}", numbers::thousands(fewest), numbers::thousands(most)),
        _ => numbers::MISSING.to_owned(),
    }
}

fn outcome(setting: &Setting, checkpoint: Checkpoint, scale: &Scale) -> Outcome {
    let comparison = checkpoint.accuracy(setting);
    let verdict = Verdict::of(comparison.difference.as_ref());
    let favours = match (verdict, comparison.difference.and_then(|spread| spread.deviation)) {
        (Verdict::Higher, Some(_)) => BASIC,
        (Verdict::Lower, Some(_)) => LLAVA,
        _ => "",
    };
    Outcome {
        checkpoint: checkpoint.phrase(),
        strip: scale.strip(&comparison.by_seed),
        verdict: verdict.word(),
        cells: Cells {
            llava: written(comparison.llava.as_ref(), Unit::Percent),
            basic: written(comparison.basic.as_ref(), Unit::Percent),
            change: comparison.difference.as_ref().map_or_else(missing, |spread| numbers::signed_spread(spread, 1)),
            favours,
        },
    }
}

fn row_view(row: &MeasureRow) -> RowView {
    let cells = |comparison: &Comparison| Cells {
        llava: written(comparison.llava.as_ref(), row.unit),
        basic: written(comparison.basic.as_ref(), row.unit),
        change: row.change(comparison).unwrap_or_default(),
        favours: row.favours(comparison).unwrap_or_default(),
    };
    RowView {
        label: row.label.clone(),
        note: row.note,
        chance: row.chance.map_or_else(missing, |chance| numbers::fixed(chance, 1)),
        pretrain: cells(&row.pretrain),
        finetune: row.finetune.as_ref().map(cells),
    }
}

fn written(spread: Option<&Spread>, unit: Unit) -> String {
    spread.map_or_else(missing, |spread| write(unit, spread))
}

fn missing() -> String {
    numbers::MISSING.to_owned()
}
