//! A directory that is there whole or not at all: everything is written beside, synced, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::CheckpointError;

/// A directory under construction: [`StagedDir::commit`] gives it its name, dropping it removes it.
#[derive(Debug)]
pub struct StagedDir {
    staging: tempfile::TempDir,
    target: PathBuf,
    overwrite: bool,
}

impl StagedDir {
    /// Starts beside `target`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`] where the target holds files and `overwrite` is off; I/O errors.
    pub fn new(target: &Path, overwrite: bool) -> Result<Self, CheckpointError> {
        if occupied(target) && !overwrite {
            return Err(CheckpointError::Exists(target.into()));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        let staging =
            tempfile::Builder::new().prefix(".basic-").tempdir_in(parent).map_err(CheckpointError::io(parent))?;
        Ok(Self { staging, target: target.into(), overwrite })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// The name that a file will have, for messages.
    pub(super) fn named(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    /// Writes one file and syncs it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] that names the file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.path().join(name);
        let mut file = File::create(&path).map_err(CheckpointError::io(self.target.join(name)))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(CheckpointError::io(self.target.join(name)))
    }

    /// Syncs every file, those that were copied in too: a rename must not outrun its data.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] that names the file.
    pub fn sync(&self) -> Result<(), CheckpointError> {
        for entry in fs::read_dir(self.path()).map_err(CheckpointError::io(&self.target))? {
            let entry = entry.map_err(CheckpointError::io(&self.target))?;
            let named = self.target.join(entry.file_name());
            File::open(entry.path()).and_then(|file| file.sync_all()).map_err(CheckpointError::io(named))?;
        }
        Ok(())
    }

    /// Syncs the files and renames the directory to its target.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`] where somebody else made the target meanwhile; I/O errors.
    pub fn commit(self) -> Result<(), CheckpointError> {
        self.sync()?;
        let io = || CheckpointError::io(self.target.clone());
        let staging = self.staging.path().to_path_buf();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // tempfile makes the directory private; a checkpoint gets ordinary permissions.
            fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).map_err(io())?;
        }
        if occupied(&self.target) {
            if !self.overwrite {
                return Err(CheckpointError::Exists(self.target));
            }
            let old = staging.with_extension("old");
            fs::rename(&self.target, &old).map_err(io())?;
            if let Err(error) = fs::rename(&staging, &self.target) {
                // Put back what was there before reporting.
                let _ = fs::rename(&old, &self.target);
                return Err(CheckpointError::Io { path: self.target, source: error });
            }
            fs::remove_dir_all(&old).map_err(CheckpointError::io(&old))?;
        } else {
            if self.target.is_dir() {
                fs::remove_dir(&self.target).map_err(io())?;
            }
            fs::rename(&staging, &self.target).map_err(io())?;
        }
        // The directory has moved: there is nothing left to clean up.
        let _ = self.staging.keep();
        Ok(())
    }
}

fn occupied(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}
