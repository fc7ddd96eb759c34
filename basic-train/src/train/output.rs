//! The directory of a run: made, replaced, put back, completed.

use std::path::{Path, PathBuf};

use basic_models::adapters::save_adapters;
use basic_models::checkpoint::leftover::is_leftover;
use basic_models::checkpoint::{Contents, Replaces, StagedDir};
use basic_models::{Checkpoint, CheckpointError, Llava};

use super::heads::save_heads;
use super::{RunInfo, Status, TrainError, state};
use crate::held::Held;
use crate::recipe::{Mode, Part, Recipe};

/// What belongs to a run besides its checkpoint.
const RUN_FILES: [&str; 5] = ["run.json", "metrics.jsonl", "eval.jsonl", "tensorboard", "checkpoints"];

/// An earlier run that is being replaced: put aside until the new one has succeeded.
pub(super) struct Replaced {
    out: PathBuf,
    aside: Option<PathBuf>,
}

/// Makes the output directory and takes its lock. What an earlier run left is refused, or moved aside where it may be
/// replaced: where `overwrite` is on, the directory holds nothing but a run's and a checkpoint's files, and nothing of
/// `sources`.
pub(super) fn prepare(out: &Path, overwrite: bool, sources: Vec<PathBuf>) -> Result<(Replaced, Held), TrainError> {
    let found = entries(out)?;
    if !found.is_empty() || (out.exists() && !out.is_dir()) {
        Replaces::new(overwrite, Contents::Run, sources).check(out)?;
    }
    let held = Held::take(out)?;
    state::sweep(out);
    if found.is_empty() {
        // Another process may have come, gone and left a run between the look and the lock.
        return match entries(out)?.is_empty() {
            true => Ok((Replaced { out: out.into(), aside: None }, held)),
            false => Err(CheckpointError::Exists(out.into()).into()),
        };
    }
    let entries = entries(out)?;
    let (aside, moving) = (out.join(".replaced"), out.join(".replacing"));
    if aside.is_dir() && RunInfo::open(out).is_ok_and(|run| run.status == Status::Done) {
        // The run that replaced it was done, and killed before it had taken it away.
        Contents::Run.clear(&aside)?;
    }
    if aside.is_dir() {
        // It holds the last whole checkpoint. The run that put it there did not finish: its states must not be taken
        // for the new run's.
        put_by(out)?;
    } else {
        // It has its name when everything is in it: who is killed here goes on here.
        move_all(entries.iter().filter(|path| ![&aside, &moving].contains(path)), &moving)?;
        std::fs::rename(&moving, &aside).map_err(|source| TrainError::Io { path: aside.clone(), source })?;
    }
    Ok((Replaced { out: out.into(), aside: Some(aside) }, held))
}

/// What is in the output directory, but for a lock and what a killed process left half-written.
fn entries(out: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let found: Vec<PathBuf> = match std::fs::read_dir(out) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        // The guard says what a file in its place is.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Vec::new(),
        Err(source) => return Err(TrainError::Io { path: out.into(), source }),
    };
    Ok(found.into_iter().filter(|path| !Held::is_lock(path) && !is_leftover(path)).collect())
}

/// Opens the output of a run that goes on. What it replaces is still aside.
pub(super) fn reopen(out: &Path) -> Replaced {
    let aside = out.join(".replaced");
    Replaced { out: out.into(), aside: aside.is_dir().then_some(aside) }
}

impl Replaced {
    /// The new run is whole: the earlier one goes.
    pub(super) fn discard(self) -> Result<(), TrainError> {
        let Some(aside) = self.aside else { return Ok(()) };
        // What somebody has put there meanwhile stays.
        Ok(Contents::Run.clear(&aside)?)
    }

    /// The new run has failed: the earlier one comes back, the failed one's records stay as `failed-*`.
    pub(super) fn restore(self) -> Result<(), TrainError> {
        let Some(aside) = self.aside else { return Ok(()) };
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TrainError::Io { path, source }
        };
        put_by(&self.out)?;
        let held = std::fs::read_dir(&aside).map_err(io(&aside))?;
        let mut held: Vec<PathBuf> = held.flatten().map(|e| e.path()).collect();
        // The record last: with it, the run is whole.
        held.sort_by_key(|path| path.ends_with("run.json"));
        move_all(held.iter(), &self.out)?;
        std::fs::remove_dir(&aside).map_err(io(&aside))
    }
}

