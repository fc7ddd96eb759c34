//! Batches made ready ahead of the training loop.

mod batch;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod order;
mod packing;
mod plan;
mod preparer;
mod queue;
mod sampler;
#[cfg(test)]
mod sampler_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Add;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basic_models::nn::LossCounts;

pub use error::LoaderError;
pub use order::Order;
pub use packing::pack;
pub use plan::LoaderPlan;
pub use preparer::Preparer;
pub use queue::{Loaded, LoadedImage};
pub use sampler::Sampler;

use self::queue::{Failure, Job, Pool, Task};
use crate::{DataError, LoaderConfig, Samples, TooLong};

/// Draws, reads, decodes and tokenizes the samples of the coming steps on worker threads.
///
/// What it gives is a function of the data, the sampler and the plan: the same with any number of workers, and from
/// any first step. Dropping it stops the workers, each after the sample that it has in hand.
#[derive(Debug)]
pub struct Loader {
    pool: Pool,
    preparer: Arc<Preparer>,
    sampler: Sampler,
    plan: LoaderPlan,
    packing: bool,
    prefetch: usize,
    /// The next step to draw.
    drawn: usize,
    /// Those drawn and not yet given.
    ahead: VecDeque<Drawn>,
    /// Requests made of the pool for steps that were given.
    taken: u64,
    failed: bool,
}

/// A step whose samples are in the making.
#[derive(Debug)]
struct Drawn {
    step: usize,
    /// For each sample its index and its micro batch.
    slots: Vec<(usize, usize)>,
}

/// The samples of an optimizer step.
#[derive(Debug)]
pub struct StepSamples {
    /// The step, from 0.
    pub step: usize,
    /// The forward passes of all replicas that are here. Empty where every sample was left out: such a step trains
    /// nothing.
    pub micro: Vec<MicroBatch>,
    /// What was left out, in the order in which it was drawn.
    pub skipped: Vec<Skipped>,
    /// How long the caller waited for it.
    pub waited: Duration,
}

/// The samples of one forward pass.
#[derive(Debug)]
pub struct MicroBatch {
    /// Which replica it is for.
    pub replica: usize,
    /// The samples of each row: one, or several where they are packed.
    pub rows: Vec<Vec<Loaded>>,
    /// What it adds to the counts that the losses divide by: those of its [`Batch`](basic_models::Batch).
    pub counts: LossCounts,
    /// Tokens without padding, targets or not.
    pub tokens: usize,
}

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its index over all data of the run.
    pub index: usize,
    /// Its file and place, and what is wrong with it.
    pub reason: String,
    /// Whether it is too long, and `too_long = "skip"` leaves such samples out: these are not counted in
    /// [`Loader::skipped`].
    pub too_long: bool,
}

impl StepSamples {
    /// The micro batches of one replica.
    pub fn of(&self, replica: usize) -> impl Iterator<Item = &MicroBatch> {
        self.micro.iter().filter(move |micro| micro.replica == replica)
    }

    /// Samples over all replicas that are here.
    pub fn samples(&self) -> usize {
        self.micro.iter().map(MicroBatch::samples).sum()
    }

    /// What the losses divide by: over all replicas that are here.
    pub fn counts(&self) -> LossCounts {
        self.micro.iter().map(|micro| micro.counts).fold(LossCounts::default(), LossCounts::add)
    }

    /// Tokens without padding, over all replicas that are here.
    pub fn tokens(&self) -> usize {
        self.micro.iter().map(|micro| micro.tokens).sum()
    }
}

impl MicroBatch {
    fn new(replica: usize, rows: Vec<Vec<Loaded>>) -> Self {
        let samples = || rows.iter().flatten();
        let counts = LossCounts {
            tokens: samples().map(|sample| sample.tokens.targets()).sum(),
            image_samples: samples().filter(|sample| sample.tokens.supervises()).count(),
        };
        Self { replica, counts, tokens: samples().map(|sample| sample.tokens.ids.len()).sum(), rows }
    }

    /// How many samples it has.
    pub fn samples(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }
}

impl Loader {
    /// Starts the workers on the steps from `first_step` on.
    ///
    /// # Errors
    ///
    /// [`LoaderError::Start`].
    pub fn start(
        samples: Arc<dyn Samples>,
        preparer: Arc<Preparer>,
        sampler: Sampler,
        config: &LoaderConfig,
        plan: LoaderPlan,
        first_step: usize,
    ) -> Result<Self, LoaderError> {
        let task = Task { samples, preparer: preparer.clone(), held: plan.held.clone() };
        let mut loader = Self {
            pool: Pool::start(task, config.threads())?,
            preparer,
            sampler,
            plan,
            packing: config.packing,
            prefetch: config.prefetch,
            drawn: first_step,
            ahead: VecDeque::new(),
            taken: 0,
            failed: false,
        };
        loader.draw(loader.prefetch);
        Ok(loader)
    }

