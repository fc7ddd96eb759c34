//! Fetches the files of one revision into the cache, in huggingface_hub's layout, by the crate `hf-hub`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::download::{DownloadEvent, Report};
use super::name::HubName;
use super::{cache, home, variable};
use crate::checkpoint::CheckpointError;
use crate::outside::excerpt;

/// The most files of a repository that are looked at; the hub's largest model repositories have some hundred.
const MOST_FILES: usize = 100_000;

/// A hub and the cache that its files go to.
pub(super) struct Hub {
    api: Api,
    cache: PathBuf,
    endpoint: String,
}

impl Hub {
    /// The hub that the environment describes.
    pub fn from_environment(name: &HubName) -> Result<Self, CheckpointError> {
        let failed = |reason: String| CheckpointError::Hub { name: name.as_str().into(), reason };
        let cache = cache().ok_or_else(|| failed("neither HF_HOME nor a home directory is known".into()))?;
        // hf-hub makes relative links, and wants whole paths for them.
        let cache = std::path::absolute(&cache).map_err(|error| failed(format!("{}: {error}", cache.display())))?;
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').to_string();
        let api = ApiBuilder::from_cache(Cache::new(cache.clone()))
            .with_endpoint(endpoint.clone())
            .with_token(token())
            .with_user_agent("basic", env!("CARGO_PKG_VERSION"))
            .with_retries(2)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { api, cache, endpoint })
    }

    /// Fetches what the cache lacks of the revision, and returns its snapshot.
    pub fn fetch(&self, name: &HubName, report: &Report) -> Result<PathBuf, CheckpointError> {
        let failed = |reason: String| CheckpointError::Hub { name: name.as_str().into(), reason };
        let repo =
            |revision: &str| Repo::with_revision(name.repository().into(), RepoType::Model, revision.to_string());
        let info = self.api.repo(repo(name.revision())).info().map_err(|error| failed(self.reason(&error)))?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(failed(format!("the hub names the commit {:?}", excerpt(&info.sha))));
        }
        let names: Vec<&str> = info.siblings.iter().take(MOST_FILES).map(|file| file.rfilename.as_str()).collect();
        let wanted = wanted(&names);
        if !wanted.contains(&"config.json") && !wanted.contains(&"adapter_config.json") {
            return Err(failed(format!("its {} files hold neither config.json nor adapter_config.json", names.len())));
        }
        let folder = self.cache.join(name.folder());
        let snapshot = folder.join("snapshots").join(&info.sha);
        // Several processes of one machine may want the same model: the others wait, and find the files.
        let locks = self.cache.join(".locks").join(name.folder());
        let io = |path: &Path, error: io::Error| failed(format!("{}: {error}", path.display()));
        fs::create_dir_all(&locks).map_err(|error| io(&locks, error))?;
        let lock = locks.join("basic.lock");
        let held = File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(|error| io(&lock, error))?;
        // By the commit, so that all files are of one commit even if the branch moves meanwhile.
        let files = self.api.repo(repo(&info.sha));
        for file in wanted {
            if !snapshot.join(file).exists() {
                self.file(&files, &folder, file, report).map_err(|reason| failed(format!("{file}: {reason}")))?;
            }
        }
        if !name.is_commit() {
            // Last, so that the revision's name never leads to a snapshot that lacks files.
            let refs = folder.join("refs").join(name.revision());
            let parent = refs.parent().unwrap_or(&folder);
            fs::create_dir_all(parent).map_err(|error| io(parent, error))?;
            let written = crate::atomic_file::write_atomically(&refs, info.sha.as_bytes());
            written.map_err(|error| io(&refs, error))?;
        }
        drop(held);
        Ok(snapshot)
    }

    /// Fetches one file, and compares it with its size and, where the hub gives it (for large files), its SHA-256.
    fn file(&self, files: &ApiRepo, folder: &Path, name: &str, report: &Report) -> Result<(), String> {
        let metadata = self.api.metadata(&files.url(name)).map_err(|error| self.reason(&error))?;
        let etag = metadata.etag().trim_start_matches("W/");
        // It becomes a file's name.
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(format!("the hub gives the checksum {:?}", excerpt(etag)));
        }
        let blob = folder.join("blobs").join(metadata.etag());
        let begun = blob.with_extension("part");
        if begun.metadata().is_ok_and(|begun| begun.len() >= metadata.size() as u64) {
            return Err(format!("an earlier download left {}, which has all bytes: delete it", begun.display()));
        }
        let path = files.download_with_progress(name, Shown(report)).map_err(|error| self.reason(&error))?;
        report(DownloadEvent::Done);
        check(&path, metadata.size() as u64, etag).map_err(|reason| {
            // Both were written a moment ago.
            let removed = fs::remove_file(&path).and_then(|()| fs::remove_file(&blob));
            let kept = removed.err().map(|error| format!("; {} stays: {error}", blob.display())).unwrap_or_default();
            format!("{reason}: try again{kept}")
        })
    }

    /// What went wrong, and what to do.
    fn reason(&self, error: &ApiError) -> String {
        let endpoint = &self.endpoint;
        let status = match error {
            ApiError::RequestError(error) => match error.as_ref() {
                ureq::Error::StatusCode(status) => Some(*status),
                _ => None,
            },
            ApiError::TooManyRetries(error) => return self.reason(error),
            _ => None,
        };
        match status {
            Some(status @ (401 | 403)) => format!(
                "{endpoint} answers {status}: there is no such model, or it is not open to everyone; set HF_TOKEN to a token \
                 that may read it (hf auth login stores one), and accept the model's terms on its page"
            ),
            Some(404) => format!("{endpoint} answers 404: there is no such model, revision or file"),
            Some(429) => format!("{endpoint} answers 429, too many requests: wait some minutes"),
            Some(status) => format!("{endpoint} answers {status}"),
            None => format!("{endpoint}: {error}; what is in the cache is used without --download"),
        }
    }
}

