//! Parquet files as the Hugging Face Hub holds them: images as bytes or paths, turns or captions as columns.
//!
//! Opening reads the footers alone. Rows are decoded by the window, a run of rows of about [`WINDOW`] bytes within a row
//! group, and the windows last used are kept: reading in order decodes each window once, reading shuffled costs a
//! window a sample.

mod cells;
mod columns;
mod guard;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::file::metadata::PageIndexPolicy;
use rayon::prelude::*;
use serde_json::{Map, Value};

use self::columns::Columns;
use self::guard::guarded;
use super::record::{self, Fault};
use super::root::ImageRoot;
use super::{DataError, ImageSource, Sample, Samples};

/// The bytes of rows that are decoded together, about.
pub const WINDOW: usize = 16 << 20;

/// The rows that are decoded at once: memory is taken for them before anything is read.
const BATCH: usize = 4096;

/// The bytes of images that an outline reads all the same: a column of nulls takes less.
const LIGHT: i64 = 1 << 20;

/// A data set in Parquet files.
#[derive(Debug)]
pub struct ParquetData {
    files: Vec<Table>,
    /// The index of each file's first row.
    firsts: Vec<usize>,
    len: usize,
    root: ImageRoot,
    cache: Cache,
}

#[derive(Debug)]
struct Table {
    path: Arc<Path>,
    metadata: ArrowReaderMetadata,
    columns: Columns,
    /// The first row of each row group, and the number of rows.
    groups: Vec<usize>,
}

impl ParquetData {
    /// Reads the footers; image paths are relative to `root`, by default the first file's folder. `limit` keeps the
    /// first rows.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file: truncated, not Parquet, without a column of text, or with a column of a type
    /// that holds neither images nor turns; no row in any.
    pub fn open(files: &[PathBuf], root: Option<&Path>, limit: Option<usize>) -> Result<Self, DataError> {
        let files: Vec<Table> = files.par_iter().map(|path| Table::open(path)).collect::<Result<_, _>>()?;
        let mut firsts = Vec::with_capacity(files.len());
        let mut len = 0;
        for file in &files {
            firsts.push(len);
            len = file.rows().saturating_add(len);
        }
        let first = files.first().map_or(Path::new(""), |file| &file.path);
        if len == 0 {
            return Err(DataError::Empty(first.into()));
        }
        let root = ImageRoot::of(root, first)?;
        Ok(Self { files, firsts, len: len.min(limit.unwrap_or(usize::MAX)), root, cache: Cache::default() })
    }

