//! A directory that is complete or absent: everything is written beside it, synced, then renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::CheckpointError;
use super::crash_cleanup::sweep_folders;
use super::overwrite_guard::spare;
use super::owned::Contents;
use super::temporary_names::PREFIX;

/// A directory under construction: [`StagedDir::commit`] renames it to its target, dropping it removes it.
#[derive(Debug)]
pub struct StagedDir {
    staging: TempDir,
    /// Held as long as the directory exists: one without a lock was left by a process that has ended.
    _lock: Option<File>,
    /// The target as the user named it, for messages.
    named: PathBuf,
    /// The target with all links resolved, so that a link is kept.
    target: PathBuf,
    replaces: Replaces,
}

/// What may be replaced.
#[derive(Debug, Clone)]
pub struct Replaces {
    overwrite: bool,
    contents: Contents,
    sources: Vec<PathBuf>,
}

impl Replaces {
    /// Allows a directory that contains only `contents` and none of `sources`, if `overwrite` is on.
    pub fn new(overwrite: bool, contents: Contents, sources: Vec<PathBuf>) -> Self {
        Self { overwrite, contents, sources }
    }

    /// Checks that `target` can be written: it is absent or empty, or may be replaced.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Exists`], [`CheckpointError::Foreign`], and the errors of [`spare`].
    pub fn check(&self, target: &Path) -> Result<(), CheckpointError> {
        if !occupied(target) {
            return Ok(());
        }
        if !self.overwrite {
            return Err(CheckpointError::Exists(target.into()));
        }
        if !target.is_dir() {
            let reason = "is no directory, and --overwrite replaces nothing else: choose another name";
            return Err(CheckpointError::Mismatch(format!("{}: {reason}", target.display())));
        }
        spare(&self.sources, target)?;
        self.contents.check(target)
    }
}

impl StagedDir {
    /// Starts beside `target`, a part of a run and so in a directory of this program.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`StagedDir::replacing`].
    pub fn new(target: &Path, overwrite: bool) -> Result<Self, CheckpointError> {
        Self::replacing(target, Replaces::new(overwrite, Contents::Part, Vec::new()))
    }

    /// Starts beside `target`, and removes what killed processes have left there.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Replaces::check`], before anything is written, and I/O errors.
    pub fn replacing(target: &Path, replaces: Replaces) -> Result<Self, CheckpointError> {
        let named = target.to_path_buf();
        let target = match fs::symlink_metadata(target) {
            Ok(_) => target.canonicalize().map_err(CheckpointError::io(target))?,
            Err(_) => named.clone(),
        };
        put_back(&target, replaces.contents);
        replaces.check(&named)?;
        let parent = parent(&target);
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        let (staging, lock) = begin(parent)?;
        Ok(Self { staging, _lock: lock, named, target, replaces })
    }

    /// Starts in `dir`, for files that are moved there one by one, so that nothing is committed.
    ///
    /// # Errors
    ///
    /// Returns I/O errors.
    pub fn inside(dir: &Path) -> Result<Self, CheckpointError> {
        let (staging, lock) = begin(dir)?;
        let replaces = Replaces::new(false, Contents::Part, Vec::new());
        Ok(Self { staging, _lock: lock, named: dir.into(), target: dir.into(), replaces })
    }

    /// The directory to write to.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// The name that a file will have, for messages.
    pub(super) fn named(&self, name: &str) -> PathBuf {
        self.named.join(name)
    }

