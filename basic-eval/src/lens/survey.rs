//! Applies the lens to a data set: the share of meaningful visual embeddings at every layer, and how the embeddings
//! change with depth.

use std::collections::{BTreeMap, HashMap};

use basic_data::prepare;
use basic_models::processor::Style;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::meaning::Scenes;
use super::prompt_reading::mean;
use super::word_rank::{CaptionWords, WordRank};
use super::{Cases, Lens, LensError, Meaning, Near, Rule, TokenText, Truth, content_words};
use crate::benchmarks::Metric;

/// What images have in common and the ranks of words are computed from the first images alone: for each of them, a vector
/// of the embeddings' width is kept at every layer.
const COMPARED: usize = 1000;
/// How many shuffles the chance level is averaged over.
const SHUFFLES: usize = 20;

/// The lens's result for a data set.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// How many samples with an image were read.
    pub samples: usize,
    /// How many images they have.
    pub images: usize,
    /// The number of visual embeddings of an image (m).
    pub visual_tokens: usize,
    /// The number of supervising layers (k).
    pub k: usize,
    /// The mean length (L2 norm) of the token embeddings.
    pub token_norm: f64,
    /// The end token's id; `None` if the checkpoint names none.
    pub end_token: Option<u32>,
    /// The rule for meaningful embeddings.
    pub meaningful: Meaning,
    /// How much the V^ of different images have in common, of the first 1,000; `None` with fewer than two images.
    pub target_anisotropy: Option<Anisotropy>,
    /// How near the V^ are to the words of their image's caption, of the first 1,000; `None` as at the layers.
    pub target_word_rank: Option<WordRank>,
    /// The results by layer, where layer 0 is the projector's output.
    pub layers: Vec<LayerShare>,
}

/// Means over the visual embeddings of a data set, at one layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerShare {
    /// 0 for the projector's output, h for decoder layer h.
    pub layer: usize,
    /// How many visual embeddings count by the rule.
    pub counted: usize,
    /// The share of these that is meaningful.
    pub meaningful: f64,
    /// The lower end of the share's 95% bootstrap interval over images.
    pub low: f64,
    /// The upper end of that interval.
    pub high: f64,
    /// The share that would be meaningful by chance: with the captions of other images, or with the embeddings shuffled
    /// among the labelled patches. `None` for the rule `word`, or if there is nothing to shuffle.
    pub chance: Option<f64>,
    /// The mean number of meaningful visual embeddings per image; at layer 0 this corresponds to the paper's count.
    pub per_image: f64,
    /// The mean cosine with the nearest token.
    pub similarity: f64,
    /// The share whose nearest token is the end token; `None` without an end token.
    pub end_share: Option<f64>,
    /// The mean cosine with the end token; `None` without an end token.
    pub end_cosine: Option<f64>,
    /// The mean length (L2 norm) of the embeddings.
    pub norm: f64,
    /// The mean angle to V^ in degrees.
    pub angle: f64,
    /// How much the embeddings of different images have in common, of the first 1,000; `None` with fewer than two images.
    pub anisotropy: Option<Anisotropy>,
    /// How near the embeddings are to the words of their image's caption, of the first 1,000; `None` for other rules than
    /// `caption`, and if the captions have no different words that are one token.
    pub word_rank: Option<WordRank>,
}

/// The data of an image that the statistics need.
struct Seen {
    truth: Truth,
    layers: Vec<Kept>,
    target_direction: Vec<f32>,
}

/// The data of an image at one layer that the statistics need.
struct Kept {
    layer: usize,
    nearest: Vec<Near>,
    end_share: Option<f64>,
    end_cosine: Option<f64>,
    norm: f64,
    angle: f64,
    direction: Vec<f32>,
}

