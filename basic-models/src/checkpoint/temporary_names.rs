//! The names of unfinished files and folders, and how this program's files begin, which distinguish them
//! from other programs'.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The prefix of unfinished files and folders; the writer's process number and random characters follow.
pub const PREFIX: &str = ".basic-";

/// The number of bytes at the beginning of a file that are checked.
const HEAD: u64 = 64;

/// How the files of a run begin that are written as a whole: its record and its metrics.
pub(super) const OF_RUNS: [&str; 2] = ["{\"status\":\"", "{\"step\":"];

/// Whether a folder `.basic-...` may be a user's: its name is a word that a person may have chosen, and it is not
/// empty.
pub(super) fn may_be_kept(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
    let name = name.map(|name| name.trim_end_matches(".old"));
    name.is_some_and(|name| is_random(name) && is_word(name)) && holds_something(dir)
}

/// Whether a folder contains a file that is more than a beginning.
fn holds_something(dir: &Path) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => holds_something(&entry.path()),
        Ok(meta) => meta.len() >= HEAD,
        Err(_) => true,
    })
}

/// Whether the file is empty, or begins with one of `heads` as far as it goes; blanks are ignored.
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

/// Whether a name is that of a directory under construction (with the writer's process number in this version) or of
/// one that is being removed.
pub(super) fn is_staged(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let stale = || rest.strip_prefix("stale-step-").is_some_and(|step| step.len() >= 8 && digits(step));
    is_random(rest) || writer(name).is_some() || stale()
}

/// Whether a name is that of an unfinished file: `tempfile`'s names, in later versions after the
/// writer's process number.
pub fn is_temporary(name: &str) -> bool {
    name.strip_prefix(".tmp").is_some_and(is_random) || writer(name).is_some()
}

/// The writer's process number in a name of this version.
pub fn writer(name: &str) -> Option<u32> {
    let (writer, random) = name.strip_prefix(PREFIX)?.split_once('-')?;
    (is_random(random) && digits(writer)).then(|| writer.parse().ok())?
}

/// Whether a text has the form of tempfile's random part of a name.
fn is_random(text: &str) -> bool {
    text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether six characters look chosen by a person: a number, or a word in lower case, upper case, or with a
/// capital first letter.
fn is_word(text: &str) -> bool {
    let tail = text.get(1..).unwrap_or_default();
    digits(text)
        || text.bytes().all(|byte| byte.is_ascii_uppercase())
        || (text.as_bytes()[0].is_ascii_alphabetic() && tail.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
