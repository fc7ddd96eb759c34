//! The image of a question: at hand, or in a table from which it is read when the question is asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_data::{ImageSource, ParquetRows};

use super::BenchmarkError;
use super::sheet::SheetImages;

/// The image of a question. Images in tables are read when their question is asked, because those of a whole benchmark
/// may take more memory than there is.
#[derive(Debug, Clone)]
pub struct AskedImage(Place);

#[derive(Debug, Clone)]
enum Place {
    Here(ImageSource),
    Sheet { images: Arc<SheetImages>, row: usize },
    Parquet { rows: Arc<ParquetRows>, row: usize, column: String },
}

impl AskedImage {
    /// The image in a row of a tab-separated table.
    pub(super) fn in_sheet(images: Arc<SheetImages>, row: usize) -> Self {
        Self(Place::Sheet { images, row })
    }

    /// The image in a cell of a Parquet table.
    pub(super) fn in_parquet(rows: Arc<ParquetRows>, row: usize, column: &str) -> Self {
        Self(Place::Parquet { rows, row, column: column.into() })
    }

    /// The image, which is read now if it is in a table.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the table and the row.
    pub fn source(&self) -> Result<ImageSource, BenchmarkError> {
        match &self.0 {
            Place::Here(source) => Ok(source.clone()),
            Place::Sheet { images, row } => images.read(*row),
            Place::Parquet { rows, row, column } => {
                let found = rows.image(*row, column)?;
                found.ok_or_else(|| match rows.place(*row) {
                    Ok((path, row)) => BenchmarkError::entry(&path, format!("row {row}"), format!("has no {column}")),
                    Err(error) => error.into(),
                })
            }
        }
    }

    /// The path of the image if it is a file.
    pub fn file(&self) -> Option<&Path> {
        match &self.0 {
            Place::Here(ImageSource::File(path)) => Some(path),
            _ => None,
        }
    }
}

impl From<ImageSource> for AskedImage {
    fn from(source: ImageSource) -> Self {
        Self(Place::Here(source))
    }
}

impl From<PathBuf> for AskedImage {
    fn from(path: PathBuf) -> Self {
        Self(Place::Here(path.into()))
    }
}
