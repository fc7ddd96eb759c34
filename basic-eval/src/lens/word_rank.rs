//! How near an image's visual embeddings are to the words of its own caption, beside the words of the other captions.
//!
//! Nearest tokens say little where an embedding is near no word at all: of tens of thousands of tokens the nearest is then
//! any. A rank among the captions' words still shows whether the picture's own words are nearer than others.

use std::collections::{BTreeSet, HashMap};

use burn::tensor::{Int, Tensor, TensorData};
use serde::Serialize;

use super::{Lens, LensError, Truth};
use crate::benchmarks::Metric;

/// The most bytes of a chunk of `[images, words]`.
const BUDGET: usize = 64 << 20;

/// The mean rank of the captions' words, with its 95% bootstrap interval over images.
#[derive(Debug, Clone, Serialize)]
pub struct WordRank {
    /// The mean over the images' words of the share of other captions' words that are nearer: 0 at best, 0.5 by chance.
    pub mean: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// The words of a data set's captions that are one token.
pub(super) struct CaptionWords {
    /// The tokens' embeddings at length 1, `[d, P]`.
    directions: Tensor<2>,
    /// For each image, which of these are words of its caption.
    own: Vec<BTreeSet<usize>>,
    words: usize,
}

impl CaptionWords {
    /// The words of the images' captions; `None` where no two images have different words that are one token, so that
    /// there is nothing to rank.
    pub fn of<'t>(
        lens: &mut Lens<'_>,
        truths: impl Iterator<Item = &'t Truth> + Clone,
    ) -> Result<Option<Self>, LensError> {
        let wanted: BTreeSet<&String> = truths.clone().flat_map(said).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        // Of several tokens of a word, that in lower case, and of those the one with the smallest id.
        let mut tokens: HashMap<String, (bool, u32)> = HashMap::new();
        for id in 0..lens.vocabulary().len() as u32 {
            let token = lens.text(id);
            if token.word && wanted.contains(&token.folded) {
                let found = (token.text.trim() != token.folded, id);
                let best = tokens.entry(token.folded.clone()).or_insert(found);
                *best = found.min(*best);
            }
        }
        let ids: BTreeSet<u32> = tokens.values().map(|(_, id)| *id).collect();
        let place: HashMap<u32, usize> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let of_image = |truth: &'t Truth| {
            let ids = said(truth).filter_map(|word| tokens.get(word));
            ids.filter_map(|(_, id)| place.get(id).copied()).collect::<BTreeSet<usize>>()
        };
        let own: Vec<BTreeSet<usize>> = truths.map(of_image).collect();
        let words = ids.len();
        if own.iter().all(|own| own.is_empty() || own.len() == words) {
            return Ok(None);
        }
        let ids: Vec<u32> = ids.into_iter().collect();
        Ok(Some(Self { directions: lens.vocabulary().directions(&ids), own, words }))
    }

    /// The rank of the captions' words by the mean cosine with an image's embeddings, from which the mean over the images
    /// is taken, so that a word that everything is near to is near to nothing. `sums` has for each image the sum of its
    /// embeddings at length 1.
    pub fn rank<'s>(&self, sums: impl Iterator<Item = &'s Vec<f32>>) -> Result<WordRank, LensError> {
        let sums: Vec<&Vec<f32>> = sums.collect();
        let width = sums.first().map_or(0, |sum| sum.len());
        let mut mean = vec![0.0_f64; width];
        for sum in &sums {
            mean.iter_mut().zip(*sum).for_each(|(mean, x)| *mean += f64::from(*x) / sums.len() as f64);
        }
        let mut ranks: Vec<(f64, f64)> = Vec::with_capacity(sums.len());
        let size = (BUDGET / (4 * self.words).max(1)).max(1);
        for (sums, own) in sums.chunks(size).zip(self.own.chunks(size)) {
            let rows = sums.iter().flat_map(|sum| sum.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - mean) as f32));
            let rows = TensorData::new(rows.collect::<Vec<f32>>(), [sums.len(), width]);
            let rows = Tensor::<2>::from_data(rows, &self.directions.device());
            let near = rows.matmul(self.directions.clone()).try_into_vec_as::<f32>()?;
            ranks.extend(near.chunks(self.words).zip(own).map(|(near, own)| ranked(near, own)));
        }
        let share = |chosen: &[usize]| {
            let (sum, words) = chosen.iter().fold((0.0, 0.0), |(s, w), i| (s + ranks[*i].0, w + ranks[*i].1));
            if words > 0.0 { sum / words } else { 0.5 }
        };
        let Metric { value, low, high, .. } = Metric::of("word rank", ranks.len(), share);
        Ok(WordRank { mean: value, low, high })
    }
}

