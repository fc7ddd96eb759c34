//! What killed processes of this program left half-written, told from anybody else's by its name, its kind and its contents.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::Path;

use super::owned::Contents;

/// How the names of files and folders under construction begin; the writer's process number and random characters follow.
pub const PREFIX: &str = ".basic-";

/// The most of a file's beginning that is looked at.
const HEAD: u64 = 64;

/// How the files begin that a run writes whole: its record and its metrics.
pub(super) const OF_RUNS: [&str; 2] = ["{\"status\":\"", "{\"step\":"];

/// Removes what killed processes left half-written in a directory that this process has to itself: files and folders under
/// construction that nobody has locked. What cannot be removed is in nobody's way.
pub fn sweep(dir: &Path) {
    sweep_folders(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if file && is_leftover(&path) && is_free(&path) {
            let _ = fs::remove_file(path);
        }
        // An earlier version's: what a state was until another had its name.
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.ends_with(".old")) && is_leftover(&entry.path()) {
            let _ = Contents::Part.clear(&entry.path());
        }
    }
}

/// Removes folders that killed processes were writing: of our names, holding nothing but our files, and locked by nobody. What
/// cannot be removed is in nobody's way.
pub(super) fn sweep_folders(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if !name.to_str().is_some_and(is_staged) || !is_leftover(&path) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok()
            && let Some(contents) = under_construction(&path)
        {
            let _ = contents.clear(&path);
        }
    }
}

/// Whether an entry of a run's directory is what a killed process left half-written there: a file that is empty or begins as a
/// run's do, or a folder that holds nothing but what one under construction may hold; of this version or of one before, which
/// had tempfile's own names for files. Links never are.
pub fn is_leftover(entry: &Path) -> bool {
    let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { return false };
    let Ok(kind) = entry.symlink_metadata().map(|meta| meta.file_type()) else { return false };
    if kind.is_file() {
        return is_temporary(name) && begins(entry, &OF_RUNS);
    }
    let staged = name.strip_suffix(".old").unwrap_or(name);
    kind.is_dir() && is_staged(staged) && under_construction(entry).is_some()
}

/// Of which kind a folder `.basic-...` is, which holds nothing but what one under construction may hold.
fn under_construction(dir: &Path) -> Option<Contents> {
    let own = |contents: &Contents| contents.holds_only_its_own(dir);
    [Contents::Part, Contents::Export].into_iter().find(own).filter(|_| !may_be_kept(dir))
}

/// Whether a folder `.basic-...` has a word for its name, which a person may have given it, and something in it.
pub(super) fn may_be_kept(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
    let name = name.map(|name| name.trim_end_matches(".old"));
    name.is_some_and(|name| is_random(name) && is_word(name)) && holds_something(dir)
}

/// Whether a folder has a file that is more than a beginning.
fn holds_something(dir: &Path) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => holds_something(&entry.path()),
        Ok(meta) => meta.len() >= HEAD,
        Err(_) => true,
    })
}

/// Whether the file is empty, or begins in one of these ways as far as it goes; blanks don't count.
pub fn begins(file: &Path, heads: &[&str]) -> bool {
    let regular = file.symlink_metadata().is_ok_and(|meta| meta.is_file());
    let mut head = Vec::new();
    if !regular || !File::open(file).is_ok_and(|file| file.take(HEAD).read_to_end(&mut head).is_ok()) {
        return false;
    }
    let blank = |byte: &u8| byte.is_ascii_whitespace();
    if head.iter().all(blank) {
        return head.is_empty();
    }
    head.retain(|byte| !blank(byte));
    heads.iter().any(|known| {
        let known = known.as_bytes();
        let length = known.len().min(head.len());
        known[..length] == head[..length]
    })
}

