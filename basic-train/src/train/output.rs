//! Manages the output directory of a run: creates it, sets an earlier run aside or restores it, and writes the
//! checkpoint.

use std::path::{Path, PathBuf};

use basic_models::checkpoint::crash_cleanup::is_leftover;
use basic_models::checkpoint::{Contents, Replaces, StagedDir, save_adapters};
use basic_models::{Checkpoint, CheckpointError, Llava};

use super::heads::save_heads;
use super::model::given_adapters;
use super::{RunInfo, Status, TrainError, state};
use crate::directory_lock::Held;
use crate::recipe::{Mode, Part, Recipe};

/// The files and folders of a run besides its checkpoint.
const RUN_FILES: [&str; 5] = ["run.json", "metrics.jsonl", "eval.jsonl", "tensorboard", "checkpoints"];

/// An earlier run that is being replaced; it is kept aside until the new one has succeeded.
pub(super) struct Replaced {
    out: PathBuf,
    aside: Option<PathBuf>,
}

/// Creates the output directory and locks it. An earlier run in it is moved aside if it may be replaced, and is an
/// error otherwise. It may be replaced if `overwrite` is on and the directory holds only files of a run and of a
/// checkpoint, and none of `sources`.
pub(super) fn prepare(out: &Path, overwrite: bool, sources: Vec<PathBuf>) -> Result<(Replaced, Held), TrainError> {
    let found = entries(out)?;
    if !found.is_empty() || (out.exists() && !out.is_dir()) {
        Replaces::new(overwrite, Contents::Run, sources).check(out)?;
    }
    let held = Held::take(out)?;
    state::sweep(out);
    if found.is_empty() {
        // Another process may have written a whole run between the check and the lock.
        return match entries(out)?.is_empty() {
            true => Ok((Replaced { out: out.into(), aside: None }, held)),
            false => Err(CheckpointError::Exists(out.into()).into()),
        };
    }
    let entries = entries(out)?;
    let (aside, moving) = (out.join(".replaced"), out.join(".replacing"));
    if aside.is_dir() && RunInfo::open(out).is_ok_and(|run| run.status == Status::Done) {
        // The run that replaced it had finished, but was killed before it removed the earlier one.
        Contents::Run.clear(&aside)?;
    }
    if aside.is_dir() {
        // It holds the last complete checkpoint. The run that moved it aside did not finish, and its states must not be
        // taken for the new run's.
        put_by(out)?;
    } else {
        // The folder gets its final name only when it is complete, so that a run after a crash can continue from here.
        move_all(entries.iter().filter(|path| ![&aside, &moving].contains(path)), &moving)?;
        std::fs::rename(&moving, &aside).map_err(|source| TrainError::Io { path: aside.clone(), source })?;
    }
    Ok((Replaced { out: out.into(), aside: Some(aside) }, held))
}

/// What is in the output directory, except for a lock file and what a killed process left half-written.
fn entries(out: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let found: Vec<PathBuf> = match std::fs::read_dir(out) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        // `Replaces::check` reports a file at this path.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Vec::new(),
        Err(source) => return Err(TrainError::Io { path: out.into(), source }),
    };
    Ok(found.into_iter().filter(|path| !Held::is_lock(path) && !is_leftover(path)).collect())
}

/// Opens the output directory of a resumed run. The earlier run that it replaces is still aside.
pub(super) fn reopen(out: &Path) -> Replaced {
    let aside = out.join(".replaced");
    Replaced { out: out.into(), aside: aside.is_dir().then_some(aside) }
}

impl Replaced {
    /// Of a process that writes nothing.
    pub(super) fn nothing(out: &Path) -> Self {
        Self { out: out.into(), aside: None }
    }

    /// Called when the new run has succeeded: removes the earlier one.
    pub(super) fn discard(self) -> Result<(), TrainError> {
        let Some(aside) = self.aside else { return Ok(()) };
        // Files that others have added meanwhile are kept.
        Ok(Contents::Run.clear(&aside)?)
    }

    /// Called when the new run has failed: restores the earlier one; the failed run's records are kept as `failed-*`.
    pub(super) fn restore(self) -> Result<(), TrainError> {
        let Some(aside) = self.aside else { return Ok(()) };
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TrainError::Io { path, source }
        };
        put_by(&self.out)?;
        let held = std::fs::read_dir(&aside).map_err(io(&aside))?;
        let mut held: Vec<PathBuf> = held.flatten().map(|e| e.path()).collect();
        // The record comes last, because it marks the run as complete.
        held.sort_by_key(|path| path.ends_with("run.json"));
        move_all(held.iter(), &self.out)?;
        std::fs::remove_dir(&aside).map_err(io(&aside))
    }
}

/// Renames the files of an unfinished run to `failed-*`. What others have put into an earlier `failed-*` folder stays
/// there, and the new files are added beside it.
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

/// Moves entries into a directory. They may replace files of the same name, but nothing else.
fn move_all<'a>(paths: impl Iterator<Item = &'a PathBuf>, target: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(target).map_err(|source| TrainError::Io { path: target.into(), source })?;
    for path in paths {
        let to = target.join(path.file_name().unwrap_or_default());
        std::fs::rename(path, &to).map_err(|source| TrainError::Io { path: path.clone(), source })?;
    }
    Ok(())
}

/// Writes the checkpoint into a folder inside `out` and then moves its files up. `config.json` comes last, because a
/// directory without it is not taken for a checkpoint.
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

/// If a LLaVA directory was trained with adapters, also writes these in PEFT's format to `adapter/`; in the checkpoint
/// itself they are merged into the weights.
fn save_adapters_of(model: &Llava, out: &Path, recipe: &Recipe) -> Result<(), TrainError> {
    let adapted = |part: &Part| matches!(recipe.mode(*part), Mode::Lora | Mode::Qlora);
    let Some(base) = recipe.model.checkpoint.as_ref().filter(|_| Part::ALL.iter().any(adapted)) else { return Ok(()) };
    // A checkpoint has no heads, and a model whose head is its embedding table has no other.
    let there = |prefix: &&str| match *prefix {
        "heads" => false,
        "lm_head" => model.lm_head.is_some(),
        "fused_vision_towers" => model.config().is_fused(),
        _ => true,
    };
    // What came whole with the adapters that the run went on with belongs to the new ones, too.
    let given = given_adapters(recipe)?;
    let came = |prefix: &str| given.iter().any(|(files, _)| files.holds(prefix));
    let belongs =
        |part: &Part| !adapted(part) && (recipe.mode(*part) == Mode::Full || part.prefixes().iter().any(|p| came(p)));
    let whole = Part::ALL.into_iter().filter(belongs).flat_map(|part| part.prefixes()).copied();
    let whole: Vec<&str> = whole.filter(there).collect();
    // If the base model itself has adapters, PEFT could not load it as the base of others.
    if base.join("adapter_config.json").is_file() {
        return Ok(());
    }
    // A path is made absolute, so that it is valid from any folder; a hub name stays as it is.
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
        // If a state of the same step would replace a file of somebody else's, this is an error and nothing is lost.
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
