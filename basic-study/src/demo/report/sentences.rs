//! Sentences that follow from the figures alone: whichever arm they favour, they are as plain.

use super::measures::{Checkpoint, beyond_chance};
use super::paired_arms::{BASIC, LLAVA, runs, seeds};
use crate::demo::summary::{Setting, Summary};
use crate::pages::numbers;
use basic_eval::statistics::Spread;

/// Differences below this many points would read `0.0`.
const SMALLEST_POINTS: f64 = 0.05;

/// How BASIC compares with the baseline in one figure for which higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// BASIC is higher: the 95% interval of the difference is above 0.
    Higher,
    /// BASIC is lower: the interval is below 0.
    Lower,
    /// The interval contains 0.
    Chance,
    /// Equal to the digits shown.
    Equal,
    /// An arm is missing, or a number is not finite.
    Unknown,
}

impl Verdict {
    /// The verdict on a `difference` in points.
    pub fn of(difference: Option<&Spread>) -> Self {
        match difference {
            Some(spread) if !spread.mean.is_finite() => Self::Unknown,
            None => Self::Unknown,
            Some(spread) if !beyond_chance(spread) && spread.mean != 0.0 => Self::Chance,
            Some(spread) if spread.mean.abs() < SMALLEST_POINTS => Self::Equal,
            Some(spread) if spread.mean > 0.0 => Self::Higher,
            Some(_) => Self::Lower,
        }
    }

    /// `higher`, `lower` and so on.
    pub fn word(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
            Self::Chance => "no difference beyond chance",
            Self::Equal => "no difference",
            Self::Unknown => "not measured in both arms",
        }
    }
}

/// `After pretrain, BASIC is higher by 3.0 ± 1.1 points.`
pub(super) fn sentence(checkpoint: Checkpoint, setting: &Setting) -> String {
    let difference = checkpoint.accuracy(setting).difference;
    let when = capitalized(checkpoint.phrase());
    let verdict = Verdict::of(difference.as_ref());
    match (verdict, &difference) {
        (Verdict::Higher | Verdict::Lower, Some(points)) => {
            let size = numbers::spread(&Spread { mean: points.mean.abs(), ..*points }, 1);
            format!("{when}, BASIC is {} by {size} points.", verdict.word())
        }
        (Verdict::Chance, Some(points)) => {
            format!("{when}, there is {} ({} points).", verdict.word(), numbers::signed_spread(points, 1))
        }
        (Verdict::Equal, _) => format!("{when}, there is no difference."),
        _ => format!("{when}, accuracy was {}.", verdict.word()),
    }
}

/// The whole outcome in one or two sentences.
pub(super) fn headline(summary: &Summary) -> String {
    let verdicts: Vec<Verdict> = summary
        .settings
        .iter()
        .flat_map(|setting| {
            let verdict = |at: Checkpoint| Verdict::of(at.accuracy(setting).difference.as_ref());
            Checkpoint::of(setting).into_iter().map(verdict)
        })
        .filter(|verdict| *verdict != Verdict::Unknown)
        .collect();
    let count = |wanted: Verdict| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    let total = verdicts.len();
    if total == 0 {
        return "Nothing could be compared: no setting has runs of both arms with a common seed.".to_owned();
    }
    let others = [
        (count(Verdict::Lower), "is lower"),
        (count(Verdict::Chance), "shows no difference beyond chance"),
        (count(Verdict::Equal), "shows no difference"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{what} in {count}"));
    let others = enumerated(&others.collect::<Vec<_>>());
    let mut text = match count(Verdict::Higher) {
        0 => format!("BASIC’s accuracy is not higher than LLaVA’s in any of {total} comparisons: it {others}."),
        higher if higher == total => format!("BASIC’s accuracy is higher than LLaVA’s in all {total} comparisons."),
        higher => format!("BASIC’s accuracy is higher than LLaVA’s in {higher} of {total} comparisons; it {others}."),
    };
    if !any_spread(summary) {
        text.push_str(" With one seed there is no interval: any of these differences may be chance.");
    }
    text
}

/// What was compared: one sentence on the arms, one on what they share.
pub(super) fn what_was_compared(summary: &Summary) -> [String; 2] {
    let most = summary.settings.iter().map(|setting| seeds(setting).len()).max().unwrap_or(0);
    let shared = match most {
        0 | 1 => "with one seed".to_owned(),
        most => format!("with each of {most} seeds"),
    };
    [
        "LLaVA trains on the language-model loss over answer tokens alone; BASIC adds two losses that pull each \
         visual embedding towards what the decoder’s own shallow layers make of it."
            .to_owned(),
        format!(
            "Both arms ran {shared} from the same initial projector over the same data in the same order, and \
             answered the same questions about images that neither had seen."
        ),
    ]
}

/// How ± and the verdicts are to be read.
pub(super) fn how_to_read(summary: &Summary) -> String {
    let paired = "Differences are BASIC minus LLaVA in percentage points, paired by seed.";
    if any_spread(summary) {
        format!(
            "{paired} ± is the sample standard deviation over seeds. A difference counts as higher or lower only \
             where its 95% interval (Student’s t) excludes 0; of twenty differences without any effect, one would."
        )
    } else {
        format!("{paired} One seed ran, so no interval can be given.")
    }
}

/// `LLaVA at step 80, 120; BASIC at step 100, 140`: the best steps on the validation split, in the order of the seeds.
pub(super) fn best_steps(setting: &Setting) -> Option<String> {
    let parts: Vec<String> = [("LLaVA", LLAVA), ("BASIC", BASIC)]
        .into_iter()
        .filter_map(|(label, name)| {
            let steps = runs(setting, name).iter().filter_map(|run| Some(run.best.as_ref()?.step.to_string()));
            let steps: Vec<String> = steps.collect();
            (!steps.is_empty()).then(|| format!("{label} at step {}", steps.join(", ")))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("Best on the validation split: {}.", parts.join("; ")))
}

/// Whether there is more to compare than what the conclusion says.
pub(super) fn overview(summary: &Summary) -> bool {
    let compared: usize = summary.settings.iter().map(|setting| Checkpoint::of(setting).len()).sum();
    compared > 1 || summary.conclusion.is_none()
}

/// The device, and how many runs it trained at a time.
pub(super) fn device(summary: &Summary) -> String {
    match summary.workers {
        0 | 1 => summary.device.clone(),
        workers => format!("{}, {workers} runs at a time", summary.device),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn enumerated(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

/// Whether any setting ran with several seeds.
pub(super) fn any_spread(summary: &Summary) -> bool {
    summary.settings.iter().any(|setting| seeds(setting).len() > 1)
}

/// `0, 1, 2`, and `0 to 31` for many without a gap.
pub(super) fn seed_list(setting: &Setting) -> String {
    let seeds = seeds(setting);
    match seeds.as_slice() {
        [first, _, _, _, .., last] if last - first + 1 == seeds.len() as u64 => format!("{first} to {last}"),
        all => all.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// `count noun`, with an s where `count` is not one.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", numbers::thousands(count), if count == 1 { "" } else { "s" })
}

fn capitalized(phrase: &str) -> String {
    let mut letters = phrase.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
