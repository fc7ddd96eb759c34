//! Compares two evaluations question by question (`basic compare`).
//!
//! [`sets`] finds the files that `basic eval` wrote, [`compare`] pairs their answers by question id, and
//! [`significance`] computes confidence intervals and tests.

mod pair;
mod sets;
pub mod significance;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub use sets::{Found, Set, find, read, sets};
use significance::{Paired, Test};

use crate::benchmarks::{BenchmarkError, measures};

/// Why two evaluations could not be compared.
#[derive(Debug, Error)]
pub enum CompareError {
    /// A path holds no complete, readable result of `basic eval`.
    #[error("{path}: {problem}", path = path.display())]
    NoRun {
        /// The path.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The two evaluations do not have the same benchmarks or questions.
    #[error("{a} and {b}: {problem}", a = a.display(), b = b.display())]
    Differ {
        /// The first evaluation.
        a: PathBuf,
        /// The second evaluation.
        b: PathBuf,
        /// What differs, and what to do.
        problem: String,
    },
    /// The answers or the record beside them could not be read.
    #[error(transparent)]
    File(#[from] BenchmarkError),
}

/// The comparison of two evaluations, A and B.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The path of A.
    pub a: PathBuf,
    /// The path of B.
    pub b: PathBuf,
    /// The benchmarks and question files that both answered.
    pub sets: Vec<SetComparison>,
}

/// The comparison on one benchmark or one file of questions.
#[derive(Debug, Clone, Serialize)]
pub struct SetComparison {
    /// The benchmark's or file's name.
    pub name: String,
    /// How many questions were compared.
    pub questions: usize,
    /// How many questions only A answered.
    pub only_a: usize,
    /// How many questions only B answered.
    pub only_b: usize,
    /// The measures; empty if the true answers are hidden.
    pub measures: Vec<MeasureComparison>,
    /// The questions whose score differs, or whose answer differs where there is no score.
    pub changed: Vec<Changed>,
}

/// One measure of both evaluations.
#[derive(Debug, Clone, Serialize)]
pub struct MeasureComparison {
    /// The measure's name.
    pub name: String,
    /// The points that a value of 1 stands for, if the benchmark counts points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points: Option<f64>,
    /// How many questions it covers.
    pub questions: usize,
    /// A's value, 0 to 1.
    pub a: f64,
    /// B's value, 0 to 1.
    pub b: f64,
    /// B's value minus A's.
    pub difference: f64,
    /// The lower end of the difference's 95% interval.
    pub low: f64,
    /// The upper end of the difference's 95% interval.
    pub high: f64,
    /// The test that gave `p`.
    pub test: Test,
    /// The two-sided p-value: how often chance alone would make the two differ at least this much.
    pub p: f64,
    /// How many questions have a higher score in B.
    pub better: usize,
    /// How many questions have a lower score in B.
    pub worse: usize,
    /// How many questions have the same score in both.
    pub same: usize,
}

/// A question whose score differs between A and B, or whose answer differs where there is no score.
#[derive(Debug, Clone, Serialize)]
pub struct Changed {
    /// The question's id.
    pub question_id: Value,
    /// The prompt, which is the same for both.
    pub prompt: String,
    /// A's answer.
    pub a: String,
    /// B's answer.
    pub b: String,
    /// The true answer, if it is known.
    pub expected: Option<String>,
    /// A's score, 0 to 1.
    pub score_a: Option<f64>,
    /// B's score, 0 to 1.
    pub score_b: Option<f64>,
}

/// Compares the results of `basic eval` at `a` and `b`; with `common`, only the sets and questions that both have.
///
/// # Errors
///
/// [`CompareError`] that names the files and the questions.
pub fn compare(a: &Path, b: &Path, common: bool) -> Result<Comparison, CompareError> {
    let pairs = pair::by_name(a, sets(a)?, b, sets(b)?, common)?;
    let compared: Result<Vec<_>, _> = pairs.iter().map(|(a, b)| of_sets(a, b, common)).collect();
    Ok(Comparison { a: a.into(), b: b.into(), sets: compared? })
}

fn of_sets(a: &Set, b: &Set, common: bool) -> Result<SetComparison, CompareError> {
    let pair::Questions { a: left, b: right, only_a, only_b } = pair::by_question(a, b, common)?;
    let name = a.measure.clone().or_else(|| b.measure.clone()).unwrap_or_else(|| "score".into());
    // One of the two may have a measure that the other lacks, such as that of ranked options.
    let others = measures(&name, &right);
    let pairs = measures(&name, &left).into_iter();
    let pairs = pairs.filter_map(|measure| Some((others.iter().find(|other| other.name == measure.name)?, measure)));
    let paired = pairs.map(|(other, measure)| {
        let paired = Paired { kind: measure.kind, a: measure.outcomes(&left), b: other.outcomes(&right) };
        (measure, paired)
    });
    // Where the two have ranked the options of different questions, these cannot be paired.
    let compared = paired.filter(|(_, paired)| paired.a.len() == paired.b.len()).map(|(measure, paired)| {
        let (difference, (low, high), (test, p)) = (paired.difference(), paired.interval(), paired.test());
        let (better, worse, same) = paired.counts();
        let (value_a, value_b) = paired.values();
        MeasureComparison {
            name: measure.name,
            points: measure.points,
            questions: paired.a.len(),
            a: value_a,
            b: value_b,
            difference,
            low,
            high,
            test,
            p,
            better,
            worse,
            same,
        }
    });
    let measures = compared.collect();
    let changed = left.iter().zip(&right).filter(|(a, b)| match (a.score, b.score) {
        (Some(a), Some(b)) => a != b,
        _ => a.answer != b.answer,
    });
    let changed = changed.map(|(a, b)| Changed {
        question_id: a.question_id.clone(),
        prompt: a.prompt.clone(),
        a: a.answer.clone(),
        b: b.answer.clone(),
        expected: a.expected.clone(),
        score_a: a.score,
        score_b: b.score,
    });
    let changed = changed.collect();
    Ok(SetComparison { name: a.name.clone(), questions: left.len(), only_a, only_b, measures, changed })
}
