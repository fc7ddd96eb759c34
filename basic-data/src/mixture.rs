//! Combines several sets into one, and decides which samples of each set an epoch uses.
//!
//! A set of `n` samples and weight `w` is used `floor(w)` times as a whole, followed by `round((w - floor(w)) n)` of
//! its samples, chosen by the seed and the set's position in the list and kept in the set's order. The sets follow one
//! another in the order of the list. An epoch is therefore a function of the sets, their weights and the seed; it does
//! not depend on the workers, and every epoch consists of the same samples.

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

/// The largest weight of a set.
pub(super) const MAX_WEIGHT: f64 = 1000.0;
/// The largest number of samples in an epoch, because the order of an epoch is held in memory, 4 bytes per sample.
pub(super) const MAX_SAMPLES: usize = 500_000_000;

/// Maps each index of an epoch to a sample of a set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mixture {
    parts: Vec<Part>,
    len: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Part {
    /// Number of samples in the set.
    samples: usize,
    /// The index of the epoch at which the set's samples begin.
    start: usize,
    /// Number of samples in all its whole passes.
    whole: usize,
    /// The samples of the last, partial pass, ascending.
    partial: Vec<u32>,
}

impl Mixture {
    /// The mixture of sets given as `(samples, weight)`.
    ///
    /// # Errors
    ///
    /// A weight that is not allowed, or more than [`MAX_SAMPLES`] samples in an epoch; nothing is allocated then.
    pub fn new(sets: &[(usize, f64)], seed: u64) -> Result<Self, String> {
        let mut total = 0usize;
        for &(samples, weight) in sets {
            if !(weight > 0.0 && weight <= MAX_WEIGHT) {
                return Err(format!("the weight {weight} must be above 0 and at most {MAX_WEIGHT}"));
            }
            let whole = samples.checked_mul(weight.floor() as usize);
            let taken = whole.and_then(|whole| whole.checked_add(rest(samples, weight))?.checked_add(total));
            total = taken.filter(|total| *total <= MAX_SAMPLES).ok_or_else(|| {
                format!("an epoch would take more than {MAX_SAMPLES} samples: lower the weights, or set limits")
            })?;
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(sets.len());
        for (place, &(samples, weight)) in sets.iter().enumerate() {
            let whole = samples * weight.floor() as usize;
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            // These streams count down from the top, so they differ from those of the sample order, which count up from
            // 0.
            rng.set_stream(u64::MAX - place as u64);
            let mut partial: Vec<u32> =
                sample(&mut rng, samples, rest(samples, weight)).into_iter().map(|i| i as u32).collect();
            partial.sort_unstable();
            let taken = whole + partial.len();
            parts.push(Part { samples, start, whole, partial });
            start += taken;
        }
        Ok(Self { parts, len: start })
    }

    /// Number of samples in an epoch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The set that `index` falls into, and the sample of that set.
    pub fn at(&self, index: usize) -> Option<(usize, usize)> {
        let place = self.parts.partition_point(|part| part.start <= index).checked_sub(1)?;
        // Of several parts that begin at the same index, all but the last are empty.
        let part = &self.parts[place];
        let offset = index - part.start;
        if offset < part.whole {
            return Some((place, offset % part.samples));
        }
        part.partial.get(offset - part.whole).map(|&sample| (place, sample as usize))
    }

    /// How many samples of an epoch come from each set.
    pub fn taken(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.whole + part.partial.len()).collect()
    }
}

/// The number of samples in a set's last, partial pass.
fn rest(samples: usize, weight: f64) -> usize {
    (((weight - weight.floor()) * samples as f64).round() as usize).min(samples)
}

#[cfg(test)]
mod tests {
    use super::{MAX_SAMPLES, Mixture};

    fn mixture(sets: &[(usize, f64)], seed: u64) -> Mixture {
        Mixture::new(sets, seed).unwrap()
    }

    #[test]
    fn what_no_epoch_can_take_is_refused_before_anything_is_allocated() {
        for weight in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, 1e9, 1000.5] {
            assert!(Mixture::new(&[(4, 1.0), (60, weight)], 0).unwrap_err().contains("weight"), "{weight}");
        }
        for sets in [&[(usize::MAX, 1.0)][..], &[(usize::MAX, 2.0), (usize::MAX, 1.0)], &[(600_000_000, 1.0)]] {
            assert!(Mixture::new(sets, 0).unwrap_err().contains("500000000"));
        }
        assert_eq!(mixture(&[(7, 1000.0)], 0).len(), 7000);
        assert_eq!(mixture(&[(499_999_999, 1.0), (10, 0.1)], 0).len(), MAX_SAMPLES);
        assert_eq!(mixture(&[(7, 1e-300), (1, 1.0)], 0).len(), 1);
    }

    fn all(mixture: &Mixture) -> Vec<(usize, usize)> {
        (0..mixture.len()).map(|index| mixture.at(index).unwrap()).collect()
    }

    #[test]
    fn one_set_of_weight_one_is_itself() {
        let mixture = mixture(&[(4, 1.0)], 9);
        assert_eq!(all(&mixture), [(0, 0), (0, 1), (0, 2), (0, 3)]);
        assert_eq!(mixture.at(4), None);
    }

    #[test]
    fn a_weight_takes_the_set_that_many_times() {
        let mixture = mixture(&[(4, 2.5), (10, 0.3), (3, 0.01), (2, 1.0)], 1);
        assert_eq!(mixture.taken(), [10, 3, 0, 2]);
        assert_eq!(mixture.len(), 15);
        let drawn = all(&mixture);
        for sample in 0..4 {
            let times = drawn.iter().filter(|at| **at == (0, sample)).count();
            assert!(times == 2 || times == 3, "{drawn:?}");
        }
        let mut of_second: Vec<_> = drawn.iter().filter(|(set, _)| *set == 1).collect();
        of_second.dedup();
        assert_eq!(of_second.len(), 3, "no sample twice in a part of a turn: {drawn:?}");
        assert_eq!(drawn[13..], [(3, 0), (3, 1)]);
    }

    #[test]
    fn the_seed_alone_chooses_the_part() {
        let of = |seed| all(&mixture(&[(1000, 0.5), (1000, 0.5)], seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let drawn = of(1);
        let samples = |set| drawn.iter().filter(|at| at.0 == set).map(|at| at.1).collect::<Vec<_>>();
        assert_ne!(samples(0), samples(1), "the sets' parts are chosen apart");
    }
}
