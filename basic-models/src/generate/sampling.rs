//! Chooses the next token from its logits, on the host.
//!
//! The arithmetic is that of transformers' logits processors, in f32 where they compute in f32, so that the same tokens
//! survive (`RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`,
//! `MinPLogitsWarper`).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{GenerationConfig, Sampling};

/// Chooses the tokens of one row.
pub(super) struct Chooser {
    seen: Option<(f32, Vec<bool>)>, // the penalty, and for each id whether the row contains it
    sampling: Option<(Sampling, ChaCha8Rng)>,
}

/// The token that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub id: u32,
    /// The difference between the largest and the second largest logit, after the repetition penalty.
    pub gap: f32,
}

impl Chooser {
    /// A chooser for row `row` with this prompt.
    pub fn new(config: &GenerationConfig, row: usize, prompt: &[u32], vocabulary: usize) -> Self {
        let penalty = config.repetition_penalty as f32;
        let seen = (penalty != 1.0).then(|| {
            let mut seen = vec![false; vocabulary];
            prompt.iter().for_each(|id| mark(&mut seen, *id));
            (penalty, seen)
        });
        let sampling = config.sampling.map(|sampling| {
            let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
            rng.set_stream(row as u64);
            (sampling, rng)
        });
        Self { seen, sampling }
    }

    /// Chooses the next token from its logits, of which there must be at least one.
    pub fn choose(&mut self, logits: &[f32]) -> Choice {
        let mut penalized = Vec::new();
        let scores = match &self.seen {
            Some((penalty, seen)) => {
                penalized.extend_from_slice(logits);
                penalize(&mut penalized, seen, *penalty);
                &penalized
            }
            None => logits,
        };
        let top = largest(scores, 2);
        let gap = top.get(1).map_or(f32::INFINITY, |second| top[0].1 - second.1);
        let id = match &mut self.sampling {
            Some((sampling, rng)) => draw(&survivors(scores, sampling), rng.random::<f64>()),
            None => top[0].0,
        };
        if let Some((_, seen)) = &mut self.seen {
            mark(seen, id);
        }
        Choice { id, gap }
    }
}

/// An image token's id may lie outside the output head; such a token cannot be generated, nor penalized.
fn mark(seen: &mut [bool], id: u32) {
    if let Some(seen) = seen.get_mut(id as usize) {
        *seen = true;
    }
}

/// Lowers the logits of seen ids: positive ones are divided by the penalty, negative ones multiplied.
fn penalize(scores: &mut [f32], seen: &[bool], penalty: f32) {
    for (score, _) in scores.iter_mut().zip(seen).filter(|(_, seen)| **seen) {
        *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
    }
}

/// The tokens that can be drawn, in the order of their ids, with their scores.
fn survivors(scores: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let temperature = (sampling.temperature as f32).max(f32::MIN_POSITIVE);
    let mut kept: Vec<(u32, f32)> = scores.iter().enumerate().map(|(id, x)| (id as u32, x / temperature)).collect();
    if (1..kept.len()).contains(&sampling.top_k) {
        let mut sorted: Vec<f32> = kept.iter().map(|(_, x)| *x).collect();
        let (_, last, _) = sorted.select_nth_unstable_by(sampling.top_k - 1, |a, b| b.total_cmp(a));
        let last = *last;
        kept.retain(|(_, x)| *x >= last);
    }
    if sampling.top_p < 1.0 {
        // From the least likely token on, tokens are dropped while their total probability is at most `1 - top_p`.
        let rest = (1.0 - sampling.top_p) as f32;
        let probabilities = softmax(&kept);
        let mut order: Vec<usize> = (0..kept.len()).collect();
        order.sort_by(|a, b| kept[*a].1.total_cmp(&kept[*b].1));
        let (mut sum, mut stays) = (0.0, vec![true; kept.len()]);
        for place in &order[..order.len() - 1] {
            sum += f64::from(probabilities[*place]);
            stays[*place] = sum as f32 > rest;
        }
        let mut stays = stays.into_iter();
        kept.retain(|_| stays.next() == Some(true));
    }
    if sampling.min_p > 0.0 {
        let probabilities = softmax(&kept);
        let bound = sampling.min_p as f32 * probabilities.iter().copied().fold(0.0, f32::max);
        let mut probabilities = probabilities.into_iter();
        kept.retain(|_| probabilities.next().is_some_and(|p| p >= bound));
    }
    kept
}

