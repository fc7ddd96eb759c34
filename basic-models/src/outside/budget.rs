//! Bytes and time that reading one outside file may take.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What reading one outside file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of memory that may be made of the file beyond what its own bytes take: decompressed, decoded, parsed.
    pub bytes: u64,
    /// How long reading it may take.
    pub time: Duration,
}

impl FileLimits {
    /// The limits unless somebody sets others: 1 GiB, two minutes.
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

/// Sets the limits for budgets that begin from now on, in the whole process.
pub fn set_file_limits(limits: FileLimits) {
    *LIMITS.write().unwrap_or_else(std::sync::PoisonError::into_inner) = limits;
}

/// A file that takes more than its budget.
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
    /// What is too much, without the file.
    pub fn reason(&self) -> String {
        let (Self::Bytes { path, .. } | Self::Time { path, .. }) = self;
        let said = self.to_string();
        said.strip_prefix(&format!("{}: ", path.display())).map_or(said.clone(), String::from)
    }
}

impl From<OverBudget> for io::Error {
    /// Like the system's errors it does not name the file: whoever tells of it does.
    fn from(error: OverBudget) -> Self {
        Self::other(error.reason())
    }
}

/// What is left of one file's limits while it is read. Readers take from it *before* they allocate, with sizes that
/// the file itself claims.
#[derive(Debug)]
pub struct Budget {
    path: PathBuf,
    limits: FileLimits,
    left: AtomicU64,
    begun: Instant,
}

impl Budget {
    /// A whole budget, by the limits in force; `path` is what messages call the file.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self::within(path, file_limits())
    }

    /// A budget of these limits.
    pub fn within(path: impl Into<PathBuf>, limits: FileLimits) -> Self {
        Self { path: path.into(), limits, left: AtomicU64::new(limits.bytes), begun: Instant::now() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes bytes, for good or until [`Budget::give_back`]; also checks the time.
    ///
    /// # Errors
    /// [`OverBudget`]; nothing is taken then.
    pub fn take(&self, bytes: u64) -> Result<(), OverBudget> {
        self.check_time()?;
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map(|_| ()).map_err(|_| self.over_bytes())
    }

    /// Gives bytes back that were taken and are free again.
    pub fn give_back(&self, bytes: u64) {
        let give = |left: u64| Some(left.saturating_add(bytes).min(self.limits.bytes));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Whether the time is up.
    ///
    /// # Errors
    /// [`OverBudget::Time`].
    pub fn check_time(&self) -> Result<(), OverBudget> {
        match self.begun.elapsed() > self.limits.time {
            true => Err(OverBudget::Time { path: self.path.clone(), seconds: self.limits.time.as_secs() }),
            false => Ok(()),
        }
    }

    /// The error of a reader that found out by itself that the bytes do not suffice.
    pub fn over_bytes(&self) -> OverBudget {
        OverBudget::Bytes { path: self.path.clone(), limit: self.limits.bytes }
    }
}

/// Reads a whole small file (a configuration, a template, a tokenizer, a recipe) within its budget: what is longer, or
/// never ends (a device, a pipe), is an error and not the machine's memory.
///
/// # Errors
/// The operating system's; [`OverBudget`] as an [`io::Error`].
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

/// [`read`] for text; UTF-8's mark at its head is dropped.
///
/// # Errors
/// Those of [`read`]; `InvalidData` where the file is not UTF-8.
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
