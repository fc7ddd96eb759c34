//! The order in which samples are drawn: a function of the seed alone.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// An endless stream of sample indices: one permutation after the other, each from (seed, epoch).
#[derive(Debug, Clone)]
pub struct Order {
    samples: usize,
    seed: u64,
    /// The epoch that is held, in half the memory of `usize`.
    epoch: Option<(u64, Vec<u32>)>,
}

impl Order {
    /// The order over `samples` samples (at least 1, at most `u32::MAX`, of which a mixture has far less).
    pub fn new(samples: usize, seed: u64) -> Self {
        Self { samples: samples.max(1), seed, epoch: None }
    }

    /// The indices of batch `step` (0-based); batches run on across the ends of epochs.
    pub fn batch(&mut self, step: usize, size: usize) -> Vec<usize> {
        let first = step.saturating_mul(size);
        (first..first.saturating_add(size)).map(|position| self.at(position)).collect()
    }

    fn at(&mut self, position: usize) -> usize {
        let epoch = (position / self.samples) as u64;
        if self.epoch.as_ref().is_none_or(|(held, _)| *held != epoch) {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            let mut indices: Vec<u32> = (0..self.samples as u32).collect();
            indices.shuffle(&mut rng);
            self.epoch = Some((epoch, indices));
        }
        self.epoch.as_ref().map_or(0, |(_, indices)| indices[position % self.samples] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn every_epoch_visits_every_sample_once_in_an_order_of_its_own() {
        let mut order = Order::new(7, 3);
        let drawn: Vec<usize> = (0..7).flat_map(|step| order.batch(step, 3)).collect();
        let epochs: Vec<Vec<usize>> = drawn.chunks(7).map(<[usize]>::to_vec).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn a_batch_is_the_same_whether_or_not_the_ones_before_were_drawn() {
        let mut whole = Order::new(10, 1);
        let batches: Vec<_> = (0..9).map(|step| whole.batch(step, 4)).collect();
        assert_eq!(Order::new(10, 1).batch(8, 4), batches[8]);
    }
}