/// The weight of each token relative to the most likely one. Scores that a small temperature made
/// infinite count as equal.
fn weights(kept: &[(u32, f32)]) -> impl Iterator<Item = f64> {
    let top = kept.iter().map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max);
    kept.iter().map(move |(_, x)| if *x == top { 1.0 } else { f64::from(x - top).exp() })
}

fn softmax(kept: &[(u32, f32)]) -> Vec<f32> {
    let sum: f64 = weights(kept).sum();
    weights(kept).map(|weight| (weight / sum) as f32).collect()
}

/// The token at position `at`, in [0, 1), of the cumulative distribution.
fn draw(kept: &[(u32, f32)], at: f64) -> u32 {
    let mut left = at * weights(kept).sum::<f64>();
    let mut chosen = 0;
    for ((id, _), weight) in kept.iter().zip(weights(kept)).filter(|(_, weight)| *weight > 0.0) {
        chosen = *id;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    chosen
}

/// The `n` largest scores, largest first; of equal ones the lower id comes first, as with `argmax`.
pub(super) fn largest(scores: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    for (id, score) in scores.iter().enumerate() {
        if best.len() == n && best.last().is_some_and(|(_, last)| score <= last) {
            continue;
        }
        let place = best.iter().position(|(_, other)| score > other).unwrap_or(best.len());
        best.insert(place, (id as u32, *score));
        best.truncate(n);
    }
    best
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_largest_scores_come_in_order_and_equals_keep_theirs() {
        assert_eq!(largest(&[1.0, 3.0, 3.0, -1.0], 3), vec![(1, 3.0), (2, 3.0), (0, 1.0)]);
        assert_eq!(largest(&[0.5], 5), vec![(0, 0.5)]);
        assert_eq!(largest(&[1.0, 1.0, 2.0], 1), vec![(2, 2.0)]);
    }

    /// A row of the fixture; null stands for a filtered score.
    fn row(value: &Value) -> Vec<f32> {
        let number = |x: &Value| x.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32);
        value.as_array().unwrap().iter().map(number).collect()
    }

    fn config(settings: &Value) -> GenerationConfig {
        let number = |key: &str, default: f64| settings[key].as_f64().unwrap_or(default);
        GenerationConfig {
            repetition_penalty: number("repetition_penalty", 1.0),
            sampling: Some(Sampling {
                temperature: number("temperature", 1.0),
                top_k: number("top_k", 0.0) as usize,
                top_p: number("top_p", 1.0),
                min_p: number("min_p", 0.0),
                seed: 0,
            }),
            ..GenerationConfig::greedy(1, Vec::new(), 0)
        }
    }

    #[test]
    fn every_filter_and_their_combinations_leave_what_transformers_leaves() {
        // From tests/reference/generation_fixtures.py warpers.
        let fixture: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/generation/warpers.json")).unwrap();
        let (mut compared, mut filtered) = (0, 0);
        for case in fixture["cases"].as_array().unwrap() {
            let config = config(&case["settings"]);
            for (i, expected) in case["scores"].as_array().unwrap().iter().map(row).enumerate() {
                let mut scores = row(&fixture["logits"][i]);
                let prompt: Vec<u32> = serde_json::from_value(fixture["prompts"][i].clone()).unwrap();
                if let Some((penalty, seen)) = &Chooser::new(&config, i, &prompt, scores.len()).seen {
                    penalize(&mut scores, seen, *penalty);
                }
                let mut ours = vec![f32::NEG_INFINITY; scores.len()];
                for (id, score) in survivors(&scores, &config.sampling.unwrap()) {
                    ours[id as usize] = score;
                }
                let same = |a: f32, b: f32| a == b || (a - b).abs() <= 2e-7 * b.abs();
                for (id, (ours, theirs)) in ours.iter().zip(&expected).enumerate() {
                    // It is not specified which of several equal scores top-p keeps: torch's sort is not stable.
                    let equals = scores.iter().filter(|score| **score == scores[id]).count();
                    let fits = same(*ours, *theirs) || equals > 1;
                    assert!(fits, "{}, row {i}, id {id}: {ours} is not {theirs}", case["name"]);
                }
                let sorted = |mut scores: Vec<f32>| {
                    scores.sort_by(f32::total_cmp);
                    scores
                };
                let pairs = sorted(ours).into_iter().zip(sorted(expected.clone()));
                assert!(pairs.into_iter().all(|(ours, theirs)| same(ours, theirs)), "{}, row {i}", case["name"]);
                compared += expected.len();
                filtered += expected.iter().filter(|x| x.is_infinite()).count();
            }
        }
        assert!(compared > 2000 && filtered > 500, "{compared} compared, {filtered} filtered out");
    }

    #[test]
    fn draws_follow_the_distribution_of_what_is_left() {
        let probabilities = [0.5f32, 0.3, 0.15, 0.05];
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let count = |sampling: Sampling| {
            let config = GenerationConfig { sampling: Some(sampling), ..config(&Value::Null) };
            let mut chooser = Chooser::new(&config, 0, &[], 4);
            let mut counts = [0usize; 4];
            (0..20_000).for_each(|_| counts[chooser.choose(&logits).id as usize] += 1);
            counts.map(|n| n as f32 / 20_000.0)
        };
        // For 20,000 draws, five standard deviations of a share are below 0.018.
        for (share, expected) in count(Sampling::default()).iter().zip(probabilities) {
            assert!((share - expected).abs() < 0.018, "{share} is not {expected}");
        }
        let top = count(Sampling { top_k: 2, ..Sampling::default() });
        assert!((top[0] - 0.625).abs() < 0.018 && top[2..] == [0.0, 0.0], "{top:?}");
        let cold = count(Sampling { temperature: 1e-60, ..Sampling::default() });
        assert_eq!(cold, [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_ends_of_the_distribution_belong_to_the_first_and_the_last_token() {
        let kept = [(3, 0.0), (5, f32::NEG_INFINITY), (8, 0.0), (9, f32::NEG_INFINITY)];
        assert_eq!(draw(&kept, 0.0), 3);
        assert_eq!(draw(&kept, 0.5), 8);
        assert_eq!(draw(&kept, 1.0), 8, "rounding must not reach a token without probability");
    }

    #[test]
    fn a_penalty_counts_what_was_generated() {
        let config = GenerationConfig { repetition_penalty: 2.0, ..GenerationConfig::greedy(9, Vec::new(), 0) };
        let mut chooser = Chooser::new(&config, 0, &[1, 77], 3);
        let ids: Vec<u32> = (0..3).map(|_| chooser.choose(&[3.0, 4.0, 1.6]).id).collect();
        // 4 counts as 2 from the start, and 3 as 1.5 after it was chosen.
        assert_eq!(ids, [0, 1, 1]);
        assert_eq!(chooser.choose(&[3.0, 4.0, 2.5]), Choice { id: 2, gap: 0.5 });
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let sampled = |sampling| GenerationConfig { sampling: Some(sampling), ..config(&Value::Null) };
        let base = Sampling::default();
        let bad = [
            (sampled(Sampling { temperature: 0.0, ..base }), "temperature is 0"),
            (sampled(Sampling { temperature: f64::NAN, ..base }), "temperature is NaN"),
            (sampled(Sampling { top_p: 0.0, ..base }), "top_p is 0"),
            (sampled(Sampling { top_p: 1.5, ..base }), "top_p is 1.5"),
            (sampled(Sampling { min_p: -0.1, ..base }), "min_p is -0.1"),
            (GenerationConfig { repetition_penalty: 0.0, ..config(&Value::Null) }, "repetition_penalty is 0"),
        ];
        for (config, message) in bad {
            assert!(config.validate().unwrap_err().to_string().starts_with(message), "{message}");
        }
        sampled(base).validate().unwrap();
    }
}
