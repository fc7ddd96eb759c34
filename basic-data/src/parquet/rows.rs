//! Reads the rows of any Parquet table: text, numbers and lists as JSON, images as bytes or paths. Benchmarks are
//! published so.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::cells;
use super::columns::Columns;
use super::windows::{Found, Windows};
use crate::image_root::ImageRoot;
use crate::sample_record::Fault;
use crate::{DataError, ImageSource};

/// The rows of one or several Parquet files. Opening reads only the footers; rows are decoded in windows of about 16
/// MiB, of which the most recently used are cached.
///
/// ```no_run
/// use basic_data::ParquetRows;
///
/// let rows = ParquetRows::open(&["test-00000-of-00001.parquet".into()])?;
/// for row in 0..rows.len() {
///     println!("{}", rows.cells(row)?["question"]);
///     let image = rows.image(row, "image")?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ParquetRows {
    windows: Windows,
    root: ImageRoot,
}

impl ParquetRows {
    /// Reads the footers of `files`, whose rows follow each other. Paths of images are relative to the first file's
    /// folder.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file that is truncated or not Parquet; also if no file has a row.
    pub fn open(files: &[PathBuf]) -> Result<Self, DataError> {
        let windows = Windows::open(files, Columns::all)?;
        let first = windows.files.first().map(|file| file.path.clone());
        let root = ImageRoot::of(None, first.as_deref().unwrap_or("".as_ref()))?;
        Ok(Self { windows, root })
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.windows.len
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.windows.len == 0
    }

    /// The file that a row is in, and its index in that file.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the row that cannot be decoded.
    pub fn place(&self, row: usize) -> Result<(PathBuf, usize), DataError> {
        let found = self.windows.find(row, true)?;
        Ok((found.table.path.to_path_buf(), found.row))
    }

    /// The cells of a row by column, without those of images. A cell of a type that is not read, such as a date, is
    /// null.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the row.
    pub fn cells(&self, row: usize) -> Result<Map<String, Value>, DataError> {
        let found = self.windows.find(row, true)?;
        let (batch, at) = found.batch();
        let mut room = cells::Room::new();
        let mut record = Map::new();
        for name in &found.table.columns.text {
            let Some(array) = batch.column_by_name(name) else { continue };
            let cell = cells::value(array, at, &mut room).map_err(|reason| found.wrong(reason))?;
            record.insert(name.clone(), cell);
        }
        Ok(record)
    }

    /// The image in a row's column, the first one if the column holds lists; `None` if the cell is empty or the column
    /// is not there.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the row.
    pub fn image(&self, row: usize, column: &str) -> Result<Option<ImageSource>, DataError> {
        let found = self.windows.find(row, false)?;
        let (batch, at) = found.batch();
        let Some(array) = batch.column_by_name(column) else { return Ok(None) };
        if !found.table.columns.images.iter().any(|images| images.name == column) || cells::is_blank(array, at) {
            return Ok(None);
        }
        let images = cells::images(array, at, false).map_err(|reason| found.wrong(reason))?;
        images.first().map(|cell| self.source(&found, column, cell)).transpose()
    }

    fn source(&self, found: &Found<'_>, column: &str, cell: &cells::Cell) -> Result<ImageSource, DataError> {
        match cell {
            cells::Cell::Bytes(bytes) => {
                let name = found.table.path.join(format!("row {}, {column}", found.row));
                Ok(ImageSource::Bytes { name, bytes: (*bytes).into() })
            }
            cells::Cell::Path(path) => {
                let file = self.root.file(path).map(ImageSource::File);
                file.map_err(|reason| Fault::Image(reason).at(&found.table.path, &found.row.to_string()))
            }
        }
    }

    /// Whether a row's image column holds an image; its bytes are not read. A structure whose bytes were left out counts
    /// as an image.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the row.
    pub fn has_image(&self, row: usize, column: &str) -> Result<bool, DataError> {
        let found = self.windows.find(row, true)?;
        let (batch, at) = found.batch();
        let place = found.table.columns.images.iter().position(|images| images.name == column);
        let (Some(place), Some(array)) = (place, batch.column_by_name(column)) else { return Ok(false) };
        Ok(found.unread.get(place).copied().unwrap_or(false) || !cells::is_blank(array, at))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
    use arrow_schema::{Field, Fields, Schema};
    use parquet::arrow::ArrowWriter;

    use super::ParquetRows;

    fn table(path: &std::path::Path, columns: &[(&str, ArrayRef)]) {
        let fields: Vec<Field> =
            columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns.iter().map(|(_, c)| c.clone()).collect()).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn images() -> ArrayRef {
        let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"zero"[..]), None]));
        let path: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>, None]));
        let names: Fields = [("bytes", &bytes), ("path", &path)]
            .map(|(n, a)| Field::new(n, a.data_type().clone(), true))
            .to_vec()
            .into();
        Arc::new(StructArray::new(names, vec![bytes, path], None))
    }

    #[test]
    fn every_column_is_read_and_images_come_by_their_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let question: ArrayRef = Arc::new(StringArray::from(vec![Some("q0"), None]));
        let index: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        table(&path, &[("question", question), ("index", index), ("image_1", images())]);
        let rows = ParquetRows::open(&[path.clone(), path.clone()]).unwrap();
        assert_eq!(rows.len(), 4);
        assert_eq!(
            serde_json::to_value(rows.cells(2).unwrap()).unwrap(),
            serde_json::json!({"question": "q0", "index": 7})
        );
        assert_eq!(rows.place(3).unwrap(), (path, 1));
        let image = rows.image(2, "image_1").unwrap().unwrap();
        assert_eq!((&*image.bytes().unwrap(), image.to_string().contains("row 0, image_1")), (&b"zero"[..], true));
        assert!(rows.image(1, "image_1").unwrap().is_none() && rows.image(0, "question").unwrap().is_none());
        assert_eq!((rows.has_image(0, "image_1").unwrap(), rows.has_image(0, "image_2").unwrap()), (true, false));
        std::fs::write(dir.path().join("b.parquet"), "PAR1").unwrap();
        assert!(ParquetRows::open(&[dir.path().join("b.parquet")]).unwrap_err().to_string().contains("b.parquet"));
    }
}
