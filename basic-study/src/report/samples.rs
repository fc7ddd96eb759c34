//! Selects the answered questions that the page shows, with their images.

use std::collections::HashMap;

use basic_eval::benchmarks::Judged;
use serde::Serialize;
use serde_json::Value;

use super::Options;
use super::evaluations::{having, names};
use super::pictures::Pictures;
use super::runs::Run;
use crate::pages::picture::Picture;

/// The longest text shown, in characters, so that the answer of a model that never stops does not fill the page.
const LONGEST: usize = 400;

/// Answered questions of one set.
#[derive(Debug, Serialize)]
pub(super) struct Samples {
    pub name: String,
    /// How many questions they were selected from.
    pub of: usize,
    pub questions: Vec<Sample>,
}

/// A question with every run's answer.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    pub id: String,
    pub prompt: String,
    pub expected: Option<String>,
    pub category: Option<String>,
    pub image: Option<Picture>,
    /// The reason why an image is missing.
    pub missing: Option<String>,
    pub answers: Vec<Answer>,
}

/// A run's answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub run: usize,
    pub name: String,
    pub text: String,
    /// "right", "wrong" or "partly"; empty if the true answer is hidden.
    pub verdict: &'static str,
    pub score: String,
}

/// Selects at most `options.samples` questions of each set, spread evenly over those that all its runs answered. The
/// selection does not depend on the answers.
pub(super) fn samples(runs: &[Run], options: &Options) -> Vec<Samples> {
    let count = options.samples;
    let of = |name: &str| {
        let columns = having(runs, name);
        let by_key: Vec<HashMap<(String, &str), &Judged>> =
            columns.iter().map(|(_, set)| set.judged.iter().map(|judged| (key(judged), judged)).collect()).collect();
        let (run, first) = columns.first()?;
        let pictures = Pictures::of(&runs[*run], first, options.image_root.as_deref());
        let shared: Vec<&Judged> =
            first.judged.iter().filter(|judged| by_key.iter().all(|map| map.contains_key(&key(judged)))).collect();
        let every = shared.len().div_ceil(count.max(1)).max(1);
        let sample = |judged: &&Judged| {
            let answers =
                columns.iter().zip(&by_key).map(|((run, _), map)| answer(*run, &runs[*run].name, map[&key(judged)]));
            let (image, missing) = pictures.of_question(judged);
            Sample {
                id: text(&judged.question_id),
                prompt: shortened(judged.prompt.replace("<image>", "").trim()),
                expected: judged.expected.as_deref().map(shortened),
                category: judged.category.clone().filter(|category| category != "all"),
                image,
                missing,
                answers: answers.collect(),
            }
        };
        let questions: Vec<Sample> = shared.iter().step_by(every).take(count).map(sample).collect();
        (!questions.is_empty()).then(|| Samples { name: name.to_string(), of: shared.len(), questions })
    };
    names(runs).into_iter().filter_map(of).collect()
}

fn key(judged: &Judged) -> (String, &str) {
    (text(&judged.question_id), &judged.prompt)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

fn answer(run: usize, name: &str, judged: &Judged) -> Answer {
    let verdict = match judged.score {
        None => "",
        Some(score) if score >= 1.0 => "right",
        Some(score) if score <= 0.0 => "wrong",
        Some(_) => "partly",
    };
    let score = match (verdict, judged.score) {
        ("partly", Some(score)) => format!("{score:.2}"),
        _ => String::new(),
    };
    let text = if judged.answer.trim().is_empty() { "(nothing)".into() } else { shortened(judged.answer.trim()) };
    Answer { run, name: name.to_string(), text, verdict, score }
}

fn shortened(text: &str) -> String {
    let start: String = text.chars().take(LONGEST).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}
