//! The learning-rate schedule: warmup, then cosine, linear or constant (transformers' `get_scheduler`).

use serde::{Deserialize, Serialize};

/// The shape of the schedule after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine, down to 0.
    #[default]
    Cosine,
    /// A straight line, down to 0.
    Linear,
    /// The peak rate throughout.
    Constant,
}

/// The learning rate over the steps of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The shape after the warmup.
    pub kind: ScheduleKind,
    /// The share of the steps over which the rate rises from 0.
    pub warmup_ratio: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_ratio: 0.03 }
    }
}

impl Schedule {
    /// The factor on the peak rate at `step` (0-based) of `steps`.
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup_ratio * steps as f64).ceil() as usize;
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
        match self.kind {
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_over_the_warmup_and_falls_to_zero() {
        // transformers' get_cosine_schedule_with_warmup: 0, 1/3, 2/3, 1, then half a cosine over 97 steps.
        let schedule = Schedule::default();
        let factors: Vec<f64> = (0..=100).map(|s| schedule.factor(s, 100)).collect();
        assert_eq!(factors[0], 0.0);
        assert!((factors[1] - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(factors[3], 1.0);
        assert!((factors[51] - 0.5 * (1.0 + (std::f64::consts::PI * 48.0 / 97.0).cos())).abs() < 1e-12);
        assert!(factors[100].abs() < 1e-12);
    }

    #[test]
    fn a_run_of_one_step_has_a_rate() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant] {
            let schedule = Schedule { kind, warmup_ratio: 0.0 };
            assert_eq!(schedule.factor(0, 1), 1.0);
        }
    }
}
