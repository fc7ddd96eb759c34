//! What a data set holds, and what training would leave out of it and why.

use std::collections::BTreeMap;

use basic_models::processor::{IGNORE, ProcessorError, Role, Tokenizer, render, tokenize};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::{DataError, Preparer, Sample, Samples};

/// Samples looked at between two reports of progress.
const CHUNK: usize = 1024;
/// Places that a report names for each reason.
const FIRST: usize = 5;

/// How to check.
#[derive(Debug, Default)]
pub struct CheckOptions<'a> {
    /// Also tokenize, as training would.
    pub preparer: Option<&'a Preparer>,
    /// Look at this many samples alone, drawn evenly by a fixed seed.
    pub sample: Option<usize>,
}

/// Why training would leave a sample out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is no sample: not JSON, no turns, images and placeholders that don't match.
    Invalid,
    /// An image is missing, outside its root, or cannot be decoded.
    BrokenImage,
    /// It has more tokens than the model's context.
    OverContext,
    /// No token of it bears loss.
    NoTarget,
}

/// How often a reason was met, and where first.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Problem {
    /// Samples.
    pub samples: usize,
    /// The messages of the first few.
    pub first: Vec<String>,
}

/// Lengths in tokens, of the samples that could be tokenized.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TokenReport {
    /// The model's context.
    pub context: usize,
    /// The tokens that a sample may have: the context, or less.
    pub max_length: usize,
    /// Samples longer than that.
    pub over_context: usize,
    /// Tokens of text that the tokenizer does not know, and gives as its `<unk>`.
    pub unknown: usize,
    /// Samples with such tokens.
    pub with_unknown: usize,
    /// The first of these.
    pub first_unknown: Option<String>,
    /// Samples without a token that bears loss.
    pub without_target: usize,
    /// The shortest.
    pub min: usize,
    /// The median.
    pub median: usize,
    /// The 95th percentile.
    pub p95: usize,
    /// The longest.
    pub max: usize,
    /// Tokens of all samples, image tokens among them.
    pub total: usize,
    /// Those that bear loss.
    pub targets: usize,
    /// Samples by length: each bucket ends before the next one's beginning, a power of two.
    pub histogram: Vec<Bucket>,
}

/// Samples of at least `from` and less than `to` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// The shortest.
    pub from: usize,
    /// One more than the longest.
    pub to: usize,
    /// How many.
    pub samples: usize,
}

/// What [`check`] found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Samples of the set.
    pub samples: usize,
    /// Those looked at.
    pub checked: usize,
    /// Usable samples without an image.
    pub text_only: usize,
    /// Images of the samples that could be read.
    pub images: usize,
    /// Samples by their number of images.
    pub images_per_sample: BTreeMap<usize, usize>,
    /// Samples by their number of answers.
    pub turns_per_sample: BTreeMap<usize, usize>,
    /// Answers before the first question, which are dropped as LLaVA does.
    pub dropped_turns: usize,
    /// With a checkpoint: lengths.
    pub tokens: Option<TokenReport>,
    /// Samples that training would leave out, or stop at.
    pub unusable: usize,
    /// Why.
    pub problems: BTreeMap<Reason, Problem>,
}

/// What was found out about one sample.
#[derive(Debug, Default)]
struct Finding {
    /// Images and answers; none where it could not be read.
    shape: Option<(usize, usize)>,
    dropped_turns: usize,
    tokens: Option<Counted>,
    problem: Option<(Reason, String)>,
}

/// The tokens of a sample.
#[derive(Debug)]
struct Counted {
    length: usize,
    targets: usize,
    /// Those that the tokenizer does not know.
    unknown: usize,
    /// Where the sample is, if it has any.
    place: String,
}

/// Reads, decodes and (with a checkpoint) tokenizes the samples, on all threads; `progress` hears how many are done.
///
/// # Errors
///
/// [`DataError`] that is no single sample's: a file that cannot be read.
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

/// A sample's tokens before any limit.
fn lengths(sample: &Sample, preparer: &Preparer) -> Option<Counted> {
    let tokenizer = preparer.tokenizer();
    let pieces = render(preparer.style(), &sample.messages, tokenizer.specials()).ok()?;
    let none = Counted { length: 0, targets: 0, unknown: 0, place: String::new() };
    match tokenize(tokenizer, &pieces, preparer.visual_tokens(), sample.images.len()) {
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

/// The token for what the tokenizer does not know; none where it serves another purpose too.
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
