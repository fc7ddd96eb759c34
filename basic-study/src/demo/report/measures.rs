//! The rows of both tables, the page's and the terminal's.

use std::collections::BTreeSet;

use super::paired_arms::{BASIC, Comparison, LLAVA};
use crate::demo::summary::{Run, Setting, Stage, Summary};
use crate::pages::numbers;
use crate::studies::Better;
use basic_eval::statistics::Spread;

/// A point of a run at which the eval split was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// The end of the pretrain stage.
    Pretrain,
    /// The pretrain stage at its best step on the validation split.
    BestValidation,
    /// The end of the finetune stage.
    Finetune,
}

impl Checkpoint {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 3] = [Self::Pretrain, Self::BestValidation, Self::Finetune];

    /// `after pretrain` and so on.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Pretrain => "after pretrain",
            Self::BestValidation => "at the best validation step",
            Self::Finetune => "after finetune",
        }
    }

    /// Overall accuracy there, in percent.
    pub fn accuracy(self, setting: &Setting) -> Comparison {
        percent(setting, |run| {
            Some(match self {
                Self::Pretrain => run.pretrain.accuracy,
                Self::BestValidation => run.best.accuracy,
                Self::Finetune => run.finetune.accuracy,
            })
        })
    }
}

/// How a row's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Percent with one decimal; the difference in points.
    Percent,
    /// Three decimals; the difference with as many.
    Loss,
    /// Three significant digits; no difference.
    Plain,
    /// Seconds; BASIC over LLaVA in place of the difference.
    Seconds,
}

/// One quantity after both stages, in both arms.
#[derive(Debug, Clone)]
pub(super) struct MeasureRow {
    /// The page's label.
    pub label: String,
    /// The terminal's label, of at most 17 characters for the fixed rows.
    pub short: String,
    /// What the label leaves open; may be empty.
    pub note: &'static str,
    /// Chance level in percent, where there is one.
    pub chance: Option<f64>,
    /// How the numbers are written.
    pub unit: Unit,
    /// Which way they should go.
    pub better: Better,
    /// After the pretrain stage.
    pub pretrain: Comparison,
    /// After the finetune stage; `None` where the quantity exists in the pretrain stage alone.
    pub finetune: Option<Comparison>,
}

impl Unit {
    /// A value in this unit.
    pub fn write(self, value: &Spread) -> String {
        match self {
            Self::Percent => numbers::spread(value, 1),
            Self::Loss => numbers::spread(value, 3),
            Self::Plain | Self::Seconds => numbers::significant_spread(value),
        }
    }
}

impl MeasureRow {
    /// BASIC against LLaVA in the row's terms: a signed difference, or `×1.32` for seconds.
    pub fn change(&self, comparison: &Comparison) -> Option<String> {
        let difference = comparison.difference.as_ref();
        match self.unit {
            Unit::Percent => difference.map(|spread| numbers::signed_spread(spread, 1)),
            Unit::Loss => difference.map(|spread| numbers::signed_spread(spread, 3)),
            Unit::Plain => None,
            Unit::Seconds => comparison.ratio.as_ref().map(|ratio| format!("×{}", numbers::spread(ratio, 2))),
        }
    }

    /// The arm that the difference favours beyond the spread of the seeds; a single seed has no spread to go beyond.
    pub fn favours(&self, comparison: &Comparison) -> Option<&'static str> {
        let difference =
            comparison.difference.as_ref().filter(|spread| spread.deviation.is_some() && beyond_spread(spread))?;
        match (self.better, difference.mean > 0.0) {
            (Better::Neither, _) => None,
            (Better::Higher, true) | (Better::Lower, false) => Some(BASIC),
            (Better::Higher, false) | (Better::Lower, true) => Some(LLAVA),
        }
    }
}

/// The key under which a summary may keep the chance level over all questions.
const OVERALL: &str = "overall";

/// Accuracy for every question kind.
pub(super) fn accuracy_rows(summary: &Summary, setting: &Setting) -> Vec<MeasureRow> {
    kinds(summary, setting)
        .into_iter()
        .map(|kind| {
            let of = |stage: fn(&Run) -> &Stage| percent(setting, |run| stage(run).per_kind.get(&kind).copied());
            let (pretrain, finetune) = (of(|run| &run.pretrain), of(|run| &run.finetune));
            let chance = summary.majority.get(&kind).map(|share| share * 100.0);
            accuracy_row(&kind, &kind, chance, pretrain, Some(finetune))
        })
        .collect()
}

