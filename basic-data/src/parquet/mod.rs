//! Reads Parquet files in the Hugging Face Hub's layout: images as bytes or paths, turns or captions as columns.
//!
//! Opening reads only the footers. Rows are decoded in windows, runs of rows of about 16 MiB within a row group, and
//! the most recently used windows are cached: reading in order decodes each window once, reading in shuffled order
//! decodes one window per sample.

mod cache;
mod cells;
mod columns;
mod compact;
mod delta;
mod pages;
mod room;
mod rows;
mod table;
mod thrift;
mod windows;

use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use basic_models::outside::file_limits;
use serde_json::{Map, Value};

use self::columns::Columns;
pub use self::rows::ParquetRows;
use self::table::Table;
use self::windows::Windows;
use super::export::{ExportError, Named, Sharding, TableWriter, Writer};
use super::format::{DataFormat, Opening, Reader};
use super::image_root::ImageRoot;
use super::keys;
use super::locate::ends_in;
use super::sample_record::{self as record, Fault};
use super::stamps::Stamps;
use super::{DataError, ImageSource, Sample, Samples, fingerprint};

/// A data set in Parquet files.
#[derive(Debug)]
pub struct ParquetData {
    windows: Windows,
    len: usize,
    root: ImageRoot,
}

/// Parquet files as a format.
pub(super) struct Parquet;

impl DataFormat for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn is_named(&self, file: &Path) -> bool {
        ends_in(file, &[".parquet"])
    }

    fn begins(&self, head: &[u8]) -> bool {
        head.starts_with(b"PAR1")
    }

    fn open(&self, set: &Opening<'_>, _: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        Ok(Box::new(ParquetData::open(set.files, set.images, set.limit)?))
    }

    fn writer(&self, dir: Named, sharding: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        Ok(Box::new(TableWriter::new(dir, sharding)))
    }
}

impl Reader for ParquetData {
    fn root(&self) -> Option<&Path> {
        Some(self.root.path())
    }

    fn hash(&self) -> Result<u64, DataError> {
        fingerprint::of_contents(&self.files())
    }
}

impl ParquetData {
    /// Reads the footers. Image paths are relative to `root`, by default the first file's folder; `limit` keeps the
    /// first rows.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that is truncated, not Parquet, without a column of text, or with a column of
    /// a type that holds neither images nor turns; also if no file has a row.
    pub fn open(files: &[PathBuf], root: Option<&Path>, limit: Option<usize>) -> Result<Self, DataError> {
        let windows = Windows::open(files, Columns::of)?;
        let first = windows.files.first().map(|file| file.path.clone());
        let root = ImageRoot::of(root, first.as_deref().unwrap_or(Path::new("")))?;
        let len = windows.len.min(limit.unwrap_or(usize::MAX));
        Ok(Self { windows, len, root })
    }

    /// The Parquet files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.windows.paths()
    }

    /// The folder that image paths are relative to.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    fn read(&self, index: usize, outline: bool) -> Result<Sample, DataError> {
        let found = self.windows.find(index, outline)?;
        self.row(found.table, found.row, found.batch(), &found.unread)
    }

    /// The sample in a row of a batch.
    fn row(
        &self,
        table: &Table,
        row: usize,
        (batch, at): (&RecordBatch, usize),
        unread: &[bool],
    ) -> Result<Sample, DataError> {
        let mut record = Map::new();
        let mut room = cells::Room::new();
        let budget = record::budget(&table.path);
        for name in &table.columns.text {
            let Some(array) = batch.column_by_name(name) else { continue };
            let cell = cells::value(array, at, &mut room).and_then(|cell| match keys::TURN_KEYS.contains(&&name[..]) {
                true => cells::turns(name, cell, &budget),
                false => Ok(cell),
            });
            let cell = cell.map_err(|reason| Fault::Reason(reason).at(&table.path, &row.to_string()))?;
            record.insert(name.clone(), cell);
        }
        for name in &table.columns.media {
            if batch.column_by_name(name).is_some_and(|array| !cells::is_silent(array, at)) {
                record.insert(name.clone(), "a cell of the table".into());
            }
        }
        let record = Value::Object(record);
        let place = record::place(row, &record["id"]);
        let images = self.images(table, row, (batch, at), unread).map_err(|fault| fault.at(&table.path, &place))?;
        record::sample(&table.path, place, &record, images)
    }

    /// The images in a row: those of the first image column that is not empty.
    fn images(
        &self,
        table: &Table,
        row: usize,
        (batch, at): (&RecordBatch, usize),
        unread: &[bool],
    ) -> Result<Vec<ImageSource>, Fault> {
        let columns = table.columns.images.iter().zip(unread);
        let columns: Vec<_> =
            columns.filter_map(|(column, unread)| Some((batch.column_by_name(&column.name)?, *unread))).collect();
        let filled = columns.iter().find(|(array, unread)| match unread {
            // Without its bytes, a structure that does hold an image may look empty.
            true => !cells::images(array, at, true).is_ok_and(|found| found.is_empty()),
            false => !cells::is_imageless(array, at),
        });
        let Some((array, unread)) = filled else { return Ok(Vec::new()) };
        let mut left = file_limits().bytes;
        let source = |(number, cell): (usize, cells::Cell)| match cell {
            cells::Cell::Bytes(bytes) => {
                let over =
                    || Fault::Reason(format!("its images take more than the {left} bytes that one file may take"));
                left = left.checked_sub(bytes.len() as u64).ok_or_else(over)?;
                let name = table.path.join(format!("row {row}, image {number}"));
                Ok(ImageSource::Bytes { name, bytes: bytes.into() })
            }
            cells::Cell::Path(path) => self.root.file(path).map(ImageSource::File).map_err(Fault::Image),
        };
        cells::images(array, at, *unread).map_err(Fault::Reason)?.into_iter().enumerate().map(source).collect()
    }
}

impl Samples for ParquetData {
    fn len(&self) -> usize {
        self.len
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        self.read(index, false)
    }

    fn outline(&self, index: usize) -> Result<Sample, DataError> {
        self.read(index, true)
    }
}

#[cfg(test)]
mod tests;