/// Renames what a run that did not finish has left to `failed-*`. What somebody has put into an earlier `failed-*` stays,
/// and the new comes beside it.
fn put_by(out: &Path) -> Result<(), TrainError> {
    for name in RUN_FILES {
        let put_by = format!("failed-{name}");
        let (path, failed) = (out.join(name), out.join(&put_by));
        if !path.exists() {
            continue;
        }
        let there = |path: &Path| path.symlink_metadata();
        if there(&failed).is_ok_and(|meta| meta.is_dir()) {
            Contents::Run.clear_folder(out, &put_by)?;
        }
        let io = |source| TrainError::Io { path: failed.clone(), source };
        match there(&failed) {
            Ok(meta) if meta.is_dir() => {
                let inside = std::fs::read_dir(&path).map_err(io)?.flatten().map(|entry| entry.path());
                move_all(inside.collect::<Vec<_>>().iter(), &failed)?;
                std::fs::remove_dir(&path).map_err(io)?;
            }
            Ok(meta) if !meta.is_file() => return Err(io(std::io::ErrorKind::AlreadyExists.into())),
            _ => std::fs::rename(&path, &failed).map_err(io)?,
        }
    }
    Ok(())
}

/// Moves entries into a directory, over files of their names and over nothing else.
fn move_all<'a>(paths: impl Iterator<Item = &'a PathBuf>, target: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(target).map_err(|source| TrainError::Io { path: target.into(), source })?;
    for path in paths {
        let to = target.join(path.file_name().unwrap_or_default());
        std::fs::rename(path, &to).map_err(|source| TrainError::Io { path: path.clone(), source })?;
    }
    Ok(())
}

/// Writes the checkpoint into a folder inside `out`, then moves its files up, `config.json` last: a directory without
/// it is not taken for a checkpoint.
pub(super) fn save(checkpoint: &Checkpoint, model: &Llava, out: &Path, recipe: &Recipe) -> Result<(), TrainError> {
    let dtype = recipe.train.dtype.dtype();
    save_adapters_of(model, out, recipe)?;
    let staged = StagedDir::inside(out)?;
    checkpoint.save_into(model, &staged, dtype)?;
    save_heads(model, staged.path())?;
    staged.sync()?;
    let io = |path: PathBuf| move |source| TrainError::Io { path, source };
    let listing = std::fs::read_dir(staged.path()).map_err(io(out.into()))?;
    let mut files: Vec<PathBuf> = listing.flatten().map(|e| e.path()).collect();
    files.sort_by_key(|path| path.ends_with("config.json"));
    for file in files {
        let target = out.join(file.file_name().unwrap_or_default());
        std::fs::rename(&file, &target).map_err(io(target))?;
    }
    Ok(())
}

/// Where a LLaVA directory was adapted, its adapters as PEFT has them, in `adapter/`; the checkpoint itself holds them
/// folded in.
fn save_adapters_of(model: &Llava, out: &Path, recipe: &Recipe) -> Result<(), TrainError> {
    let adapted = |part: &Part| matches!(recipe.mode(*part), Mode::Lora | Mode::Qlora);
    let Some(base) = recipe.model.checkpoint.as_ref().filter(|_| Part::ALL.iter().any(adapted)) else { return Ok(()) };
    let whole = Part::ALL.into_iter().filter(|part| recipe.mode(*part) == Mode::Full);
    let whole: Vec<&str> = whole.flat_map(|part| part.prefixes()).copied().collect();
    // Adapters of a model that is itself a base with adapters have no base that PEFT could load.
    if base.join("adapter_config.json").is_file() {
        return Ok(());
    }
    // A path stays one from wherever it is read; a hub name stays a name.
    let base = base.canonicalize().unwrap_or_else(|_| base.clone());
    let staged = StagedDir::new(&out.join("adapter"), true)?;
    save_adapters(model, &whole, &base.display().to_string(), &staged, recipe.train.dtype.dtype())?;
    Ok(staged.commit()?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_put_by_comes_beside_what_somebody_has_put_there_and_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        let write = |name: &str, text: &str| {
            let path = out.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
        write("failed-checkpoints/step-00000001/state.json", "old");
        write("failed-checkpoints/step-00000002/why.md", "mine");
        write("failed-run.json", "old");
        write("checkpoints/step-00000003/state.json", "new");
        write("run.json", "new");
        put_by(out).unwrap();
        assert!(!out.join("failed-checkpoints/step-00000001").exists(), "ours goes");
        assert_eq!(read("failed-checkpoints/step-00000002/why.md"), "mine");
        assert_eq!(read("failed-checkpoints/step-00000003/state.json"), "new");
        assert_eq!(read("failed-run.json"), "new");
        assert!(!out.join("checkpoints").exists() && !out.join("run.json").exists());
        // A state of the same step cannot come beside a file of somebody's: an error, and nothing is lost.
        write("checkpoints/step-00000002/state.json", "newer");
        assert!(put_by(out).is_err());
        assert_eq!(read("failed-checkpoints/step-00000002/why.md"), "mine");
        assert_eq!(read("checkpoints/step-00000002/state.json"), "newer");
        #[cfg(unix)]
        {
            fs::remove_dir_all(out.join("checkpoints")).unwrap();
            fs::remove_file(out.join("failed-run.json")).unwrap();
            std::os::unix::fs::symlink("elsewhere", out.join("failed-run.json")).unwrap();
            write("run.json", "newest");
            assert!(put_by(out).is_err());
            assert!(out.join("failed-run.json").is_symlink() && read("run.json") == "newest");
        }
    }
}
