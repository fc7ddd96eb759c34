//! What the demo shows and what it does not, in two sentences: they follow from the figures alone, whichever arm these
//! favour.

use basic_eval::statistics::{Difference, Spread};
use serde::{Deserialize, Serialize};

use super::ARMS;
use super::summary::Setting;
use crate::pages::numbers::{fixed, signed, thousands};

/// What `docs/evidence.md` says of many captions, which the setting `few` does not show.
const MANY: &str = "This does not carry over to many captions: with 20,000, the five seeds of docs/evidence.md gave LLaVA 61.0% \
                    and BASIC 61.2% (+0.3 points, 95% interval −0.9 to +1.4); and it says nothing about large models on \
                    photographs.";

/// What it says of few, which the setting `many` does not show.
const FEW: &str = "Few captions are another matter: with 24, the twenty seeds of docs/evidence.md gave LLaVA 49.4% and BASIC \
                   51.3% (+1.9 points, 95% interval +0.3 to +3.6); and nothing here is about large models on photographs.";

/// Both arms after the pretrain stage, paired by seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conclusion {
    /// The setting: `few`, unless only the other was run.
    pub setting: String,
    /// Exact match of both arms, seed by seed.
    pub seeds: Vec<PairedSeed>,
    /// The baseline, in percent.
    pub llava: Spread,
    /// BASIC, in percent.
    pub basic: Spread,
    /// BASIC minus baseline, in points.
    pub difference: Difference,
    /// What the seeds show, as a sentence.
    pub shown: String,
    /// What they do not show, as a sentence.
    pub not_shown: String,
}

/// One seed's exact match in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairedSeed {
    /// The seed.
    pub seed: u64,
    /// The baseline.
    pub llava: f64,
    /// BASIC.
    pub basic: f64,
}

impl PairedSeed {
    /// BASIC minus baseline, in points.
    #[must_use]
    pub fn difference(&self) -> f64 {
        self.basic - self.llava
    }
}

impl Conclusion {
    /// What the first setting shows; none where no seed has run in both arms.
    pub(super) fn of(settings: &[Setting], asked: usize) -> Option<Self> {
        let setting = settings.first()?;
        let accuracy = |arm: &str, seed: u64| {
            let arm = setting.arms.iter().find(|own| own.name == arm)?;
            Some(100.0 * arm.runs.iter().find(|run| run.seed == seed)?.pretrain.accuracy)
        };
        let pair =
            |seed: u64| Some(PairedSeed { seed, llava: accuracy(ARMS[0], seed)?, basic: accuracy(ARMS[1], seed)? });
        let mut all: Vec<u64> = setting.arms.iter().flat_map(|arm| &arm.runs).map(|run| run.seed).collect();
        all.sort_unstable();
        all.dedup();
        let seeds: Vec<PairedSeed> = all.into_iter().filter_map(pair).collect();
        let of = |value: fn(&PairedSeed) -> f64| seeds.iter().map(value).collect::<Vec<_>>();
        let (llava, basic) = (Spread::of(&of(|seed| seed.llava))?, Spread::of(&of(|seed| seed.basic))?);
        let difference = Difference::of(&of(PairedSeed::difference))?;
        let shown = shown(setting, &llava, &basic, &difference, asked);
        let not_shown = if setting.name == "many" { FEW } else { MANY }.to_owned();
        Some(Self { setting: setting.name.clone(), seeds, llava, basic, difference, shown, not_shown })
    }

    /// `+3.3 [−0.4, +7.0]`: the difference with its interval, where there is one.
    #[must_use]
    pub fn so_far(&self) -> String {
        let mean = signed(self.difference.mean, 1);
        match self.difference.interval {
            Some([low, high]) => format!("{mean} [{}, {}]", signed(low, 1), signed(high, 1)),
            None => mean,
        }
    }
}

fn shown(setting: &Setting, llava: &Spread, basic: &Spread, difference: &Difference, asked: usize) -> String {
    let count = difference.seeds;
    let seeds = match (count, asked) {
        (1, 1) => "one seed".to_owned(),
        (1, asked) => format!("the first of {asked} seeds"),
        (count, asked) if count == asked => format!("{count} seeds"),
        (count, asked) => format!("{count} of {asked} seeds"),
    };
    let points = fixed(difference.mean.abs(), 1);
    let verdict = match (difference.excludes_zero(), count) {
        _ if !difference.mean.is_finite() => "could not be compared: a score is no number".to_owned(),
        (Some(true), _) => format!("BASIC answers {points} points more of the questions right than LLaVA"),
        (Some(false), _) => format!("BASIC answers {points} points fewer of the questions right than LLaVA"),
        (None, 1) => format!("BASIC and LLaVA are {points} points apart, which one seed cannot tell from chance"),
        (None, _) => "no difference between BASIC and LLaVA can be told from chance".to_owned(),
    };
    let interval = difference.interval.map(|[low, high]| {
        format!(
            "{} points, 95% interval {} to {}, paired by seed",
            signed(difference.mean, 1),
            signed(low, 1),
            signed(high, 1)
        )
    });
    format!(
        "With {} captioned images and {seeds}, {verdict} after the pretrain stage: {}% against {}% of {} questions ({}).",
        thousands(setting.captions),
        fixed(basic.mean, 1),
        fixed(llava.mean, 1),
        thousands(setting.eval_questions),
        interval.unwrap_or_else(|| format!("{} points, no interval with one seed", signed(difference.mean, 1)))
    )
}
