//! Detects whether the image files of samples have changed since the set was opened or since they were last read.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use basic_models::processor::Message;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{DataError, fingerprint};

/// A run's record of the image files that it has read: 8 bytes per sample, and nothing if the images are in the data
/// files.
///
/// The first time a sample is drawn, its images must not have changed since the set was opened, according to the file
/// system's times. From then on they must keep the same contents.
#[derive(Debug)]
pub struct SeenImages {
    opened: SystemTime,
    samples: usize,
    /// A hash of each sample's text and of the contents of its images; 0 until they have been read.
    hashes: OnceLock<Vec<AtomicU64>>,
}

impl SeenImages {
    /// The record for a set of `samples` samples that was opened at this time.
    pub(super) fn new(opened: SystemTime, samples: usize) -> Self {
        Self { opened, samples, hashes: OnceLock::new() }
    }

    /// Checks the images of sample `index`, which have just been read, and its turns.
    ///
    /// # Errors
    ///
    /// [`DataError::Set`] that names the file.
    pub(super) fn check(&self, index: usize, turns: &[Message], images: &[&Path]) -> Result<(), DataError> {
        // A file that no longer exists was read completely before, and nothing more is read from it.
        let Some(hashes) = images.iter().map(|path| content(path)).collect::<Option<Vec<u64>>>() else { return Ok(()) };
        let text = turns.iter().map(|message| xxh3_64(message.content.as_bytes()));
        let hash = fingerprint::combine(hashes.into_iter().chain(text)).max(1);
        let Some(held) = self.hashes().get(index) else { return Ok(()) };
        let (file, what) = match held.compare_exchange(0, hash, Ordering::AcqRel, Ordering::Acquire) {
            Err(known) if known == hash => return Ok(()),
            Err(_) => {
                // In a folder of images the text of an image is in a file beside it.
                let files = images.iter().flat_map(|path| [path.to_path_buf(), path.with_extension("txt")]);
                let what =
                    "is not what it was when its sample was trained on before, or another file of that sample is not";
                (files.max_by_key(|path| changed(path)), what)
            }
            Ok(_) => {
                let changed = images.iter().find(|path| changed(path).is_some_and(|at| at > self.opened));
                (changed.map(|path| path.to_path_buf()), "was changed after the run had begun to read its data")
            }
        };
        let Some(path) = file else { return Ok(()) };
        let reason = format!(
            "{what}: what was trained since the last state is of both: put the file back and go on from the last state \
             with --resume, or start anew"
        );
        Err(DataError::Set { path, reason })
    }

    fn hashes(&self) -> &[AtomicU64] {
        self.hashes.get_or_init(|| (0..self.samples).map(|_| AtomicU64::new(0)).collect())
    }

    /// The bytes to save in a training state; `None` if no image file was read.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let hashes = self.hashes.get()?;
        Some(hashes.iter().flat_map(|hash| hash.load(Ordering::Acquire).to_le_bytes()).collect())
    }

    /// Restores the bytes saved in a training state; must be called before anything is read.
    pub fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        self.take(bytes, |held, hash| held.store(hash, Ordering::Release))
    }

    /// Adds what another process of the run has read, from its [`to_bytes`](Self::to_bytes). What this one has read
    /// itself stays.
    pub fn merge(&self, bytes: &[u8]) -> Result<(), String> {
        self.take(bytes, |held, hash| {
            let _ = held.compare_exchange(0, hash, Ordering::AcqRel, Ordering::Acquire);
        })
    }

    fn take(&self, bytes: &[u8], take: impl Fn(&AtomicU64, u64)) -> Result<(), String> {
        let (hashes, rest) = bytes.as_chunks::<8>();
        if hashes.len() != self.samples || !rest.is_empty() {
            return Err(format!("has {} bytes, where {} samples take 8 each", bytes.len(), self.samples));
        }
        self.hashes().iter().zip(hashes).for_each(|(held, hash)| take(held, u64::from_le_bytes(*hash)));
        Ok(())
    }
}

