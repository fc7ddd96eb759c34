//! Looks up hub names (`org/name`) in the local Hugging Face cache. Nothing is downloaded.

use std::env;
use std::path::{Component, Path, PathBuf};

use hf_hub::{Cache, Repo};

use super::CheckpointError;
use crate::outside::excerpt;

/// The directory that `name` stands for: an existing path; otherwise, if it has the form of a hub name, the snapshot of
/// its `main` branch in the local Hugging Face cache (`HF_HUB_CACHE`, otherwise `HF_HOME/hub`, otherwise
/// `~/.cache/huggingface/hub`); otherwise the path itself, so that the reader reports what is missing.
///
/// # Errors
///
/// Returns [`CheckpointError::NotCached`], which says where it was looked for.
pub fn resolve(name: impl AsRef<Path>) -> Result<PathBuf, CheckpointError> {
    resolve_in(name.as_ref(), cache())
}

fn resolve_in(path: &Path, cache: Option<PathBuf>) -> Result<PathBuf, CheckpointError> {
    let Some(name) = path.to_str().filter(|name| !path.exists() && is_hub_name(name)) else {
        return Ok(path.into());
    };
    let missing = |reason: String| CheckpointError::NotCached { name: name.into(), reason };
    let cache = cache.ok_or_else(|| missing("neither HF_HOME nor a home directory is known".into()))?;
    let repo = Repo::model(name.to_string());
    let folder = cache.join(repo.folder_name());
    if !folder.is_dir() {
        return Err(missing(format!("{} does not exist", folder.display())));
    }
    let main = folder.join("refs").join(repo.revision());
    let commit = std::fs::read_to_string(&main).map_err(|e| missing(format!("{}: {e}", main.display())))?;
    let snapshot = Cache::new(cache).repo(repo).pointer_path(commit.trim());
    // A commit's name has only letters and digits, so that it cannot lead elsewhere.
    if commit.trim().is_empty() || !commit.trim().chars().all(|c| c.is_ascii_alphanumeric()) || !snapshot.is_dir() {
        return Err(missing(format!(
            "{} names {:?}, which is no snapshot there",
            main.display(),
            excerpt(commit.trim())
        )));
    }
    Ok(snapshot)
}

/// The cache's folder, found in the same way as by huggingface_hub.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
}

/// Whether a name has the form `org/name`: two parts of letters, digits, `-`, `_` and `.`, each beginning with
/// a letter or digit.
fn is_hub_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    Path::new(name).components().all(|component| matches!(component, Component::Normal(_)))
        && name.split('/').count() == 2
        && name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cached(dir: &Path, main: &str) -> PathBuf {
        let folder = dir.join("models--org--a-model.v1");
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::create_dir_all(folder.join("snapshots/0123abc")).unwrap();
        fs::write(folder.join("refs/main"), main).unwrap();
        folder
    }

    #[test]
    fn a_hub_name_means_its_snapshot_of_main() {
        let dir = tempfile::tempdir().unwrap();
        let folder = cached(dir.path(), "0123abc\n");
        let found = resolve_in(Path::new("org/a-model.v1"), Some(dir.path().into())).unwrap();
        assert_eq!(found, folder.join("snapshots/0123abc"));
    }

    #[test]
    fn what_is_not_cached_is_an_error_that_says_where_it_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let error = |name: &str| resolve_in(Path::new(name), Some(dir.path().into())).unwrap_err().to_string();
        assert!(error("org/other").contains(&dir.path().join("models--org--other").display().to_string()));
        assert!(error("org/other").contains("HF_HOME"));
        for main in ["fedcba9", "", "../../.."] {
            cached(dir.path(), main);
            assert!(error("org/a-model.v1").contains("refs/main"), "{main}");
        }
        assert!(resolve_in(Path::new("org/a"), None).unwrap_err().to_string().contains("home directory"));
    }

    #[test]
    fn a_path_stays_what_it_is() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for path in [here.to_str().unwrap(), "/gone/model", "./gone/model", "a/b/c", "../x", "gone", "src/checkpoint"] {
            assert_eq!(resolve_in(Path::new(path), None).unwrap(), Path::new(path), "{path}");
        }
    }
}
