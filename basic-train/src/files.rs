//! Files that are there whole or not at all, and what is left of those whose writer was killed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How the names of temporary files and folders begin; the writer's process number and random characters follow.
const PREFIX: &str = ".basic-";

/// A file that is being written has a lock from its second moment on.
const LOCKED_AFTER: Duration = Duration::from_secs(60);

/// Writes beside `path`, syncs, and renames. A link keeps pointing where it does; what is no regular file (a device, a
/// pipe) is written to as it is. What a killed process left half-written beside it goes.
///
/// # Errors
///
/// The operating system's.
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
    sweep_once(parent);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(parent)?;
    // Tells others that its writer lives; a file system without locks tells by the process's number alone.
    let _ = file.as_file().try_lock();
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // tempfile makes files private; results get ordinary permissions.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Removes the temporary files in `dir` whose writers are dead, once a process and directory.
fn sweep_once(dir: &Path) {
    static SWEPT: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let Ok(real) = dir.canonicalize() else { return };
    if !SWEPT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(real) {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let writer = entry.file_name().to_str().and_then(writer);
        if writer.is_some_and(|writer| is_left(&entry, writer)) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The writer's process number in the name of a temporary file.
fn writer(name: &str) -> Option<u32> {
    let (writer, random) = name.strip_prefix(PREFIX)?.split_once('-')?;
    is_random(random).then(|| writer.parse().ok())?
}

/// What tempfile puts into names.
fn is_random(text: &str) -> bool {
    text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether nobody writes a file any more: it is locked by nobody, and its writer is dead or has had time to lock it.
fn is_left(entry: &fs::DirEntry, writer: u32) -> bool {
    let Ok(meta) = entry.metadata() else { return false };
    let old = || meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > LOCKED_AFTER);
    let unlocked = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
    meta.is_file() && (is_dead(writer) || old()) && unlocked()
}

/// Whether no process has this number, as far as the system tells.
fn is_dead(process: u32) -> bool {
    Path::new("/proc/self").exists() && !Path::new("/proc").join(process.to_string()).exists()
}

/// Whether an entry of a directory that this process has to itself is what a killed one left half-written: a temporary
/// file or folder under construction, of this version or of one before that had tempfile's own names for files.
pub(crate) fn is_leftover(entry: &Path) -> bool {
    let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { return false };
    if let Some(random) = name.strip_prefix(".tmp") {
        return is_random(random) && entry.symlink_metadata().is_ok_and(|meta| meta.is_file());
    }
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let rest = rest.strip_suffix(".old").unwrap_or(rest);
    let random = match rest.split_once('-') {
        Some((writer, random)) if writer.bytes().all(|byte| byte.is_ascii_digit()) => random,
        _ => rest,
    };
    is_random(random) || rest.starts_with("stale-step-")
}

/// Removes all [leftovers](is_leftover) in `dir`, which must be locked.
pub(crate) fn sweep(dir: &Path) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if is_leftover(&path) {
            // What cannot be removed is in nobody's way.
            let _ = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{is_leftover, sweep, write_atomically};

    #[test]
    fn what_a_dead_writer_left_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // No process has the largest number.
        let names = [".basic-4294967295-aB3dE6", ".basic-notes", ".basic-4294967295-aB3dE6.txt", ".tmpAbCdEf", "a"];
        names.iter().for_each(|name| fs::write(at(name), "x").unwrap());
        let locked = at(".basic-4294967295-Locked");
        let writer = fs::File::create(&locked).unwrap();
        writer.try_lock().unwrap();
        let fresh = at(&format!(".basic-{}-Fresh1", std::process::id()));
        fs::write(&fresh, "x").unwrap();
        write_atomically(&at("b"), b"y").unwrap();
        let left: Vec<bool> = names.iter().map(|name| at(name).exists()).collect();
        assert_eq!(left, [!cfg!(target_os = "linux"), true, true, true, true]);
        assert!(locked.exists() && fresh.exists(), "a live writer keeps its file");
    }

    #[test]
    fn a_directory_of_ones_own_is_swept_of_files_and_folders_under_construction() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let goes =
            [".basic-aB3dE6", ".basic-17-aB3dE6", ".basic-aB3dE6.old", ".basic-stale-step-00000003", ".tmpAbCdEf"];
        let stays = [".basic-notes-of-mine", ".tmp", ".tmpAbCdEfG", ".basic-", "run.json"];
        for name in &goes[..4] {
            fs::create_dir_all(at(name).join("deep")).unwrap();
        }
        fs::write(at(goes[4]), "{").unwrap();
        stays.iter().for_each(|name| fs::write(at(name), "x").unwrap());
        assert!(goes.iter().all(|name| is_leftover(&at(name))));
        sweep(dir.path());
        let left = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let mut left: Vec<String> = left.collect();
        left.sort();
        let mut stays: Vec<String> = stays.map(String::from).to_vec();
        stays.sort();
        assert_eq!(left, stays);
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
