//! What this program's commands write into a directory, by name: `--overwrite` takes that away and nothing else.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;
use crate::processor::TOKENIZER_FILES;

/// What a directory may hold for a command to replace it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// A checkpoint, with its `config.json`.
    Checkpoint,
    /// A part of a run: a checkpoint, adapters, a training state.
    Part,
    /// A run, whole or not, or a checkpoint.
    Run,
    /// A written data set, with its [`MANIFEST`].
    Export,
    /// The data set of the embedded world.
    Shapes,
    /// The embedded backbones.
    Backbones,
    /// Checkpoints of a demo's runs.
    DemoRuns,
}

/// The file that tells a data set that `basic data export` has written from one of somebody's own: `data.json` and
/// `images` are anybody's names.
pub const MANIFEST: &str = ".basic-export.json";

/// What a checkpoint has beside its tokenizer and its tensors.
const CHECKPOINT: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
];

/// What a part of a run has beside a checkpoint's files.
const PART: [&str; 5] =
    ["adapter_config.json", "adapter_model.safetensors", "state.json", "trained.safetensors", "optimizer.safetensors"];

/// Records of a run.
const RUN: [&str; 6] = ["run.json", "metrics.jsonl", "eval.jsonl", "recipe.toml", ".lock", "run.lock"];

/// What tells that a directory is a run's or a checkpoint's, whole or not.
const MARKS: [&str; 6] =
    ["run.json", "config.json", "adapter_config.json", "failed-run.json", ".replaced", ".replacing"];

/// Files of the embedded world's data set.
const SHAPES: [&str; 5] = ["scenes.jsonl", "eval.jsonl", "validation.jsonl", "finetune.json", "pretrain.json"];

/// Files and folders of a directory, a folder before what is in it.
struct Inventory {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Contents {
    /// What an error says of a file that this is not: which ...
    fn foreign(self) -> &'static str {
        match self {
            Self::Checkpoint => "belongs to no checkpoint",
            Self::Part => "belongs to no part of a run",
            Self::Run => "belongs to neither a run nor a checkpoint",
            Self::Export => "no `basic data export` has written",
            Self::Shapes | Self::Backbones | Self::DemoRuns => "no demo has written",
        }
    }

    /// Checks that a directory holds nothing but what this program writes of this kind. Links are never its own.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Foreign`] that names the first other entry, in the order of names; I/O errors.
    pub fn check(self, dir: &Path) -> Result<(), CheckpointError> {
        self.inventory(dir)?;
        self.marked(dir)
    }

    /// Removes a directory of this kind; what somebody else puts there meanwhile stays.
    ///
    /// # Errors
    ///
    /// Those of [`Contents::check`], before anything is removed; I/O errors.
    pub fn remove(self, dir: &Path) -> Result<(), CheckpointError> {
        self.check(dir)?;
        self.clear(dir)?;
        match fs::symlink_metadata(dir) {
            Ok(_) => self.check(dir),
            Err(_) => Ok(()),
        }
    }

