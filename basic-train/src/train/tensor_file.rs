//! Reads and writes the tensors of a run's state in safetensors, one at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// A tensor to be written; its values are read from the device only when it is written.
pub struct Outgoing {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    fetch: Box<dyn FnOnce() -> Result<TensorData, String>>,
}

impl Outgoing {
    /// The tensor's name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A tensor to be written. `transpose` swaps the axes of a matrix on disk: Hugging Face's `[out, in]` for Burn's
    /// `[in, out]`.
    pub fn new<const D: usize>(name: String, tensor: Tensor<D>, transpose: bool) -> Self {
        let tensor = tensor.without_autodiff();
        let (mut shape, dtype) = (tensor.dims().to_vec(), tensor.dtype());
        let dims = shape.clone();
        if transpose {
            shape.reverse();
        }
        let fetch = move || {
            let data = tensor.try_into_data().map_err(|e| e.to_string())?;
            Ok(if transpose { transposed(data, dims[0], dims[1]) } else { data })
        };
        Self { name, shape, dtype, fetch: Box::new(fetch) }
    }
}

/// Swaps the axes of a contiguous matrix.
fn transposed(data: TensorData, rows: usize, columns: usize) -> TensorData {
    let (dtype, size) = (data.dtype(), data.dtype().size());
    let from = data.as_bytes();
    let mut to = vec![0u8; from.len()];
    for (index, element) in to.chunks_exact_mut(size).enumerate() {
        let (column, row) = (index / rows, index % rows);
        let at = (row * columns + column) * size;
        element.copy_from_slice(&from[at..at + size]);
    }
    TensorData::from_bytes_vec(to, [columns, rows], dtype)
}

fn dtype_on_disk(dtype: DType) -> std::io::Result<Dtype> {
    Ok(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => return Err(std::io::Error::other(format!("{other:?} has no place in a run's state"))),
    })
}

/// Writes and syncs a safetensors file.
///
/// # Errors
///
/// An I/O error, also if a tensor could not be read from the device.
pub fn write(path: &Path, tensors: Vec<Outgoing>) -> std::io::Result<()> {
    write_with(path, tensors, HashMap::from([("format".into(), "pt".into())]))
}

/// [`write`] with other metadata than `format`. Several entries would be in no fixed order.
///
/// # Errors
///
/// Those of [`write`].
pub fn write_with(path: &Path, tensors: Vec<Outgoing>, more: HashMap<String, String>) -> std::io::Result<()> {
    let mut infos = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for Outgoing { name, shape, dtype, .. } in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.size();
        infos.push((
            name.clone(),
            TensorInfo { dtype: dtype_on_disk(*dtype)?, shape: shape.clone(), data_offsets: (start, end) },
        ));
    }
    let metadata = Metadata::new(Some(more), infos);
    let metadata = metadata.map_err(|e| std::io::Error::other(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in tensors {
        let data = (tensor.fetch)().map_err(|e| std::io::Error::other(format!("{}: {e}", tensor.name)))?;
        out.write_all(data.as_bytes())?;
    }
    out.into_inner().map_err(|e| e.into_error())?.sync_all()
}

/// An opened safetensors file.
pub struct Tensors {
    file: File,
    start: u64,
    metadata: Metadata,
}

impl Tensors {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// An I/O error, also if the header is not valid.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let wrong = |reason: String| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut size = [0u8; 8];
        file.read_exact(&mut size)?;
        let size = u64::from_le_bytes(size);
        if size.checked_add(8).is_none_or(|end| end > length) {
            return Err(wrong("its header is longer than the file".into()));
        }
        let mut header = vec![0u8; size as usize];
        file.read_exact(&mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header)?;
        let start = 8 + size;
        let end = metadata.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if start + end != length {
            return Err(wrong(format!("has {length} bytes, its header asks for {}", start + end)));
        }
        Ok(Self { file, start, metadata })
    }

    /// The tensors' names.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.metadata.tensors().into_keys()
    }

    /// An entry of the metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// A tensor's type and number of elements.
    pub fn size(&self, name: &str) -> Option<(Dtype, usize)> {
        // The header was checked: the elements fit into the file.
        self.metadata.info(name).map(|info| (info.dtype, info.shape.iter().product()))
    }

    /// Reads the bytes of some elements of a tensor of f32 values.
    ///
    /// # Errors
    ///
    /// An I/O error, also for elements that the tensor does not have.
    pub fn read_f32(&mut self, name: &str, elements: Range<usize>) -> std::io::Result<Vec<u8>> {
        let there = self.metadata.info(name).filter(|info| info.dtype == Dtype::F32);
        let place = there.and_then(|info| {
            let (from, to) = info.data_offsets;
            let at = |element: usize| element.checked_mul(size_of::<f32>())?.checked_add(from);
            let (start, end) = (at(elements.start)?, at(elements.end)?);
            (start <= end && end <= to).then_some((start, end - start))
        });
        let Some((start, length)) = place else {
            return Err(std::io::Error::other(format!("{name} has no elements {elements:?} in f32")));
        };
        let mut bytes = vec![0u8; length];
        self.file.seek(SeekFrom::Start(self.start + start as u64))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads one tensor; `None` if there is no tensor of this name. `transpose` works as in [`Outgoing::new`].
    ///
    /// # Errors
    ///
    /// An I/O error, also for a tensor of an unsupported type.
    pub fn read(&mut self, name: &str, transpose: bool) -> std::io::Result<Option<TensorData>> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(std::io::Error::other(format!("{name} is of type {other:?}"))),
        };
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0u8; to - from];
        let shape = info.shape.clone();
        self.file.seek(SeekFrom::Start(self.start + from as u64))?;
        self.file.read_exact(&mut bytes)?;
        let data = TensorData::from_bytes_vec(bytes, shape.clone(), dtype);
        Ok(Some(match (transpose, &shape[..]) {
            (true, [rows, columns]) => transposed(data, *rows, *columns),
            _ => data,
        }))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    #[test]
    fn tensors_come_back_as_they_were_in_either_orientation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let device = Device::default();
        let matrix = Tensor::<2>::from_data([[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
        let half = Tensor::<1>::from_data([0.5f32, -2.0], &device).cast(DType::BF16);
        let out = vec![
            Outgoing::new("turned".into(), matrix.clone(), true),
            Outgoing::new("straight".into(), matrix.clone(), false),
            Outgoing::new("half".into(), half.clone(), false),
        ];
        write(&path, out).unwrap();
        let mut file = Tensors::open(&path).unwrap();
        assert_eq!(file.metadata.info("turned").unwrap().shape, vec![3, 2]);
        assert_eq!(file.read("turned", true).unwrap().unwrap(), matrix.to_data());
        assert_eq!(file.read("straight", false).unwrap().unwrap(), matrix.to_data());
        assert_eq!(file.read("half", false).unwrap().unwrap(), half.to_data());
        assert!(file.read("absent", false).unwrap().is_none());
        let length = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        assert!(Tensors::open(&path).is_err());
    }
}
