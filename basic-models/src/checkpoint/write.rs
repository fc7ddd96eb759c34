//! Writing: everything into a directory beside, synced, then renamed, so that no half-written checkpoint ever has
//! the final name.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use safetensors::{Dtype, View};

use super::CheckpointError;
use super::names::{Layout, ParamPath};
use super::read::transpose;

/// A directory under construction: [`StagedDir::commit`] gives it its name, dropping it removes it.
#[derive(Debug)]
pub struct StagedDir {
    staging: tempfile::TempDir,
    target: PathBuf,
    overwrite: bool,
}

impl StagedDir {
    /// Starts beside `target`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`] where the target holds files and `overwrite` is off; I/O errors.
    pub fn new(target: &Path, overwrite: bool) -> Result<Self, CheckpointError> {
        if occupied(target) && !overwrite {
            return Err(CheckpointError::Exists(target.into()));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        let staging =
            tempfile::Builder::new().prefix(".basic-").tempdir_in(parent).map_err(CheckpointError::io(parent))?;
        Ok(Self { staging, target: target.into(), overwrite })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Writes one file and syncs it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] that names the file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.path().join(name);
        let mut file = File::create(&path).map_err(CheckpointError::io(self.target.join(name)))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(CheckpointError::io(self.target.join(name)))
    }

    /// Syncs every file, those that were copied in too: a rename must not outrun its data.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] that names the file.
    pub fn sync(&self) -> Result<(), CheckpointError> {
        for entry in fs::read_dir(self.path()).map_err(CheckpointError::io(&self.target))? {
            let entry = entry.map_err(CheckpointError::io(&self.target))?;
            let named = self.target.join(entry.file_name());
            File::open(entry.path()).and_then(|file| file.sync_all()).map_err(CheckpointError::io(named))?;
        }
        Ok(())
    }

    /// Syncs the files and renames the directory to its target.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`] where somebody else made the target meanwhile; I/O errors.
    pub fn commit(self) -> Result<(), CheckpointError> {
        self.sync()?;
        let io = || CheckpointError::io(self.target.clone());
        let staging = self.staging.path().to_path_buf();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // tempfile makes the directory private; a checkpoint gets ordinary permissions.
            fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).map_err(io())?;
        }
        if occupied(&self.target) {
            if !self.overwrite {
                return Err(CheckpointError::Exists(self.target));
            }
            let old = staging.with_extension("old");
            fs::rename(&self.target, &old).map_err(io())?;
            if let Err(error) = fs::rename(&staging, &self.target) {
                // Put back what was there before reporting.
                let _ = fs::rename(&old, &self.target);
                return Err(CheckpointError::Io { path: self.target, source: error });
            }
            fs::remove_dir_all(&old).map_err(CheckpointError::io(&old))?;
        } else {
            if self.target.is_dir() {
                fs::remove_dir(&self.target).map_err(io())?;
            }
            fs::rename(&staging, &self.target).map_err(io())?;
        }
        // The directory has moved: there is nothing left to clean up.
        let _ = self.staging.keep();
        Ok(())
    }
}

fn occupied(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Writes `model.safetensors` into a staged directory, in `dtype` (f32, f16 or bf16).
///
/// # Errors
///
/// [`CheckpointError::Io`] that names the file.
pub fn write_tensors<M: Module>(
    staged: &StagedDir,
    module: &M,
    prefix: &str,
    layout: Layout,
    dtype: DType,
) -> Result<(), CheckpointError> {
    let mut gather = Gather { path: ParamPath::new(prefix), layout, dtype, tensors: Vec::new(), failed: None };
    module.visit(&mut gather);
    if let Some(reason) = gather.failed {
        return Err(CheckpointError::Mismatch(reason));
    }
    let path = staged.path().join("model.safetensors");
    let named = staged.target.join("model.safetensors");
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize_to_file(gather.tensors, metadata, &path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => CheckpointError::Io { path: named.clone(), source },
        other => CheckpointError::Corrupt { path: named.clone(), reason: other.to_string() },
    })?;
    readable(&path)
        .and_then(|()| File::open(&path))
        .and_then(|file| file.sync_all())
        .map_err(CheckpointError::io(named))
}

/// safetensors makes its files private; a checkpoint gets ordinary permissions.
fn readable(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

struct Gather {
    path: ParamPath,
    layout: Layout,
    dtype: DType,
    tensors: Vec<(String, Bytes)>,
    failed: Option<String>,
}

impl ModuleVisitor for Gather {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let slot = self.path.slot(&tensor.dims());
        let values = match tensor.cast(DType::F32).try_into_vec_as::<f32>() {
            Ok(values) => values,
            Err(error) => {
                self.failed = Some(format!("{}: could not be read from the device: {error}", slot.name));
                return;
            }
        };
        let values = if slot.transposed { transpose(&values, slot.shape[1], slot.shape[0]) } else { values };
        let (dtype, data) = encode(&values, self.dtype);
        let name = self.layout.disk(&slot.name);
        self.tensors.push((name, Bytes { dtype, shape: slot.shape, data }));
    }
}

fn encode(values: &[f32], dtype: DType) -> (Dtype, Vec<u8>) {
    match dtype {
        DType::F16 => {
            let bytes = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes());
            (Dtype::F16, bytes.collect())
        }
        DType::BF16 => {
            let bytes = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes());
            (Dtype::BF16, bytes.collect())
        }
        _ => (Dtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
    }
}
