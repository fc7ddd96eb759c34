//! One quantity in both arms of a setting, paired by seed.

use crate::demo::summary::{Arm, Run, Setting};
use basic_eval::statistics::Spread;

/// The name of the baseline's arm.
pub(super) const LLAVA: &str = "llava";
/// The name of the arm with the two visual losses.
pub(super) const BASIC: &str = "basic";

/// One quantity in both arms of a setting.
#[derive(Debug, Clone, Default)]
pub(super) struct Comparison {
    /// The baseline.
    pub llava: Option<Spread>,
    /// BASIC.
    pub basic: Option<Spread>,
    /// BASIC minus baseline, seed by seed.
    pub difference: Option<Spread>,
    /// BASIC over baseline, seed by seed.
    pub ratio: Option<Spread>,
    /// What `difference` summarizes: the seed and its difference.
    pub by_seed: Vec<(u64, f64)>,
}

impl Comparison {
    /// Compares `quantity`, which may be missing in a run. Differences and ratios are over the seeds of both arms.
    pub fn new(setting: &Setting, quantity: impl Fn(&Run) -> Option<f64>) -> Self {
        let measured = |name| -> Vec<(u64, f64)> {
            runs(setting, name).iter().filter_map(|run| Some((run.seed, quantity(run)?))).collect()
        };
        let (llava, basic) = (measured(LLAVA), measured(BASIC));
        let pairs: Vec<(u64, f64, f64)> = basic
            .iter()
            .filter_map(|&(seed, ours)| {
                let &(_, theirs) = llava.iter().find(|(other, _)| *other == seed)?;
                Some((seed, theirs, ours))
            })
            .collect();
        let by_seed: Vec<(u64, f64)> = pairs.iter().map(|&(seed, theirs, ours)| (seed, ours - theirs)).collect();
        Self {
            llava: spread_of(llava.iter().map(|&(_, value)| value)),
            basic: spread_of(basic.iter().map(|&(_, value)| value)),
            difference: spread_of(by_seed.iter().map(|&(_, difference)| difference)),
            ratio: spread_of(pairs.iter().map(|&(_, theirs, ours)| ours / theirs)),
            by_seed,
        }
    }
}

/// The runs of the arm called `name`; empty where the setting lacks it.
pub(super) fn runs<'a>(setting: &'a Setting, name: &str) -> &'a [Run] {
    setting.arms.iter().find(|arm: &&Arm| arm.name == name).map_or(&[], |arm| &arm.runs)
}

/// The seeds of the setting's runs in either arm, in order and once each.
pub(super) fn seeds(setting: &Setting) -> Vec<u64> {
    let mut seeds: Vec<u64> = setting.arms.iter().flat_map(|arm| &arm.runs).map(|run| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    seeds
}

fn spread_of(values: impl Iterator<Item = f64>) -> Option<Spread> {
    Spread::of(&values.collect::<Vec<_>>())
}
