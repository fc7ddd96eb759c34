//! Checks a data set: counts what it holds and finds the samples that training would leave out, with the reason.

use std::collections::BTreeMap;

use basic_models::config::Tiles;
use basic_models::processor::{IGNORE, ProcessorError, Role, Tokenizer, render, tokenize};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::{DataError, Preparer, Sample, Samples};

/// Number of samples that are checked between two progress reports.
const CHUNK: usize = 1024;
/// Number of messages that a report keeps for each reason.
const FIRST: usize = 5;

/// Options of [`check`].
#[derive(Debug, Default)]
pub struct CheckOptions<'a> {
    /// Tokenizes the samples as well, as training would.
    pub preparer: Option<&'a Preparer>,
    /// Checks only this many samples, drawn uniformly with a fixed seed.
    pub sample: Option<usize>,
}

/// Why training would leave a sample out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is not a valid sample: not JSON, without turns, or with images and placeholders that don't match.
    Invalid,
    /// An image is missing, outside its root, or cannot be decoded.
    BrokenImage,
    /// It has more tokens than the model's context.
    OverContext,
    /// None of its tokens bears loss.
    NoTarget,
}

/// How many samples a [`Reason`] applies to, and the first messages.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Problem {
    /// Number of samples.
    pub samples: usize,
    /// The error messages of the first few.
    pub first: Vec<String>,
}

/// Lengths in tokens of the samples that could be tokenized.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TokenReport {
    /// The model's context length in tokens.
    pub context: usize,
    /// The largest allowed length of a sample in tokens: the context, or less.
    pub max_length: usize,
    /// Number of samples longer than `max_length`.
    pub over_context: usize,
    /// Text tokens outside the tokenizer's vocabulary, which it encodes as `<unk>`.
    pub unknown: usize,
    /// Number of samples with such tokens.
    pub with_unknown: usize,
    /// The place of the first sample with such tokens.
    pub first_unknown: Option<String>,
    /// Number of samples in which no token bears loss.
    pub without_target: usize,
    /// The shortest length.
    pub min: usize,
    /// The median length.
    pub median: usize,
    /// The 95th percentile of the lengths.
    pub p95: usize,
    /// The longest length.
    pub max: usize,
    /// Number of tokens in all samples, image tokens included.
    pub total: usize,
    /// Number of tokens that bear loss.
    pub targets: usize,
    /// Number of samples by length. Each bucket ends where the next one begins, at a power of two.
    pub histogram: Vec<Bucket>,
}

/// Samples of at least `from` and less than `to` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// The smallest length in the bucket.
    pub from: usize,
    /// One more than the largest length in the bucket.
    pub to: usize,
    /// Number of samples in the bucket.
    pub samples: usize,
}

/// What [`check`] found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Number of samples in the set.
    pub samples: usize,
    /// Number of samples that were checked.
    pub checked: usize,
    /// Number of usable samples without an image.
    pub text_only: usize,
    /// Number of images in the samples that could be read.
    pub images: usize,
    /// Number of samples by their number of images.
    pub images_per_sample: BTreeMap<usize, usize>,
    /// Number of samples by their number of answers.
    pub turns_per_sample: BTreeMap<usize, usize>,
    /// Number of answers before the first question, which are dropped as in LLaVA.
    pub dropped_turns: usize,
    /// Lengths in tokens; only with a checkpoint.
    pub tokens: Option<TokenReport>,
    /// Number of samples that training would leave out or stop at.
    pub unusable: usize,
    /// The reasons, with the samples that each applies to.
    pub problems: BTreeMap<Reason, Problem>,
}

/// The result of checking one sample.
#[derive(Debug, Default)]
struct Finding {
    /// Number of images and of answers; `None` if the sample could not be read.
    shape: Option<(usize, usize)>,
    dropped_turns: usize,
    tokens: Option<Counted>,
    problem: Option<(Reason, String)>,
}

/// The token counts of one sample.
#[derive(Debug)]
struct Counted {
    length: usize,
    targets: usize,
    /// Tokens outside the tokenizer's vocabulary.
    unknown: usize,
    /// Where the sample is; empty if it has no such token.
    place: String,
}

