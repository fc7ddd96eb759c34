//! Reads one Parquet file: its footer, and windows of its rows.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, Schema};
use basic_models::outside::{self, Budget, OverBudget, file_limits};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowSelection, RowSelector,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;

use super::cache::Key;
use super::columns::Columns;
use super::compact::{compact, viewed};
use super::pages::{Bounded, Group, VALUE};
use super::room::{Purse, Room};
use super::thrift::{self, Unreadable};
use crate::DataError;

/// The approximate number of bytes of rows that are decoded as one window.
pub const WINDOW: usize = 16 << 20;

/// The number of rows decoded at once; memory is reserved for them before anything is read.
const BATCH: usize = 4096;

/// The bytes that each row takes in the order of a run's samples.
const ROW: u64 = 8;

/// An upper bound for the memory of a footer, as a multiple of its size.
const FOOTER: u64 = 64;

/// Image bytes up to this size are read for an outline too: a column that holds only nulls is smaller.
const LIGHT: i64 = 1 << 20;

/// A Parquet file whose footer has been read.
#[derive(Debug)]
pub(super) struct Table {
    pub path: Arc<Path>,
    pub metadata: ArrowReaderMetadata,
    pub columns: Columns,
    /// The first row of each row group, and the number of rows.
    pub groups: Vec<usize>,
}

impl Table {
    /// Reads the footer; `choose` chooses the columns that are read.
    pub fn open(
        path: &Path,
        room: &Arc<Room>,
        choose: fn(&Schema) -> Result<Columns, String>,
    ) -> Result<Self, DataError> {
        let set = |reason: String| DataError::Set { path: path.into(), reason };
        let file = File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        let io = |source| DataError::Io { path: path.into(), source };
        let budget = Arc::new(Purse::new(Budget::of(path), room.clone()));
        let file = Bounded::new(file, budget.clone()).map_err(io)?;
        let load = || {
            if let Some(footer) = file.footer()? {
                budget.take((footer.len() as u64).saturating_mul(FOOTER)).map_err(Failure::Costly)?;
                if thrift::check_schema(&footer) == Err(Unreadable::Deep) {
                    return Err(Failure::Damaged("its columns nest deeper than any conversation".into()));
                }
            }
            // Without the writer's Arrow schema, text is always Utf8 and a list always List, whichever library wrote
            // them.
            let options = ArrowReaderOptions::new()
                .with_skip_arrow_metadata(true)
                .with_offset_index_policy(PageIndexPolicy::Optional);
            Ok(ArrowReaderMetadata::load(&file, options)?)
        };
        let metadata = guarded(&budget, load).map_err(|failure| match failure {
            Failure::Damaged(reason) => set(format!("is no Parquet file, or a damaged one: {reason}")),
            Failure::Costly(over) => set(format!("its footer {}", over.reason())),
        })?;
        let columns = choose(metadata.schema()).map_err(set)?;
        let mut groups = vec![0usize];
        for (number, group) in metadata.metadata().row_groups().iter().enumerate() {
            let rows = group.num_rows();
            let flat = |c: &&parquet::file::metadata::ColumnChunkMetaData| c.column_descr().max_rep_level() == 0;
            if rows < 0 || group.columns().iter().filter(flat).any(|column| column.num_values() != rows) {
                return Err(set(format!("row group {number} and its columns disagree on their rows: is it damaged?")));
            }
            groups.push(groups[groups.len() - 1].saturating_add(usize::try_from(rows).unwrap_or(usize::MAX)));
        }
        // An order of the rows is held in memory while they are read, so the claimed number of rows is checked even for
        // a small file.
        let rows = groups[groups.len() - 1] as u64;
        if Budget::of(path).take(rows.saturating_mul(ROW)).is_err() {
            let most = file_limits().bytes / ROW;
            return Err(set(format!("says that it has {rows} rows, more than the {most} that --file-bytes allows")));
        }
        let table = Self { path: path.into(), metadata, columns, groups };
        match table.unsupported() {
            Some(reason) => Err(set(reason)),
            None => Ok(table),
        }
    }

    /// Why one of the columns to read cannot be decompressed, if so.
    fn unsupported(&self) -> Option<String> {
        let metadata = self.metadata.metadata();
        (0..metadata.num_row_groups()).find_map(|group| {
            let (leaves, _) = self.leaves(group, false);
            let columns = leaves.into_iter().map(|leaf| metadata.row_group(group).column(leaf));
            columns.into_iter().find_map(|column| {
                let codec = column.compression();
                matches!(codec, Compression::BROTLI(_) | Compression::LZO).then(|| {
                    let name = outside::excerpt(column.column_path().parts().first().map_or("", String::as_str));
                    format!("its column \"{name}\" is compressed by {codec}, which is not read: write it with zstd or snappy")
                })
            })
        })
    }

    pub fn rows(&self) -> usize {
        self.groups.last().copied().unwrap_or(0)
    }

    /// The leaf columns to read, and for each image column whether its bytes are left out. An outline leaves them out,
    /// unless there are almost none, in which case the images are files.
    pub fn leaves(&self, group: usize, outline: bool) -> (Vec<usize>, Vec<bool>) {
        let group = self.metadata.metadata().row_group(group);
        let mut unread = vec![false; self.columns.images.len()];
        let mut leaves = Vec::new();
        for (leaf, column) in self.metadata.parquet_schema().columns().iter().enumerate() {
            let parts = column.path().parts();
            let root = parts.first().map_or("", String::as_str);
            let size = group.column(leaf).uncompressed_size();
            let image = self.columns.images.iter().position(|images| images.name == root);
            let bytes = parts.len() > 1 && parts.last().is_some_and(|part| part == "bytes");
            let heavy = outline && bytes && size > LIGHT;
            match image.filter(|image| heavy && self.columns.images[*image].has_paths) {
                Some(image) => unread[image] = true,
                None if image.is_some() => leaves.push(leaf),
                None if self.columns.text.iter().chain(&self.columns.media).any(|name| name == root) => {
                    leaves.push(leaf);
                }
                None => {}
            }
        }
        (leaves, unread)
    }

    /// The number of rows of a group in one window.
    pub fn window_rows(&self, group: usize, leaves: &[usize]) -> usize {
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

    pub fn decode(
        &self,
        room: &Arc<Room>,
        key: &Key,
        rows: usize,
        leaves: &[usize],
    ) -> Result<Vec<RecordBatch>, Failure> {
        let purse = Arc::new(Purse::new(Budget::of(&*self.path), room.clone()));
        let open = File::open(&self.path).and_then(|file| Bounded::new(file, purse.clone()));
        let file = Arc::new(open.map_err(|error| Failure::Damaged(error.to_string()))?);
        let done = guarded(&purse, || self.batches(&file, key, rows, leaves));
        purse.settle();
        done
    }

    fn batches(
        &self,
        file: &Arc<Bounded>,
        key: &Key,
        rows: usize,
        leaves: &[usize],
    ) -> Result<Vec<RecordBatch>, Failure> {
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

/// Why a footer or a window could not be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
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

/// Runs `read` and turns a panic of the library into an error: pages carry no checksum that the library verifies, and
/// some of its loops trust the sizes that a damaged page claims. If `purse` was exceeded, that is the error returned.
fn guarded<T>(purse: &Purse, read: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let done =
        outside::guarded(read).unwrap_or_else(|_| Err(Failure::Damaged("its bytes contradict each other".into())));
    done.map_err(|failure| purse.over().map_or(failure, Failure::Costly))
}
