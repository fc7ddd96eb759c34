//! What a study has found so far: `results.json`, and what the tables are made from.

use std::collections::{BTreeMap, BTreeSet};

use basic_core::LM;
use basic_core::methods::TERMS;
use serde::{Deserialize, Serialize};

use super::column::{Better, Column, Unit};
use super::expand::{Cell, Expanded};
use super::held_out;
use super::lens::{ANSWERED, QUANTITIES, REPLACED, TARGET_ANISOTROPY, TARGET_WORD_RANK};
use super::result::Values;
use super::schedule::Results;
use super::study::Measure;
use basic_eval::statistics::{Difference, Spread};

/// A study's findings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// The study's name.
    pub study: String,
    /// What it asks.
    pub description: String,
    /// basic's version.
    pub version: String,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Its seeds.
    pub seeds: Vec<u64>,
    /// Different stage runs that have results,
    pub done: usize,
    /// of so many.
    pub of: usize,
    /// What is measured, in the order of the tables.
    pub columns: Vec<Column>,
    /// The cells.
    pub groups: Vec<Rows>,
}

/// A factor or a grid in one setting.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rows {
    /// The setting.
    pub setting: Option<String>,
    /// The factor.
    pub name: String,
    /// What the rows' numbers are.
    pub axis: Option<String>,
    /// The cells; those of another factor that are compared with come first.
    pub rows: Vec<SummaryRow>,
    /// In a grid along numbers whose lines are compared with one of them: each line's mean over its numbers, seed by seed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub means: Vec<SummaryRow>,
}

impl Rows {
    /// The rows of a table: cells, then means.
    pub fn all(&self) -> impl Iterator<Item = &SummaryRow> {
        self.rows.iter().chain(&self.means)
    }
}

/// A cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SummaryRow {
    /// `setting/factor/name`
    pub cell: String,
    /// The name alone.
    pub name: String,
    /// The number that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// In a grid, the levels of its other axes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub series: String,
    /// The cell that it is compared with.
    pub baseline: String,
    /// Each seed's numbers, which are not read again: a number that is not finite is null.
    #[serde(skip_deserializing)]
    pub runs: Vec<Run>,
    /// Their statistics, one a column of the study; `None` where nothing was measured.
    pub entries: Vec<Option<Entry>>,
}

/// A cell with one seed.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// The stages' folders below `cells/`.
    pub hashes: BTreeMap<String, String>,
    /// The stages' numbers, as far as they are there.
    pub values: BTreeMap<String, Values>,
}

/// A quantity over the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Mean and deviation.
    pub value: Spread,
    /// Against the baseline, paired by seed; none for the baseline itself.
    pub difference: Option<Difference>,
}

impl SummaryRow {
    /// Whether others are compared with it.
    pub fn is_baseline(&self) -> bool {
        self.cell == self.baseline
    }
}

impl Entry {
    /// Whether the difference's interval excludes 0, and whether that is for the better.
    pub fn verdict(&self, better: Better) -> Option<bool> {
        let above = self.difference?.excludes_zero()?;
        match better {
            Better::Higher => Some(above),
            Better::Lower => Some(!above),
            Better::Neither => None,
        }
    }
}

/// The findings of a study as far as its results are there.
pub(super) fn summarize(expanded: &Expanded, results: &Results, revision: Option<String>) -> Summary {
    let study = &expanded.study;
    let columns = columns(expanded, results);
    let hashes: BTreeSet<&str> = expanded
        .cells
        .iter()
        .flat_map(|cell| &cell.chains)
        .flat_map(|chain| chain.stages.iter().map(|stage| stage.hash.as_str()))
        .collect();
    let groups = expanded.groups.iter().map(|group| {
        let mut cells: Vec<usize> = group.cells.iter().map(|at| expanded.cells[*at].baseline).collect();
        cells.retain(|at| !group.cells.contains(at));
        cells.dedup();
        cells.extend(&group.cells);
        let rows: Vec<SummaryRow> =
            cells.into_iter().map(|at| row(expanded, &expanded.cells[at], results, &columns)).collect();
        Rows {
            setting: group.setting.clone(),
            name: group.name.clone(),
            means: group.axis.as_ref().map(|axis| means(axis, &rows, &columns)).unwrap_or_default(),
            axis: group.axis.clone(),
            rows,
        }
    });
    Summary {
        study: study.name.clone(),
        description: study.description.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        revision,
        seeds: study.seeds.clone(),
        done: hashes.iter().filter(|hash| results.contains_key(**hash)).count(),
        of: hashes.len(),
        groups: groups.collect(),
        columns,
    }
}

