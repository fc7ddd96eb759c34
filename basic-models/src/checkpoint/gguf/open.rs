//! Opens a decoder in a GGUF file: its files beside the tensors as a temporary directory of Hugging Face's form, and its
//! tensors by this project's names.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tempfile::TempDir;

use super::super::CheckpointError;
use super::super::names::Layout;
use super::super::read::TensorFiles;
use super::super::source::{Entry, SourceFile, Stored, map};
use super::decoder::is_norm;
use super::error::GgufError;
use super::format::Kind;
use super::read::{Found, Header, read};
use super::unpack::{Unpacked, unpack};
use super::views::{View, Views};
use super::{llama3, names};

/// Whether a path is a GGUF file, by its name: what is in it is checked when it is read.
pub(in super::super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !path.is_dir()
}

/// A decoder from a GGUF file.
#[derive(Debug)]
pub(in super::super) struct GgufDecoder {
    /// config.json, the tokenizer's files and the chat template; removed with this value.
    pub beside: TempDir,
    /// The tensors.
    pub files: TensorFiles,
}

impl GgufDecoder {
    /// Opens a file. No weight is read.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that names the file and the key or the tensor.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let map = map(path)?;
        let Header { metadata, tensors } = read(path, &map)?;
        let divisors = divisors(&map, &tensors);
        let Unpacked { beside, family, interleaved, head_dim } = unpack(&metadata, &tensors, divisors.as_deref())?;
        let mut views = HashMap::new();
        let mut held = BTreeMap::new();
        for tensor in tensors {
            if tensor.name == llama3::TENSOR {
                continue;
            }
            let name = names::canonical(&tensor.name, family.fused_on_disk);
            let name = name.unwrap_or_else(|| tensor.name.clone());
            let rotated = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
            if interleaved && name.contains(".qkv_proj.") {
                let reason = "queries, keys and values are one matrix, which is not read for this architecture: convert \
                              the model without --fuse-qkv";
                return Err(refused(path, &tensor, reason));
            }
            let height = (interleaved && rotated).then_some(head_dim);
            let minus = if family.norm_plus_one && is_norm(&name) { 1.0 } else { 0.0 };
            let (view, entry) = view(path, &tensor, height, minus)?;
            views.insert(tensor.name, view);
            held.insert(name, entry);
        }
        let file = SourceFile::gguf(path.into(), Views::new(map, views));
        let dirs = vec![(path.to_path_buf(), Layout::Gguf)];
        let files = TensorFiles { dirs, files: vec![file], tensors: held, ..TensorFiles::default() };
        Ok(Self { beside, files })
    }
}

fn refused(path: &Path, tensor: &Found, reason: impl Into<String>) -> CheckpointError {
    GgufError::Tensor { path: path.into(), tensor: tensor.name.clone(), reason: reason.into() }.into()
}

/// A tensor as the rest of the program sees it.
fn view(path: &Path, tensor: &Found, interleaved: Option<usize>, minus: f32) -> Result<(View, Entry), CheckpointError> {
    let Found { name, kind, shape, start, bytes } = tensor;
    let values: usize = shape.iter().product();
    let rows = shape.first().copied().unwrap_or(1);
    if let Some(height) = interleaved
        && (!rows.is_multiple_of(height) || !height.is_multiple_of(2))
    {
        let reason = format!("has {rows} rows, which are no whole heads of {height}");
        return Err(refused(path, tensor, reason));
    }
    if minus != 0.0 && *kind != Kind::F32 {
        return Err(refused(path, tensor, format!("is {}, and norms are read in F32", kind.name())));
    }
    let float = kind.float();
    // Quantized values are counted as f32, of which there may be more than the address space has bytes.
    let Some(size) = values.checked_mul(float.size()).filter(|size| isize::try_from(*size).is_ok()) else {
        return Err(refused(path, tensor, "is too large"));
    };
    let columns = if interleaved.is_some() { values / rows } else { values };
    let view = View { kind: *kind, start: *start, bytes: *bytes, columns, interleaved, minus };
    let dtype = Stored::Float(float);
    let entry = Entry { disk: name.clone(), file: 0, dtype, shape: shape.clone(), start: 0, bytes: size };
    Ok((view, entry))
}

/// The divisors of the rotary frequencies, if the file has them as f32.
fn divisors(bytes: &[u8], tensors: &[Found]) -> Option<Vec<f32>> {
    let tensor = tensors.iter().find(|tensor| tensor.name == llama3::TENSOR && tensor.kind == Kind::F32)?;
    let (values, _) = bytes[tensor.start..tensor.start + tensor.bytes].as_chunks::<4>();
    // A head has at most as many pairs as its width, whose bound is 65,536.
    (values.len() <= 1 << 15).then(|| values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}
