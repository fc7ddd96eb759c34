//! The trait of a data set format: how it is detected, which files belong to a set, how it is read and written.
//! formats.rs lists the formats.

use std::path::{Path, PathBuf};

use super::export::{ExportError, Images, Named, Sharding, Writer};
use super::locate::{at_home, walk};
use super::stamps::Stamps;
use super::{DataError, Samples};

/// A format of data sets.
pub(super) trait DataFormat: Sync {
    /// Its name in recipes and on the command line.
    fn name(&self) -> &'static str;

    /// Whether a file's name marks it as this format.
    fn is_named(&self, _file: &Path) -> bool {
        false
    }

    /// Whether a file's first bytes mark it as this format, for files whose names match no format.
    fn begins(&self, _head: &[u8]) -> bool {
        false
    }

    /// Whether a text file is of this format, for files that neither the name nor the first bytes identify.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the file cannot be read.
    fn reads_text(&self, _file: &Path) -> Result<bool, DataError> {
        Ok(false)
    }

    /// Whether a folder is of this format regardless of what else is in it.
    fn owns(&self, _dir: &Path) -> bool {
        false
    }

    /// Whether a folder that holds `files`, at any depth, contains a set of this format.
    fn lies_in(&self, _dir: &Path, files: &[PathBuf]) -> bool {
        files.iter().any(|file| self.is_named(file))
    }

    /// The files of a set in a folder; by default those below it whose names match the format.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the folder if it holds no such file, or the link in it that leads out of it.
    fn files_of(&self, dir: &Path) -> Result<Vec<PathBuf>, DataError> {
        let mut files = walk(dir)?;
        files.retain(|file| self.is_named(file));
        if files.is_empty() {
            let reason = format!("holds no file of the format {}", self.name());
            return Err(DataError::Set { path: dir.into(), reason });
        }
        files.iter().try_for_each(|file| at_home(dir, file))?;
        Ok(files)
    }

    /// Whether the set at `path` contains its images, so that no image root is needed.
    fn holds_images(&self, _path: &Path) -> bool {
        false
    }

    /// Whether a file of the format holds several splits, of which `split` names those that are read.
    fn has_splits(&self) -> bool {
        false
    }

    /// Indexes a set. `stamps` holds the state of its files before they are read; the state of further files that are
    /// read is added first.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file.
    fn open(&self, set: &Opening<'_>, stamps: &mut Stamps) -> Result<Box<dyn Reader>, DataError>;

    /// Why a set with these images cannot be written in this format; `None` if it can. Called before anything is
    /// written.
    fn cannot_write(&self, _images: &Images) -> Option<&'static str> {
        None
    }

    /// Whether its files can be compressed with gzip when they are written.
    fn writes_gzip(&self) -> bool {
        false
    }

    /// Starts writing a set.
    ///
    /// # Errors
    ///
    /// [`ExportError`] that names the file, or says that this format cannot be written.
    fn writer(&self, dir: Named, sharding: Sharding) -> Result<Box<dyn Writer>, ExportError>;

    /// Whether a written set is a single file that is opened by its own path, and not by its folder's.
    fn is_one_file(&self) -> bool {
        false
    }
}

/// The arguments for opening a set.
pub(super) struct Opening<'a> {
    /// The path, folder or pattern in the recipe.
    pub path: &'a Path,
    /// The files that `path` stands for.
    pub files: &'a [PathBuf],
    /// The folder that image paths are relative to, if given.
    pub images: Option<&'a Path>,
    /// The split that is read, for formats that have splits.
    pub split: Option<&'a str>,
    /// Only the first `limit` samples are used.
    pub limit: Option<usize>,
}

impl Opening<'_> {
    /// The only file of a set whose format does not allow several.
    pub fn single(&self) -> Result<&Path, DataError> {
        match self.files {
            [file] => Ok(file),
            files => {
                let reason = format!("means {} files: name each as one of `data.sets`", files.len());
                Err(DataError::Set { path: self.path.into(), reason })
            }
        }
    }
}

/// An opened set of any format.
pub(super) trait Reader: Samples {
    /// The folder that its image files are relative to; `None` if the images are in the data files.
    fn root(&self) -> Option<&Path>;

    /// A hash that changes when a data file changes.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that cannot be read.
    fn hash(&self) -> Result<u64, DataError>;

    /// Files of which there is at least one per sample. For these, only metadata is compared to detect changes.
    fn many(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}