fn runs(expanded: &Expanded, cell: &Cell, results: &Results) -> Vec<Run> {
    let names = || expanded.study.stages.iter().map(|stage| stage.name.clone());
    let runs = cell.chains.iter().map(|chain| Run {
        seed: chain.seed,
        hashes: names().zip(chain.stages.iter().map(|stage| stage.hash.clone())).collect(),
        values: names()
            .zip(&chain.stages)
            .filter_map(|(name, stage)| Some((name, results.get(&stage.hash)?.values.clone())))
            .collect(),
    });
    runs.collect()
}

fn row(expanded: &Expanded, cell: &Cell, results: &Results, columns: &[Column]) -> SummaryRow {
    let baseline = &expanded.cells[cell.baseline];
    let own = runs(expanded, cell, results);
    let theirs = (baseline.id != cell.id).then(|| runs(expanded, baseline, results));
    SummaryRow {
        cell: cell.id.clone(),
        name: cell.name.clone(),
        x: cell.x,
        series: cell.series.clone(),
        baseline: baseline.id.clone(),
        entries: entries(columns, &own, theirs.as_deref()),
        runs: own,
    }
}

/// The statistics of runs beside the baseline's, which have the same seeds; none for the baseline itself.
fn entries(columns: &[Column], own: &[Run], theirs: Option<&[Run]>) -> Vec<Option<Entry>> {
    let entry = |column: &Column| {
        let value = |run: &Run| run.values.get(&column.stage)?.get(&column.metric).copied();
        let values: Vec<f64> = own.iter().filter_map(value).collect();
        let difference = theirs.and_then(|theirs| {
            let pairs = own.iter().zip(theirs).filter_map(|(own, their)| Some(value(own)? - value(their)?));
            Difference::of(&pairs.collect::<Vec<_>>())
        });
        Spread::of(&values).map(|value| Entry { value, difference })
    };
    columns.iter().map(entry).collect()
}

/// The mean of each line of a grid over its numbers. The differences of one number's cells scatter more than what they
/// have in common.
fn means(axis: &str, rows: &[SummaryRow], columns: &[Column]) -> Vec<SummaryRow> {
    let mut lines: Vec<(&str, Vec<&SummaryRow>)> = Vec::new();
    for row in rows.iter().filter(|row| row.x.is_some()) {
        match lines.iter_mut().find(|(name, _)| *name == row.series) {
            Some((_, line)) => line.push(row),
            None => lines.push((&row.series, vec![row])),
        }
    }
    // Each cell's baseline stands for the same number, and all of them are in one line.
    let compared = |row: &SummaryRow| {
        let baseline = rows.iter().find(|other| other.cell == row.baseline)?;
        (baseline.x == row.x).then_some(baseline.series.as_str())
    };
    let Some(base) = rows.first().and_then(compared) else { return Vec::new() };
    if lines.len() < 2 || rows.iter().any(|row| compared(row) != Some(base)) {
        return Vec::new();
    }
    let lines: Vec<(&str, Vec<Run>)> = lines.into_iter().map(|(name, line)| (name, averaged(&line))).collect();
    let theirs = lines.iter().find(|(name, _)| *name == base).map(|(_, runs)| runs.clone());
    let name = |series: &str| format!("mean over {axis}, {series}");
    let row = |(series, own): (&str, Vec<Run>)| SummaryRow {
        cell: name(series),
        name: name(series),
        x: None,
        series: series.into(),
        baseline: name(base),
        entries: entries(columns, &own, theirs.as_deref().filter(|_| series != base)),
        runs: own,
    };
    lines.into_iter().map(row).collect()
}

/// Seed by seed the mean of what all of these cells have.
fn averaged(line: &[&SummaryRow]) -> Vec<Run> {
    let first = line.first().map(|row| row.runs.as_slice()).unwrap_or_default();
    let runs = first.iter().enumerate().map(|(at, run)| {
        let mean = |stage: &String, metric: &String| {
            let values = line.iter().map(|row| row.runs.get(at)?.values.get(stage)?.get(metric).copied());
            let values: Option<Vec<f64>> = values.collect();
            Some((metric.clone(), values?.iter().sum::<f64>() / line.len() as f64))
        };
        let stages = run.values.iter().map(|(stage, values)| {
            (stage.clone(), values.keys().filter_map(|metric| mean(stage, metric)).collect::<Values>())
        });
        Run { seed: run.seed, hashes: BTreeMap::new(), values: stages.collect() }
    });
    runs.collect()
}

