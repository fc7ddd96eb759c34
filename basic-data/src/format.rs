//! What a format of data sets has to say: how it is told, which files it means, how it is read and written. Formats
//! stand in formats.rs, one line each.

use std::path::{Path, PathBuf};

use super::export::{ExportError, Images, Named, Sharding, Writer};
use super::locate::{at_home, walk};
use super::stamps::Stamps;
use super::{DataError, Samples};

/// A format of data sets.
pub(super) trait DataFormat: Sync {
    /// Its name in recipes and on the command line.
    fn name(&self) -> &'static str;

    /// Whether a file's name says that it is of the format.
    fn is_named(&self, _file: &Path) -> bool {
        false
    }

    /// Whether a file's first bytes say so, where no name does.
    fn begins(&self, _head: &[u8]) -> bool {
        false
    }

    /// Whether a file that neither name nor first bytes tell anything of is of the format, which is one of text.
    ///
    /// # Errors
    ///
    /// [`DataError`] where it cannot be read.
    fn reads_text(&self, _file: &Path) -> Result<bool, DataError> {
        Ok(false)
    }

    /// Whether a folder is of the format, whatever else lies in it.
    fn owns(&self, _dir: &Path) -> bool {
        false
    }

    /// Whether a folder with these files below it holds a set of the format.
    fn lies_in(&self, _dir: &Path, files: &[PathBuf]) -> bool {
        files.iter().any(|file| self.is_named(file))
    }

    /// The files that a folder means; by default those of the format's names below it.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the folder without such a file, or a link in it that leads elsewhere.
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

    /// Whether the set at `path` holds its images itself, so that there is no root of images.
    fn holds_images(&self, _path: &Path) -> bool {
        false
    }

    /// Indexes a set. `stamps` are its files', from before they are read; what else is read is added to them before.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file.
    fn open(&self, set: &Opening<'_>, stamps: &mut Stamps) -> Result<Box<dyn Reader>, DataError>;

    /// Why a set with its images there cannot be written in the format, if it cannot; before anything is written.
    fn cannot_write(&self, _images: &Images) -> Option<&'static str> {
        None
    }

    /// Begins to write a set.
    ///
    /// # Errors
    ///
    /// [`ExportError`] that names the file, or says that the format is not written.
    fn writer(&self, dir: Named, sharding: Sharding) -> Result<Box<dyn Writer>, ExportError>;

    /// Whether a written set is one file, by which it is opened, and not the folder.
    fn is_one_file(&self) -> bool {
        false
    }
}

/// What a set is opened by.
pub(super) struct Opening<'a> {
    /// As the recipe names it.
    pub path: &'a Path,
    /// The files that this means.
    pub files: &'a [PathBuf],
    /// What image paths are relative to, where it is given.
    pub images: Option<&'a Path>,
    /// The first so many samples alone.
    pub limit: Option<usize>,
}

impl Opening<'_> {
    /// The only file of a set that cannot have several.
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

/// An opened set of some format.
pub(super) trait Reader: Samples {
    /// The folder that its image files are relative to; none where the images are in the data files.
    fn root(&self) -> Option<&Path>;

    /// What changes when a data file does.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that cannot be read.
    fn hash(&self) -> Result<u64, DataError>;

    /// Files of which there are as many as samples: that one was written again is noticed without its contents.
    fn many(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}
