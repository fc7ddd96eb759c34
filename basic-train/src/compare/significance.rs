//! The arithmetic of a paired comparison: an interval of the difference by the bootstrap over questions, and the chance of
//! a difference as large between two models that are alike.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::benchmarks::{Kind, Outcome};

const RESAMPLES: usize = 1000;
/// Draws of a permutation test.
const PERMUTATIONS: usize = 10_000;
/// With so few pairs that differ, every sign is tried instead.
const EXACT: usize = 13;

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
        let n = self.a.len();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut values: Vec<f64> = Vec::with_capacity(RESAMPLES);
        let mut chosen = vec![0; n];
        while values.len() < RESAMPLES && n > 0 {
            chosen.iter_mut().for_each(|index| *index = rng.random_range(0..n));
            let of = |all: &[Outcome]| self.kind.value(chosen.iter().map(|i| all[*i]));
            values.push(of(&self.b) - of(&self.a));
        }
        values.sort_by(f64::total_cmp);
        let end = |at: usize| values.get(at).copied().unwrap_or(0.0);
        (end(RESAMPLES / 40), end(RESAMPLES - RESAMPLES / 40 - 1))
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
        let mut rng = ChaCha8Rng::seed_from_u64(0);
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

/// McNemar's exact test, two-sided: of `better + worse` fair coins, the chance that the two sides are as far apart.
pub fn mcnemar(better: usize, worse: usize) -> f64 {
    let (fewer, all) = (better.min(worse), better + worse);
    // A fair coin is a valid one.
    let tail = Binomial::new(0.5, all as u64).map_or(0.5, |coins| coins.cdf(fewer as u64));
    (2.0 * tail).min(1.0)
}

/// The chance that the mean of `differences` is as far from 0 when each keeps or changes its sign by a fair coin: of every
/// way where at most 13 are not 0, of 10,000 draws and the given signs otherwise. The draws are the same every time.
pub fn sign_flip(differences: &[f64]) -> f64 {
    let sizes: Vec<f64> = differences.iter().map(|d| d.abs()).filter(|d| *d > 0.0).collect();
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in other signs differ by rounding.
    let reaches = |sum: f64| usize::from(sum.abs() >= observed - 1e-9 * sizes.iter().sum::<f64>().max(1e-300));
    let flipped = |signs: &mut dyn FnMut(usize) -> bool| -> f64 {
        sizes.iter().enumerate().map(|(i, size)| if signs(i) { *size } else { -size }).sum()
    };
    if sizes.len() <= EXACT {
        let ways = 1_usize << sizes.len();
        let count: usize = (0..ways).map(|way| reaches(flipped(&mut |i| way >> i & 1 == 1))).sum();
        return count as f64 / ways as f64;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
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
