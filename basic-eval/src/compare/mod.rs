//! Two evaluations question by question: `basic compare`.
//!
//! [`sets`] finds what `basic eval` left, [`compare`] pairs it by the questions' ids, [`significance`] has the intervals and
//! the tests.

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
    /// Nothing that `basic eval` leaves.
    #[error("{path}: {problem}", path = path.display())]
    NoRun {
        /// The path.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The two are not about the same.
    #[error("{a} and {b}: {problem}", a = a.display(), b = b.display())]
    Differ {
        /// The first.
        a: PathBuf,
        /// The second.
        b: PathBuf,
        /// What differs, and what to do.
        problem: String,
    },
    /// The answers, or the record beside them.
    #[error(transparent)]
    File(#[from] BenchmarkError),
}

/// Two evaluations, paired.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The first, A.
    pub a: PathBuf,
    /// The second, B.
    pub b: PathBuf,
    /// What both were asked.
    pub sets: Vec<SetComparison>,
}

/// One benchmark or file of questions in both.
#[derive(Debug, Clone, Serialize)]
pub struct SetComparison {
    /// Its name.
    pub name: String,
    /// Questions that were compared.
    pub questions: usize,
    /// Questions that only A has.
    pub only_a: usize,
    /// Questions that only B has.
    pub only_b: usize,
    /// The scores; none where the true answers are hidden.
    pub measures: Vec<MeasureComparison>,
    /// The questions whose score changed, or whose answer did where there is no score.
    pub changed: Vec<Changed>,
}

/// A score in both.
#[derive(Debug, Clone, Serialize)]
pub struct MeasureComparison {
    /// Its name.
    pub name: String,
    /// Over how many questions.
    pub questions: usize,
    /// A's, 0 to 1.
    pub a: f64,
    /// B's.
    pub b: f64,
    /// B's less A's.
    pub difference: f64,
    /// The lower end of the difference's 95% interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How `p` was found.
    pub test: Test,
    /// How often chance alone would make the two differ as much.
    pub p: f64,
    /// Questions whose score is higher in B.
    pub better: usize,
    /// Questions whose score is lower in B.
    pub worse: usize,
    /// Questions whose score is the same.
    pub same: usize,
}

/// A question that B answers better or worse, or only otherwise where there is no score.
#[derive(Debug, Clone, Serialize)]
pub struct Changed {
    /// The question's id.
    pub question_id: Value,
    /// What both were told.
    pub prompt: String,
    /// What A said.
    pub a: String,
    /// What B said.
    pub b: String,
    /// The true answer, where it is known.
    pub expected: Option<String>,
    /// A's score.
    pub score_a: Option<f64>,
    /// B's score.
    pub score_b: Option<f64>,
}

/// Compares what `basic eval` left at `a` and `b`; with `common`, what both have.
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
    let compared = measures(&name, &left).into_iter().zip(measures(&name, &right)).map(|(measure, other)| {
        let paired = Paired { kind: measure.kind, a: measure.outcomes(&left), b: other.outcomes(&right) };
        let (difference, (low, high), (test, p)) = (paired.difference(), paired.interval(), paired.test());
        let (better, worse, same) = paired.counts();
        let (value_a, value_b) = paired.values();
        MeasureComparison {
            name: measure.name,
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
