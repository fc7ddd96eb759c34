//! A file of tensors: safetensors or GGUF, memory-mapped, or PyTorch's `.bin`. Opening reads only the headers.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use pytorch_reader::PytorchReader;
use safetensors::{Dtype, SafeTensors};

use super::CheckpointError;
use super::diagnose::diagnose;
use super::floats::FloatType;
use super::gguf::Views;
use super::torch;
use crate::outside::{Budget, excerpt, guarded};

/// The number of bytes of a mapped file that are in memory at a time.
const WINDOW: usize = 4 << 20;

/// Bytes of memory that a parsed safetensors header takes for each of its bytes.
const HEADER_COST: u64 = 16;

/// A file of tensors.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// The file's path.
    pub path: PathBuf,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Mapped(Mmap),
    Torch(HashMap<String, pytorch_reader::Tensor>),
    Gguf(Views),
}

/// A tensor of a file, or some of its rows.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its name in the file.
    pub disk: String,
    /// The index of the file.
    pub file: usize,
    /// Its type.
    pub dtype: Stored,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The position of its first byte: in the file, for PyTorch in the tensor's storage, for GGUF in the tensor.
    pub start: usize,
    /// The number of bytes.
    pub bytes: usize,
}

/// The type of a tensor on disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stored {
    /// A type that is supported.
    Float(FloatType),
    /// Any other type, by its name.
    Other(String),
}

/// The tensor for a parameter.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub entry: Entry,
    pub float: FloatType,
    /// The number of rows that the file lacks, which get the mean of the existing ones.
    pub added: usize,
}

impl Stored {
    /// safetensors' name of the type.
    pub fn name(&self) -> String {
        match self {
            Self::Float(float) => format!("{float:?}"),
            Self::Other(name) => name.clone(),
        }
    }
}

impl Entry {
    /// `count` rows (of the first axis) from `first` on; the caller has checked the shape.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        let row = self.bytes / self.shape.first().copied().unwrap_or(1).max(1);
        let mut shape = self.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = count;
        }
        Self { shape, start: self.start + first * row, bytes: count * row, ..self.clone() }
    }
}

