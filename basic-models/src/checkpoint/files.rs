//! Finds the files of a directory that contain its tensors: one file, or the shards that an index lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;

use crate::outside::{self, Budget, excerpt};

/// The files of a directory, and its index.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files, in order.
    pub paths: Vec<PathBuf>,
    /// The index, if there is one: its path, and the shard of each tensor.
    pub index: Option<(PathBuf, BTreeMap<String, String>)>,
}

/// The file names, in the order in which transformers looks for them.
const NAMES: [(&str, bool); 4] = [
    ("model.safetensors", false),
    ("model.safetensors.index.json", true),
    ("pytorch_model.bin", false),
    ("pytorch_model.bin.index.json", true),
];

/// LLaVA's file for a trained projector.
pub(super) const PROJECTOR_FILE: &str = "mm_projector.bin";

/// Whether a directory contains a file with a whole model's tensors, or an index of such files.
pub(super) fn has_weights(dir: &Path) -> bool {
    NAMES.iter().any(|(name, _)| dir.join(name).is_file())
}

/// Finds the tensors of `dir`, which may also be a file of tensors itself.
///
/// # Errors
///
/// Returns [`CheckpointError::NoWeights`] and [`CheckpointError::Index`], which name the file and the shards.
pub(super) fn find(dir: &Path) -> Result<Found, CheckpointError> {
    if dir.is_file() {
        return Ok(Found { paths: vec![dir.into()], index: None });
    }
    for (name, is_index) in NAMES {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        if !is_index {
            return Ok(Found { paths: vec![path], index: None });
        }
        let map = read_index(&path)?;
        let shards: BTreeSet<&String> = map.values().collect();
        let absent: Vec<&str> = shards.iter().filter(|n| !dir.join(n).is_file()).map(|n| n.as_str()).collect();
        if !absent.is_empty() {
            return Err(CheckpointError::Index { path, reason: format!("shards are absent: {}", absent.join(", ")) });
        }
        let paths = shards.into_iter().map(|n| dir.join(n)).collect();
        return Ok(Found { paths, index: Some((path, map)) });
    }
    Err(CheckpointError::NoWeights(dir.into()))
}

/// Bytes of memory that a parsed index takes for each of its bytes.
const TREE_COST: u64 = 8;

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let bad = |reason: String| CheckpointError::Index { path: path.into(), reason };
    let text = outside::read_json_text(path).map_err(CheckpointError::io(path))?;
    // Parsed, it takes several times its length.
    Budget::of(path).take((text.len() as u64).saturating_mul(TREE_COST))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("no \"weight_map\" object".into()))?;
    if map.is_empty() {
        return Err(bad("\"weight_map\" lists no tensor".into()));
    }
    let shard = |(tensor, file): (&String, &Value)| {
        let file = file.as_str().ok_or_else(|| bad(format!("{}: the shard's name is not text", excerpt(tensor))))?;
        // A file name that contains folders could lead anywhere.
        let plain = Path::new(file).file_name().is_some_and(|name| name == file);
        if !plain {
            return Err(bad(format!("{}: shard {:?} is not a file name", excerpt(tensor), excerpt(file))));
        }
        Ok((tensor.clone(), file.to_string()))
    };
    map.iter().map(shard).collect()
}
