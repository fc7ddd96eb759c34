//! One row of dots: the difference of every seed beside zero.

use serde::Serialize;

use super::numbers;

/// The drawing's size in SVG units, and the room left beside the outermost dots.
const WIDTH: f64 = 180.0;
const HEIGHT: f64 = 22.0;
const MARGIN: f64 = 8.0;

/// A row of dots on the scale that all rows share.
#[derive(Debug, Serialize)]
pub(super) struct Strip {
    width: f64,
    height: f64,
    middle: f64,
    zero: String,
    dots: Vec<Dot>,
    /// Where the mean stands; `None` with fewer than two seeds.
    mean: Option<String>,
    description: String,
}

/// One seed.
#[derive(Debug, Serialize)]
struct Dot {
    at: String,
    /// The arm that it favours, which is the class that colours it; empty at zero.
    arm: &'static str,
}

/// The scale that all rows share: symmetric about zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    reach: f64,
}

impl Scale {
    /// A scale on which all `differences` have room.
    pub fn of(differences: impl Iterator<Item = f64>) -> Self {
        let largest =
            differences.filter(|value| value.is_finite()).fold(0.0, |reach: f64, value| reach.max(value.abs()));
        Self { reach: largest.ceil().max(1.0) }
    }

    /// The end's label: `4` where the scale runs from −4 to +4 points.
    pub fn label(self) -> String {
        numbers::fixed(self.reach, 0)
    }

    /// The row of dots for `by_seed`, a seed and its difference in points each.
    pub fn strip(self, by_seed: &[(u64, f64)]) -> Strip {
        let finite: Vec<(u64, f64)> = by_seed.iter().copied().filter(|(_, points)| points.is_finite()).collect();
        let dots = finite.iter().map(|&(_, points)| {
            let arm = match points {
                points if points > 0.0 => "basic",
                points if points < 0.0 => "llava",
                _ => "",
            };
            Dot { at: self.place(points), arm }
        });
        let words = finite.iter().map(|(seed, points)| format!("seed {seed}: {} points", numbers::signed(*points, 1)));
        let mean = finite.iter().map(|(_, points)| points).sum::<f64>() / finite.len() as f64;
        Strip {
            width: WIDTH,
            height: HEIGHT,
            middle: HEIGHT / 2.0,
            zero: self.place(0.0),
            dots: dots.collect(),
            mean: (finite.len() > 1).then(|| self.place(mean)),
            description: words.collect::<Vec<_>>().join(", "),
        }
    }

    fn place(self, points: f64) -> String {
        format!("{:.1}", WIDTH / 2.0 + (WIDTH / 2.0 - MARGIN) * points / self.reach)
    }
}