/// Reads, decodes and (with a checkpoint) tokenizes the samples on all threads. `progress` is called with the number of
/// samples finished since its last call.
///
/// # Errors
///
/// [`DataError`] that does not concern a single sample, such as a file that cannot be read.
pub fn check(
    data: &dyn Samples,
    options: &CheckOptions,
    mut progress: impl FnMut(usize),
) -> Result<CheckReport, DataError> {
    let mut indices: Vec<usize> = match options.sample {
        Some(wanted) if wanted < data.len() => {
            index::sample(&mut ChaCha8Rng::seed_from_u64(0), data.len(), wanted).into_vec()
        }
        _ => (0..data.len()).collect(),
    };
    indices.sort_unstable();
    let mut report = CheckReport { samples: data.len(), checked: indices.len(), ..CheckReport::default() };
    let mut lengths = Vec::new();
    let mut tokens = TokenReport::default();
    for chunk in indices.chunks(CHUNK) {
        let found: Result<Vec<Finding>, _> = chunk.par_iter().map(|index| look(data, *index, options)).collect();
        for finding in found? {
            if let Some((images, turns)) = finding.shape {
                report.images += images;
                *report.images_per_sample.entry(images).or_default() += 1;
                *report.turns_per_sample.entry(turns).or_default() += 1;
                report.text_only += usize::from(images == 0 && finding.problem.is_none());
            }
            report.dropped_turns += finding.dropped_turns;
            if let Some(Counted { length, targets, unknown, place }) = finding.tokens {
                lengths.push(length);
                if unknown > 0 {
                    tokens.unknown += unknown;
                    tokens.with_unknown += 1;
                    tokens.first_unknown.get_or_insert(place);
                }
                tokens.total += length;
                tokens.targets += targets;
                tokens.without_target += usize::from(targets == 0);
            }
            if let Some((reason, message)) = finding.problem {
                report.unusable += 1;
                let problem = report.problems.entry(reason).or_default();
                problem.samples += 1;
                if problem.first.len() < FIRST {
                    problem.first.push(message);
                }
            }
        }
        progress(chunk.len());
    }
    report.tokens = options.preparer.map(|preparer| {
        let (context, max_length) = (preparer.context(), preparer.max_length());
        let over_context = lengths.iter().filter(|length| **length > max_length).count();
        TokenReport { context, max_length, over_context, ..with_lengths(tokens, lengths) }
    });
    Ok(report)
}

fn with_lengths(mut tokens: TokenReport, mut lengths: Vec<usize>) -> TokenReport {
    lengths.sort_unstable();
    let at = |share: f64| lengths.get(((lengths.len() as f64 * share) as usize).min(lengths.len().saturating_sub(1)));
    tokens.min = at(0.0).copied().unwrap_or(0);
    tokens.median = at(0.5).copied().unwrap_or(0);
    tokens.p95 = at(0.95).copied().unwrap_or(0);
    tokens.max = at(1.0).copied().unwrap_or(0);
    let mut from = 0;
    let mut to = 32;
    let mut rest = &lengths[..];
    while !rest.is_empty() {
        let samples = rest.partition_point(|length| *length < to);
        if samples > 0 || !tokens.histogram.is_empty() {
            tokens.histogram.push(Bucket { from, to, samples });
        }
        rest = &rest[samples..];
        (from, to) = (to, to * 2);
    }
    tokens
}

fn look(data: &dyn Samples, index: usize, options: &CheckOptions) -> Result<Finding, DataError> {
    let mut finding = Finding::default();
    let sample = match data.sample(index) {
        Ok(sample) => sample,
        Err(error) if error.is_sample() => {
            let image = matches!(error, DataError::Image { .. } | DataError::ImageFile { .. });
            let reason = if image { Reason::BrokenImage } else { Reason::Invalid };
            finding.problem = Some((reason, error.to_string()));
            return Ok(finding);
        }
        Err(error) => return Err(error),
    };
    let answers = sample.messages.iter().filter(|message| message.role == Role::Assistant).count();
    finding.shape = Some((sample.images.len(), answers));
    finding.dropped_turns = sample.dropped_turns;
    let broken = sample.images.iter().find_map(|image| match options.preparer {
        Some(preparer) => preparer.pixels(image).err(),
        None => image.decode().err(),
    });
    finding.problem = broken.map(|error| (Reason::BrokenImage, sample.image_error(error.into()).to_string()));
    if let Some(preparer) = options.preparer {
        finding.tokens = lengths(&sample, preparer);
        if finding.problem.is_none()
            && let Err(error) = preparer.prepare(&sample)
        {
            let reason = match &error {
                DataError::Conversation { source: ProcessorError::NothingSupervised { .. }, .. } => Reason::NoTarget,
                DataError::TooLong { .. } => Reason::OverContext,
                _ => Reason::Invalid,
            };
            finding.problem = Some((reason, error.to_string()));
        }
    }
    Ok(finding)
}