    /// The files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.to_path_buf()).collect()
    }

    /// What image paths are relative to.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    fn read(&self, index: usize, outline: bool) -> Result<Sample, DataError> {
        let number = self.firsts.partition_point(|first| *first <= index) - 1;
        let table = &self.files[number];
        let row = index - self.firsts[number];
        let group = table.groups.partition_point(|first| *first <= row) - 1;
        let (leaves, unread) = table.leaves(group, outline);
        let within = row - table.groups[group];
        let window_rows = table.window_rows(group, &leaves);
        let key = Key { file: number, group, window: within / window_rows, outline };
        let batches =
            self.cache.get(key, || guarded(|| table.decode(&key, window_rows, &leaves))).map_err(|reason| {
                let reason = format!("row group {group} cannot be read: {reason}: is the file damaged?");
                Fault::Reason(reason).at(&table.path, &row.to_string())
            })?;
        let mut left = within % window_rows;
        for batch in batches.iter() {
            if left < batch.num_rows() {
                return self.row(table, row, (batch, left), unread);
            }
            left -= batch.num_rows();
        }
        let reason = format!("row group {group} has fewer rows than the file's footer says: is the file damaged?");
        Err(Fault::Reason(reason).at(&table.path, &row.to_string()))
    }

    /// The sample in a row of a batch.
    fn row(
        &self,
        table: &Table,
        row: usize,
        (batch, at): (&RecordBatch, usize),
        unread: bool,
    ) -> Result<Sample, DataError> {
        let mut record = Map::new();
        for name in &table.columns.text {
            if let Some(array) = batch.column_by_name(name) {
                record.insert(name.clone(), cells::value(array, at));
            }
        }
        let record = Value::Object(record);
        let place = record::place(row, &record["id"]);
        let mut images = Vec::new();
        if let Some(array) = table.columns.images.as_ref().and_then(|name| batch.column_by_name(name)) {
            let found = cells::images(array, at, unread).map_err(Fault::Reason);
            let sources = found.and_then(|found| {
                let source = |(number, cell): (usize, cells::Cell)| match cell {
                    cells::Cell::Bytes(bytes) => {
                        let name = table.path.join(format!("row {row}, image {number}"));
                        Ok(ImageSource::Bytes { name, bytes: bytes.into() })
                    }
                    cells::Cell::Path(path) => self.root.file(path).map(ImageSource::File).map_err(Fault::Image),
                };
                found.into_iter().enumerate().map(source).collect::<Result<Vec<_>, _>>()
            });
            images = sources.map_err(|fault| fault.at(&table.path, &place))?;
        }
        record::sample(&table.path, place, &record, images)
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

impl Table {
    fn open(path: &Path) -> Result<Self, DataError> {
        let set = |reason: String| DataError::Set { path: path.into(), reason };
        let file = File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        // Without the writer's Arrow schema a text is Utf8 and a list List, whatever library wrote it.
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let load = || ArrowReaderMetadata::load(&file, options).map_err(|error| error.to_string());
        let metadata =
            guarded(load).map_err(|reason| set(format!("is no Parquet file, or a damaged one: {reason}")))?;
        let columns = Columns::of(metadata.schema()).map_err(set)?;
        let mut groups = vec![0usize];
        for group in metadata.metadata().row_groups() {
            groups.push(groups[groups.len() - 1].saturating_add(usize::try_from(group.num_rows()).unwrap_or(0)));
        }
        Ok(Self { path: path.into(), metadata, columns, groups })
    }

    fn rows(&self) -> usize {
        self.groups.last().copied().unwrap_or(0)
    }

    /// The leaf columns to read, and whether the bytes of images are not among them. An outline leaves them out, unless
    /// there are next to none: then the images are files.
    fn leaves(&self, group: usize, outline: bool) -> (Vec<usize>, bool) {
        let group = self.metadata.metadata().row_group(group);
        let mut unread = false;
        let mut leaves = Vec::new();
        for (leaf, column) in self.metadata.parquet_schema().columns().iter().enumerate() {
            let parts = column.path().parts();
            let root = parts.first().map_or("", String::as_str);
            let image = self.columns.images.as_deref() == Some(root);
            let bytes = image && parts.len() > 1 && parts.last().is_some_and(|part| part == "bytes");
            if outline && bytes && self.columns.has_paths && group.column(leaf).uncompressed_size() > LIGHT {
                unread = true;
            } else if image || self.columns.text.iter().any(|name| name == root) {
                leaves.push(leaf);
            }
        }
        (leaves, unread)
    }

    /// How many rows of a group make a window.
    fn window_rows(&self, group: usize, leaves: &[usize]) -> usize {
        let group = self.metadata.metadata().row_group(group);
        let bytes = leaves.iter().fold(0i64, |sum, leaf| sum.saturating_add(group.column(*leaf).uncompressed_size()));
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let windows = usize::try_from(bytes).unwrap_or(0).div_ceil(WINDOW).max(1);
        rows.div_ceil(windows).max(1)
    }

    fn decode(&self, key: &Key, rows: usize, leaves: &[usize]) -> Result<Vec<RecordBatch>, String> {
        let file = File::open(&self.path).map_err(|error| error.to_string())?;
        let mask = ProjectionMask::leaves(self.metadata.parquet_schema(), leaves.iter().copied());
        let before = key.window * rows;
        let rows = rows.min(self.groups[key.group + 1] - self.groups[key.group] - before);
        let selection = vec![RowSelector::skip(before), RowSelector::select(rows)];
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![key.group])
            .with_projection(mask)
            .with_batch_size(rows.min(BATCH))
            .with_row_selection(RowSelection::from(selection))
            .build()
            .map_err(|error| error.to_string())?;
        reader.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }
}

/// A window of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    file: usize,
    group: usize,
    window: usize,
    outline: bool,
}

type Slot = Arc<Mutex<Option<Arc<Vec<RecordBatch>>>>>;

/// The windows last used: as many as threads may ask for at once, at least 8.
#[derive(Debug, Default)]
struct Cache {
    slots: Mutex<VecDeque<(Key, Slot)>>,
}

impl Cache {
    /// The window `key`; where it is not held, `decode` makes it, once however many threads ask.
    fn get(
        &self,
        key: Key,
        decode: impl FnOnce() -> Result<Vec<RecordBatch>, String>,
    ) -> Result<Arc<Vec<RecordBatch>>, String> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let held = slots.iter().position(|(held, _)| *held == key).and_then(|place| slots.remove(place));
            let entry = held.unwrap_or_else(|| (key, Slot::default()));
            let slot = entry.1.clone();
            slots.push_back(entry);
            while slots.len() > rayon::current_num_threads().max(8) {
                slots.pop_front();
            }
            slot
        };
        let mut window = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(batches) = &*window {
            return Ok(batches.clone());
        }
        Ok(window.insert(Arc::new(decode()?)).clone())
    }
}

#[cfg(test)]
mod tests;