/// Accuracy over all questions: at the end of the stages, and at the best validation step.
pub(super) fn overall_rows(summary: &Summary, setting: &Setting) -> [MeasureRow; 2] {
    let chance = summary.majority.get(OVERALL).map(|share| share * 100.0);
    let at = |checkpoint: Checkpoint| checkpoint.accuracy(setting);
    let best = accuracy_row("Overall", "at best val. step", chance, at(Checkpoint::BestValidation), None);
    [
        accuracy_row("Overall", "overall", chance, at(Checkpoint::Pretrain), Some(at(Checkpoint::Finetune))),
        MeasureRow { note: "at the best validation step", ..best },
    ]
}

/// What is measured besides accuracy.
pub(super) fn other_rows(setting: &Setting) -> Vec<MeasureRow> {
    let grounded = "of object patches, whose nearest token is true of the object";
    let shuffled = "the same, patches shuffled among the images";
    let gradient = "at the projector, unweighted";
    let row = |label: &str, short: &str, note, unit, better, quantity: fn(&Stage) -> Option<f64>| {
        let factor = if unit == Unit::Percent { 100.0 } else { 1.0 };
        let of = |stage: fn(&Run) -> &Stage| Comparison::new(setting, |run| Some(quantity(stage(run))? * factor));
        MeasureRow {
            label: label.to_owned(),
            short: short.to_owned(),
            note,
            chance: None,
            unit,
            better,
            pretrain: of(|run| &run.pretrain),
            finetune: Some(of(|run| &run.finetune)),
        }
    };
    use {Better::*, Unit::*};
    vec![
        row("Caption loss", "caption loss", "cross entropy, eval captions; lower is better", Loss, Lower, |s| {
            Some(s.caption_loss)
        }),
        row("Grounded share, %", "grounded, %", grounded, Percent, Higher, |s| Some(s.grounded)),
        row("Grounded share by chance, %", "  by chance, %", shuffled, Percent, Neither, |s| Some(s.grounded_chance)),
        row("Length of visual embeddings", "|v|", "mean of |v|", Plain, Neither, |s| Some(s.v_norm)),
        row("Length of token embeddings", "|token|", "mean over the vocabulary", Plain, Neither, |s| {
            Some(s.token_norm)
        }),
        row("Gradient norm of lm", "gradient of lm", gradient, Plain, Neither, |s| s.gradient_norms.get("lm").copied()),
        row("Gradient norm of das", "gradient of das", gradient, Plain, Neither, |s| {
            s.gradient_norms.get("das").copied()
        }),
        row("Gradient norm of sds", "gradient of sds", gradient, Plain, Neither, |s| {
            s.gradient_norms.get("sds").copied()
        }),
        row("Seconds per step", "seconds per step", "median; change is BASIC over LLaVA", Seconds, Neither, |s| {
            Some(s.step_seconds)
        }),
    ]
}

/// Whether `difference` lies beyond the spread of the seeds: its mean is larger than its standard deviation.
/// A single seed has no spread, so any difference passes.
pub(super) fn beyond_spread(difference: &Spread) -> bool {
    difference.mean.abs() > difference.deviation.unwrap_or(0.0)
}

fn accuracy_row(
    label: &str,
    short: &str,
    chance: Option<f64>,
    pretrain: Comparison,
    finetune: Option<Comparison>,
) -> MeasureRow {
    MeasureRow {
        label: label.to_owned(),
        short: short.to_owned(),
        note: "",
        chance,
        unit: Unit::Percent,
        better: Better::Higher,
        pretrain,
        finetune,
    }
}

fn percent(setting: &Setting, share: impl Fn(&Run) -> Option<f64>) -> Comparison {
    Comparison::new(setting, |run| Some(share(run)? * 100.0))
}

/// The question kinds that have a score or a chance level, by name.
fn kinds(summary: &Summary, setting: &Setting) -> BTreeSet<String> {
    let runs = setting.arms.iter().flat_map(|arm| &arm.runs);
    let scored = runs.flat_map(|run| run.pretrain.per_kind.keys().chain(run.finetune.per_kind.keys()));
    scored.chain(summary.majority.keys()).filter(|kind| *kind != OVERALL).cloned().collect()
}