/// Applies the lens to the samples with these indices, with prompts rendered in `style` as in training.
/// [`Rule::Labels`] needs `scenes`. `progress` is called with the number of samples read so far.
///
/// # Errors
///
/// [`LensError`] that names the file and the sample, or the image.
pub fn survey(
    lens: &mut Lens<'_>,
    cases: &Cases,
    indices: &[usize],
    style: &Style,
    scenes: Option<&Scenes>,
    progress: &mut dyn FnMut(usize),
) -> Result<Survey, LensError> {
    let mut images: Vec<Seen> = Vec::new();
    let mut tokens: BTreeMap<u32, TokenText> = BTreeMap::new();
    for (done, index) in indices.iter().enumerate() {
        let case = cases.get(*index)?;
        let prepared = prepare(&case.sample, lens.checkpoint(), style)?;
        let mut truths = Vec::with_capacity(prepared.images.len());
        for image in &prepared.images {
            truths.push(match (lens.meaning().rule, scenes) {
                (Rule::Caption, _) => Truth::Words(content_words(&case.said)),
                (Rule::Labels, Some(scenes)) => scenes.truth(image.name(), lens.grid())?,
                (Rule::Labels, None) => Truth::Patches(Vec::new()),
                (Rule::Word, _) => Truth::Any,
            });
        }
        let reading = lens.read(prepared.tokens, &prepared.images, &truths)?;
        for (image, truth) in reading.images.into_iter().zip(truths) {
            let kept = |direction: Vec<f32>| if images.len() < COMPARED { direction } else { Vec::new() };
            let layers = image.layers.into_iter().map(|layer| Kept {
                layer: layer.layer,
                nearest: layer.nearest.into_iter().filter_map(|near| near.first().copied()).collect(),
                end_share: layer.end_share,
                end_cosine: layer.end_cosine,
                norm: mean(layer.norm.into_iter()).unwrap_or(0.0),
                angle: mean(layer.angle.into_iter()).unwrap_or(0.0),
                direction: kept(layer.direction),
            });
            let (layers, target_direction) = (layers.collect(), kept(image.target_direction));
            images.push(Seen { truth, layers, target_direction });
        }
        tokens.extend(reading.tokens);
        progress(done + 1);
    }
    let layers = images.first().map_or(0, |image| image.layers.len());
    let judge = Judge { meaning: lens.meaning(), tokens: &tokens };
    let compared = &images[..images.len().min(COMPARED)];
    let words = CaptionWords::of(lens, compared.iter().map(|image| &image.truth))?;
    let rank =
        |of: &dyn Fn(&Seen) -> &Vec<f32>| words.as_ref().map(|words| words.rank(compared.iter().map(of))).transpose();
    let layers = (0..layers).map(|at| {
        let word_rank = rank(&|image| &image.layers[at].direction)?;
        Ok(LayerShare { word_rank, ..judge.layer(&images, at) })
    });
    let layers = layers.collect::<Result<Vec<_>, LensError>>()?;
    Ok(Survey {
        samples: indices.len(),
        images: images.len(),
        visual_tokens: lens.grid().places.len(),
        k: lens.k(),
        token_norm: lens.vocabulary().mean_norm(),
        end_token: lens.end_token(),
        meaningful: lens.meaning(),
        target_anisotropy: Anisotropy::of(
            lens.grid().places.len(),
            compared.iter().map(|image| &image.target_direction),
        ),
        target_word_rank: rank(&|image| &image.target_direction)?,
        layers,
    })
}

struct Judge<'a> {
    meaning: Meaning,
    tokens: &'a BTreeMap<u32, TokenText>,
}