    /// Writes one file and syncs it.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Io`], which names the file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.path().join(name);
        let mut file = File::create(&path).map_err(CheckpointError::io(self.named(name)))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(CheckpointError::io(self.named(name)))
    }

    /// Syncs every file, including those that were copied in: the data must be on disk before the rename.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::Io`], which names the file.
    pub fn sync(&self) -> Result<(), CheckpointError> {
        for entry in fs::read_dir(self.path()).map_err(CheckpointError::io(&self.named))? {
            let entry = entry.map_err(CheckpointError::io(&self.named))?;
            let named = self.named.join(entry.file_name());
            File::open(entry.path()).and_then(|file| file.sync_all()).map_err(CheckpointError::io(named))?;
        }
        Ok(())
    }

    /// Syncs the files and renames the directory to its target.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Replaces::check`], if another process wrote there in the meantime, and I/O errors. The
    /// previous content is then restored.
    pub fn commit(self) -> Result<(), CheckpointError> {
        self.sync()?;
        let io = || CheckpointError::io(self.named.clone());
        let staging = self.staging.path().to_path_buf();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // tempfile makes the directory private; a checkpoint gets the usual permissions.
            fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).map_err(io())?;
        }
        if occupied(&self.target) {
            self.replaces.check(&self.named)?;
            let (old, contents) = (aside(&self.target), self.replaces.contents);
            // The lock keeps other processes from removing the moved directory as a leftover.
            let _lock = File::open(&self.target).ok().filter(|dir| dir.try_lock().is_ok());
            fs::rename(&self.target, &old).map_err(io())?;
            // Under its new name nobody writes to it any more.
            let moved = contents.check(&old).map_err(|error| self.renamed(error));
            let moved = moved.and_then(|()| fs::rename(&staging, &self.target).map_err(io()));
            if let Err(error) = moved {
                // Restores the previous directory before the error is returned.
                let _ = fs::rename(&old, &self.target);
                return Err(error);
            }
            contents.remove(&old)?;
        } else {
            if self.target.is_dir() {
                fs::remove_dir(&self.target).map_err(io())?;
            }
            fs::rename(&staging, &self.target).map_err(io())?;
        }
        // The directory has been renamed, so there is nothing to clean up.
        let _ = self.staging.keep();
        Ok(())
    }

    /// An error about the moved directory, with the name that the user knows.
    fn renamed(&self, error: CheckpointError) -> CheckpointError {
        match error {
            CheckpointError::Foreign { entry, reason, .. } => {
                CheckpointError::Foreign { dir: self.named.clone(), entry, reason }
            }
            other => other,
        }
    }
}

fn occupied(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.symlink_metadata().is_ok(),
    }
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The path of a directory while another takes its name.
fn aside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".basic-old-");
    name.push(target.file_name().unwrap_or_default());
    parent(target).join(name)
}

/// Creates a directory to write in and locks it; removes those that are not locked.
fn begin(parent: &Path) -> Result<(TempDir, Option<File>), CheckpointError> {
    sweep_folders(parent);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    loop {
        let staging =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(CheckpointError::io(parent))?;
        let lock = File::open(staging.path()).map_err(CheckpointError::io(parent));
        match lock.map(|lock| (lock.try_lock(), lock)) {
            // Another process is cleaning up here, and took the directory for a leftover before it was locked.
            Err(_) | Ok((Err(fs::TryLockError::WouldBlock), _)) => {}
            Ok((Ok(()), lock)) if staging.path().is_dir() => return Ok((staging, Some(lock))),
            Ok((Ok(()), _)) => {}
            // On a file system without locks, nothing is cleaned up either.
            Ok((Err(fs::TryLockError::Error(_)), _)) => return Ok((staging, None)),
        }
        if !parent.is_dir() {
            return Err(CheckpointError::io(parent)(std::io::ErrorKind::NotFound.into()));
        }
    }
}

/// Handles a directory that a process was replacing when it was killed: restores it if its place is free, and
/// removes it otherwise.
fn put_back(target: &Path, contents: Contents) {
    let old = aside(target);
    let Ok(lock) = File::open(&old) else { return };
    if lock.try_lock().is_err() || contents.check(&old).is_err() {
        return;
    }
    // If this fails, the caller finds the directory in its way and reports it.
    let _ = match occupied(target) {
        true => contents.remove(&old),
        false => fs::rename(&old, target).map_err(CheckpointError::io(target)),
    };
}

#[cfg(test)]
mod tests;
