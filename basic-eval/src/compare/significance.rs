//! Computes, for paired answers, the bootstrap interval of the difference over questions and the p-value of a
//! difference that large between two equally good models.

use rand::RngExt;
use serde::Serialize;

use crate::benchmarks::{Kind, Outcome};
use crate::statistics::{PERMUTATIONS, bootstrap, draws, mcnemar, sign_flip};

/// The test that a p-value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Test {
    /// McNemar's exact test, for scores of 0 or 1: a binomial test on the questions that only one model has right.
    #[serde(rename = "McNemar, exact")]
    McNemar,
    /// The sign-flip test, for graded scores and weighted means: the signs of the differences are flipped at random, or in every
    /// combination if few questions differ.
    #[serde(rename = "sign flips")]
    SignFlip,
    /// The permutation test that swaps the two models' answers at random, question by question.
    #[serde(rename = "swaps")]
    Swap,
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::McNemar => "McNemar, exact",
            Self::SignFlip => "sign flips",
            Self::Swap => "swaps",
        })
    }
}

/// The outcomes of both models on the same questions, for one measure.
#[derive(Debug, Clone)]
pub struct Paired {
    /// The measure.
    pub kind: Kind,
    /// A's outcomes.
    pub a: Vec<Outcome>,
    /// B's outcomes, in the same order.
    pub b: Vec<Outcome>,
}

impl Paired {
    /// The measure's value for A and for B.
    pub fn values(&self) -> (f64, f64) {
        (self.kind.value(self.a.iter().copied()), self.kind.value(self.b.iter().copied()))
    }

    /// B's value minus A's.
    pub fn difference(&self) -> f64 {
        let (a, b) = self.values();
        b - a
    }

    /// How many questions have a higher, a lower and the same score in B.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |order| self.pairs().filter(|(a, b)| b.score.total_cmp(&a.score) == order).count();
        use std::cmp::Ordering::{Equal, Greater, Less};
        (count(Greater), count(Less), count(Equal))
    }

    fn pairs(&self) -> impl Iterator<Item = (&Outcome, &Outcome)> {
        self.a.iter().zip(&self.b)
    }

    /// The 95% bootstrap interval of the difference: its 2.5th and 97.5th percentile over 1000 resamples of the
    /// questions, each with the same questions for both models. The draws are the same every time.
    pub fn interval(&self) -> (f64, f64) {
        let difference = |chosen: &[usize]| {
            let of = |all: &[Outcome]| self.kind.value(chosen.iter().map(|index| all[*index]));
            of(&self.b) - of(&self.a)
        };
        bootstrap(self.a.len(), difference).unwrap_or((0.0, 0.0))
    }

    /// The test that suits the measure, and its two-sided p-value.
    pub fn test(&self) -> (Test, f64) {
        let graded = self.a.iter().chain(&self.b).any(|outcome| outcome.score != 0.0 && outcome.score != 1.0);
        let weighted = self.a.iter().any(|outcome| outcome.weight != self.a[0].weight);
        match self.kind {
            Kind::Mean if graded || weighted => {
                let differences: Vec<f64> = self.pairs().map(|(a, b)| a.weight * (b.score - a.score)).collect();
                (Test::SignFlip, sign_flip(&differences))
            }
            Kind::Mean => {
                let (better, worse, _) = self.counts();
                (Test::McNemar, mcnemar(better, worse))
            }
            _ => (Test::Swap, self.swap()),
        }
    }

    fn swap(&self) -> f64 {
        let observed = self.difference().abs();
        let mut rng = draws();
        let mut count = 0;
        let (mut a, mut b) = (self.a.clone(), self.b.clone());
        for _ in 0..PERMUTATIONS {
            for (a, b) in a.iter_mut().zip(&mut b) {
                if rng.random_bool(0.5) {
                    std::mem::swap(a, b);
                }
            }
            let difference = self.kind.value(b.iter().copied()) - self.kind.value(a.iter().copied());
            count += usize::from(difference.abs() >= observed - 1e-12);
        }
        (count + 1) as f64 / (PERMUTATIONS + 1) as f64
    }
}