impl SourceFile {
    /// Opens a file and lists its tensors; `number` becomes the index of their file.
    ///
    /// # Errors
    ///
    /// Returns I/O errors and [`CheckpointError::Corrupt`], which name the file and, if there is one, the tensor.
    pub fn open(path: PathBuf, number: usize) -> Result<(Self, Vec<Entry>), CheckpointError> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            Self::open_safetensors(path, number)
        } else {
            Self::open_torch(path, number)
        }
    }

    /// A GGUF file, whose tensors are listed by its own reader.
    pub fn gguf(path: PathBuf, views: Views) -> Self {
        Self { path, data: Data::Gguf(views) }
    }

    fn open_safetensors(path: PathBuf, number: usize) -> Result<(Self, Vec<Entry>), CheckpointError> {
        let map = map(&path)?;
        // A parsed header takes several times its length.
        let claimed = map.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length)).min(map.len() as u64);
        Budget::of(&path).take(claimed.saturating_mul(HEADER_COST))?;
        let read = SafeTensors::read_metadata(&map);
        let (header, metadata) = read.map_err(|error| CheckpointError::Corrupt {
            path: path.clone(),
            reason: diagnose(&map).unwrap_or_else(|| error.to_string()),
        })?;
        // The data begins after the eight bytes of the header's length and the header. `read_metadata` checks that
        // every tensor lies inside the file, has the length that its shape requires, and does not overlap another.
        let data = header + 8;
        let entries = metadata.tensors().into_iter().map(|(disk, info)| {
            let dtype = match info.dtype {
                Dtype::F32 => Stored::Float(FloatType::F32),
                Dtype::F16 => Stored::Float(FloatType::F16),
                Dtype::BF16 => Stored::Float(FloatType::BF16),
                other => Stored::Other(format!("{other:?}")),
            };
            let (start, end) = info.data_offsets;
            Entry { disk, file: number, dtype, shape: info.shape.clone(), start: data + start, bytes: end - start }
        });
        let entries = entries.collect();
        Ok((Self { path, data: Data::Mapped(map) }, entries))
    }

    fn open_torch(path: PathBuf, number: usize) -> Result<(Self, Vec<Entry>), CheckpointError> {
        let length = std::fs::metadata(&path).map_err(CheckpointError::io(&path))?.len();
        let failed = |reason: String| CheckpointError::Torch { path: path.clone(), reason };
        torch::check(&path)?;
        let read = guarded(|| PytorchReader::new(&path)).map_err(&failed)?;
        let tensors = read.map_err(|error| failed(excerpt(&error.to_string())))?.into_tensors();
        let mut entries = Vec::with_capacity(tensors.len());
        for (disk, tensor) in &tensors {
            let dtype = match tensor.dtype() {
                pytorch_reader::DType::F32 => Stored::Float(FloatType::F32),
                pytorch_reader::DType::F16 => Stored::Float(FloatType::F16),
                pytorch_reader::DType::BF16 => Stored::Float(FloatType::BF16),
                other => Stored::Other(format!("{other:?}").to_uppercase()),
            };
            let bytes = tensor.byte_len();
            if bytes as u64 > length {
                // A view with stride 0 may claim any size.
                return Err(failed(format!("tensor {disk} takes {bytes} bytes, the file has {length}")));
            }
            let shape = tensor.shape().to_vec();
            entries.push(Entry { disk: disk.clone(), file: number, dtype, shape, start: 0, bytes });
        }
        Ok((Self { path, data: Data::Torch(tensors) }, entries))
    }

    /// Passes the bytes of `entry` to `take` in order, in windows of whole multiples of `unit` bytes. Mapped pages are
    /// released as soon as they were taken, so that a file does not count as memory.
    ///
    /// # Errors
    ///
    /// Returns the errors of `take`, and I/O errors of a PyTorch file.
    pub fn windows(
        &self,
        entry: &Entry,
        unit: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let step = (WINDOW / unit.max(1)).max(1) * unit.max(1);
        let range = entry.start..entry.start + entry.bytes;
        match &self.data {
            Data::Mapped(map) => {
                for start in range.clone().step_by(step) {
                    let window = start..(start + step).min(range.end);
                    take(&map[window.clone()])?;
                    release(map, window);
                }
                Ok(())
            }
            Data::Gguf(views) => views.windows(&entry.disk, range, unit, take),
            Data::Torch(tensors) => {
                let Some(tensor) = tensors.get(&entry.disk) else { return Ok(()) };
                let read = guarded(|| tensor.read());
                let read = read.map_err(|reason| CheckpointError::Torch { path: self.path.clone(), reason })?;
                let bytes = read.map_err(CheckpointError::io(&self.path))?;
                let bytes = bytes.get(range).ok_or_else(|| CheckpointError::Torch {
                    path: self.path.clone(),
                    reason: format!("tensor {} is shorter than its shape says", entry.disk),
                })?;
                bytes.chunks(step).try_for_each(take)
            }
        }
    }
}

/// Maps a regular file.
pub(super) fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let file = File::open(path).map_err(CheckpointError::io(path))?;
    if !file.metadata().map_err(CheckpointError::io(path))?.is_file() {
        return Err(CheckpointError::Corrupt { path: path.into(), reason: "not a regular file".into() });
    }
    // SAFETY: the map is only read. If another process truncates the file while it is mapped, this process is killed;
    // every reader of safetensors accepts that in order not to copy the weights.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(path))?;
    Ok(map)
}

/// Lets the system release the pages of a window; they can be read again from the file.
#[cfg(unix)]
pub(super) fn release(map: &Mmap, window: std::ops::Range<usize>) {
    // SAFETY: the map is a shared map of a file and is never written to: released pages are read from the file again.
    #[allow(unsafe_code)]
    let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, window.start, window.len()) };
    // A system that refuses keeps the pages, which is not an error.
    drop(advised);
}

#[cfg(not(unix))]
pub(super) fn release(_: &Mmap, _: std::ops::Range<usize>) {}