impl Judge<'_> {
    /// Whether the nearest token of embedding `index` is meaningful.
    fn judge(&self, truth: &Truth, index: usize, near: Near) -> Option<bool> {
        self.meaning.judge(truth, index, self.tokens.get(&near.0)?, near.1)
    }

    fn layer(&self, images: &[Seen], at: usize) -> LayerShare {
        // For each image: how many embeddings are meaningful, and how many count.
        let counts: Vec<(f64, f64)> = images
            .iter()
            .map(|image| {
                let nearest = image.layers[at].nearest.iter().enumerate();
                let judged = nearest.filter_map(|(index, near)| self.judge(&image.truth, index, *near));
                judged.fold((0.0, 0.0), |(hits, all), hit| (hits + f64::from(u8::from(hit)), all + 1.0))
            })
            .collect();
        let share = |chosen: &[usize]| {
            let (hits, all) = chosen.iter().fold((0.0, 0.0), |(h, a), i| (h + counts[*i].0, a + counts[*i].1));
            if all > 0.0 { hits / all } else { 0.0 }
        };
        let metric = Metric::of("meaningful", images.len(), share);
        let average = |of: &dyn Fn(&Kept) -> f64| {
            images.iter().map(|image| of(&image.layers[at])).sum::<f64>() / images.len().max(1) as f64
        };
        let optional = |of: fn(&Kept) -> Option<f64>| {
            let first = images.first().and_then(|image| of(&image.layers[at]));
            first.map(|_| average(&|kept| of(kept).unwrap_or(0.0)))
        };
        LayerShare {
            layer: images.first().map_or(0, |image| image.layers[at].layer),
            counted: counts.iter().map(|(_, all)| *all as usize).sum(),
            meaningful: metric.value,
            low: metric.low,
            high: metric.high,
            chance: match self.meaning.rule {
                Rule::Caption => self.other_captions(images, at),
                Rule::Labels => self.shuffled(images, at),
                Rule::Word => None,
            },
            per_image: counts.iter().map(|(hits, _)| hits).sum::<f64>() / images.len().max(1) as f64,
            similarity: average(&|kept| mean(kept.nearest.iter().map(|(_, s)| *s)).unwrap_or(0.0)),
            end_share: optional(|kept| kept.end_share),
            end_cosine: optional(|kept| kept.end_cosine),
            norm: average(&|kept| kept.norm),
            angle: average(&|kept| kept.angle),
            anisotropy: Anisotropy::of(
                images.first().map_or(0, |image| image.layers[at].nearest.len()),
                images.iter().take(COMPARED).map(|image| &image.layers[at].direction),
            ),
            word_rank: None,
        }
    }

    /// The share with every image judged by the caption of another image, averaged over shuffles.
    fn other_captions(&self, images: &[Seen], at: usize) -> Option<f64> {
        if images.len() < 2 {
            return None;
        }
        // An image has few distinct nearest tokens, so it is enough to count how often each is near enough.
        let near_enough = |near: &&Near| self.meaning.min_similarity.is_none_or(|least| near.1 >= least);
        let mut all = 0;
        let counts: Vec<HashMap<u32, usize>> = images
            .iter()
            .map(|image| {
                let nearest = &image.layers[at].nearest;
                all += nearest.len();
                nearest.iter().filter(near_enough).fold(HashMap::new(), |mut counts, (id, _)| {
                    *counts.entry(*id).or_default() += 1;
                    counts
                })
            })
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut hits = 0;
        for _ in 0..SHUFFLES {
            for (counts, other) in counts.iter().zip(derangement(images.len(), &mut rng)) {
                let fits = |id: &u32| {
                    self.tokens.get(id).is_some_and(|token| match &images[other].truth {
                        Truth::Words(words) => words.contains(&token.folded),
                        Truth::Patches(_) | Truth::Any => false,
                    })
                };
                hits += counts.iter().filter(|(id, _)| fits(id)).map(|(_, n)| n).sum::<usize>();
            }
        }
        Some(hits as f64 / (all * SHUFFLES).max(1) as f64)
    }

    /// The share with the embeddings shuffled among the labelled patches of all images, averaged over shuffles.
    fn shuffled(&self, images: &[Seen], at: usize) -> Option<f64> {
        let mut nearest = Vec::new();
        let mut truths = Vec::new();
        for image in images {
            for (index, near) in image.layers[at].nearest.iter().enumerate() {
                if let Truth::Patches(patches) = &image.truth
                    && let Some(Some(words)) = patches.get(index)
                {
                    nearest.push(*near);
                    truths.push(Truth::Patches(vec![Some(*words)]));
                }
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut hits = 0;
        for _ in 0..SHUFFLES {
            nearest.shuffle(&mut rng);
            hits +=
                nearest.iter().zip(&truths).filter(|(near, truth)| self.judge(truth, 0, **near) == Some(true)).count();
        }
        (!nearest.is_empty()).then(|| hits as f64 / (nearest.len() * SHUFFLES) as f64)
    }
}

/// How much embeddings of different images have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Anisotropy {
    /// The mean cosine between two embeddings of different images.
    pub cosine: f64,
    /// The three dimensions that add most to it, and what they add; all dimensions together add the cosine.
    pub dimensions: Vec<(usize, f64)>,
}

/// How many dimensions are told.
const DIMENSIONS: usize = 3;

impl Anisotropy {
    /// From the sum over each image's embeddings at length 1, of which each image has `m`. Of all pairs, those within an
    /// image are left out. `None` with fewer than two images.
    fn of<'a>(m: usize, directions: impl Iterator<Item = &'a Vec<f32>>) -> Option<Self> {
        let (mut total, mut within, mut images): (Vec<f64>, Vec<f64>, usize) = (Vec::new(), Vec::new(), 0);
        for direction in directions {
            total.resize(direction.len(), 0.0);
            within.resize(direction.len(), 0.0);
            for ((total, within), x) in total.iter_mut().zip(&mut within).zip(direction) {
                *total += f64::from(*x);
                *within += f64::from(*x).powi(2);
            }
            images += 1;
        }
        let pairs = images * images.saturating_sub(1) * m * m;
        if pairs == 0 {
            return None;
        }
        let add = |(total, within): (&f64, &f64)| (total * total - within) / pairs as f64;
        let mut dimensions: Vec<(usize, f64)> = total.iter().zip(&within).map(add).enumerate().collect();
        let cosine = dimensions.iter().map(|(_, added)| added).sum();
        dimensions.sort_by(|a, b| b.1.total_cmp(&a.1));
        dimensions.truncate(DIMENSIONS);
        Some(Self { cosine, dimensions })
    }
}

