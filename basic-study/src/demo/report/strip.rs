//! One row of dots: the difference of every seed beside zero.

use serde::Serialize;

use crate::pages::numbers;
use crate::pages::plot::{Axis, Frame, Plot, position};

/// A row of dots on the scale that all rows share.
#[derive(Debug, Serialize)]
pub(super) struct Strip {
    frame: Frame,
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
#[derive(Debug)]
pub(super) struct Scale(Plot);

impl Scale {
    /// A scale on which all `differences` have room.
    pub fn of(differences: impl Iterator<Item = f64>) -> Self {
        let x = Axis::around_zero(differences);
        Self(Plot { frame: Frame::STRIP, x, y: Axis::around_zero(std::iter::empty()) })
    }

    /// The end's label: `4` where the scale runs from −4 to +4 points.
    pub fn label(&self) -> String {
        self.0.x.last_label().into()
    }

    /// The row of dots for `by_seed`, a seed and its difference in points each.
    pub fn strip(&self, by_seed: &[(u64, f64)]) -> Strip {
        let place = |points: f64| position(self.0.x(points));
        let finite: Vec<(u64, f64)> = by_seed.iter().copied().filter(|(_, points)| points.is_finite()).collect();
        let dots = finite.iter().map(|&(_, points)| {
            let arm = match points {
                points if points > 0.0 => "basic",
                points if points < 0.0 => "llava",
                _ => "",
            };
            Dot { at: place(points), arm }
        });
        let words = finite.iter().map(|(seed, points)| format!("seed {seed}: {} points", numbers::signed(*points, 1)));
        let mean = finite.iter().map(|(_, points)| points).sum::<f64>() / finite.len() as f64;
        Strip {
            frame: self.0.frame,
            zero: place(0.0),
            dots: dots.collect(),
            mean: (finite.len() > 1).then(|| place(mean)),
            description: words.collect::<Vec<_>>().join(", "),
        }
    }
}
