//! Checks the tokenizer's files before they are copied unchanged: what would make the copy unreadable is an error.

use std::path::Path;

use serde_json::Value;

use super::CheckpointError;
use crate::outside::{Budget, check_json, read};
use crate::processor::TOKENIZER_FILES;

/// Checks that each existing file can be read, that JSON files contain objects, and that text files are UTF-8.
///
/// # Errors
///
/// Returns [`CheckpointError::Beside`], which names the file.
pub(super) fn check(dir: &Path) -> Result<(), CheckpointError> {
    for name in TOKENIZER_FILES.into_iter().chain(["chat_template.json"]) {
        let path = dir.join(name);
        let wrong = |reason: String| CheckpointError::Beside {
            path: path.clone(),
            reason: format!("{reason}; it would be copied as it is: mend or fetch it again, or remove it"),
        };
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => continue,
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        };
        if name.ends_with(".json") {
            check_json(&bytes, &Budget::of(&path))
                .map_err(|over| wrong(format!("cannot be read: {}", over.reason())))?;
            let value: Value =
                serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is not JSON: {error}")))?;
            if !value.is_object() {
                return Err(wrong("is no JSON object".into()));
            }
        } else if !name.ends_with(".model") && std::str::from_utf8(&bytes).is_err() {
            return Err(wrong("is not UTF-8".into()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::check;

    #[test]
    fn a_file_that_nobody_could_read_afterwards_is_named() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        for (name, good, bad) in [
            ("special_tokens_map.json", &b"{}"[..], &b"{"[..]),
            ("added_tokens.json", b"{\"<image>\": 3}", b"[]"),
            ("vocab.json", b"{}", b"{\xff}"),
            ("merges.txt", b"a b\n", b"a \xff\n"),
        ] {
            fs::write(dir.path().join(name), bad).unwrap();
            let error = check(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            fs::write(dir.path().join(name), good).unwrap();
            check(dir.path()).unwrap();
        }
        // A dangling link is a file that cannot be read, not an absent one.
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("gone", dir.path().join("tokenizer_config.json")).unwrap();
            assert!(check(dir.path()).unwrap_err().to_string().contains("tokenizer_config.json"));
        }
    }
}
