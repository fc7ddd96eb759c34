//! Which samples a step takes: a function of the data, the seed and the step, whatever was drawn before.

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::Order;
use crate::{DrawOrder, Hint, Samples};

/// Characters that are counted as one token where lengths are compared without tokenizing.
const CHARACTERS_PER_TOKEN: usize = 4;

/// The samples of every step.
///
/// `shuffle` and `sequential` are endless streams cut into batches, which run on across the ends of epochs. `grouped`
/// is LLaVA's `group_by_modality_length`: an epoch's samples with images and its text-only ones are shuffled and cut
/// into batches apart, so that no batch has both; each batch is in order of length, longest first; the batches are
/// shuffled, except that the one with the longest sample comes first (what does not fit into memory shows at once) and
/// each kind's incomplete one last. Every sample is drawn once an epoch. (LLaVA merges the two incomplete batches into
/// a mixed one.)
#[derive(Debug, Clone)]
pub struct Sampler {
    samples: usize,
    batch: usize,
    seed: u64,
    draw: Draw,
}

#[derive(Debug, Clone)]
enum Draw {
    Shuffle(Order),
    Sequential,
    Grouped { groups: Arc<Groups>, epoch: Option<(usize, Vec<Vec<usize>>)> },
}

/// The samples by kind.
#[derive(Debug)]
struct Groups {
    lengths: Vec<usize>,
    images: Vec<usize>,
    texts: Vec<usize>,
}

impl Sampler {
    /// Batches of `batch` samples. `visual_tokens` is what an image takes of a sequence; for `grouped` every sample's
    /// [`Samples::hint`] is read once, on all cores.
    ///
    /// Lengths are `images * visual_tokens + characters / 4`. A sample without a readable hint counts as text of length
    /// 0: what is wrong with it is told when it is drawn.
    pub fn new(order: DrawOrder, data: &dyn Samples, batch: usize, seed: u64, visual_tokens: usize) -> Self {
        let samples = data.len().max(1);
        let draw = match order {
            DrawOrder::Shuffle => Draw::Shuffle(Order::new(samples, seed)),
            DrawOrder::Sequential => Draw::Sequential,
            DrawOrder::Grouped => {
                let read = |index| data.hint(index).unwrap_or_default();
                let hints: Vec<Hint> = (0..data.len()).into_par_iter().map(read).collect();
                Draw::Grouped { groups: Arc::new(Groups::new(&hints, visual_tokens)), epoch: None }
            }
        };
        Self { samples, batch: batch.max(1), seed, draw }
    }

    /// The samples of optimizer step `step`, from 0.
    pub fn batch(&mut self, step: usize) -> Vec<usize> {
        let (samples, size, seed) = (self.samples, self.batch, self.seed);
        let grouped = self.epoch_steps();
        match &mut self.draw {
            Draw::Shuffle(order) => order.batch(step, size),
            Draw::Sequential => {
                let first = step.saturating_mul(size);
                (first..first.saturating_add(size)).map(|position| position % samples).collect()
            }
            Draw::Grouped { groups, epoch } => {
                let wanted = step / grouped;
                let batches = match epoch.take() {
                    Some((held, batches)) if held == wanted => batches,
                    _ => groups.batches(size, seed, wanted),
                };
                let batch = batches.get(step % grouped).cloned().unwrap_or_default();
                *epoch = Some((wanted, batches));
                batch
            }
        }
    }

    /// Steps over `epochs` passes, at least 1.
    pub fn steps(&self, epochs: f64) -> usize {
        let steps = match &self.draw {
            Draw::Grouped { .. } => self.epoch_steps() as f64 * epochs,
            _ => self.samples as f64 * epochs / self.batch as f64,
        };
        (steps.ceil() as usize).max(1)
    }

    /// Passes over the data after `steps` steps.
    pub fn epochs(&self, steps: usize) -> f64 {
        match &self.draw {
            Draw::Grouped { .. } => steps as f64 / self.epoch_steps() as f64,
            _ => steps as f64 * self.batch as f64 / self.samples as f64,
        }
    }

    /// Steps of an epoch, the last one perhaps incomplete.
    fn epoch_steps(&self) -> usize {
        match &self.draw {
            Draw::Grouped { groups, .. } => {
                (groups.images.len().div_ceil(self.batch) + groups.texts.len().div_ceil(self.batch)).max(1)
            }
            _ => self.samples.div_ceil(self.batch),
        }
    }
}

impl Groups {
    fn new(hints: &[Hint], visual_tokens: usize) -> Self {
        let length = |hint: &Hint| {
            hint.images.saturating_mul(visual_tokens).saturating_add(hint.characters / CHARACTERS_PER_TOKEN)
        };
        let (images, texts) = (0..hints.len()).partition(|index| hints[*index].images > 0);
        Self { lengths: hints.iter().map(length).collect(), images, texts }
    }

    /// The batches of an epoch.
    fn batches(&self, size: usize, seed: u64, epoch: usize) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        let (mut whole, mut rest) = (Vec::new(), Vec::new());
        for kind in [&self.images, &self.texts] {
            let mut indices = kind.clone();
            indices.shuffle(&mut rng);
            for batch in indices.chunks(size) {
                let mut batch = batch.to_vec();
                batch.sort_by_key(|index| std::cmp::Reverse(self.lengths[*index]));
                if batch.len() == size { &mut whole } else { &mut rest }.push(batch);
            }
        }
        whole.shuffle(&mut rng);
        let longest = (0..whole.len()).rev().max_by_key(|batch| self.lengths[whole[*batch][0]]);
        if let Some(longest) = longest {
            whole.swap(0, longest);
        }
        whole.extend(rest);
        whole
    }
}
