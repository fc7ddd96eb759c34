//! Lists what this program's commands write to a directory, by name: `--overwrite` removes these
//! entries and nothing else.

mod names;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;
use super::gguf::GGUF_FILES;
use super::temporary_names::{OF_RUNS, begins, is_temporary, may_be_kept};
use crate::outside::read_json_text;
pub use names::MANIFEST;
use names::{
    Place, is_checkpoint, is_export, is_number, is_part, is_png, is_safetensors, is_scene, is_state, is_working,
};
use names::{is_writing, run_place};

/// The contents that a directory may have so that a command can replace it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// A checkpoint, with its `config.json`.
    Checkpoint,
    /// The files of a checkpoint for llama.cpp.
    Gguf,
    /// A part of a run: a checkpoint, adapters, a training state.
    Part,
    /// A run, complete or not, or a checkpoint.
    Run,
    /// An exported data set, with its [`MANIFEST`].
    Export,
    /// The data set of the embedded world.
    Shapes,
    /// The embedded backbones.
    Backbones,
    /// The runs of a demo, each with its result.
    DemoRuns,
    /// The embedded world of a study: backbones and data set.
    World,
}

/// The records of a run.
const RUN: [&str; 6] = ["run.json", "metrics.jsonl", "eval.jsonl", "recipe.toml", LOCKS[0], LOCKS[1]];

/// Lock files, which are empty.
const LOCKS: [&str; 2] = [".lock", "run.lock"];

/// Files that identify a directory as a run's or a checkpoint's, complete or not.
const MARKS: [&str; 6] =
    ["run.json", "config.json", "adapter_config.json", "failed-run.json", ".replaced", ".replacing"];

/// The files of the embedded world's data set.
const SHAPES: [&str; 5] = ["scenes.jsonl", "eval.jsonl", "validation.jsonl", "finetune.json", "pretrain.json"];

