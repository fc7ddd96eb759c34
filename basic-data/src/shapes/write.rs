//! Writes Shapes data sets in LLaVA's format.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use basic_models::checkpoint::Contents;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rand::{Rng, RngExt};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::ShapesError;
use super::questions::questions;
use super::raster::question_turns;
use super::records::{ConversationRecord, QuestionRecord, SceneRecord};
use super::render::{IMAGE_SIDE, render};
use super::scene::Scene;
use super::split::{Purpose, Split, sample_scenes, seeded};
use super::text::{CAPTION_PROMPT, caption};

/// The largest number of scenes in one split, because file names have six digits.
pub const SCENE_LIMIT: usize = 1_000_000;
/// The share of conversations in `finetune.json` that also hold a caption.
const CAPTION_SHARE: f64 = 0.25;

/// The counts of what [`write_dataset`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Number of train images, each in `pretrain.json` and in `finetune.json`.
    pub train: usize,
    /// Number of validation images.
    pub validation: usize,
    /// Number of eval images.
    pub eval: usize,
    /// Number of lines in `validation.jsonl`.
    pub validation_questions: usize,
    /// Number of lines in `eval.jsonl`.
    pub eval_questions: usize,
}

/// Writes a data set into `dir`, which must be empty or absent:
///
/// - `pretrain.json`: every train image with its caption, as LLaVA's samples;
/// - `finetune.json`: every train image with four to six questions, and in a quarter of the cases also the caption;
/// - `validation.jsonl`, `eval.jsonl`: [`QuestionRecord`]s, one question of each kind per image;
/// - `scenes.jsonl`: a [`SceneRecord`] per image;
/// - `images/{train,validation,eval}_000000.png`.
///
/// The same seed gives the same bytes, and a smaller data set is a prefix of a larger one. Each file is written
/// under a temporary name and renamed, `pretrain.json` last; after an error the written files are removed.
///
/// # Errors
/// [`ShapesError::NotEmpty`] if `dir` contains anything, [`ShapesError::TooManyScenes`] for more than a million scenes
/// in a split, and [`ShapesError::Io`] or [`ShapesError::Image`] if writing fails.
pub fn write_dataset(
    dir: &Path,
    train_n: usize,
    val_n: usize,
    eval_n: usize,
    seed: u64,
) -> Result<Written, ShapesError> {
    let requested = train_n.max(val_n).max(eval_n);
    if requested > SCENE_LIMIT {
        return Err(ShapesError::TooManyScenes { requested, limit: SCENE_LIMIT });
    }
    let existed = claim(dir)?;
    let images = dir.join("images");
    // This fails if another process has created the folder meanwhile; it then belongs to that process.
    fs::create_dir(&images).map_err(|source| ShapesError::io(&images, source))?;
    let written = write_all(dir, [train_n, val_n, eval_n], seed);
    if written.is_err() {
        discard(dir, existed);
    }
    written
}

/// Makes sure that `dir` exists and is empty; returns whether it existed before.
fn claim(dir: &Path) -> Result<bool, ShapesError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(ShapesError::NotEmpty { path: dir.to_owned() }),
            None => Ok(true),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(|source| ShapesError::io(dir, source))?;
            Ok(false)
        }
        Err(source) => Err(ShapesError::io(dir, source)),
    }
}

/// Removes what a failed attempt wrote, and nothing that others have put there meanwhile. Errors are ignored, because
/// the error that led here is the one to report.
fn discard(dir: &Path, existed: bool) {
    let _ = Contents::Shapes.clear(dir);
    if existed {
        let _ = fs::create_dir_all(dir);
    }
}

