//! Whether this process may download, and what it has downloaded.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::name::HubName;
use crate::checkpoint::CheckpointError;

/// What a download reports while it runs.
#[derive(Debug, Clone, Copy)]
pub enum DownloadEvent<'a> {
    /// A file begins.
    File {
        /// Its name.
        name: &'a str,
        /// Its size in bytes.
        bytes: u64,
    },
    /// So many further bytes are there; those of an earlier, interrupted download count too.
    Bytes(u64),
    /// The file is there.
    Done,
}

/// Receives the events.
pub(super) type Report = Box<dyn Fn(DownloadEvent<'_>) + Send + Sync>;

/// Set once the user has allowed downloads.
static ALLOWED: OnceLock<Report> = OnceLock::new();

/// Lets [`resolve`](super::resolve), and with it all that opens a checkpoint by name, fetch hub names from the Hugging
/// Face hub, for the rest of the process. Without this call nothing is ever requested. The first call's `report` stays.
///
/// # Errors
///
/// Returns why downloads cannot be allowed: `HF_HUB_OFFLINE` is set, or the feature `hub` is not built in.
pub fn allow_downloads(report: impl Fn(DownloadEvent<'_>) + Send + Sync + 'static) -> Result<(), &'static str> {
    if cfg!(not(feature = "hub")) {
        return Err("this program was built without downloads (the feature `hub`)");
    }
    let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    if !["", "0", "false", "no", "off"].contains(&offline.to_lowercase().as_str()) {
        return Err("HF_HUB_OFFLINE is set, which forbids downloads: unset it");
    }
    ALLOWED.get_or_init(|| Box::new(report));
    Ok(())
}

/// Whether [`allow_downloads`] was called.
pub(super) fn allowed() -> bool {
    ALLOWED.get().is_some()
}

/// Fetches what is missing of a model, once a process, and returns its snapshot in the local Hugging Face cache: the
/// configuration, tokenizer and processor files and the weights in one format (safetensors where there are any).
///
/// `HF_ENDPOINT` names another hub; `HF_TOKEN`, otherwise the file that `hf auth login` writes, holds the token. What an
/// interrupted download has fetched is kept, and the next one goes on from there. A revision's name leads to the
/// snapshot only when all of its files are there.
///
/// # Errors
///
/// Returns [`CheckpointError::Hub`] with the reason.
pub fn download(name: &str) -> Result<PathBuf, CheckpointError> {
    static FETCHED: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let failed = |reason: &str| CheckpointError::Hub { name: name.into(), reason: reason.into() };
    let parsed = HubName::parse(name).ok_or_else(|| failed("is no name on the hub: org/name or org/name@revision"))?;
    let report = ALLOWED.get().ok_or_else(|| failed("downloads are not allowed"))?;
    // Held while the files come, so that two threads that want the same model do not both fetch it.
    let mut fetched = FETCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let fetched = fetched.get_or_insert_default();
    if let Some(path) = fetched.get(name) {
        return Ok(path.clone());
    }
    let path = fetch(&parsed, report)?;
    fetched.insert(name.into(), path.clone());
    Ok(path)
}

#[cfg(feature = "hub")]
fn fetch(name: &HubName, report: &Report) -> Result<PathBuf, CheckpointError> {
    super::snapshot::Hub::from_environment(name)?.fetch(name, report)
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &HubName, _report: &Report) -> Result<PathBuf, CheckpointError> {
    Err(CheckpointError::Hub { name: name.as_str().into(), reason: "built without the feature `hub`".into() })
}
