//! What a step has over all replicas: threads share a loader and see all samples, processes tell each other.

use std::ops::Add;

use basic_data::{Skipped, StepSamples};
use basic_models::nn::LossCounts;
use serde::{Deserialize, Serialize};

use crate::parallel::{Collective, CollectiveError};

/// A step's samples over all replicas.
pub(super) struct Totals {
    /// What the losses divide by.
    pub counts: LossCounts,
    pub samples: usize,
    /// What was left out; where replicas are processes, in the order of their ranks.
    pub skipped: Vec<Skipped>,
}

/// What a process tells the others of its share.
#[derive(Serialize, Deserialize)]
struct Share {
    tokens: usize,
    image_samples: usize,
    samples: usize,
    /// Index, reason, and whether it is too long.
    skipped: Vec<(usize, String, bool)>,
}

impl Totals {
    pub(super) fn of(here: &StepSamples, collective: &dyn Collective) -> Result<Self, CollectiveError> {
        let LossCounts { tokens, image_samples } = here.counts();
        let own = Self { counts: here.counts(), samples: here.samples(), skipped: here.skipped.clone() };
        if !collective.separate() {
            return Ok(own);
        }
        let plain = |Skipped { index, reason, too_long }: Skipped| (index, reason, too_long);
        let skipped = own.skipped.into_iter().map(plain).collect();
        let share = Share { tokens, image_samples, samples: own.samples, skipped };
        let mut all = Self { counts: LossCounts::default(), samples: 0, skipped: Vec::new() };
        for share in collective.share::<Share>(&share)? {
            let Share { tokens, image_samples, samples, skipped } = share;
            all.counts = all.counts.add(LossCounts { tokens, image_samples });
            all.samples += samples;
            let whole = |(index, reason, too_long)| Skipped { index, reason, too_long };
            all.skipped.extend(skipped.into_iter().map(whole));
        }
        Ok(all)
    }

    /// The indices of the broken samples that were left out.
    pub(super) fn broken(&self) -> impl Iterator<Item = usize> {
        self.skipped.iter().filter(|skipped| !skipped.too_long).map(|skipped| skipped.index)
    }
}