/// Counts a sample's tokens before any length limit is applied.
fn lengths(sample: &Sample, preparer: &Preparer) -> Option<Counted> {
    let tokenizer = preparer.tokenizer();
    let pieces = render(preparer.style(), &sample.messages, tokenizer.specials()).ok()?;
    let none = Counted { length: 0, targets: 0, unknown: 0, place: String::new() };
    let tiles: Vec<Tiles> = sample.images.iter().map(|image| preparer.tiles(image)).collect::<Result<_, _>>().ok()?;
    match tokenize(tokenizer, &pieces, &tiles) {
        Ok(example) => {
            let targets = example.labels.iter().filter(|label| **label != IGNORE).count();
            let id = unknown_id(tokenizer);
            let unknown = example.ids.iter().filter(|token| Some(**token) == id).count();
            let place =
                if unknown > 0 { format!("{}: sample {}", sample.file.display(), sample.place) } else { String::new() };
            Some(Counted { length: example.ids.len(), targets, unknown, place })
        }
        Err(ProcessorError::NothingSupervised { tokens }) => Some(Counted { length: tokens, ..none }),
        Err(_) => None,
    }
}

/// The id of the tokenizer's unknown token; `None` if that token also serves as another special token.
fn unknown_id(tokenizer: &Tokenizer) -> Option<u32> {
    let specials = tokenizer.specials();
    let name = specials.unk.as_deref().unwrap_or("<unk>");
    let taken = [&specials.bos, &specials.eos].into_iter().flatten().any(|other| other == name);
    tokenizer.id_of(name).filter(|_| !taken && specials.image != name)
}

#[cfg(test)]
mod tests {
    use super::{Bucket, CheckOptions, Reason, TokenReport, check, with_lengths};
    use crate::{DataConfig, DataSet};

    #[test]
    fn lengths_are_counted_by_powers_of_two() {
        let report = with_lengths(TokenReport::default(), vec![300, 40, 33, 64, 90, 41, 42, 43, 44, 45]);
        assert_eq!((report.min, report.median, report.p95, report.max), (33, 44, 300, 300));
        let bucket = |from, to, samples| Bucket { from, to, samples };
        assert_eq!(report.histogram, [bucket(32, 64, 7), bucket(64, 128, 2), bucket(128, 256, 0), bucket(256, 512, 1)]);
        assert_eq!(with_lengths(TokenReport::default(), Vec::new()).histogram, []);
    }

    #[test]
    fn what_is_wrong_is_counted_and_the_first_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let turns = r#""conversations": [{"from": "human", "value": "PLACEq"}, {"from": "gpt", "value": "a"}]"#;
        let with = |place: &str| turns.replace("PLACE", place);
        image::RgbImage::new(4, 4).save(dir.path().join("a.png")).unwrap();
        std::fs::write(dir.path().join("broken.png"), "no png").unwrap();
        let mut lines = vec![
            format!("{{{}}}", with("")),
            format!(r#"{{"image": "a.png", {}}}"#, with("<image>")),
            format!(r#"{{"image": ["a.png", "a.png"], {}}}"#, with("<image><image>")),
            format!(r#"{{"image": "broken.png", {}}}"#, with("<image>")),
            format!(r#"{{"image": "../a.png", {}}}"#, with("<image>")),
        ];
        lines.extend((0..7).map(|i| format!("{{\"id\": {i}")));
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        let data = DataSet::open(&DataConfig::new(&path), 0).unwrap();
        let mut done = 0;
        let report = check(&data, &CheckOptions::default(), |more| done += more).unwrap();
        assert_eq!((report.samples, report.checked, done), (12, 12, 12));
        assert_eq!((report.text_only, report.images, report.unusable), (1, 4, 9));
        assert_eq!(report.images_per_sample.into_iter().collect::<Vec<_>>(), [(0, 1), (1, 2), (2, 1)]);
        let broken = &report.problems[&Reason::BrokenImage];
        assert_eq!(broken.samples, 2);
        assert!(broken.first[0].contains("sample 3") && broken.first[1].contains("sample 4"), "{broken:?}");
        let invalid = &report.problems[&Reason::Invalid];
        assert_eq!((invalid.samples, invalid.first.len()), (7, 5));
        let some = check(&data, &CheckOptions { sample: Some(3), ..CheckOptions::default() }, |_| {}).unwrap();
        assert_eq!((some.samples, some.checked), (12, 3));
    }
}
