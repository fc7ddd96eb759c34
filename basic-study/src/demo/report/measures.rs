//! The rows of both tables, the page's and the terminal's.

use std::collections::BTreeSet;

use super::paired_arms::{BASIC, Comparison, LLAVA};
use crate::demo::summary::{Details, Run, Setting, Stage, Summary};
use crate::pages::numbers;
use crate::studies::{Better, Unit};
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

    /// Those of them at which a setting's runs answered the eval split.
    pub fn of(setting: &Setting) -> Vec<Self> {
        let asked = |checkpoint: &Self| runs_of(setting).any(|run| checkpoint.share(run).is_some());
        Self::ALL.into_iter().filter(asked).collect()
    }

    /// Overall accuracy there, in percent.
    pub fn accuracy(self, setting: &Setting) -> Comparison {
        percent(setting, |run| self.share(run))
    }

    fn share(self, run: &Run) -> Option<f64> {
        match self {
            Self::Pretrain => Some(run.pretrain.accuracy),
            Self::BestValidation => run.best.as_ref().map(|best| best.accuracy),
            Self::Finetune => run.finetune.as_ref().map(|stage| stage.accuracy),
        }
    }
}

/// What stands beside the two arms' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// BASIC minus LLaVA.
    Difference,
    /// BASIC over LLaVA: `×1.32`.
    Ratio,
    /// Nothing.
    Nothing,
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
    /// How the arms are compared.
    pub change: Change,
    /// Which way they should go.
    pub better: Better,
    /// After the pretrain stage.
    pub pretrain: Comparison,
    /// After the finetune stage; `None` where the quantity exists in the pretrain stage alone.
    pub finetune: Option<Comparison>,
}

/// A number of both arms; those in percent are percentages already.
pub(super) fn write(unit: Unit, value: &Spread) -> String {
    match unit {
        Unit::Percent => numbers::spread(value, 1),
        Unit::Loss => numbers::spread(value, 3),
        Unit::Plain => numbers::significant_spread(value),
    }
}

impl MeasureRow {
    /// BASIC against LLaVA in the row's terms.
    pub fn change(&self, comparison: &Comparison) -> Option<String> {
        let decimals = if self.unit == Unit::Percent { 1 } else { 3 };
        match self.change {
            Change::Difference => comparison.difference.map(|spread| numbers::signed_spread(&spread, decimals)),
            Change::Ratio => comparison.ratio.map(|ratio| format!("×{}", numbers::spread(&ratio, 2))),
            Change::Nothing => None,
        }
    }

    /// The arm that the difference favours beyond chance; a single seed shows none.
    pub fn favours(&self, comparison: &Comparison) -> Option<&'static str> {
        let difference =
            comparison.difference.as_ref().filter(|spread| spread.deviation.is_some() && beyond_chance(spread))?;
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
            let of = |stage: StageOf| percent(setting, |run| stage(run)?.per_kind.get(&kind).copied());
            let finetune = finetuned(setting).then(|| of(|run| run.finetune.as_ref()));
            let chance = summary.majority.get(&kind).map(|share| share * 100.0);
            accuracy_row(&kind, &kind, chance, of(|run| Some(&run.pretrain)), finetune)
        })
        .collect()
}

/// Accuracy over all questions: at the end of the stages, and at the best validation step where it was looked for.
pub(super) fn overall_rows(summary: &Summary, setting: &Setting) -> Vec<MeasureRow> {
    let chance = summary.majority.get(OVERALL).map(|share| share * 100.0);
    let at = |checkpoint: Checkpoint| checkpoint.accuracy(setting);
    let finetune = finetuned(setting).then(|| at(Checkpoint::Finetune));
    let mut rows = vec![accuracy_row("Overall", "overall", chance, at(Checkpoint::Pretrain), finetune)];
    if Checkpoint::of(setting).contains(&Checkpoint::BestValidation) {
        let best = accuracy_row("Overall", "at best val. step", chance, at(Checkpoint::BestValidation), None);
        rows.push(MeasureRow { note: "at the best validation step", ..best });
    }
    rows
}

/// What is measured besides accuracy; nothing where that was left out.
pub(super) fn other_rows(setting: &Setting) -> Vec<MeasureRow> {
    if runs_of(setting).all(|run| run.pretrain.details.is_none()) {
        return Vec::new();
    }
    let grounded = "of object patches, whose nearest token is true of the object";
    let shuffled = "the same, patches shuffled among the images";
    let gradient = "at the projector, unweighted";
    let row = |label: &str, short: &str, note, unit, better, quantity: fn(&Details) -> Option<f64>| {
        let factor = if unit == Unit::Percent { 100.0 } else { 1.0 };
        let of =
            |stage: StageOf| Comparison::new(setting, |run| Some(quantity(stage(run)?.details.as_ref()?)? * factor));
        MeasureRow {
            label: label.to_owned(),
            short: short.to_owned(),
            note,
            chance: None,
            unit,
            change: if unit == Unit::Plain { Change::Nothing } else { Change::Difference },
            better,
            pretrain: of(|run| Some(&run.pretrain)),
            finetune: finetuned(setting).then(|| of(|run| run.finetune.as_ref())),
        }
    };
    use {Better::*, Unit::*};
    let seconds =
        row("Seconds per step", "seconds per step", "median; change is BASIC over LLaVA", Plain, Neither, |s| {
            Some(s.step_seconds)
        });
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
        MeasureRow { change: Change::Ratio, ..seconds },
    ]
}

/// A stage of a run; none where it was left out.
pub(super) type StageOf = fn(&Run) -> Option<&Stage>;

/// Whether any of the runs has a finetune stage.
pub(super) fn finetuned(setting: &Setting) -> bool {
    runs_of(setting).any(|run| run.finetune.is_some())
}

fn runs_of(setting: &Setting) -> impl Iterator<Item = &Run> {
    setting.arms.iter().flat_map(|arm| &arm.runs)
}

/// Whether the 95% interval of `difference` excludes 0. A single seed has no interval, so any difference passes.
pub(super) fn beyond_chance(difference: &Spread) -> bool {
    difference.mean.abs() > difference.margin().unwrap_or(0.0)
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
        change: Change::Difference,
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
    let stages = runs_of(setting).flat_map(|run| [Some(&run.pretrain), run.finetune.as_ref()]).flatten();
    let scored = stages.flat_map(|stage| stage.per_kind.keys());
    scored.chain(summary.majority.keys()).filter(|kind| *kind != OVERALL).cloned().collect()
}
