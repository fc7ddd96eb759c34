//! Finds the rows of a set of Parquet files by their index, decoding and caching the windows that they lie in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use basic_models::outside::file_limits;
use rayon::prelude::*;

use super::cache::{Cache, Key};
use super::columns::Columns;
use super::room::Room;
use super::table::{Failure, Table};
use crate::DataError;
use crate::sample_record::Fault;

/// The windows that are decoded at the same time may take this fraction (one part in `SHARE`) of a file's budget
/// together, plus one window beyond it.
const SHARE: u64 = 2;

/// The rows of several files, one file after another.
#[derive(Debug)]
pub(super) struct Windows {
    pub files: Vec<Table>,
    /// The index of each file's first row.
    firsts: Vec<usize>,
    /// The number of rows of all files.
    pub len: usize,
    pub cache: Cache,
    room: Arc<Room>,
}

/// A row in the window that it lies in.
pub(super) struct Found<'a> {
    pub table: &'a Table,
    /// The row's index in its file.
    pub row: usize,
    window: Arc<Vec<RecordBatch>>,
    batch: usize,
    at: usize,
    /// For each image column whether its bytes were left out.
    pub unread: Vec<bool>,
}

impl Found<'_> {
    /// The batch with the row, and the row's index in it.
    pub fn batch(&self) -> (&RecordBatch, usize) {
        (&self.window[self.batch], self.at)
    }

    /// An error of this row.
    pub fn wrong(&self, reason: String) -> DataError {
        Fault::Reason(reason).at(&self.table.path, &self.row.to_string())
    }
}

impl Windows {
    /// Reads the footers of the files; `choose` chooses the columns that are read.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that is truncated, not Parquet or without the columns; also if no file has a
    /// row.
    pub fn open(files: &[PathBuf], choose: fn(&Schema) -> Result<Columns, String>) -> Result<Self, DataError> {
        let room = Arc::new(Room::new(file_limits().bytes / SHARE));
        let open = |path: &PathBuf| Table::open(path, &room, choose);
        let files: Vec<Table> = files.par_iter().map(open).collect::<Result<_, _>>()?;
        let mut firsts = Vec::with_capacity(files.len());
        let mut len = 0;
        for file in &files {
            firsts.push(len);
            len = file.rows().saturating_add(len);
        }
        if len == 0 {
            return Err(DataError::Empty(files.first().map_or(Path::new(""), |file| &file.path).into()));
        }
        Ok(Self { files, firsts, len, cache: Cache::default(), room })
    }

    /// The paths of the files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.to_path_buf()).collect()
    }

    /// Decodes the window of row `index`, unless it is cached; an outline leaves out the bytes of images.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the row.
    pub fn find(&self, index: usize, outline: bool) -> Result<Found<'_>, DataError> {
        let number = self.firsts.partition_point(|first| *first <= index) - 1;
        let table = &self.files[number];
        let row = index - self.firsts[number];
        let group = table.groups.partition_point(|first| *first <= row) - 1;
        let (leaves, unread) = table.leaves(group, outline);
        let within = row - table.groups[group];
        let window_rows = table.window_rows(group, &leaves);
        let key = Key { file: number, group, window: within / window_rows, outline };
        let decode = || table.decode(&self.room, &key, window_rows, &leaves);
        let wrong = |reason: String| Fault::Reason(reason).at(&table.path, &row.to_string());
        let window = self.cache.get(key, decode).map_err(|reason| {
            wrong(match reason {
                Failure::Damaged(reason) => {
                    format!("row group {group} cannot be read: {reason}: is the file damaged?")
                }
                Failure::Costly(over) => format!("row group {group} cannot be read: {}", over.reason()),
            })
        })?;
        let mut at = within % window_rows;
        for batch in 0..window.len() {
            let rows = window[batch].num_rows();
            if at < rows {
                return Ok(Found { table, row, window, batch, at, unread });
            }
            at -= rows;
        }
        Err(wrong(format!("row group {group} has fewer rows than the file's footer says: is the file damaged?")))
    }
}