/// The token of `HF_TOKEN`, otherwise of the file that `hf auth login` writes.
fn token() -> Option<String> {
    let text = |name: &str| std::env::var(name).ok();
    let stored = || {
        let path = variable("HF_TOKEN_PATH").or_else(|| home().map(|home| home.join("token")))?;
        fs::read_to_string(path).ok()
    };
    let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(stored)?;
    Some(token.trim().to_string()).filter(|token| !token.is_empty())
}

/// Compares a file with what the hub says of it. A checksum of 64 digits is a SHA-256; those of small files are git's.
fn check(path: &Path, bytes: u64, checksum: &str) -> Result<(), String> {
    let read = |error: io::Error| format!("{}: {error}", path.display());
    let found = fs::metadata(path).map_err(read)?.len();
    if found != bytes {
        return Err(format!("{found} bytes came instead of {bytes}"));
    }
    if checksum.len() == 64 {
        let mut hash = Sha256::new();
        io::copy(&mut File::open(path).map_err(read)?, &mut hash).map_err(read)?;
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if !found.eq_ignore_ascii_case(checksum) {
            return Err(format!("its SHA-256 is {found}, and the hub's is {checksum}"));
        }
    }
    Ok(())
}

/// The files that loading reads, of a repository's: those of the top folder, and the weights in one format.
fn wanted<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let top = || files.iter().copied().filter(|file| !file.contains(['/', '\\']) && !file.starts_with('.'));
    let safe = top().any(|file| matches!(file, "model.safetensors" | "model.safetensors.index.json"));
    let adapter = top().any(|file| file == "adapter_model.safetensors");
    let keep = |file: &&str| match file.rsplit_once('.').map(|(_, extension)| extension) {
        // The index of the format that is not read.
        Some("json") => !(safe && file.ends_with(".bin.index.json")),
        Some("jinja" | "model") => true,
        Some("txt") => matches!(*file, "merges.txt" | "vocab.txt"),
        // Beside transformers' own files, a repository may have the same weights in other types or under other names.
        Some("safetensors") => !safe || *file == "model.safetensors" || is_shard(file) || file.starts_with("adapter_"),
        Some("bin") if file.starts_with("pytorch_model") => !safe,
        Some("bin") if *file == "adapter_model.bin" => !adapter,
        Some("bin") => matches!(*file, "mm_projector.bin" | "non_lora_trainables.bin"),
        _ => false,
    };
    top().filter(keep).collect()
}

/// Whether a name is `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let numbers = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(at, of)| digits(at) && digits(of))
}

/// hf-hub's progress as events.
struct Shown<'a>(&'a Report);

impl Progress for Shown<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        (self.0)(DownloadEvent::File { name: filename, bytes: size as u64 });
    }

    fn update(&mut self, size: usize) {
        (self.0)(DownloadEvent::Bytes(size as u64));
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_fetched_in_one_format() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "merges.txt",
            "model.fp16.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/config.json",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00001.bin",
            "tokenizer.json",
            "tokenizer.model",
            "tf_model.h5",
            "model.gguf",
            "chat_template.jinja",
            "LICENSE.txt",
        ];
        let expected = [
            "config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
        ];
        assert_eq!(wanted(&files), expected);
        let old = ["config.json", "pytorch_model.bin", "mm_projector.bin", "training_args.bin", "optimizer.bin"];
        assert_eq!(wanted(&old), ["config.json", "pytorch_model.bin", "mm_projector.bin"]);
        let adapter =
            ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin"];
        let expected = ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"];
        assert_eq!(wanted(&adapter), expected);
        assert!(wanted(&["../config.json", "a\\b.json", "..", ""]).is_empty());
    }
}
