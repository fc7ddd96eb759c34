//! Parquet files as the Hugging Face Hub holds them: images as bytes or paths, turns or captions as columns.
//!
//! Opening reads the footers alone. Rows are decoded by the window, a run of rows of about [`WINDOW`] bytes within a row
//! group, and the windows last used are kept: reading in order decodes each window once, reading shuffled costs a
//! window a sample.

mod cells;
mod columns;
mod compact;
mod delta;
mod pages;
mod thrift;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use basic_models::outside::{self, Budget, OverBudget, file_limits};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowSelection, RowSelector,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use rayon::prelude::*;
use serde_json::{Map, Value};

use self::columns::Columns;
use self::compact::{compact, viewed};
use self::pages::{Bounded, Group, VALUE};
use self::thrift::Unreadable;
use super::record::{self, Fault};
use super::root::ImageRoot;
use super::{DataError, ImageSource, Sample, Samples};

/// The bytes of rows that are decoded together, about.
pub const WINDOW: usize = 16 << 20;

/// The rows that are decoded at once: memory is taken for them before anything is read.
const BATCH: usize = 4096;

/// The bytes of a row that the index of a run's order takes.
const ROW: u64 = 8;

/// What a footer takes in memory, at most, as a multiple of its bytes.
const FOOTER: u64 = 64;

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
        let decode = || guarded(|| table.decode(&key, window_rows, &leaves));
        let batches = self.cache.get(key, decode).map_err(|reason| {
            let reason = match reason {
                Failure::Damaged(reason) => {
                    format!("row group {group} cannot be read: {reason}: is the file damaged?")
                }
                Failure::Costly(over) => format!("row group {group} cannot be read: {}", costs(&over, &table.path)),
            };
            Fault::Reason(reason).at(&table.path, &row.to_string())
        })?;
        let mut left = within % window_rows;
        for batch in batches.iter() {
            if left < batch.num_rows() {
                return self.row(table, row, (batch, left), &unread);
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
        unread: &[bool],
    ) -> Result<Sample, DataError> {
        let mut record = Map::new();
        let mut room = cells::Room::new();
        for name in &table.columns.text {
            let Some(array) = batch.column_by_name(name) else { continue };
            let cell =
                cells::value(array, at, &mut room).and_then(|cell| match record::TURN_KEYS.contains(&&name[..]) {
                    true => cells::turns(name, cell),
                    false => Ok(cell),
                });
            let cell = cell.map_err(|reason| Fault::Reason(reason).at(&table.path, &row.to_string()))?;
            record.insert(name.clone(), cell);
        }
        for name in &table.columns.media {
            if batch.column_by_name(name).is_some_and(|array| !cells::is_blank(array, at)) {
                record.insert(name.clone(), "a cell of the table".into());
            }
        }
        let record = Value::Object(record);
        let place = record::place(row, &record["id"]);
        let images = self.images(table, row, (batch, at), unread).map_err(|fault| fault.at(&table.path, &place))?;
        record::sample(&table.path, place, &record, images)
    }

    /// The images in a row: those of the first column that holds any.
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
            // Without the bytes a structure may look empty that is none.
            true => !cells::images(array, at, true).is_ok_and(|found| found.is_empty()),
            false => !cells::is_blank(array, at),
        });
        let filled = filled.or_else(|| columns.iter().find(|(array, _)| !array.is_null(at)));
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

/// Why a footer or a window could not be read.
#[derive(Debug, Clone, PartialEq)]
enum Failure {
    Damaged(String),
    Costly(OverBudget),
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        if let ParquetError::External(source) = &error
            && let Some(over) = source.downcast_ref::<OverBudget>()
        {
            return Self::Costly(over.clone());
        }
        Self::Damaged(outside::excerpt(&error.to_string()))
    }
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::ExternalError(source) => match source.downcast::<ParquetError>() {
                Ok(error) => (*error).into(),
                Err(source) => match source.downcast::<OverBudget>() {
                    Ok(over) => Self::Costly(*over),
                    Err(source) => Self::Damaged(outside::excerpt(&source.to_string())),
                },
            },
            other => Self::Damaged(outside::excerpt(&other.to_string())),
        }
    }
}

/// Runs `read`; a panic of the library over damaged bytes is an error: pages carry no checksum that it looks at, and some
/// of its loops trust what a page says of itself.
fn guarded<T>(read: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    outside::guarded(read).unwrap_or_else(|_| Err(Failure::Damaged("its bytes contradict each other".into())))
}