    /// The samples of the next step; `None` behind the plan's last step, and after an error.
    ///
    /// # Errors
    ///
    /// [`LoaderError`]: the first sample of the step, in the order in which they were drawn, that cannot be trained on
    /// and may not be left out.
    #[allow(clippy::should_implement_trait)] // an iterator would hide that an error is the end
    pub fn next(&mut self) -> Result<Option<StepSamples>, LoaderError> {
        let start = Instant::now();
        self.draw(self.prefetch + 1);
        let Some(drawn) = self.ahead.pop_front().filter(|_| !self.failed) else { return Ok(None) };
        let mut step =
            StepSamples { step: drawn.step, micro: Vec::new(), skipped: Vec::new(), waited: start.elapsed() };
        let parts = drawn.slots.last().map_or(0, |(_, part)| part + 1);
        let mut loaded: Vec<Vec<Loaded>> = (0..parts).map(|_| Vec::new()).collect();
        for (index, part) in drawn.slots {
            let result = self.pool.take(self.taken);
            self.taken += 1;
            match result {
                Ok(sample) => loaded[part].push(sample),
                Err(failure) => step.skipped.push(self.skip(index, failure).inspect_err(|_| self.failed = true)?),
            }
        }
        step.micro = self.micro(loaded);
        step.waited = start.elapsed();
        Ok(Some(step))
    }

    /// The broken samples left out so far, and before the run resumed: the same sample counts once.
    pub fn skipped(&self) -> &BTreeSet<usize> {
        &self.plan.skipped
    }

    /// Asks for samples until `steps` steps are in the making.
    fn draw(&mut self, steps: usize) {
        while self.ahead.len() < steps && self.drawn < self.plan.steps {
            let indices = self.sampler.batch(self.drawn);
            let parts = self.parts(indices.len());
            let parts = parts.into_iter().enumerate().flat_map(|(part, size)| std::iter::repeat_n(part, size));
            let (replicas, only) = (self.replicas(), self.plan.only);
            let here = |part: usize| only.is_none_or(|only| part % replicas == only);
            let slots: Vec<(usize, usize)> = indices.into_iter().zip(parts).filter(|(_, part)| here(*part)).collect();
            let held = |part: usize| if only.is_some() { 0 } else { part % replicas };
            self.pool.submit(slots.iter().map(|(index, part)| Job { index: *index, replica: held(*part) }));
            self.ahead.push_back(Drawn { step: self.drawn, slots });
            self.drawn += 1;
        }
    }

    fn replicas(&self) -> usize {
        self.plan.replicas.max(1)
    }

    /// The sizes of a step's micro batches; the p-th is replica `p % replicas`'s. Every replica has as many of them,
    /// and as many samples, give or take one.
    fn parts(&self, samples: usize) -> Vec<usize> {
        let replicas = self.replicas();
        let each = samples.div_ceil(replicas).div_ceil(self.plan.micro_batch.max(1)).max(1);
        let nth = |total: usize, of: usize, n: usize| total / of + usize::from(n < total % of);
        (0..replicas * each).map(|part| nth(nth(samples, replicas, part % replicas), each, part / replicas)).collect()
    }

    /// Whether a sample may be left out.
    fn skip(&mut self, index: usize, failure: Failure) -> Result<Skipped, LoaderError> {
        let error = match failure {
            Failure::Panicked(message) => return Err(LoaderError::Panicked { index, message }),
            Failure::Data(error) => error,
        };
        let reason = error.to_string();
        if matches!(error, DataError::TooLong { .. }) && self.preparer.too_long() == TooLong::Skip {
            // Asked for: not counted among the broken ones.
            return Ok(Skipped { index, reason, too_long: true });
        }
        if !self.plan.skip_broken || !error.is_sample() {
            return Err(error.into());
        }
        self.plan.skipped.insert(index);
        let (skipped, limit) = (self.plan.skipped.len(), self.plan.max_skipped);
        match skipped > limit {
            true => Err(LoaderError::TooManySkipped { skipped, limit, last: reason }),
            false => Ok(Skipped { index, reason, too_long: false }),
        }
    }

    /// The forward passes over a step's parts; part p is replica `p % replicas`'s.
    fn micro(&self, parts: Vec<Vec<Loaded>>) -> Vec<MicroBatch> {
        let replicas = self.replicas();
        if !self.packing {
            let rows = |samples: Vec<Loaded>| samples.into_iter().map(|sample| vec![sample]).collect();
            let parts = parts.into_iter().enumerate().filter(|(_, samples)| !samples.is_empty());
            return parts.map(|(part, samples)| MicroBatch::new(part % replicas, rows(samples))).collect();
        }
        let mut shares: Vec<Vec<Loaded>> = (0..replicas).map(|_| Vec::new()).collect();
        parts.into_iter().enumerate().for_each(|(part, samples)| shares[part % replicas].extend(samples));
        let mut micro = Vec::new();
        for (replica, share) in shares.into_iter().enumerate() {
            let lengths: Vec<usize> = share.iter().map(|sample| sample.tokens.ids.len()).collect();
            let rows = pack(&lengths, self.preparer.max_length());
            let mut share: Vec<Option<Loaded>> = share.into_iter().map(Some).collect();
            for rows in rows.chunks(self.plan.micro_batch.max(1)) {
                let row = |members: &Vec<usize>| members.iter().filter_map(|member| share[*member].take()).collect();
                let rows: Vec<Vec<Loaded>> = rows.iter().map(row).collect();
                micro.push(MicroBatch::new(replica, rows));
            }
        }
        micro
    }
}
