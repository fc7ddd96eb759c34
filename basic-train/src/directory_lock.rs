//! A directory that one process at a time writes to.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

const NAME: &str = ".lock";

/// Why a directory is not this process's.
#[derive(Debug, Error)]
pub enum HoldError {
    /// Another process writes there.
    #[error("{path}: another `basic` is at work there: wait for it to end, or choose another directory", path = .0.display())]
    Taken(PathBuf),
    /// No lock could be made.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A lock on a directory, by a file `.lock` in it. The system lets go of it however the process ends: what is left of the
/// file then locks nothing.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    lock: File,
    /// Kept open, so that no other directory gets its number.
    #[cfg(unix)]
    dir: File,
}

impl Held {
    /// Locks `dir`, which is made where it is not there.
    ///
    /// # Errors
    ///
    /// [`HoldError::Taken`] where another process has it; the operating system's.
    pub fn take(dir: &Path) -> Result<Self, HoldError> {
        let path = dir.join(NAME);
        let io = |source| HoldError::Io { path: path.clone(), source };
        fs::create_dir_all(dir).map_err(io)?;
        loop {
            let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(HoldError::Taken(dir.into())),
                // A file system without locks: better no lock than no run.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
            // Who held it may have taken the file away between the two lines: then this is a lock on nothing.
            if is_at(&lock, &path) {
                return Ok(Self {
                    #[cfg(unix)]
                    dir: File::open(dir).map_err(io)?,
                    path: dir.into(),
                    lock,
                });
            }
        }
    }

    /// Whether something else, or nothing, is where the directory was.
    pub fn lost(&self) -> bool {
        #[cfg(unix)]
        return gone_from(&self.dir, &self.path);
        #[cfg(not(unix))]
        return !self.path.is_dir();
    }

    /// Whether an entry of a directory is the lock's file, which is empty: another program's need not be.
    pub fn is_lock(entry: &Path) -> bool {
        let empty = || entry.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0);
        entry.file_name().is_some_and(|name| name == NAME) && empty()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let path = self.path.join(NAME);
        // Still locked here: nobody else can have it. Where it cannot be removed it is in nobody's way.
        if cfg!(unix) && Self::is_lock(&path) && is_at(&self.lock, &path) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(unix)]
fn numbers(meta: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino())
}

/// Whether `path` certainly leads elsewhere than to `file`: a file system that does not answer is no proof.
#[cfg(unix)]
fn gone_from(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => numbers(&held) != numbers(&there),
        (_, Err(error)) => error.kind() == io::ErrorKind::NotFound,
        (Err(_), Ok(_)) => false,
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    !gone_from(file, path)
}

/// Elsewhere a file that is open cannot be taken away.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::{Held, HoldError};

    #[test]
    fn a_directory_has_one_holder_and_is_free_again_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let held = Held::take(&path).unwrap();
        assert!(matches!(Held::take(&path), Err(HoldError::Taken(_))));
        drop(held);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "nothing of the lock is left");
        // A killed process leaves the file, which locks nothing.
        std::fs::write(path.join(".lock"), "").unwrap();
        assert!(!Held::take(&path).unwrap().lost());
        assert!(!path.join(".lock").exists());
        // Another program's is used, and stays what it is.
        std::fs::write(path.join(".lock"), "pid 1").unwrap();
        assert!(!Held::take(&path).unwrap().lost());
        assert_eq!(std::fs::read(path.join(".lock")).unwrap(), b"pid 1");
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_went_or_was_replaced_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let held = Held::take(&path).unwrap();
        assert!(!held.lost());
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        assert!(held.lost());
        let other = Held::take(&path).unwrap();
        assert!(held.lost() && !other.lost());
        drop(held);
        assert!(path.join(".lock").exists(), "the lock of the new directory is not the old one's to remove");
    }
}