/// What is too much, without the path that the message begins with anyway.
fn costs(over: &OverBudget, path: &Path) -> String {
    let said = over.to_string();
    said.strip_prefix(&format!("{}: ", path.display())).map_or(said.clone(), String::from)
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
        let io = |source| DataError::Io { path: path.into(), source };
        let budget = Arc::new(Budget::of(path));
        let file = Bounded::new(file, budget.clone()).map_err(io)?;
        let load = || {
            if let Some(footer) = file.footer()? {
                budget.take((footer.len() as u64).saturating_mul(FOOTER)).map_err(Failure::Costly)?;
                if thrift::check_schema(&footer) == Err(Unreadable::Deep) {
                    return Err(Failure::Damaged("its columns nest deeper than any conversation".into()));
                }
            }
            // Without the writer's Arrow schema a text is Utf8 and a list List, whatever library wrote it.
            let options = ArrowReaderOptions::new()
                .with_skip_arrow_metadata(true)
                .with_offset_index_policy(PageIndexPolicy::Optional);
            Ok(ArrowReaderMetadata::load(&file, options)?)
        };
        let metadata = guarded(load).map_err(|failure| match failure {
            Failure::Damaged(reason) => set(format!("is no Parquet file, or a damaged one: {reason}")),
            Failure::Costly(over) => set(format!("its footer {}", costs(&over, path))),
        })?;
        let columns = Columns::of(metadata.schema()).map_err(set)?;
        let mut groups = vec![0usize];
        for (number, group) in metadata.metadata().row_groups().iter().enumerate() {
            let rows = group.num_rows();
            let flat = |c: &&parquet::file::metadata::ColumnChunkMetaData| c.column_descr().max_rep_level() == 0;
            if rows < 0 || group.columns().iter().filter(flat).any(|column| column.num_values() != rows) {
                return Err(set(format!("row group {number} and its columns disagree on their rows: is it damaged?")));
            }
            groups.push(groups[groups.len() - 1].saturating_add(usize::try_from(rows).unwrap_or(usize::MAX)));
        }
        // An order of the rows is in memory while they are read, however small the file is that claims them.
        let rows = groups[groups.len() - 1] as u64;
        if Budget::of(path).take(rows.saturating_mul(ROW)).is_err() {
            let most = file_limits().bytes / ROW;
            return Err(set(format!("says that it has {rows} rows, more than the {most} that --file-bytes allows")));
        }
        Ok(Self { path: path.into(), metadata, columns, groups })
    }

    fn rows(&self) -> usize {
        self.groups.last().copied().unwrap_or(0)
    }

    /// The leaf columns to read, and of each column of images whether their bytes are not among them. An outline leaves
    /// them out, unless there are next to none: then the images are files. Of other media the smallest part is read.
    fn leaves(&self, group: usize, outline: bool) -> (Vec<usize>, Vec<bool>) {
        let group = self.metadata.metadata().row_group(group);
        let mut unread = vec![false; self.columns.images.len()];
        let mut leaves = Vec::new();
        let mut media: Vec<Option<usize>> = vec![None; self.columns.media.len()];
        for (leaf, column) in self.metadata.parquet_schema().columns().iter().enumerate() {
            let parts = column.path().parts();
            let root = parts.first().map_or("", String::as_str);
            let size = group.column(leaf).uncompressed_size();
            let image = self.columns.images.iter().position(|images| images.name == root);
            let bytes = parts.len() > 1 && parts.last().is_some_and(|part| part == "bytes");
            let heavy = outline && bytes && size > LIGHT;
            match image.filter(|image| heavy && self.columns.images[*image].has_paths) {
                Some(image) => unread[image] = true,
                None if image.is_some() || self.columns.text.iter().any(|name| name == root) => leaves.push(leaf),
                None => {
                    let Some(place) = self.columns.media.iter().position(|name| name == root) else { continue };
                    let least = media[place].is_none_or(|held| size < group.column(held).uncompressed_size());
                    media[place] = if least { Some(leaf) } else { media[place] };
                }
            }
        }
        leaves.extend(media.into_iter().flatten());
        (leaves, unread)
    }

    /// How many rows of a group make a window.
    fn window_rows(&self, group: usize, leaves: &[usize]) -> usize {
        let group = self.metadata.metadata().row_group(group);
        let cost = |leaf: &usize| {
            let column = group.column(*leaf);
            let values = u64::try_from(column.num_values()).unwrap_or(0).saturating_mul(VALUE);
            u64::try_from(column.uncompressed_size()).unwrap_or(0).saturating_add(values)
        };
        let bytes = leaves.iter().fold(0u64, |sum, leaf| sum.saturating_add(cost(leaf)));
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let windows = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(WINDOW).max(1);
        rows.div_ceil(windows).max(1)
    }

    fn decode(&self, key: &Key, rows: usize, leaves: &[usize]) -> Result<Vec<RecordBatch>, Failure> {
        let open = File::open(&self.path).and_then(|file| Bounded::new(file, Arc::new(Budget::of(&*self.path))));
        let file = Arc::new(open.map_err(|error| Failure::Damaged(error.to_string()))?);
        let schema = self.metadata.parquet_schema();
        let mask = ProjectionMask::leaves(schema, leaves.iter().copied());
        let before = key.window * rows;
        let rows = rows.min(self.groups[key.group + 1] - self.groups[key.group] - before);
        let selection = RowSelection::from(vec![RowSelector::skip(before), RowSelector::select(rows)]);
        let views = viewed(self.metadata.schema().fields());
        let levels = parquet_to_arrow_field_levels(schema, mask, Some(&views))?;
        let group = Group { file: file.clone(), metadata: self.metadata.metadata(), group: key.group };
        let batch = rows.min(BATCH);
        let mut batches = Vec::new();
        let limit = file.budget.left();
        for batch in ParquetRecordBatchReader::try_new_with_row_groups(&levels, &group, batch, Some(selection))? {
            file.budget.check_time().map_err(Failure::Costly)?;
            batches.push(batch?);
        }
        let held = limit.saturating_sub(file.budget.left()) / batches.len().max(1) as u64;
        Ok(batches.into_iter().map(|batch| compact(batch, held)).collect())
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
        decode: impl FnOnce() -> Result<Vec<RecordBatch>, Failure>,
    ) -> Result<Arc<Vec<RecordBatch>>, Failure> {
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
