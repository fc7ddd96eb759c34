//! The conclusion's picture: both arms' scores of every seed, their differences, and the mean with its interval.

use serde::Serialize;

use crate::demo::summary::{Conclusion, PairedSeed};
use crate::pages::numbers;
use crate::pages::plot::{Axis, Frame, Plot, Tick, position};

/// The distance between two seeds' rows, in SVG units.
const ROW: f64 = 15.0;
/// The place of the first row.
const FIRST: f64 = 34.0;
/// Room below the last row, for the axes and their names.
const BELOW: f64 = 44.0;
const WIDTH: f64 = 720.0;
/// Where the two halves begin and end.
const SCORES: [f64; 2] = [64.0, 400.0];
const DIFFERENCES: [f64; 2] = [452.0, 704.0];

/// A drawing with a row for each seed.
#[derive(Debug, Serialize)]
pub(super) struct Pairs {
    width: f64,
    height: f64,
    /// Where the axes lie.
    bottom: f64,
    /// The same in words.
    description: String,
    rows: Vec<Row>,
    scores: Half,
    differences: Half,
    zero: String,
    mean: Mean,
}

/// One half's axis.
#[derive(Debug, Serialize)]
struct Half {
    left: f64,
    right: f64,
    middle: f64,
    ticks: Vec<Tick>,
}

/// One seed; a score that is no number has no place.
#[derive(Debug, Serialize)]
struct Row {
    seed: u64,
    y: String,
    llava: Option<String>,
    basic: Option<String>,
    difference: Option<String>,
    /// The arm that it favours, which is the class that colours it; empty at zero.
    favours: &'static str,
    told: String,
}

/// The mean of the differences.
#[derive(Debug, Serialize)]
struct Mean {
    y: String,
    at: Option<String>,
    /// The interval's ends; none with one seed.
    interval: Option<[String; 2]>,
    told: String,
}

impl Pairs {
    pub fn of(conclusion: &Conclusion) -> Self {
        let seeds = &conclusion.seeds;
        let last = FIRST + ROW * seeds.len() as f64 + ROW / 2.0;
        let (bottom, height) = (last + ROW, last + ROW + BELOW);
        let half = |[left, right]: [f64; 2], x: Axis| {
            let frame = Frame { width: WIDTH, height, left, right, top: FIRST, bottom };
            Plot { frame, x, y: Axis::around_zero(std::iter::empty()) }
        };
        let finite = |value: f64| value.is_finite().then_some(value);
        let both = seeds.iter().flat_map(|seed| [seed.llava, seed.basic]).filter_map(finite);
        let scores = half(SCORES, Axis::tight(both));
        let interval = conclusion.difference.interval.filter(|ends| ends.iter().all(|end| end.is_finite()));
        let apart = seeds.iter().map(PairedSeed::difference).chain(interval.into_iter().flatten());
        let differences = half(DIFFERENCES, Axis::with_zero(apart.filter(|points| points.is_finite())));
        let row = |(index, seed): (usize, &PairedSeed)| {
            let points = seed.difference();
            let [llava, basic] =
                [seed.llava, seed.basic].map(|score| finite(score).map(|score| position(scores.x(score))));
            Row {
                seed: seed.seed,
                y: position(FIRST + ROW * index as f64),
                llava,
                basic,
                difference: finite(points).map(|points| position(differences.x(points))),
                favours: match points {
                    points if points > 0.0 => "basic",
                    points if points < 0.0 => "llava",
                    _ => "",
                },
                told: told(seed),
            }
        };
        let mean = Mean {
            y: position(last),
            at: finite(conclusion.difference.mean).map(|mean| position(differences.x(mean))),
            interval: interval.map(|ends| ends.map(|end| position(differences.x(end)))),
            told: conclusion.so_far(),
        };
        let words = seeds.iter().map(told).chain([format!("difference, mean and 95% interval: {}", mean.told)]);
        Self {
            width: WIDTH,
            height,
            bottom,
            description: words.collect::<Vec<_>>().join("; "),
            rows: seeds.iter().enumerate().map(row).collect(),
            zero: position(differences.x(0.0)),
            scores: Half::of(&scores),
            differences: Half::of(&differences),
            mean,
        }
    }
}

impl Half {
    fn of(plot: &Plot) -> Self {
        let Frame { left, right, .. } = plot.frame;
        Self { left, right, middle: (left + right) / 2.0, ticks: plot.x_ticks() }
    }
}

fn told(seed: &PairedSeed) -> String {
    let [llava, basic] = [seed.llava, seed.basic].map(|score| numbers::fixed(score, 1));
    format!("seed {}: LLaVA {llava}, BASIC {basic}, {} points", seed.seed, numbers::signed(seed.difference(), 1))
}
