//! Limits on the memory and the time that reading one outside file may take.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The limits for reading one outside file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of memory that decompressing, decoding and parsing may take, beyond the file's own bytes.
    pub bytes: u64,
    /// The longest time that reading may take.
    pub time: Duration,
}

impl FileLimits {
    /// The default limits: 1 GiB, two minutes.
    pub const DEFAULT: Self = Self { bytes: 1 << 30, time: Duration::from_secs(120) };
}

impl Default for FileLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

static LIMITS: RwLock<FileLimits> = RwLock::new(FileLimits::DEFAULT);

/// The limits in force in this process.
pub fn file_limits() -> FileLimits {
    *LIMITS.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sets the limits for all budgets that the process creates from now on.
pub fn set_file_limits(limits: FileLimits) {
    *LIMITS.write().unwrap_or_else(std::sync::PoisonError::into_inner) = limits;
}

/// A file exceeded its budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// Memory.
    #[error("{path}: takes more than the {limit} bytes of memory that one file may take; if the file is to be trusted, raise the limit with --file-bytes", path = path.display())]
    Bytes {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Time.
    #[error("{path}: takes more than the {seconds} seconds that one file may take; if the file is to be trusted, raise the limit with --file-seconds", path = path.display())]
    Time {
        /// The file.
        path: PathBuf,
        /// The limit in seconds.
        seconds: u64,
    },
}

impl OverBudget {
    /// What was exceeded, without the file's name.
    pub fn reason(&self) -> String {
        let (Self::Bytes { path, .. } | Self::Time { path, .. }) = self;
        let said = self.to_string();
        said.strip_prefix(&format!("{}: ", path.display())).map_or(said.clone(), String::from)
    }
}

impl From<OverBudget> for io::Error {
    /// Like the system's errors, it does not name the file; the caller adds the name.
    fn from(error: OverBudget) -> Self {
        Self::other(error.reason())
    }
}

/// What remains of one file's limits while it is read. Readers take from it *before* they allocate memory whose size
/// the file itself states.
#[derive(Debug)]
pub struct Budget {
    path: PathBuf,
    limits: FileLimits,
    left: AtomicU64,
    begun: Instant,
}

impl Budget {
    /// A full budget with the current limits; messages call the file `path`.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self::within(path, file_limits())
    }

    /// A full budget with these limits.
    pub fn within(path: impl Into<PathBuf>, limits: FileLimits) -> Self {
        Self { path: path.into(), limits, left: AtomicU64::new(limits.bytes), begun: Instant::now() }
    }

    /// The path that messages name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes bytes, for good or until [`Budget::give_back`]; also checks the time.
    ///
    /// # Errors
    /// Returns [`OverBudget`]; then nothing is taken.
    pub fn take(&self, bytes: u64) -> Result<(), OverBudget> {
        self.check_time()?;
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map(|_| ()).map_err(|_| self.over_bytes())
    }

    /// Gives back bytes that were taken and have been freed.
    pub fn give_back(&self, bytes: u64) {
        let give = |left: u64| Some(left.saturating_add(bytes).min(self.limits.bytes));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// The number of bytes that remain.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Checks whether the time is up.
    ///
    /// # Errors
    /// Returns [`OverBudget::Time`] if it is.
    pub fn check_time(&self) -> Result<(), OverBudget> {
        match self.begun.elapsed() > self.limits.time {
            true => Err(OverBudget::Time { path: self.path.clone(), seconds: self.limits.time.as_secs() }),
            false => Ok(()),
        }
    }

    /// The error for a reader that found out by itself that the bytes do not suffice.
    pub fn over_bytes(&self) -> OverBudget {
        OverBudget::Bytes { path: self.path.clone(), limit: self.limits.bytes }
    }
}

/// Reads a whole small file (a configuration, a template, a tokenizer, a recipe) within its budget. A file that is
/// longer, or that never ends (a device, a pipe), is an error instead of filling the machine's memory.
///
/// # Errors
/// Returns the operating system's error, or [`OverBudget`] as an [`io::Error`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let budget = Budget::of(path);
    let mut file = File::open(path)?;
    let limit = budget.left();
    let mut bytes = Vec::new();
    if let Ok(meta) = file.metadata() {
        budget.take(meta.len())?;
        bytes.try_reserve_exact(meta.len() as usize)?;
    }
    file.by_ref().take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(budget.over_bytes().into()),
        false => Ok(bytes),
    }
}

/// [`read`] for text. A byte-order mark at the beginning is dropped.
///
/// # Errors
/// Returns the errors of [`read`], and `InvalidData` if the file is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = read(path)?;
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("is not UTF-8: {e}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Budget, FileLimits, OverBudget, read_text};

    #[test]
    fn what_is_taken_is_gone_until_it_is_given_back() {
        let budget = Budget::within("a.bin", FileLimits { bytes: 100, time: Duration::from_secs(60) });
        budget.take(60).unwrap();
        let over = budget.take(41).unwrap_err();
        assert!(over.to_string().contains("a.bin") && over.to_string().contains("--file-bytes"), "{over}");
        let as_io = std::io::Error::from(over).to_string();
        assert!(as_io.starts_with("takes more than the 100 bytes"), "{as_io}");
        assert_eq!(budget.left(), 40, "a refused request takes nothing");
        budget.give_back(60);
        budget.give_back(u64::MAX);
        assert_eq!(budget.left(), 100, "no more comes back than there was");
        assert!(budget.take(u64::MAX).is_err());
    }

    #[test]
    fn time_runs_out() {
        let budget = Budget::within("a.bin", FileLimits { bytes: 100, time: Duration::ZERO });
        std::thread::sleep(Duration::from_millis(1));
        assert!(matches!(budget.take(1), Err(OverBudget::Time { .. })));
    }

    #[test]
    fn text_loses_its_mark_and_must_be_utf_8() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, b"\xEF\xBB\xBFa").unwrap();
        assert_eq!(read_text(&path).unwrap(), "a");
        std::fs::write(&path, b"\xFF").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("UTF-8"));
    }
}