/// The words of a caption.
fn said(truth: &Truth) -> impl Iterator<Item = &String> {
    let words = match truth {
        Truth::Words(words) => Some(words),
        Truth::Patches(_) | Truth::Any => None,
    };
    words.into_iter().flatten()
}

/// The sum over an image's own words of the share of the others that are nearer, where equal ones count half, and how
/// many own words there are.
fn ranked(near: &[f32], own: &BTreeSet<usize>) -> (f64, f64) {
    let others: Vec<f32> =
        near.iter().enumerate().filter(|(place, _)| !own.contains(place)).map(|(_, near)| *near).collect();
    if others.is_empty() {
        return (0.0, 0.0);
    }
    let share = |own: f32| {
        let above = others.iter().filter(|near| **near > own).count() as f64;
        let equal = others.iter().filter(|near| **near == own).count() as f64;
        (above + equal / 2.0) / others.len() as f64
    };
    (own.iter().map(|place| share(near[*place])).sum(), own.len() as f64)
}

impl super::Vocabulary {
    /// The embeddings of tokens at length 1, `[d, n]`.
    fn directions(&self, ids: &[u32]) -> Tensor<2> {
        let places = TensorData::new(ids.iter().map(|id| i64::from(*id)).collect::<Vec<i64>>(), [ids.len()]);
        let columns = self.columns().clone();
        let places = Tensor::<1, Int>::from_data(places, &columns.device());
        let columns = columns.select(1, places);
        columns.clone() / columns.square().sum_dim(0).sqrt().clamp_min(1e-12)
    }
}

#[cfg(test)]
mod tests {
    use basic_core::DeviceSpec;

    use super::*;

    #[test]
    fn ranks_are_those_counted_by_hand() {
        // Of three others, one is nearer than the first word, and one as near as the second.
        let (sum, words) = ranked(&[0.5, 0.9, 0.1, 0.2, 0.2], &[0, 3].into());
        assert!((sum - (1.0 / 3.0 + (1.0 + 0.5) / 3.0)).abs() < 1e-12 && words == 2.0, "{sum}");
        assert_eq!(ranked(&[0.5, 0.9], &[0, 1].into()), (0.0, 0.0), "no other word");
        assert_eq!(ranked(&[0.5, 0.9], &BTreeSet::new()), (0.0, 0.0));
    }

    #[test]
    fn what_all_images_are_near_to_does_not_count() {
        let device = DeviceSpec::Cpu.open().unwrap();
        // Words along the axes; all images lie along the third, and each a little along its own.
        let directions = Tensor::from_floats([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], &device);
        let words = |own: [usize; 2]| CaptionWords {
            directions: directions.clone(),
            own: own.map(|place| [place].into()).to_vec(),
            words: 3,
        };
        let sums = [vec![0.2, 0.1, 9.0], vec![0.1, 0.2, 9.0]];
        assert_eq!(words([0, 1]).rank(sums.iter()).unwrap().mean, 0.0);
        assert_eq!(words([1, 0]).rank(sums.iter()).unwrap().mean, 1.0);
        let none = CaptionWords { directions, own: vec![BTreeSet::new(); 2], words: 3 };
        assert_eq!(none.rank(sums.iter()).unwrap().mean, 0.5, "nothing to rank");
    }
}