/// Whether nobody has a file locked. A file system without locks tells nothing of it.
fn is_free(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| !matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// A directory under construction, in this version with its writer's process number, or one that is being taken away.
pub(super) fn is_staged(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let stale = || rest.strip_prefix("stale-step-").is_some_and(|step| step.len() >= 8 && digits(step));
    is_random(rest) || writer(name).is_some() || stale()
}

/// A file that was being written: `tempfile`'s names, after the writer's process number in later versions.
pub fn is_temporary(name: &str) -> bool {
    name.strip_prefix(".tmp").is_some_and(is_random) || writer(name).is_some()
}

/// The writer's process number in a name of this version.
pub fn writer(name: &str) -> Option<u32> {
    let (writer, random) = name.strip_prefix(PREFIX)?.split_once('-')?;
    (is_random(random) && digits(writer)).then(|| writer.parse().ok())?
}

/// What tempfile puts into names.
fn is_random(text: &str) -> bool {
    text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Six characters as people write them: a number, or a word in small letters, in capitals, or with a capital in front.
fn is_word(text: &str) -> bool {
    let tail = text.get(1..).unwrap_or_default();
    digits(text)
        || text.bytes().all(|byte| byte.is_ascii_uppercase())
        || (text.as_bytes()[0].is_ascii_alphabetic() && tail.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn what_killed_writers_of_every_version_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [
            (".tmpAbCdEf", ""),
            (".tmpaB3dE6", "{"),
            (".tmpZ1Z2Z3", "{\n  \"stat"),
            (".basic-17-aB3dE6", "{\n  \"status\": \"running\",\n  \"recipe\": {"),
            (".basic-17-xY3dE6", "{\"step\":1,\"lm\":2.5"),
        ] {
            fs::write(at(name), text).unwrap();
        }
        for folder in [".basic-aB3dE6", ".basic-17-Zb3dE6", ".basic-cB3dE6.old", ".basic-stale-step-00000003"] {
            fs::create_dir_all(at(folder).join(".basic-17-aB3dE6")).unwrap();
            fs::write(at(folder).join("state.json"), "{}").unwrap();
            fs::write(at(folder).join(".basic-17-aB3dE6/model.safetensors"), "x").unwrap();
        }
        fs::create_dir(at(".basic-xxxxxx")).unwrap();
        assert!(names(dir.path()).iter().all(|name| is_leftover(&at(name))));
        sweep(dir.path());
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn what_others_put_under_such_names_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [
            (".tmpAbCdEf", "shopping list"),
            (".tmpaB3dE6", "{\"name\": \"mine\"}"),
            (".basic-17-aB3dE6", "[1, 2]"),
            (".basic-17-xY3dE6", "\n\n"),
            (".tmpAbCdEfG", ""),
            (".basic-notes", "{"),
        ] {
            fs::write(at(name), text).unwrap();
        }
        for (folder, file) in [
            (".basic-aB3dE6", "holiday.jpg"),
            (".basic-17-Zb3dE6", "state.json.txt"),
            (".basic-stale-step-00000003", "notes.md"),
            (".basic-stale-step-mine", "state.json"),
            (".basic-backup", "model.safetensors"),
        ] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join(file), "0123456789".repeat(10)).unwrap();
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("elsewhere", at(".tmpLiNk12")).unwrap();
            std::os::unix::fs::symlink(".basic-backup", at(".basic-LiNk34")).unwrap();
        }
        let before = names(dir.path());
        sweep(dir.path());
        assert_eq!(names(dir.path()), before);
        assert!(!before.iter().any(|name| is_leftover(&at(name))));
        assert!(at(".basic-aB3dE6/holiday.jpg").exists() && at(".basic-backup/model.safetensors").exists());
    }

    #[test]
    fn what_somebody_has_locked_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join(".basic-17-aB3dE6"), dir.path().join(".basic-18-aB3dE6"));
        fs::write(&file, "{").unwrap();
        fs::create_dir(&folder).unwrap();
        let held = [File::open(&file).unwrap(), File::open(&folder).unwrap()];
        held.iter().for_each(|file| file.try_lock().unwrap());
        sweep(dir.path());
        assert!(file.exists() && folder.exists());
        drop(held);
        sweep(dir.path());
        assert!(!file.exists() && !folder.exists());
    }
}
