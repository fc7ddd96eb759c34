//! Writes files atomically, so that they are complete or absent, and removes temporary files of writers that were
//! killed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::checkpoint::temporary_names::{PREFIX, writer};

/// A temporary file is locked right after it is created. One that is older than this and not locked was left behind.
const LOCKED_AFTER: Duration = Duration::from_secs(60);

/// The number of bytes by which the content of a file is recognized.
const HEAD: usize = 12;

/// Writes a temporary file beside `path`, syncs it, and renames it to `path`. A symbolic link is kept, and its
/// target replaced. Devices and pipes are written directly. Temporary files of killed processes in the same
/// folder are removed.
///
/// # Errors
///
/// Returns the operating system's error.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let resolved = path.canonicalize();
    let path = resolved.as_deref().unwrap_or(path);
    if path.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        return fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent)?;
    sweep_once(parent, bytes);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(parent)?;
    // The lock shows others that the writer is alive. On a file system without locks they only have the process's
    // number.
    let _ = file.as_file().try_lock();
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // tempfile makes files private; a result gets the usual permissions.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Removes temporary files in `dir` that dead writers left and that begin like `bytes`. Done once per process,
/// folder and beginning.
fn sweep_once(dir: &Path, bytes: &[u8]) {
    type Swept = HashSet<(PathBuf, Vec<u8>)>;
    static SWEPT: Mutex<Option<Swept>> = Mutex::new(None);
    let Ok(real) = dir.canonicalize() else { return };
    let head = bytes[..bytes.len().min(HEAD)].to_vec();
    if !SWEPT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert((real, head)) {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let writer = entry.file_name().to_str().and_then(writer);
        if writer.is_some_and(|writer| is_left(&entry, writer)) && agrees(&entry.path(), bytes) {
            // A file that cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a file is empty or begins like `bytes`: its name alone does not say which file it would have become.
fn agrees(file: &Path, bytes: &[u8]) -> bool {
    let mut head = Vec::new();
    let read = File::open(file).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    let length = head.len().min(bytes.len());
    read.is_ok() && (head.is_empty() || (length > 0 && head[..length] == bytes[..length]))
}

/// Whether no process writes the file any more: it is not locked, and its writer is dead or has had time to lock it.
fn is_left(entry: &fs::DirEntry, writer: u32) -> bool {
    let Ok(meta) = entry.metadata() else { return false };
    let old = || meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > LOCKED_AFTER);
    let unlocked = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
    meta.is_file() && (is_dead(writer) || old()) && unlocked()
}

/// Whether no process has this number, as far as the system can tell.
fn is_dead(process: u32) -> bool {
    Path::new("/proc/self").exists() && !Path::new("/proc").join(process.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::write_atomically;

    #[test]
    fn what_a_dead_writer_left_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // No process has the largest number.
        let dead = |random: &str| format!(".basic-4294967295-{random}");
        let goes = [(dead("aB3dE6"), "{\n  \"sta"), (dead("aB3dE7"), ""), (dead("aB3dE8"), "{\n  \"status\": 1, more")];
        let stays = [
            (dead("notes1"), "my own notes"),
            (dead("aB3dE9"), "{\"mine\": 1}"),
            (dead("aB3dE6.txt"), "{\n  \"sta"),
            (".basic-notes".into(), "{"),
            (".tmpAbCdEf".into(), "{"),
            ("a".into(), "x"),
        ];
        goes.iter().chain(&stays).for_each(|(name, text)| fs::write(at(name), text).unwrap());
        #[cfg(unix)]
        std::os::unix::fs::symlink("a", at(&dead("LiNk12"))).unwrap();
        let locked = at(".basic-4294967295-Locked");
        let writer = fs::File::create(&locked).unwrap();
        writer.try_lock().unwrap();
        let fresh = at(&format!(".basic-{}-Fresh1", std::process::id()));
        fs::write(&fresh, "{").unwrap();
        write_atomically(&at("b"), b"{\n  \"status\": \"running\"").unwrap();
        assert!(goes.iter().all(|(name, _)| at(name).exists() != cfg!(target_os = "linux")));
        assert!(stays.iter().all(|(name, text)| fs::read(at(name)).unwrap() == text.as_bytes()));
        assert_eq!(at(&dead("LiNk12")).is_symlink(), cfg!(unix));
        assert!(locked.exists() && fresh.exists(), "a live writer keeps its file");
    }

    #[test]
    fn a_file_is_replaced_whole_and_its_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_keeps_pointing_where_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomically(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
    }
}
