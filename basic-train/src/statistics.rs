//! Means over seeds, and differences paired by seed with their 95% interval by Student's t.

use serde::{Deserialize, Deserializer, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// The sample standard deviation; none with one seed.
    pub deviation: Option<f64>,
    /// Seeds.
    pub seeds: usize,
}

/// A mean difference to the baseline, over the seeds that both have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Cell minus baseline.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// The ends of the 95% interval; none with one seed.
    #[serde(deserialize_with = "interval")]
    pub interval: Option<[f64; 2]>,
    /// Seeds.
    pub seeds: usize,
}

/// JSON has null for a number that is not finite.
fn number<'de, D: Deserializer<'de>>(source: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or(f64::NAN))
}

fn interval<'de, D: Deserializer<'de>>(source: D) -> Result<Option<[f64; 2]>, D::Error> {
    let ends: Option<[Option<f64>; 2]> = Option::deserialize(source)?;
    Ok(ends.map(|ends| ends.map(|end| end.unwrap_or(f64::NAN))))
}

impl Spread {
    /// The spread of `values`; `None` where there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let seeds = values.len();
        let mean = values.iter().sum::<f64>() / seeds as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (seeds > 1).then(|| (squares / (seeds - 1) as f64).sqrt());
        (seeds > 0).then_some(Self { mean, deviation, seeds })
    }

    /// Half the width of the mean's 95% interval by Student's t.
    pub fn margin(&self) -> Option<f64> {
        let seeds = self.seeds as f64;
        let t = StudentsT::new(0.0, 1.0, seeds - 1.0).ok()?.inverse_cdf(0.975);
        Some(t * self.deviation? / seeds.sqrt())
    }
}

impl Difference {
    /// The mean of `differences`, one a seed; `None` where there are none.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let spread = Spread::of(differences)?;
        let interval = spread.margin().map(|margin| [spread.mean - margin, spread.mean + margin]);
        Some(Self { mean: spread.mean, interval, seeds: spread.seeds })
    }

    /// Whether the interval leaves 0 out: above (`Some(true)`) or below it.
    pub fn excludes_zero(&self) -> Option<bool> {
        match self.interval {
            Some([low, _]) if low > 0.0 => Some(true),
            Some([_, high]) if high < 0.0 => Some(false),
            _ => None,
        }
    }
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
