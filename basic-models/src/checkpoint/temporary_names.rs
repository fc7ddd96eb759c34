//! The names of files and folders under construction, and how what this program writes begins: what tells them from
//! anybody else's.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// How the names of files and folders under construction begin; the writer's process number and random characters follow.
pub const PREFIX: &str = ".basic-";

/// The most of a file's beginning that is looked at.
const HEAD: u64 = 64;

/// How the files begin that a run writes whole: its record and its metrics.
pub(super) const OF_RUNS: [&str; 2] = ["{\"status\":\"", "{\"step\":"];

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