/// The files and folders in a directory; a folder comes before its content.
struct Inventory {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Inventory {
    fn take_away(mut self) -> Result<(), CheckpointError> {
        let marks = |path: &PathBuf| MARKS.iter().chain([&MANIFEST]).any(|mark| path.ends_with(mark));
        self.files.sort_by_key(marks);
        for path in &self.files {
            fs::remove_file(path).map_err(CheckpointError::io(path))?;
        }
        for path in self.folders.iter().rev() {
            match fs::remove_dir(path) {
                // A link to a directory is kept.
                Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
                Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                    return Err(CheckpointError::io(path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Contents {
    /// The end of an error's sentence about a file that is not of this kind: "which ...".
    fn foreign(self) -> &'static str {
        match self {
            Self::Checkpoint => "belongs to no checkpoint",
            Self::Gguf => "is no GGUF file that `basic convert --gguf` has written",
            Self::Part => "belongs to no part of a run",
            Self::Run => "belongs to neither a run nor a checkpoint",
            Self::Export => "no `basic data export` has written",
            Self::Shapes | Self::Backbones | Self::DemoRuns => "no demo has written",
            Self::World => "no study has written",
        }
    }

    /// Checks that a directory contains only what this program writes for this kind. Links never count as its own.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Foreign`], which names the first other entry in the order of names, and I/O errors.
    pub fn check(self, dir: &Path) -> Result<(), CheckpointError> {
        self.inventory(dir)?;
        self.marked(dir)
    }

    /// Removes a directory of this kind. Files that others add in the meantime are kept.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Contents::check`], before anything is removed, and I/O errors.
    pub fn remove(self, dir: &Path) -> Result<(), CheckpointError> {
        self.check(dir)?;
        self.clear(dir)?;
        match fs::symlink_metadata(dir) {
            Ok(_) => self.check(dir),
            Err(_) => Ok(()),
        }
    }

    /// Removes a directory whose location shows that it is this program's, so that it needs no identifying file.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Foreign`], which names the first other entry, before anything is
    /// removed, and I/O errors.
    pub fn remove_unmarked(self, dir: &Path) -> Result<(), CheckpointError> {
        if !dir.metadata().map_err(CheckpointError::io(dir))?.is_dir() {
            let (above, entry) = (dir.parent().unwrap_or(dir).into(), dir.file_name().unwrap_or_default().into());
            return Err(CheckpointError::Foreign { dir: above, entry, reason: self.foreign() });
        }
        self.inventory(dir)?;
        self.clear(dir)
    }

    /// Removes everything of this kind from a directory, and then the directory if it is empty. The files that identify
    /// the directory as this program's are removed last, so that a later call can continue after a crash.
    ///
    /// # Errors
    ///
    /// Returns I/O errors that name the file.
    pub fn clear(self, dir: &Path) -> Result<(), CheckpointError> {
        let mut found = Inventory { files: Vec::new(), folders: vec![dir.into()] };
        // A foreign entry is kept, and so are the folders above it.
        self.walk(dir, "", &mut found, &mut |_| Ok(()))?;
        found.take_away()
    }

    /// [`Contents::clear`] for a folder in a directory of this kind.
    ///
    /// # Errors
    ///
    /// Returns I/O errors that name the file.
    pub fn clear_folder(self, dir: &Path, name: &str) -> Result<(), CheckpointError> {
        let mut found = Inventory { files: Vec::new(), folders: vec![dir.join(name)] };
        self.walk(&dir.join(name), &format!("{name}/"), &mut found, &mut |_| Ok(()))?;
        found.take_away()
    }

    /// Whether everything in a directory has names and contents of this kind.
    pub(super) fn holds_only_its_own(self, dir: &Path) -> bool {
        self.inventory(dir).is_ok()
    }

    fn inventory(self, dir: &Path) -> Result<Inventory, CheckpointError> {
        let mut found = Inventory { files: Vec::new(), folders: Vec::new() };
        self.walk(dir, "", &mut found, &mut |entry| {
            Err(CheckpointError::Foreign { dir: dir.into(), entry, reason: self.foreign() })
        })?;
        Ok(found)
    }

    /// Lists what is of this kind below `dir`, and calls `foreign` for everything else, with its path
    /// relative to the top.
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
                Some(name) if kind.is_dir() && self.folder(name) && !may_be_kept(&path) => {
                    found.folders.push(path.clone());
                    self.walk(&path, &format!("{name}/"), found, foreign)?;
                }
                Some(name) if kind.is_file() && self.file(name) && self.wrote(&path, name) => found.files.push(path),
                _ => foreign(Path::new(above).join(name))?,
            }
        }
        Ok(())
    }

    /// Checks for the identifying files: the names of all entries are common and could be another program's.
    fn marked(self, dir: &Path) -> Result<(), CheckpointError> {
        let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
        let object =
            |name: &str| -> Option<Value> { serde_json::from_str(&read_json_text(&dir.join(name)).ok()?).ok() };
        // What a run leaves if it is killed while it first writes its record.
        let unborn = |entry: &OsStr| {
            let ours = |name: &str| (is_temporary(name) || LOCKS.contains(&name)) && self.wrote(&dir.join(name), name);
            entry.to_str().is_some_and(ours)
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
            Self::Gguf => GGUF_FILES.iter().any(|name| begins(&dir.join(name), &["GGUF"])),
            Self::Export => object(MANIFEST).is_some_and(|manifest| manifest.get("basic").is_some()),
            Self::Part | Self::Shapes | Self::Backbones | Self::DemoRuns | Self::World => true,
        };
        let first = entries.iter().map(fs::DirEntry::file_name).min();
        match first.filter(|_| !ours) {
            Some(entry) => {
                Err(CheckpointError::Foreign { dir: dir.into(), entry: entry.into(), reason: self.foreign() })
            }
            None => Ok(()),
        }
    }

    /// Whether this program wrote a file that has a common name: an empty lock, or a file that begins as this
    /// program writes it.
    fn wrote(self, path: &Path, name: &str) -> bool {
        let last = name.rsplit('/').next().unwrap_or_default();
        if LOCKS.contains(&last) {
            return begins(path, &[]);
        }
        if !is_temporary(last) && !is_writing(last) {
            return true;
        }
        match self {
            Self::Checkpoint | Self::Gguf | Self::Part | Self::Export | Self::Run => begins(path, &OF_RUNS),
            // `begins` cannot check PNG's signature, which is not text.
            Self::Shapes => begins(path, &["{", "["]) || is_png(path),
            // JSON, a template, or the header of safetensors after its length.
            Self::Backbones => begins(path, &["{"]) || is_safetensors(path),
            Self::DemoRuns => begins(path, &["stage=\"", "{\"hash\":", OF_RUNS[0], OF_RUNS[1]]),
            Self::World => match name.split_once('/') {
                Some(("backbones", rest)) => Self::Backbones.wrote(path, rest),
                Some(("data", rest)) => Self::Shapes.wrote(path, rest),
                _ => begins(path, &["{\"world\":", "{\"version\":"]),
            },
        }
    }

    fn file(self, name: &str) -> bool {
        match self {
            Self::Checkpoint => is_checkpoint(name),
            Self::Gguf => GGUF_FILES.contains(&name),
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
                Some(image) => is_scene(image) || is_writing(image),
                None => SHAPES.contains(&name) || is_writing(name),
            },
            Self::Backbones => match name.split_once('/') {
                Some(("llm" | "vision", file)) => is_checkpoint(file) || is_temporary(file),
                _ => false,
            },
            Self::DemoRuns => match name.splitn(3, '/').collect::<Vec<_>>()[..] {
                [_, "pretrain" | "finetune", file] => file == "result.json" || Self::Run.file(file),
                // What a demo was writing when it was killed.
                [_, staged, file] => is_working(staged) && is_checkpoint(file),
                _ => false,
            },
            Self::World => match name.split_once('/') {
                Some(("backbones", name)) => Self::Backbones.file(name),
                Some(("data", name)) => Self::Shapes.file(name),
                Some(_) => false,
                None => name == "world.json" || is_temporary(name),
            },
        }
    }

    fn folder(self, name: &str) -> bool {
        match self {
            Self::Checkpoint | Self::Gguf => false,
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
                Some((_, below)) => match below.split_once('/') {
                    None => matches!(below, "pretrain" | "finetune") || is_working(below),
                    Some((stage, below)) => matches!(stage, "pretrain" | "finetune") && Self::Run.folder(below),
                },
            },
            Self::World => match name.split_once('/') {
                None => matches!(name, "backbones" | "data"),
                Some(("backbones", name)) => Self::Backbones.folder(name),
                Some((_, name)) => Self::Shapes.folder(name),
            },
        }
    }
}

#[cfg(test)]
mod tests;
