//! Locks a directory so that only one process at a time writes to it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

const NAME: &str = ".lock";

/// Why a directory could not be locked.
#[derive(Debug, Error)]
pub enum HoldError {
    /// Another process holds the lock.
    #[error("{path}: another `basic` is at work there: wait for it to end, or choose another directory", path = .0.display())]
    Taken(PathBuf),
    /// The lock could not be created.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A lock on a directory, held through a file `.lock` in it. The system releases the lock however the process ends; a
/// file that is left over locks nothing.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    lock: File,
    /// Kept open, so that its inode number is not reused for another directory.
    #[cfg(unix)]
    dir: File,
}

impl Held {
    /// Locks `dir`, creating it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`HoldError::Taken`] if another process holds the lock, [`HoldError::Io`] if the system fails.
    pub fn take(dir: &Path) -> Result<Self, HoldError> {
        let path = dir.join(NAME);
        let io = |source| HoldError::Io { path: path.clone(), source };
        fs::create_dir_all(dir).map_err(io)?;
        loop {
            let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(HoldError::Taken(dir.into())),
                // Some file systems have no locks; the run then goes on without one.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
            // A previous holder may have removed the file between opening and locking it; the lock would then be on a
            // deleted file.
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

    /// Whether the directory has been removed or replaced.
    pub fn lost(&self) -> bool {
        #[cfg(unix)]
        return gone_from(&self.dir, &self.path);
        #[cfg(not(unix))]
        return !self.path.is_dir();
    }

    /// Whether a directory entry is the lock file of this program. That file is always empty, unlike other programs'
    /// `.lock`.
    pub fn is_lock(entry: &Path) -> bool {
        let empty = || entry.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0);
        entry.file_name().is_some_and(|name| name == NAME) && empty()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let path = self.path.join(NAME);
        // The lock is still held here, so no other process can hold it. A file that cannot be removed does no harm.
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

/// Whether `path` no longer leads to `file`; `false` if the file system's answer leaves this open.
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

/// On other systems an open file cannot be removed.
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
        // A killed process leaves the file behind, without a lock.
        std::fs::write(path.join(".lock"), "").unwrap();
        assert!(!Held::take(&path).unwrap().lost());
        assert!(!path.join(".lock").exists());
        // Another program's file is used for the lock and left unchanged.
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
