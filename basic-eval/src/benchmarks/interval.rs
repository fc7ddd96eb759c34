//! A score with its 95% bootstrap interval over questions.

use serde::{Deserialize, Serialize};

use crate::statistics::bootstrap;

/// A score, 0 to 1, with its 95% interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The name of the score.
    pub name: String,
    /// The score.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// How many questions it covers.
    pub questions: usize,
    /// The points that a score of 1 stands for, if the benchmark counts points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<f64>,
}

impl Metric {
    /// Computes `statistic` over all indices 0..`questions`, and its 2.5th and 97.5th percentile over 1000 resamples
    /// drawn with replacement. The draws are the same every time.
    pub fn of(name: impl Into<String>, questions: usize, statistic: impl Fn(&[usize]) -> f64) -> Self {
        let all: Vec<usize> = (0..questions).collect();
        let value = statistic(&all);
        let (low, high) = bootstrap(questions, statistic).unwrap_or((value, value));
        Self { name: name.into(), value, low, high, questions, points: None }
    }

    /// The mean of `credits`, the score of each question.
    pub fn mean(name: impl Into<String>, credits: &[f64]) -> Self {
        let n = credits.len().max(1) as f64;
        Self::of(name, credits.len(), |chosen| chosen.iter().map(|i| credits[*i]).sum::<f64>() / n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors_to_each_side() {
        let credits: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
        let metric = Metric::mean("accuracy", &credits);
        assert_eq!((metric.value, metric.questions), (0.25, 400));
        let error = (0.25f64 * 0.75 / 400.0).sqrt(); // 0.0217
        assert!((metric.value - metric.low - 1.96 * error).abs() < 0.006, "{metric:?}");
        assert!((metric.high - metric.value - 1.96 * error).abs() < 0.006, "{metric:?}");
        assert_eq!(metric, Metric::mean("accuracy", &credits));
    }

    #[test]
    fn no_question_and_one_question_have_an_interval_too() {
        assert_eq!(Metric::mean("x", &[]).high, 0.0);
        let one = Metric::mean("x", &[0.3]);
        assert_eq!((one.low, one.value, one.high), (0.3, 0.3, 0.3));
    }
}
