//! Detects whether data files have changed since they were opened.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;

use super::DataError;
use super::fingerprint::{WHOLE, combine, of_contents};
use super::seen::changed_at;

/// The metadata of files at one moment, without their contents.
#[derive(Debug, Default)]
pub(super) struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    /// The device and inode numbers.
    file: (u64, u64),
    /// The last change of anything, including the name.
    changed: Option<SystemTime>,
}

/// The metadata of many files, in order, hashed to 8 bytes each. The time of the last change is left out, because a
/// change of permissions or links affects it too. 0 stands for a missing file.
#[derive(Debug, Default)]
pub(super) struct ShortStamps {
    stamps: Vec<u64>,
    latest: Option<SystemTime>,
}

impl ShortStamps {
    /// The current metadata of these files.
    pub fn of(files: &[PathBuf]) -> Self {
        let stamps: Vec<_> = files.par_iter().map(|path| stamp(path)).collect();
        let latest = stamps.iter().filter_map(|stamp| stamp.as_ref()?.changed).max();
        Self { stamps: stamps.iter().map(short).collect(), latest }
    }

    /// The first of the same files that was replaced or written again. A file that has been removed or added since does
    /// not count as changed.
    pub fn changed<'a>(&self, files: &'a [PathBuf]) -> Option<&'a Path> {
        let both = files.par_iter().zip(&self.stamps);
        let changed = |(path, held): &(&PathBuf, &u64)| {
            let now = short(&stamp(path));
            **held != 0 && now != 0 && now != **held
        };
        both.find_first(changed).map(|(path, _)| path.as_path())
    }

    /// The latest change time of any file.
    pub fn latest(&self) -> Option<SystemTime> {
        self.latest
    }
}

fn short(stamp: &Option<Stamp>) -> u64 {
    let Some(Stamp { len, modified, file, .. }) = stamp else { return 0 };
    let since = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    combine([*len, since.as_secs(), since.subsec_nanos().into(), file.0, file.1]).max(1)
}

/// Files with their metadata and a hash of their contents at one moment.
#[derive(Debug)]
pub struct Watched(Vec<(Stamps, u64)>);

impl Watched {
    /// The current state of those of these files that exist.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that cannot be read.
    pub fn of(files: &[PathBuf]) -> Result<Self, DataError> {
        let there = files.par_iter().filter(|path| path.is_file());
        let watched = there.map(|path| {
            let file = std::slice::from_ref(path);
            Ok((Stamps::of(file), of_contents(file)?))
        });
        Ok(Self(watched.collect::<Result<_, _>>()?))
    }

    /// The first file whose contents have changed; a file that no longer exists does not count.
    pub fn changed(&self) -> Option<&Path> {
        self.0.iter().find_map(|(stamps, hash)| {
            let (path, change) = stamps.changed()?;
            let same = || of_contents(&[path.into()]).is_ok_and(|now| now == *hash);
            (change == Change::Replaced || !same()).then_some(path)
        })
    }
}

/// How a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// The metadata changed; the contents must be compared.
    Touched,
    /// The file has another size, or another file that is too large to compare as a whole has its name.
    Replaced,
}

impl Stamps {
    /// The current metadata of these files.
    pub fn of(files: &[PathBuf]) -> Self {
        Self(files.par_iter().map(|path| (path.clone(), stamp(path))).collect())
    }

    /// The latest change time of any file.
    pub fn latest(&self) -> Option<SystemTime> {
        self.0.iter().filter_map(|(_, stamp)| stamp.as_ref()?.changed).max()
    }

    /// Adds more files.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The file that has changed most. A file that no longer exists does not count, because nothing more is read from
    /// it.
    pub fn changed(&self) -> Option<(&Path, Change)> {
        let change = |(path, held): &'_ (PathBuf, Option<Stamp>)| {
            let (held, now) = (held.as_ref()?, stamp(path)?);
            (*held != now).then(|| {
                let another = held.file != now.file && held.modified != now.modified;
                if now.len != held.len || (another && now.len > WHOLE) { Change::Replaced } else { Change::Touched }
            })
        };
        let found = self.0.par_iter().filter_map(|file| Some((file.0.as_path(), change(file)?)));
        found.max_by_key(|(_, change)| *change)
    }
}

/// The metadata of a file; `None` if it is not a regular file, such as a pipe.
fn stamp(path: &Path) -> Option<Stamp> {
    let meta = path.metadata().ok().filter(Metadata::is_file)?;
    #[cfg(unix)]
    let file = {
        use std::os::unix::fs::MetadataExt;
        (meta.dev(), meta.ino())
    };
    #[cfg(not(unix))]
    let file = (0, 0);
    Some(Stamp { len: meta.len(), modified: meta.modified().ok(), file, changed: changed_at(&meta) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Change, ShortStamps, Stamps, Watched};

    #[test]
    fn a_file_that_is_written_again_is_noticed_and_one_that_is_gone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "one").unwrap();
        let stamps = Stamps::of(&[a.clone(), b.clone()]);
        assert_eq!(stamps.changed(), None);
        // New contents of the same length under the same name.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(dir.path().join("c"), "two").unwrap();
        fs::rename(dir.path().join("c"), &b).unwrap();
        assert_eq!(stamps.changed(), Some((b.as_path(), Change::Touched)));
        fs::write(&a, "longer").unwrap();
        assert_eq!(stamps.changed(), Some((a.as_path(), Change::Replaced)));
        fs::remove_file(&a).unwrap();
        fs::remove_file(&b).unwrap();
        assert_eq!(stamps.changed(), None);
    }

    #[test]
    fn of_many_files_one_that_is_written_again_or_exchanged_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b", "absent"].map(|name| dir.path().join(name));
        fs::write(&files[0], "one").unwrap();
        fs::write(&files[1], "one").unwrap();
        let stamps = ShortStamps::of(&files);
        assert!(stamps.latest().is_some());
        fs::write(&files[2], "new").unwrap();
        fs::remove_file(&files[0]).unwrap();
        assert_eq!(stamps.changed(&files), None);
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&files[1], "two").unwrap();
        assert_eq!(stamps.changed(&files), Some(files[1].as_path()));
    }

    #[test]
    fn of_watched_files_the_contents_count() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "one").unwrap();
        let watched = Watched::of(&[a.clone(), b.clone(), dir.path().join("absent")]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&a, "one").unwrap();
        assert_eq!(watched.changed(), None);
        fs::write(&b, "two").unwrap();
        assert_eq!(watched.changed(), Some(b.as_path()));
        fs::remove_file(&b).unwrap();
        assert_eq!(watched.changed(), None);
    }
}
