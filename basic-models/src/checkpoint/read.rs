//! Reading safetensors: one file or shards, memory-mapped, converted tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::CheckpointError;
use super::names::{Layout, ParamPath, slots};

/// The tensors of a directory by our names.
#[derive(Debug)]
pub struct TensorFiles {
    dir: PathBuf,
    layout: Layout,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    disk: String,
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl TensorFiles {
    /// Opens a directory's safetensors and checks their headers; no weight is read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that names the file.
    pub fn open(dir: &Path, layout: Layout) -> Result<Self, CheckpointError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let paths = if single.is_file() {
            vec![single]
        } else if index.is_file() {
            shards(dir, &index)?
        } else {
            return Err(CheckpointError::NoWeights(dir.into()));
        };
        let mut this = Self { dir: dir.into(), layout, files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            this.add(path)?;
        }
        Ok(this)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let file = File::open(&path).map_err(CheckpointError::io(&path))?;
        // SAFETY: the map is only read. Another process that truncates the file while it is mapped would end this
        // one; that is the price of not copying weights, and what every safetensors reader accepts.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(&path))?;
        let corrupt = |reason: safetensors::SafeTensorError| CheckpointError::Corrupt {
            path: path.clone(),
            reason: reason.to_string(),
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(corrupt)?;
        // The data begins behind the eight bytes of the header's length and the header.
        let data = header + 8;
        let number = self.files.len();
        for (disk, info) in metadata.tensors() {
            let Some(name) = self.layout.canonical(&disk) else { continue };
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > map.len() {
                return Err(CheckpointError::Corrupt {
                    path,
                    reason: format!("tensor {disk} ends at byte {end} of {}", map.len()),
                });
            }
            let entry = Entry { disk, file: number, dtype: info.dtype, shape: info.shape.clone(), start, end };
            self.tensors.insert(name, entry);
        }
        self.files.push((path, map));
        Ok(())
    }

    /// The tensors that no parameter of `module` takes, by their names on disk.
    pub fn unexpected<M: Module>(&self, module: &M, prefix: &str) -> Vec<String> {
        let known: Vec<String> = slots(module, prefix).into_iter().map(|s| s.name).collect();
        let unknown = self.tensors.iter().filter(|(name, _)| !known.contains(name));
        unknown.map(|(_, entry)| entry.disk.clone()).collect()
    }

    /// Whether a tensor of our name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Fills `module`, whose parameters are named below `prefix`, converting each tensor to `dtype`. All names and
    /// shapes are checked before the first weight is read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that lists every missing tensor, or every wrong shape.
    pub fn load<M: Module>(
        &self,
        module: M,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<M, CheckpointError> {
        let wanted = slots(&module, prefix);
        let missing: Vec<String> = wanted
            .iter()
            .filter(|slot| !self.tensors.contains_key(&slot.name))
            .map(|slot| self.layout.disk(&slot.name))
            .collect();
        if !missing.is_empty() {
            return Err(CheckpointError::Missing { path: self.dir.clone(), names: missing });
        }
        let mut shapes = Vec::new();
        for slot in &wanted {
            let entry = &self.tensors[&slot.name];
            if entry.shape != slot.shape {
                shapes.push(format!("{} is {:?}, not {:?}", entry.disk, entry.shape, slot.shape));
            }
            if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(CheckpointError::Dtype {
                    path: self.files[entry.file].0.clone(),
                    name: entry.disk.clone(),
                    dtype: format!("{:?}", entry.dtype),
                });
            }
        }
        if !shapes.is_empty() {
            return Err(CheckpointError::Shapes { path: self.dir.clone(), shapes });
        }
        let mut fill = Fill { source: self, path: ParamPath::new(prefix), dtype, device: device.clone() };
        Ok(module.map(&mut fill))
    }

    fn values(&self, entry: &Entry) -> Vec<f32> {
        let bytes = &self.files[entry.file].1[entry.start..entry.end];
        match entry.dtype {
            Dtype::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }
}

struct Fill<'a> {
    source: &'a TensorFiles,
    path: ParamPath,
    dtype: DType,
    device: Device,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let slot = self.path.slot(&param.lazy_shape().to_vec());
        // `load` has checked that every slot has its tensor.
        let Some(entry) = self.source.tensors.get(&slot.name) else { return param };
        let values = self.source.values(entry);
        let (values, shape) = if slot.transposed {
            let (rows, columns) = (slot.shape[0], slot.shape[1]);
            (transpose(&values, rows, columns), vec![columns, rows])
        } else {
            (values, slot.shape)
        };
        let tensor = Tensor::<D>::from_data(TensorData::new(values, shape), (&self.device, DType::F32));
        // On a device without autodiff this only notes that the parameter can be trained.
        Param::initialized(ParamId::new(), tensor.cast(self.dtype)).set_require_grad(true)
    }
}

/// `[rows, columns]` to `[columns, rows]`, in blocks that stay in the cache.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut out = vec![0.0; values.len()];
    for r0 in (0..rows).step_by(BLOCK) {
        for c0 in (0..columns).step_by(BLOCK) {
            for r in r0..(r0 + BLOCK).min(rows) {
                for c in c0..(c0 + BLOCK).min(columns) {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    out
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let bad = |reason: String| CheckpointError::Index { path: index.into(), reason };
    let text = std::fs::read_to_string(index).map_err(CheckpointError::io(index))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let map = value.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| bad("no \"weight_map\" object".into()))?;
    let mut names: Vec<&str> = Vec::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| bad(format!("{tensor}: the shard's name is not text")))?;
        if Path::new(file).components().count() != 1 || file.starts_with("..") {
            return Err(bad(format!("{tensor}: shard {file:?} is not a file name")));
        }
        names.push(file);
    }
    names.sort_unstable();
    names.dedup();
    let absent: Vec<&str> = names.iter().copied().filter(|n| !dir.join(n).is_file()).collect();
    if !absent.is_empty() {
        return Err(bad(format!("shards are absent: {}", absent.join(", "))));
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}
