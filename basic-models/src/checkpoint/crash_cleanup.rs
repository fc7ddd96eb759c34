//! Removes unfinished files and folders of killed processes. They are recognized by name, kind and content, so that
//! nothing of other programs is removed.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::owned::Contents;
use super::temporary_names::{OF_RUNS, begins, is_staged, is_temporary, may_be_kept};

/// Removes unfinished files and folders of killed processes from a directory that only this process uses: those that
/// are not locked. What cannot be removed does no harm.
pub fn sweep(dir: &Path) {
    sweep_folders(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if file && is_leftover(&path) && is_free(&path) {
            let _ = fs::remove_file(path);
        }
        // From an earlier version: a state, while another one was renamed to its name.
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.ends_with(".old")) && is_leftover(&entry.path()) {
            let _ = Contents::Part.clear(&entry.path());
        }
    }
}

/// Removes folders that killed processes were writing: those with this program's names and files that are not locked.
/// What cannot be removed does no harm.
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

/// Whether a killed process left an entry of a run's directory unfinished: a file that is empty or begins like a run's
/// files, or a folder that contains only what an unfinished one may contain. Also recognizes those of an earlier
/// version, which used tempfile's own names for files. Links are never unfinished entries.
pub fn is_leftover(entry: &Path) -> bool {
    let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { return false };
    let Ok(kind) = entry.symlink_metadata().map(|meta| meta.file_type()) else { return false };
    if kind.is_file() {
        return is_temporary(name) && begins(entry, &OF_RUNS);
    }
    let staged = name.strip_suffix(".old").unwrap_or(name);
    kind.is_dir() && is_staged(staged) && under_construction(entry).is_some()
}

/// The kind of an unfinished folder `.basic-...`, if it contains only what such a folder may contain.
fn under_construction(dir: &Path) -> Option<Contents> {
    let own = |contents: &Contents| contents.holds_only_its_own(dir);
    [Contents::Part, Contents::Export, Contents::Gguf].into_iter().find(own).filter(|_| !may_be_kept(dir))
}

/// Whether no process has locked the file. On a file system without locks every file counts as unlocked.
fn is_free(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| !matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
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
