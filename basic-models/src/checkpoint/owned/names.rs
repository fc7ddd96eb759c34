//! The names of the files and folders that this program writes.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::checkpoint::temporary_names::is_staged;
use crate::processor::TOKENIZER_FILES;

/// The files of a checkpoint besides its tokenizer and its tensors.
const CHECKPOINT: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
];

/// The files of a part of a run besides those of a checkpoint.
const PART: [&str; 7] = [
    "images.bin",
    "viral_head.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "state.json",
    "trained.safetensors",
    "optimizer.safetensors",
];

/// The file that distinguishes a data set exported by `basic data export` from a user's own: `data.json` and
/// `images` are common names.
pub const MANIFEST: &str = ".basic-export.json";

/// The location of a name in a run.
pub(super) enum Place<'a> {
    Top(&'a str),
    Part(&'a str),
    Events(&'a str),
}

/// Follows a path into a run's folders, including those of an earlier run that was moved aside.
pub(super) fn run_place(name: &str) -> Option<Place<'_>> {
    let Some((folder, rest)) = name.split_once('/') else {
        return Some(Place::Top(name.strip_prefix("failed-").unwrap_or(name)));
    };
    match folder.strip_prefix("failed-").unwrap_or(folder) {
        ".replaced" | ".replacing" => run_place(rest),
        "tensorboard" => Some(Place::Events(rest)),
        "adapter" => Some(Place::Part(rest)),
        staged if is_working(staged) => Some(Place::Part(rest)),
        "checkpoints" => {
            let (state, rest) = rest.split_once('/')?;
            (is_state(state) || is_working(state)).then_some(Place::Part(rest))
        }
        _ => None,
    }
}

pub(super) fn is_checkpoint(name: &str) -> bool {
    CHECKPOINT.contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || name == "model.safetensors"
        || is_shard(name, "model-")
}

/// Whether a name has the form `model-00001-of-00003.safetensors`, with any `start`.
fn is_shard(name: &str, start: &str) -> bool {
    let numbers = || name.strip_prefix(start)?.strip_suffix(".safetensors")?.split_once("-of-");
    numbers().is_some_and(|(index, count)| is_number(index, 5) && is_number(count, 5))
}

pub(super) fn is_part(name: &str) -> bool {
    // Where several devices train, each writes its part of the optimizer's state.
    is_checkpoint(name) || PART.contains(&name) || is_shard(name, "optimizer-")
}

pub(super) fn is_export(name: &str) -> bool {
    let image = |name: &str| {
        let (folder, file) = name.split_once('/')?;
        let (stem, extension) = file.split_once('.')?;
        let (index, number) = stem.split_once('-')?;
        let extension = ["jpg", "png", "webp", "gif", "bmp"].contains(&extension);
        Some(is_number(folder, 5) && is_number(index, 8) && is_number(number, 1) && extension)
    };
    match name.strip_prefix("images/") {
        Some(name) => image(name) == Some(true),
        None => {
            let shard = |(stem, end): (&str, &str)| is_number(stem, 5) && matches!(end, "tar" | "tar.gz" | "parquet");
            matches!(name, "data.json" | "data.jsonl" | MANIFEST) || name.split_once('.').is_some_and(shard)
        }
    }
}

/// Whether a name has the form `train_000012.png`.
pub(super) fn is_scene(name: &str) -> bool {
    let stem = name.strip_suffix(".png").and_then(|stem| stem.split_once('_'));
    stem.is_some_and(|(split, index)| matches!(split, "train" | "validation" | "eval") && is_number(index, 6))
}

pub(super) fn is_state(name: &str) -> bool {
    name.strip_prefix("step-").is_some_and(|step| is_number(step, 8))
}

/// Whether a name is that of an unfinished directory, or of one that was moved aside while another takes its name.
pub(super) fn is_working(name: &str) -> bool {
    is_staged(name) || name.starts_with(".basic-old-")
}

/// Whether a name is that of an unfinished file of the embedded world's data set.
pub(super) fn is_writing(name: &str) -> bool {
    let random = |name: &str| name.len() == 6 && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    name.strip_prefix(".writing-").is_some_and(random)
}

pub(super) fn is_png(path: &Path) -> bool {
    head(path).is_some_and(|head| head.starts_with(b"\x89PNG"))
}

pub(super) fn is_safetensors(path: &Path) -> bool {
    head(path).is_some_and(|head| head.get(8) == Some(&b'{'))
}

/// The first bytes of a file.
fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    fs::File::open(path).ok()?.take(16).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Whether a text has only decimal digits, and at least `digits` of them.
pub(super) fn is_number(text: &str, digits: usize) -> bool {
    text.len() >= digits && text.bytes().all(|b| b.is_ascii_digit())
}