fn write_all(dir: &Path, counts: [usize; 3], seed: u64) -> Result<Written, ShapesError> {
    let (mut pretrain, mut finetune, mut scenes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut validation, mut eval) = (Vec::new(), Vec::new());
    for (&split, count) in Split::ALL.iter().zip(counts) {
        for (index, scene) in sample_scenes(split, count, seed).into_iter().enumerate() {
            let mut rng = seeded(seed, Purpose::Sample, split, index);
            let id = format!("{}_{index:06}", split.word());
            let image = format!("images/{id}.png");
            // At most 32 bits, so that every JSON reader keeps the number exactly.
            let render_seed = u64::from(rng.random::<u32>());
            write_image(&dir.join(&image), &scene, render_seed)?;
            match split {
                Split::Train => {
                    let turn = (CAPTION_PROMPT.to_owned(), caption(&scene, &mut rng));
                    pretrain.push(ConversationRecord::new(&id, &image, vec![turn]));
                    let turns = conversation(&scene, &mut rng);
                    finetune.push(ConversationRecord::new(&id, &image, turns));
                }
                Split::Validation => ask(&mut validation, &image, &scene, &mut rng),
                Split::Eval => ask(&mut eval, &image, &scene, &mut rng),
            }
            scenes.push(SceneRecord { image, split, render_seed, scene });
        }
    }

    write_lines(&dir.join("scenes.jsonl"), &scenes)?;
    write_lines(&dir.join("eval.jsonl"), &eval)?;
    write_lines(&dir.join("validation.jsonl"), &validation)?;
    write_array(&dir.join("finetune.json"), &finetune)?;
    write_array(&dir.join("pretrain.json"), &pretrain)?;
    let [train_n, val_n, eval_n] = counts;
    Ok(Written {
        train: train_n,
        validation: val_n,
        eval: eval_n,
        validation_questions: validation.len(),
        eval_questions: eval.len(),
    })
}

/// Four to six questions; in a quarter of the cases the caption is inserted at a random turn.
fn conversation<R: Rng + ?Sized>(scene: &Scene, rng: &mut R) -> Vec<(String, String)> {
    let mut turns = question_turns(scene, 4, 6, rng);
    if rng.random_bool(CAPTION_SHARE) {
        let turn = (CAPTION_PROMPT.to_owned(), caption(scene, rng));
        turns.insert(rng.random_range(0..=turns.len()), turn);
    }
    turns
}

/// Adds one question of each kind that the scene admits.
fn ask<R: Rng + ?Sized>(records: &mut Vec<QuestionRecord>, image: &str, scene: &Scene, rng: &mut R) {
    let caption = caption(scene, rng);
    let mut kinds = HashSet::new();
    for question in questions(scene, rng) {
        if kinds.insert(question.kind) {
            records.push(QuestionRecord {
                question_id: records.len() as u64,
                image: image.to_owned(),
                text: question.prompt,
                answer: question.answer,
                category: question.kind,
                held_out: scene.has_held_out_pair(),
                caption: caption.clone(),
                scene: scene.clone(),
            });
        }
    }
}

fn write_image(path: &Path, scene: &Scene, render_seed: u64) -> Result<(), ShapesError> {
    let side = IMAGE_SIDE as u32;
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Sub)
        .write_image(&render(scene, render_seed), side, side, ExtendedColorType::Rgb8)
        .map_err(|source| ShapesError::Image { path: path.to_owned(), source })?;
    write_file(path, Sync::Never, |file| file.write_all(&png))
}

/// Writes JSON Lines.
fn write_lines<T: Serialize>(path: &Path, records: &[T]) -> Result<(), ShapesError> {
    write_file(path, Sync::BeforeRename, |file| {
        for record in records {
            serde_json::to_writer(&mut *file, record)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes a JSON array with one record per line.
fn write_array<T: Serialize>(path: &Path, records: &[T]) -> Result<(), ShapesError> {
    write_file(path, Sync::BeforeRename, |file| {
        file.write_all(b"[")?;
        for (index, record) in records.iter().enumerate() {
            file.write_all(if index == 0 { b"\n" } else { b",\n" })?;
            serde_json::to_writer(&mut *file, record)?;
        }
        file.write_all(b"\n]\n")
    })
}

/// When a file's bytes are synced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Left to the system, because syncing thousands of images would take minutes.
    Never,
    /// Before the file is renamed to its final name.
    BeforeRename,
}

/// Writes a file under a temporary name and renames it, so that `path` never holds a partial file.
fn write_file(
    path: &Path,
    sync: Sync,
    write: impl FnOnce(&mut BufWriter<NamedTempFile>) -> io::Result<()>,
) -> Result<(), ShapesError> {
    let attempt = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".writing-");
        // By default only the owner may read a temporary file, but a data set is shared like any other file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = BufWriter::new(builder.tempfile_in(path.parent().unwrap_or(Path::new(".")))?);
        write(&mut file)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        if sync == Sync::BeforeRename {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().map_err(|source| ShapesError::io(path, source))
}
