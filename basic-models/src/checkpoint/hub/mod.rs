//! Looks up hub names (`org/name`) in the local Hugging Face cache, and fetches them into it where the user has allowed
//! downloads.

mod download;
mod name;
#[cfg(feature = "hub")]
mod snapshot;

use std::env;
use std::path::{Path, PathBuf};

pub use self::download::{DownloadEvent, allow_downloads, download};
use self::name::HubName;
use super::CheckpointError;
use crate::outside::excerpt;

/// The directory that `name` stands for: an existing path; otherwise, if it has the form of a hub name (`org/name`, or
/// `org/name@revision`), its snapshot in the local Hugging Face cache (`HF_HUB_CACHE`, otherwise `HF_HOME/hub`, otherwise
/// `~/.cache/huggingface/hub`), which is fetched first where [`allow_downloads`] was called; otherwise the path itself,
/// so that the reader reports what is missing.
///
/// # Errors
///
/// Returns [`CheckpointError::NotCached`], which says where it was looked for, and [`CheckpointError::Hub`] if it cannot
/// be fetched.
pub fn resolve(name: impl AsRef<Path>) -> Result<PathBuf, CheckpointError> {
    let path = name.as_ref();
    match hub_name(path) {
        Some(name) if download::allowed() => download(name.as_str()),
        Some(name) => find(&name, cache()),
        None => Ok(path.into()),
    }
}

/// The name, if the path is one of the hub's and exists nowhere here.
fn hub_name(path: &Path) -> Option<HubName> {
    path.to_str().filter(|_| !path.exists()).and_then(HubName::parse)
}

/// The snapshot in the cache.
fn find(name: &HubName, cache: Option<PathBuf>) -> Result<PathBuf, CheckpointError> {
    let missing = |reason: String| CheckpointError::NotCached { name: name.as_str().into(), reason };
    let cache = cache.ok_or_else(|| missing("neither HF_HOME nor a home directory is known".into()))?;
    let folder = cache.join(name.folder());
    if !folder.is_dir() {
        return Err(missing(format!("{} does not exist", folder.display())));
    }
    let reference = folder.join("refs").join(name.revision());
    let commit = match std::fs::read_to_string(&reference) {
        // A commit needs no reference.
        Err(_) if name.is_commit() => name.revision().to_string(),
        read => read.map_err(|error| missing(format!("{}: {error}", reference.display())))?,
    };
    let commit = commit.trim();
    let snapshot = folder.join("snapshots").join(commit);
    // A commit's name has only letters and digits, so that it cannot lead elsewhere.
    if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) || !snapshot.is_dir() {
        return Err(missing(format!(
            "{} names {:?}, which is no snapshot there",
            reference.display(),
            excerpt(commit)
        )));
    }
    Ok(snapshot)
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The cache's folder, found in the same way as by huggingface_hub.
fn cache() -> Option<PathBuf> {
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| home().map(|home| home.join("hub")))
}

/// Hugging Face's folder, which holds the cache and the token.
fn home() -> Option<PathBuf> {
    variable("HF_HOME")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve_in(path: &Path, cache: Option<PathBuf>) -> Result<PathBuf, CheckpointError> {
        hub_name(path).map_or_else(|| Ok(path.into()), |name| find(&name, cache))
    }

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
    fn a_revision_is_a_branch_or_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        let folder = cached(dir.path(), "0123abc");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        fs::create_dir_all(folder.join("snapshots").join(commit)).unwrap();
        fs::create_dir_all(folder.join("refs/refs/pr")).unwrap();
        fs::write(folder.join("refs/refs/pr/3"), commit).unwrap();
        let found = |name: &str| resolve_in(Path::new(name), Some(dir.path().into())).unwrap();
        assert_eq!(found("org/a-model.v1@main"), folder.join("snapshots/0123abc"));
        assert_eq!(found("org/a-model.v1@refs/pr/3"), folder.join("snapshots").join(commit));
        assert_eq!(found(&format!("org/a-model.v1@{commit}")), folder.join("snapshots").join(commit));
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
        for path in [
            here.to_str().unwrap(),
            "/gone/model",
            "./gone/model",
            "a/b/c",
            "../x",
            "gone",
            "src/checkpoint",
            "a/b@../x",
            "a/b@",
        ] {
            assert_eq!(resolve_in(Path::new(path), None).unwrap(), Path::new(path), "{path}");
        }
    }
}