fn content(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let (mut hasher, mut buffer) = (Xxh3::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hasher.digest()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// When a file's contents, name or location last changed. For a link, the later of the link's and its target's time.
fn changed(path: &Path) -> Option<SystemTime> {
    let own = path.symlink_metadata().ok()?;
    let target = path.metadata().ok()?;
    // A time in the future comes from another machine's clock and says nothing.
    let now = SystemTime::now();
    changed_at(&own).max(changed_at(&target)).filter(|at| *at <= now)
}

/// When a file's contents or metadata last changed; only its contents on systems without that time.
pub(super) fn changed_at(meta: &Metadata) -> Option<SystemTime> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let seconds = u64::try_from(meta.ctime()).ok()?;
        let nanoseconds = u32::try_from(meta.ctime_nsec()).ok()?;
        std::time::UNIX_EPOCH.checked_add(std::time::Duration::new(seconds, nanoseconds))
    }
    #[cfg(not(unix))]
    meta.modified().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use basic_models::processor::Role;

    use super::*;

    /// A delay longer than the resolution of a file system's clock.
    const TICK: Duration = Duration::from_millis(30);

    fn said(text: &str) -> [Message; 1] {
        [Message::new(Role::User, text)]
    }

    fn images(dir: &Path) -> [PathBuf; 2] {
        let images = [dir.join("a.png"), dir.join("b.png")];
        images.iter().for_each(|path| fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap());
        std::thread::sleep(TICK);
        images
    }

    #[test]
    fn an_image_that_was_changed_behind_the_opening_is_told_when_it_is_first_read() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = images(dir.path());
        fs::write(dir.path().join("old"), "older than the run").unwrap();
        std::thread::sleep(TICK);
        let seen = SeenImages::new(SystemTime::now(), 4);
        seen.check(0, &said("a"), &[&a]).unwrap();
        seen.check(1, &said("a"), &[&b]).unwrap();
        std::thread::sleep(TICK);
        // A file whose contents are older than the run, moved to another file's name.
        fs::rename(dir.path().join("old"), &b).unwrap();
        for (sample, images, named) in [(1, vec![&*b], &b), (2, vec![&*b], &b), (3, vec![&*a, &*b], &b)] {
            let error = seen.check(sample, &said("a"), &images).unwrap_err();
            assert!(!error.is_sample() && error.to_string().contains(&named.display().to_string()), "{error}");
        }
        seen.check(0, &said("a"), &[&a]).unwrap();
    }

    #[test]
    fn an_image_that_was_read_may_be_touched_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = images(dir.path());
        let seen = SeenImages::new(SystemTime::now(), 1);
        seen.check(0, &said("a"), &[&a]).unwrap();
        std::thread::sleep(TICK);
        // The same bytes in a new file, as when a backup is restored.
        fs::copy(&a, dir.path().join("c")).unwrap();
        fs::copy(&a, dir.path().join("d")).unwrap();
        fs::rename(dir.path().join("c"), &a).unwrap();
        seen.check(0, &said("a"), &[&a]).unwrap();
        fs::copy(&b, &a).unwrap();
        assert!(seen.check(0, &said("a"), &[&a]).unwrap_err().to_string().contains("a.png"));
        fs::copy(dir.path().join("d"), &a).unwrap();
        seen.check(0, &said("a"), &[&a]).unwrap();
        assert!(seen.check(0, &said("b"), &[&a]).is_err(), "its text counts as well");
        fs::remove_file(&a).unwrap();
        seen.check(0, &said("a"), &[&a]).unwrap();
    }

    #[test]
    fn a_state_keeps_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = images(dir.path());
        let seen = SeenImages::new(SystemTime::now(), 3);
        assert_eq!(seen.to_bytes(), None);
        seen.check(1, &said("a"), &[&a]).unwrap();
        let bytes = seen.to_bytes().unwrap();
        assert_eq!(bytes.len(), 24);
        fs::copy(&b, &a).unwrap();
        std::thread::sleep(TICK);
        let later = SeenImages::new(SystemTime::now(), 3);
        later.restore(&bytes).unwrap();
        assert!(later.check(1, &said("a"), &[&a]).is_err());
        later.check(0, &said("a"), &[&a]).unwrap();
        assert!(later.restore(&bytes[..23]).is_err() && later.restore(&bytes[..16]).is_err());
    }
}