    /// Removes what is of this kind in a directory, and the directory where nothing else is left in it.
    ///
    /// # Errors
    ///
    /// I/O errors that name the file.
    pub fn clear(self, dir: &Path) -> Result<(), CheckpointError> {
        let mut found = Inventory { files: Vec::new(), folders: vec![dir.into()] };
        // A foreign entry stays, and with it the folders above.
        self.walk(dir, "", &mut found, &mut |_| Ok(()))?;
        for path in &found.files {
            fs::remove_file(path).map_err(CheckpointError::io(path))?;
        }
        for path in found.folders.iter().rev() {
            match fs::remove_dir(path) {
                Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                    return Err(CheckpointError::io(path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn inventory(self, dir: &Path) -> Result<Inventory, CheckpointError> {
        let mut found = Inventory { files: Vec::new(), folders: Vec::new() };
        self.walk(dir, "", &mut found, &mut |entry| {
            Err(CheckpointError::Foreign { dir: dir.into(), entry, reason: self.foreign() })
        })?;
        Ok(found)
    }

    /// Lists what is of this kind below `dir`, and calls `foreign` with all else, by its name relative to the top.
    fn walk(
        self,
        dir: &Path,
        above: &str,
        found: &mut Inventory,
        foreign: &mut dyn FnMut(PathBuf) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let entries = fs::read_dir(dir).map_err(CheckpointError::io(dir))?;
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(CheckpointError::io(dir))?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().map_err(CheckpointError::io(&path))?;
            let relative = name.to_str().map(|name| format!("{above}{name}"));
            match relative.as_deref() {
                Some(name) if kind.is_dir() && self.folder(name) => {
                    found.folders.push(path.clone());
                    self.walk(&path, &format!("{name}/"), found, foreign)?;
                }
                Some(name) if kind.is_file() && self.file(name) => found.files.push(path),
                _ => foreign(Path::new(above).join(name))?,
            }
        }
        Ok(())
    }

    /// A directory whose entries all have our names may still be another program's: the names are common ones.
    fn marked(self, dir: &Path) -> Result<(), CheckpointError> {
        let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
        let object =
            |name: &str| -> Option<Value> { serde_json::from_slice(&crate::outside::read(&dir.join(name)).ok()?).ok() };
        // What a run of this program was killed over, in the first write of its record.
        let unborn = |entry: &OsStr| {
            let begun = |bytes: Vec<u8>| bytes.is_empty() || bytes.starts_with(b"{");
            let ours = entry.to_str().is_some_and(|name| is_temporary(name) || RUN[4..].contains(&name));
            ours && crate::outside::read(&dir.join(entry)).is_ok_and(begun)
        };
        let model = |config: Value| config.get("model_type").is_some_and(Value::is_string);
        let entries: Vec<_> = fs::read_dir(dir).map_err(CheckpointError::io(dir))?.flatten().collect();
        let ours = match self {
            Self::Checkpoint => object("config.json").is_some_and(model),
            Self::Run if entries.iter().all(|entry| unborn(&entry.file_name())) => true,
            Self::Run => {
                let adapters = has("adapter_config.json") && !has("config.json");
                let other = !has("config.json") || adapters || object("config.json").is_some_and(model);
                other && MARKS.iter().any(|name| has(name))
            }
            Self::Export => object(MANIFEST).is_some_and(|manifest| manifest.get("basic").is_some()),
            Self::Part | Self::Shapes | Self::Backbones | Self::DemoRuns => true,
        };
        let first = entries.iter().map(fs::DirEntry::file_name).min();
        match first.filter(|_| !ours) {
            Some(entry) => {
                Err(CheckpointError::Foreign { dir: dir.into(), entry: entry.into(), reason: self.foreign() })
            }
            None => Ok(()),
        }
    }

    fn file(self, name: &str) -> bool {
        match self {
            Self::Checkpoint => is_checkpoint(name),
            Self::Part => match name.split_once('/') {
                Some((folder, file)) => (folder == "model" || is_working(folder)) && is_checkpoint(file),
                None => is_part(name),
            },
            Self::Run => run_place(name).is_some_and(|place| match place {
                Place::Top(name) => is_checkpoint(name) || is_part(name) || RUN.contains(&name) || is_temporary(name),
                Place::Part(name) => Self::Part.file(name),
                Place::Events(name) => name.contains("tfevents"),
            }),
            Self::Export => is_export(name),
            Self::Shapes => match name.strip_prefix("images/") {
                Some(image) => is_scene(image) || image.starts_with(".writing-"),
                None => SHAPES.contains(&name) || name.starts_with(".writing-"),
            },
            Self::Backbones => match name.split_once('/') {
                Some(("llm" | "vision", file)) => is_checkpoint(file) || is_temporary(file),
                _ => false,
            },
            Self::DemoRuns => match name.splitn(3, '/').collect::<Vec<_>>()[..] {
                [_, "pretrain" | "finetune", file] => {
                    is_checkpoint(file) || file == "recipe.toml" || is_temporary(file)
                }
                // What a killed demo was writing.
                [_, staged, file] => is_working(staged) && is_checkpoint(file),
                _ => false,
            },
        }
    }

    fn folder(self, name: &str) -> bool {
        match self {
            Self::Checkpoint => false,
            Self::Part => name == "model" || is_working(name),
            Self::Run => match run_place(name) {
                Some(Place::Top(name)) => {
                    matches!(name, "tensorboard" | "checkpoints" | "adapter" | ".replaced" | ".replacing")
                        || is_working(name)
                }
                Some(Place::Part(name)) => name.is_empty() || Self::Part.folder(name),
                Some(Place::Events(name)) => name.is_empty(),
                None => {
                    let inner = name.rsplit('/').next().unwrap_or_default();
                    let above = name.strip_suffix(inner).unwrap_or_default();
                    above.ends_with("checkpoints/") && (is_state(inner) || is_working(inner))
                }
            },
            Self::Export => name == "images" || name.strip_prefix("images/").is_some_and(|name| is_number(name, 5)),
            Self::Shapes => name == "images",
            Self::Backbones => matches!(name, "llm" | "vision"),
            Self::DemoRuns => match name.split_once('/') {
                None => name.contains("-seed"),
                Some((_, stage)) => matches!(stage, "pretrain" | "finetune") || is_working(stage),
            },
        }
    }
}

/// Whether a folder `.basic-...` holds nothing but what one under construction may hold.
pub(super) fn is_leftover(dir: &Path) -> bool {
    [Contents::Part, Contents::Export].iter().any(|contents| contents.inventory(dir).is_ok())
}

/// Where in a run a name lies.
enum Place<'a> {
    Top(&'a str),
    Part(&'a str),
    Events(&'a str),
}

/// Follows a name into a run's folders, those of an earlier run that is put aside too.
fn run_place(name: &str) -> Option<Place<'_>> {
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

fn is_checkpoint(name: &str) -> bool {
    let shard = || {
        let (index, count) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        Some(is_number(index, 5) && is_number(count, 5))
    };
    CHECKPOINT.contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || name == "model.safetensors"
        || shard() == Some(true)
}

fn is_part(name: &str) -> bool {
    is_checkpoint(name) || PART.contains(&name)
}

fn is_export(name: &str) -> bool {
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

/// `train_000012.png`
fn is_scene(name: &str) -> bool {
    let stem = name.strip_suffix(".png").and_then(|stem| stem.split_once('_'));
    stem.is_some_and(|(split, index)| matches!(split, "train" | "validation" | "eval") && is_number(index, 6))
}

fn is_state(name: &str) -> bool {
    name.strip_prefix("step-").is_some_and(|step| is_number(step, 8))
}

/// A directory under construction, or one that is being taken away.
pub(super) fn is_staged(name: &str) -> bool {
    let random = |name: &str| name.len() == 6 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    name.strip_prefix(".basic-").is_some_and(|name| random(name) || name.strip_prefix("stale-").is_some_and(is_state))
}

/// The same, or a directory that is put aside while another takes its name.
fn is_working(name: &str) -> bool {
    is_staged(name) || name.starts_with(".basic-old-")
}

/// A file that was being written when the program was killed: `tempfile`'s names, after the writer's process number in
/// later versions.
fn is_temporary(name: &str) -> bool {
    let random = |name: &str| name.len() == 6 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let later = |name: &str| name.split_once('-').is_some_and(|(writer, name)| is_number(writer, 1) && random(name));
    name.strip_prefix(".tmp").is_some_and(random) || name.strip_prefix(".basic-").is_some_and(later)
}

/// Decimal digits, at least so many.
fn is_number(text: &str, digits: usize) -> bool {
    text.len() >= digits && text.bytes().all(|b| b.is_ascii_digit())
}
