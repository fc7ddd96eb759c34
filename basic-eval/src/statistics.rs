//! Statistics of measurements: the spread over seeds with Student's t intervals, bootstrap intervals over questions,
//! and significance tests of paired differences.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Deserializer, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

/// How many bootstrap resamples an interval is computed from.
const RESAMPLES: usize = 1000;
/// How many random permutations a permutation test draws.
pub(crate) const PERMUTATIONS: usize = 10_000;
/// With at most this many non-zero differences, every combination of signs is enumerated instead of sampled.
const EXACT: usize = 13;

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// The sample standard deviation (the divisor is the count minus 1); `None` with one seed.
    pub deviation: Option<f64>,
    /// How many seeds the mean is over.
    pub seeds: usize,
}

/// The mean difference to the baseline, over the seeds that both have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The mean of cell minus baseline.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// The ends of the 95% interval; `None` with one seed.
    #[serde(deserialize_with = "interval")]
    pub interval: Option<[f64; 2]>,
    /// How many seeds the mean is over.
    pub seeds: usize,
}

/// Reads a number; JSON writes null for one that is not finite, which becomes NaN.
fn number<'de, D: Deserializer<'de>>(source: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or(f64::NAN))
}

fn interval<'de, D: Deserializer<'de>>(source: D) -> Result<Option<[f64; 2]>, D::Error> {
    let ends: Option<[Option<f64>; 2]> = Option::deserialize(source)?;
    Ok(ends.map(|ends| ends.map(|end| end.unwrap_or(f64::NAN))))
}

impl Spread {
    /// The spread of `values`, one per seed; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let seeds = values.len();
        let mean = values.iter().sum::<f64>() / seeds as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (seeds > 1).then(|| (squares / (seeds - 1) as f64).sqrt());
        (seeds > 0).then_some(Self { mean, deviation, seeds })
    }

    /// Half the width of the mean's 95% interval by Student's t; `None` with one seed.
    pub fn margin(&self) -> Option<f64> {
        let seeds = self.seeds as f64;
        let t = StudentsT::new(0.0, 1.0, seeds - 1.0).ok()?.inverse_cdf(0.975);
        Some(t * self.deviation? / seeds.sqrt())
    }
}

impl Difference {
    /// The mean of `differences`, one per seed; `None` if there are none.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let spread = Spread::of(differences)?;
        let interval = spread.margin().map(|margin| [spread.mean - margin, spread.mean + margin]);
        Some(Self { mean: spread.mean, interval, seeds: spread.seeds })
    }

    /// `Some(true)` if the whole interval is above 0, `Some(false)` if it is below 0, `None` if it contains 0.
    pub fn excludes_zero(&self) -> Option<bool> {
        match self.interval {
            Some([low, _]) if low > 0.0 => Some(true),
            Some([_, high]) if high < 0.0 => Some(false),
            _ => None,
        }
    }
}

/// The random generator of all draws. Its seed is fixed, so that results repeat.
pub(crate) fn draws() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(0)
}

/// The 95% bootstrap interval: the 2.5th and the 97.5th percentile of `statistic` over 1000 resamples, each of
/// `questions` indices drawn with replacement. `None` if there is no question.
pub(crate) fn bootstrap(questions: usize, statistic: impl Fn(&[usize]) -> f64) -> Option<(f64, f64)> {
    if questions == 0 {
        return None;
    }
    let mut rng = draws();
    let mut chosen = vec![0; questions];
    let mut values: Vec<f64> = Vec::with_capacity(RESAMPLES);
    while values.len() < RESAMPLES {
        chosen.iter_mut().for_each(|index| *index = rng.random_range(0..questions));
        values.push(statistic(&chosen));
    }
    values.sort_by(f64::total_cmp);
    Some((values[RESAMPLES / 40], values[RESAMPLES - RESAMPLES / 40 - 1]))
}

/// The two-sided p-value of McNemar's exact test: the chance that `better + worse` fair coin tosses split at least as
/// unevenly as this.
pub fn mcnemar(better: usize, worse: usize) -> f64 {
    let (fewer, all) = (better.min(worse), better + worse);
    // 0.5 is a valid probability, so the fallback is never used.
    let tail = Binomial::new(0.5, all as u64).map_or(0.5, |coins| coins.cdf(fewer as u64));
    (2.0 * tail).min(1.0)
}

/// The p-value of the sign-flip test: the chance that the mean of `differences` is at least as far from 0 when the sign
/// of each is chosen by a fair coin. With at most 13 non-zero differences every combination of signs is counted; with
/// more, 10,000 random ones and the observed one. The draws are the same every time.
pub fn sign_flip(differences: &[f64]) -> f64 {
    let sizes: Vec<f64> = differences.iter().map(|d| d.abs()).filter(|d| *d > 0.0).collect();
    let observed = differences.iter().sum::<f64>().abs();
    // The tolerance is for rounding: the same numbers summed with other signs may differ in their last bits.
    let reaches = |sum: f64| usize::from(sum.abs() >= observed - 1e-9 * sizes.iter().sum::<f64>().max(1e-300));
    let flipped = |signs: &mut dyn FnMut(usize) -> bool| -> f64 {
        sizes.iter().enumerate().map(|(i, size)| if signs(i) { *size } else { -size }).sum()
    };
    if sizes.len() <= EXACT {
        let ways = 1_usize << sizes.len();
        let count: usize = (0..ways).map(|way| reaches(flipped(&mut |i| way >> i & 1 == 1))).sum();
        return count as f64 / ways as f64;
    }
    let mut rng = draws();
    let mut bits = 0_u64;
    let mut draw = |i: usize| {
        if i.is_multiple_of(64) {
            bits = rng.next_u64();
        }
        bits >> (i % 64) & 1 == 1
    };
    let count: usize = (0..PERMUTATIONS).map(|_| reaches(flipped(&mut draw))).sum();
    (count + 1) as f64 / (PERMUTATIONS + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::{Difference, Spread};

    // Checked with scipy 1.x: stats.t.ppf(0.975, 4) = 2.7764451051977987, ppf(0.975, 1) = 12.706204736432095.
    #[test]
    fn the_interval_is_students() {
        let found = Difference::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let margin = 2.776_445_105_197_798_7 * 2.5_f64.sqrt() / 5.0_f64.sqrt();
        let [low, high] = found.interval.unwrap();
        assert!((low - (3.0 - margin)).abs() < 1e-9 && (high - (3.0 + margin)).abs() < 1e-9, "{low} {high}");
        assert_eq!(found.excludes_zero(), Some(true));
        let two = Difference::of(&[-1.0, 0.0]).unwrap();
        let margin = 12.706_204_736_432_095 * 0.5_f64.sqrt() / 2.0_f64.sqrt();
        assert!((two.interval.unwrap()[1] - (margin - 0.5)).abs() < 1e-7);
        assert_eq!(two.excludes_zero(), None);
        assert_eq!(Difference::of(&[-1.0, -1.0, -1.0]).unwrap().excludes_zero(), Some(false));
    }

    #[test]
    fn one_seed_has_a_mean_and_no_interval() {
        let one = Spread::of(&[2.0]).unwrap();
        assert_eq!((one.mean, one.deviation, one.margin()), (2.0, None, None));
        assert_eq!(Difference::of(&[2.0]).unwrap().interval, None);
        assert!(Spread::of(&[]).is_none() && Difference::of(&[]).is_none());
    }

    #[test]
    fn the_deviation_is_the_samples() {
        let found = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!(found.mean, 5.0);
        assert!((found.deviation.unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    }
}
