//! Answered questions with their images, made small and put into the page.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, GenericImageView, ImageFormat};
use serde::Serialize;
use serde_json::Value;

use super::evaluations::{having, names};
use super::runs::Run;
use crate::benchmarks::Judged;
use crate::compare::Set;

/// The longest text shown, in characters: a model that never stops fills no page.
const LONGEST: usize = 400;
/// An image's longer side at most, in pixels.
const SIDE: u32 = 192;
/// An image as small as this is drawn larger, in whole pixels.
const TINY: u32 = 96;
/// An image file as small as this is embedded as it is.
const SMALL_FILE: usize = 8 << 10;

/// Answered questions of one set.
#[derive(Debug, Serialize)]
pub(super) struct Samples {
    pub name: String,
    /// Of how many they were taken.
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
    /// Why there is no image, where there should be one.
    pub missing: Option<String>,
    pub answers: Vec<Answer>,
}

#[derive(Debug, Serialize)]
pub(super) struct Picture {
    source: String,
    width: u32,
    height: u32,
    pixelated: bool,
}

/// What a run said.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub run: usize,
    pub name: String,
    pub text: String,
    /// "right", "wrong", or a share between; empty where the true answer is hidden.
    pub verdict: &'static str,
    pub score: String,
}

/// At most `count` questions of each set, evenly spread over those that all its runs answered: none is picked for what was
/// said.
pub(super) fn samples(runs: &[Run], count: usize) -> Vec<Samples> {
    let of = |name: &str| {
        let columns = having(runs, name);
        let by_key: Vec<HashMap<(String, &str), &Judged>> =
            columns.iter().map(|(_, set)| set.judged.iter().map(|judged| (key(judged), judged)).collect()).collect();
        let (_, first) = columns.first()?;
        let shared: Vec<&Judged> =
            first.judged.iter().filter(|judged| by_key.iter().all(|map| map.contains_key(&key(judged)))).collect();
        let every = shared.len().div_ceil(count.max(1)).max(1);
        let sample = |judged: &&Judged| {
            let answers =
                columns.iter().zip(&by_key).map(|((run, _), map)| answer(*run, &runs[*run].name, map[&key(judged)]));
            let (image, missing) = picture(first, judged);
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

/// The question's image, or why it is not there.
fn picture(set: &Set, judged: &Judged) -> (Option<Picture>, Option<String>) {
    let Some(name) = &judged.image else { return (None, None) };
    let root = set.record.as_ref().and_then(|record| record.images.clone());
    let path: PathBuf = root.map_or_else(|| name.clone(), |root| root.join(name));
    match embed(&path) {
        Some(picture) => (Some(picture), None),
        None => (None, Some(format!("{} cannot be read", path.display()))),
    }
}

fn embed(path: &Path) -> Option<Picture> {
    let bytes = std::fs::read(path).ok()?;
    let format = image::guess_format(&bytes).ok()?;
    let decoded = image::load_from_memory_with_format(&bytes, format).ok()?;
    let (width, height) = decoded.dimensions();
    let pixelated = width.max(height) <= TINY;
    let shown = matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif);
    if shown && width.max(height) <= SIDE && bytes.len() <= SMALL_FILE {
        let source = format!("data:{};base64,{}", format.to_mime_type(), STANDARD.encode(&bytes));
        return Some(Picture { source, width, height, pixelated });
    }
    let small = if width.max(height) > SIDE { decoded.thumbnail(SIDE, SIDE) } else { decoded };
    let (width, height) = small.dimensions();
    let mut jpeg = Cursor::new(Vec::new());
    DynamicImage::from(small.to_rgb8()).write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, 80)).ok()?;
    let source = format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg.into_inner()));
    Some(Picture { source, width, height, pixelated })
}
