//! What a comparison question by question comes to: an interval of the difference by the bootstrap over questions, and the
//! chance of a difference as large between two models that are alike.

use rand::RngExt;
use serde::Serialize;

use crate::benchmarks::{Kind, Outcome};
use crate::statistics::{PERMUTATIONS, bootstrap, draws, mcnemar, sign_flip};

/// How a chance was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Test {
    /// McNemar's exact test, for right and wrong: the binomial tails of the questions that only one has right.
    #[serde(rename = "McNemar, exact")]
    McNemar,
    /// The signs of the differences flipped at random, or in every way where few differ.
    #[serde(rename = "sign flips")]
    SignFlip,
    /// The two models' answers swapped at random, question by question.
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

/// What a measure needs of the same questions in both.
#[derive(Debug, Clone)]
pub struct Paired {
    /// What is measured.
    pub kind: Kind,
    /// A's.
    pub a: Vec<Outcome>,
    /// B's, in the same order.
    pub b: Vec<Outcome>,
}

impl Paired {
    /// The measure of A and of B.
    pub fn values(&self) -> (f64, f64) {
        (self.kind.value(self.a.iter().copied()), self.kind.value(self.b.iter().copied()))
    }

    /// B's less A's.
    pub fn difference(&self) -> f64 {
        let (a, b) = self.values();
        b - a
    }

    /// Questions whose score is higher, lower and the same in B.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |order| self.pairs().filter(|(a, b)| b.score.total_cmp(&a.score) == order).count();
        use std::cmp::Ordering::{Equal, Greater, Less};
        (count(Greater), count(Less), count(Equal))
    }

    fn pairs(&self) -> impl Iterator<Item = (&Outcome, &Outcome)> {
        self.a.iter().zip(&self.b)
    }

    /// The 2.5th and the 97.5th percentile of the difference over 1000 draws of questions with replacement, the same
    /// questions of both. The draws are the same every time.
    pub fn interval(&self) -> (f64, f64) {
        let difference = |chosen: &[usize]| {
            let of = |all: &[Outcome]| self.kind.value(chosen.iter().map(|index| all[*index]));
            of(&self.b) - of(&self.a)
        };
        bootstrap(self.a.len(), difference).unwrap_or((0.0, 0.0))
    }

    /// How often two models that are alike would differ as much, in either direction, and how that was found.
    pub fn test(&self) -> (Test, f64) {
        let graded = self.a.iter().chain(&self.b).any(|outcome| outcome.score != 0.0 && outcome.score != 1.0);
        match self.kind {
            Kind::Mean if graded => {
                let differences: Vec<f64> = self.pairs().map(|(a, b)| b.score - a.score).collect();
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
