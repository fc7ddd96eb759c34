//! How many samples may be left out: a count, or a share of all samples.

use std::fmt;
use std::str::FromStr;

use basic_models::outside::excerpt;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The largest number of different samples that may be left out: in a recipe a count, or a share such as `"1%"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SkipLimit {
    /// A number of samples.
    Samples(usize),
    /// A percentage of all samples, rounded up.
    Percent(f64),
}

impl Default for SkipLimit {
    /// 1%.
    fn default() -> Self {
        Self::Percent(1.0)
    }
}

impl SkipLimit {
    /// The number of samples that the limit allows out of `samples`.
    pub fn of(self, samples: usize) -> usize {
        match self {
            Self::Samples(limit) => limit,
            // Computed in whole thousandths of a percent, because in floating point 0.07 times 100 is more than 7.
            Self::Percent(percent) => {
                let thousandths = (percent * 1000.0).round() as u128;
                usize::try_from((samples as u128 * thousandths).div_ceil(100_000)).unwrap_or(usize::MAX)
            }
        }
    }
}

impl fmt::Display for SkipLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Samples(limit) => limit.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for SkipLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = excerpt(text);
            format!("'{shown}' is no limit: write a number of samples, or a share of them from \"0%\" to \"100%\"")
        };
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Samples).map_err(|_| wrong()),
            Some(share) => {
                let percent: f64 = share.trim().parse().map_err(|_| wrong())?;
                // Only thousandths of a percent are accepted, so that the limit is exactly what the recipe says.
                let whole = (percent * 1000.0 - (percent * 1000.0).round()).abs() < 1e-6;
                let fits = (0.0..=100.0).contains(&percent) && whole;
                fits.then_some(Self::Percent(percent)).ok_or_else(wrong)
            }
        }
    }
}

impl Serialize for SkipLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Samples(limit) => limit.serialize(serializer),
            share => serializer.collect_str(share),
        }
    }
}

impl<'de> Deserialize<'de> for SkipLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Limit;
        impl Visitor<'_> for Limit {
            type Value = SkipLimit;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of samples, or a share such as \"1%\"")
            }

            fn visit_u64<E: Error>(self, limit: u64) -> Result<SkipLimit, E> {
                Ok(SkipLimit::Samples(usize::try_from(limit).unwrap_or(usize::MAX)))
            }

            fn visit_i64<E: Error>(self, limit: i64) -> Result<SkipLimit, E> {
                let limit = usize::try_from(limit).map_err(|_| E::custom("a limit cannot be below 0"))?;
                Ok(SkipLimit::Samples(limit))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SkipLimit, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Limit)
    }
}

#[cfg(test)]
mod tests {
    use super::SkipLimit;

    #[test]
    fn a_share_is_rounded_up_and_counts_as_written() {
        let of = |text: &str, samples| text.parse::<SkipLimit>().unwrap().of(samples);
        assert_eq!((of("1%", 100), of("1%", 101), of("1 %", 3), of("0%", 9)), (1, 2, 1, 0));
        assert_eq!((of("0.07%", 10_000), of("100%", 7), of("12", 3)), (7, 7, 12));
        assert_eq!(of("100%", usize::MAX), usize::MAX);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for text in ["", "%", "-1", "-1%", "101%", "nan%", "inf%", "1e300%", "0.00001%", "a", "1.5"] {
            assert!(text.parse::<SkipLimit>().is_err(), "{text}");
        }
    }
}