/// A random permutation of `n` items that leaves none in its place: a cycle, by Sattolo's algorithm.
fn derangement(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..i));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> TokenText {
        TokenText { token: Some(text.into()), text: text.into(), folded: text.into(), word: true }
    }

    fn seen(caption: &str, nearest: &[Near]) -> Seen {
        let kept = Kept {
            layer: 0,
            nearest: nearest.to_vec(),
            end_share: None,
            end_cosine: None,
            norm: 2.0,
            angle: 30.0,
            direction: vec![0.0; 2],
        };
        Seen { truth: Truth::Words(content_words(caption)), layers: vec![kept], target_direction: vec![0.0; 2] }
    }

    fn tokens() -> BTreeMap<u32, TokenText> {
        [(1, token("dog")), (2, token("cat")), (3, token("sky"))].into()
    }

    #[test]
    fn shares_counts_and_chance_are_those_counted_by_hand() {
        let tokens = tokens();
        let judge = Judge { meaning: Meaning { rule: Rule::Caption, min_similarity: None }, tokens: &tokens };
        // Two images have a single derangement, which swaps their captions. Counted by hand: 2 of 4 and 1 of 4
        // embeddings are meaningful; with swapped captions 1 of 4 and 0 of 4.
        let images = [
            seen("a dog", &[(1, 0.5), (1, 0.3), (2, 0.2), (3, 0.2)]),
            seen("cat", &[(2, 0.5), (3, 0.3), (3, 0.2), (3, 0.2)]),
        ];
        let layer = judge.layer(&images, 0);
        assert_eq!((layer.counted, layer.meaningful, layer.per_image), (8, 3.0 / 8.0, 1.5));
        assert_eq!(layer.chance, Some(1.0 / 8.0));
        assert!((layer.similarity - 0.3).abs() < 1e-7 && layer.norm == 2.0 && layer.angle == 30.0);
        assert!(layer.low <= layer.meaningful && layer.meaningful <= layer.high);
        assert_eq!(judge.layer(&images[..1], 0).chance, None, "one caption cannot be swapped");
        let strict = Judge { meaning: Meaning { rule: Rule::Caption, min_similarity: Some(0.4) }, tokens: &tokens };
        assert_eq!((strict.layer(&images, 0).meaningful, strict.layer(&images, 0).chance), (2.0 / 8.0, Some(0.0)));
    }

    #[test]
    fn labels_are_shuffled_among_the_labelled_patches() {
        let tokens = tokens();
        let judge = Judge { meaning: Meaning { rule: Rule::Labels, min_similarity: None }, tokens: &tokens };
        let mut image = seen("", &[(1, 0.5), (2, 0.5), (3, 0.5)]);
        image.truth = Truth::Patches(vec![Some(["dog", "-", "-"]), None, Some(["sky", "-", "-"])]);
        let layer = judge.layer(&[image], 0);
        assert_eq!((layer.counted, layer.meaningful, layer.per_image), (2, 1.0, 2.0));
        // With two labelled patches a shuffle keeps both or swaps both, so each adds 1 or 0.
        let chance = layer.chance.unwrap();
        assert!(chance > 0.0 && chance < 1.0, "{chance}");
        assert!(((chance * 20.0).round() - chance * 20.0).abs() < 1e-9, "{chance}");
    }

    #[test]
    fn anisotropy_is_the_mean_cosine_of_pairs_from_different_images() {
        // Unit vectors at these angles, two for each image.
        let images = [[10.0_f64, 70.0], [15.0, 200.0], [300.0, 44.0]];
        let direction = |angles: &[f64; 2]| {
            let sum = |of: fn(f64) -> f64| angles.iter().map(|angle| of(angle.to_radians())).sum::<f64>() as f32;
            vec![sum(f64::cos), sum(f64::sin)]
        };
        let mut cosines = Vec::new();
        for (at, one) in images.iter().enumerate() {
            for other in &images[at + 1..] {
                cosines.extend(one.iter().flat_map(|a| other.map(|b| (a - b).to_radians().cos())));
            }
        }
        let wanted = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let directions: Vec<Vec<f32>> = images.iter().map(direction).collect();
        let found = Anisotropy::of(2, directions.iter()).unwrap();
        assert!((found.cosine - wanted).abs() < 1e-6, "{found:?} and {wanted}");
        let [(first, most), (_, least)] = found.dimensions[..] else { panic!("two dimensions: {found:?}") };
        assert!((most + least - wanted).abs() < 1e-6 && most >= least && first == 0, "{found:?}");
        assert_eq!(Anisotropy::of(2, directions[..1].iter()), None);
        assert_eq!(Anisotropy::of(2, std::iter::empty()), None);
    }

    #[test]
    fn nothing_stays_where_it_is_in_a_derangement() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for n in 2..9 {
            let order = derangement(n, &mut rng);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n) && order.iter().enumerate().all(|(i, o)| i != *o), "{order:?}");
        }
    }
}