fn columns(expanded: &Expanded, results: &Results) -> Vec<Column> {
    let study = &expanded.study;
    let mut all = Vec::new();
    for (index, stage) in study.stages.iter().enumerate() {
        let measures = study.measures(stage);
        let mut add = |metric: &str, label: &str, unit: Unit, better: Better, main: bool| {
            let (metric, label) = (metric.to_string(), label.to_string());
            all.push(Column { stage: stage.name.clone(), metric, label, unit, better, main, layer: None });
        };
        use {Better::*, Unit::*};
        let stops = stage.early_stopping.is_some();
        let scored: Vec<String> = measures
            .iter()
            .flat_map(|measure| match measure {
                Measure::Accuracy => vec!["accuracy".to_string()],
                Measure::Benchmarks => study.evaluation.benchmarks.clone(),
                _ => Vec::new(),
            })
            .collect();
        for metric in &scored {
            add(metric, &format!("{metric}, %"), Percent, Higher, true);
            if stops {
                add(&format!("best.{metric}"), &format!("{metric} at best validation step, %"), Percent, Higher, true);
            }
        }
        if measures.contains(&Measure::CaptionLoss) {
            add("caption_loss", "caption loss", Loss, Lower, true);
        }
        if measures.contains(&Measure::Choices) {
            add(held_out::RANK, "rank of the true choice", Plain, Lower, true);
            add(held_out::ACCURACY, "most likely choice, %", Percent, Higher, true);
            add(held_out::RANK_NORMALIZED, "rank of the true choice, length-normalized", Plain, Lower, false);
            add(held_out::ACCURACY_NORMALIZED, "most likely choice, length-normalized, %", Percent, Higher, false);
            add(held_out::RECIPROCAL_RANK, "1 / rank of the true choice", Loss, Higher, false);
        }
        if measures.contains(&Measure::ReplacedChoices) {
            add(held_out::REPLACED_RANK, "rank of the true choice from nearest tokens", Plain, Lower, true);
            add(held_out::REPLACED_ACCURACY, "most likely choice from nearest tokens, %", Percent, Higher, false);
        }
        if measures.contains(&Measure::Grounding) {
            add("grounding", "grounded, %", Percent, Higher, true);
            add("grounding_chance", "grounded by chance, %", Percent, Neither, false);
        }
        if measures.contains(&Measure::Lens) && study.evaluation.lens.as_ref().is_some_and(|lens| lens.replace) {
            add(REPLACED, "accuracy from nearest tokens, %", Percent, Higher, true);
            add(ANSWERED, "accuracy on the same questions, %", Percent, Higher, false);
        }
        if stops {
            add("best.step", "best validation step", Plain, Neither, false);
        }
        if measures.contains(&Measure::VNorm) {
            add("v_norm", "length of v", Plain, Neither, false);
            add("token_norm", "length of token embeddings", Plain, Neither, false);
        }
        let hashes = expanded.cells.iter().flat_map(|cell| &cell.chains).map(|chain| &chain.stages[index].hash);
        let there: BTreeSet<&String> =
            hashes.filter_map(|hash| results.get(hash)).flat_map(|result| result.values.keys()).collect();
        let of_targets = [
            (TARGET_WORD_RANK, "rank of the caption's words by V^"),
            (TARGET_ANISOTROPY, "cosine of V^ between images"),
        ];
        for (metric, label) in of_targets.into_iter().filter(|(metric, _)| there.iter().any(|key| key == metric)) {
            add(metric, label, Loss, Neither, false);
        }
        if measures.contains(&Measure::Gradients) {
            // A method that no cell has leaves no number.
            let losses = [LM].into_iter().chain(TERMS.iter().map(|term| term.name));
            for loss in losses.filter(|loss| there.contains(&format!("gradient.{loss}"))) {
                add(&format!("gradient.{loss}"), &format!("gradient norm of {loss}"), Plain, Neither, false);
            }
        }
        let parts: Vec<&&String> =
            there.iter().filter(|key| scored.iter().any(|metric| key.starts_with(&format!("{metric}.")))).collect();
        for part in parts {
            // Neither more nor fewer answers of yes are better.
            let better = if part.contains(".yes ratio") { Neither } else { Higher };
            add(part, &format!("{}, %", part.replace('.', ": ")), Percent, better, false);
        }
        for quantity in &QUANTITIES {
            let mut layers: Vec<usize> = there.iter().filter_map(|key| quantity.layer(key)).collect();
            layers.sort_unstable();
            all.extend(layers.into_iter().map(|layer| quantity.column(&stage.name, layer)));
        }
    }
    all
}
