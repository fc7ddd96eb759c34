//! Writes Parquet with the columns `id`, `images` and `conversations`, as Hugging Face's datasets library reads them.
//! The library recognizes the images by the features in the schema's metadata.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::writer::{ExportError, Image, Named, Sharding, Writer, turns};
use crate::Sample;

/// The number of rows in a row group, and the number of image bytes that closes a row group earlier.
const GROUP_ROWS: usize = 1000;
const GROUP_BYTES: usize = 32 << 20;

pub struct TableWriter {
    dir: Named,
    shard: usize,
    schema: Arc<Schema>,
    open: Option<ArrowWriter<File>>,
    names: Vec<String>,
    rows: Rows,
}

/// The rows of the row group that has not been written yet.
struct Rows {
    len: usize,
    bytes: usize,
    id: StringBuilder,
    images: ListBuilder<StructBuilder>,
    turns: ListBuilder<StructBuilder>,
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn turn_fields() -> Fields {
    Fields::from(vec![Field::new("from", DataType::Utf8, true), Field::new("value", DataType::Utf8, true)])
}

impl Rows {
    fn new() -> Self {
        let image = vec![
            Box::new(BinaryBuilder::new()) as Box<dyn arrow_array::builder::ArrayBuilder>,
            Box::new(StringBuilder::new()),
        ];
        let turn = vec![
            Box::new(StringBuilder::new()) as Box<dyn arrow_array::builder::ArrayBuilder>,
            Box::new(StringBuilder::new()),
        ];
        Self {
            len: 0,
            bytes: 0,
            id: StringBuilder::new(),
            images: ListBuilder::new(StructBuilder::new(image_fields(), image)),
            turns: ListBuilder::new(StructBuilder::new(turn_fields(), turn)),
        }
    }

    fn add(&mut self, id: &str, sample: &Sample, images: &[Image]) -> Option<()> {
        self.len += 1;
        self.id.append_value(id);
        for image in images {
            let row = self.images.values();
            let (bytes, path) = match image {
                Image::Bytes { bytes, .. } => (Some(&bytes[..]), None),
                Image::Reference(name) => (None, Some(name)),
            };
            self.bytes += bytes.map_or(0, <[u8]>::len);
            row.field_builder::<BinaryBuilder>(0)?.append_option(bytes);
            row.field_builder::<StringBuilder>(1)?.append_option(path);
            row.append(true);
        }
        self.images.append(true);
        for (from, value) in turns(sample) {
            let row = self.turns.values();
            row.field_builder::<StringBuilder>(0)?.append_value(from);
            row.field_builder::<StringBuilder>(1)?.append_value(value);
            row.append(true);
        }
        self.turns.append(true);
        Some(())
    }
}

impl TableWriter {
    pub fn new(dir: Named, sharding: Sharding) -> Self {
        let list = |fields| DataType::List(Arc::new(Field::new("item", DataType::Struct(fields), true)));
        // Lists are declared as JSON lists, because older and newer versions of the library both read that form.
        let features = serde_json::json!({"info": {"features": {
            "id": {"dtype": "string", "_type": "Value"},
            "images": [{"_type": "Image"}],
            "conversations": [{
                "from": {"dtype": "string", "_type": "Value"},
                "value": {"dtype": "string", "_type": "Value"},
            }],
        }}});
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, true),
            Field::new("images", list(image_fields()), true),
            Field::new("conversations", list(turn_fields()), true),
        ])
        .with_metadata(HashMap::from([("huggingface".to_string(), features.to_string())]));
        Self { dir, shard: sharding.shard, schema: Arc::new(schema), open: None, names: Vec::new(), rows: Rows::new() }
    }

    fn open(&mut self, number: usize) -> Result<(), ExportError> {
        self.close()?;
        let name = format!("{number:05}.parquet");
        let (path, io) = self.dir.file(&name);
        let file = File::create(path).map_err(&io)?;
        let images = ColumnPath::from(vec!["images".into(), "list".into(), "item".into(), "bytes".into()]);
        // Images are already compressed. Small pages let a reader take a few rows of a group without reading the
        // others.
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_column_compression(images.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(images, false)
            .set_write_batch_size(16)
            .build();
        let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(properties));
        self.open = Some(writer.map_err(|error| io(unwrapped(error)))?);
        self.names.push(name);
        Ok(())
    }

    /// Writes the pending rows as one row group.
    fn flush(&mut self) -> Result<(), ExportError> {
        let Some(writer) = self.open.as_mut().filter(|_| self.rows.len > 0) else { return Ok(()) };
        let rows = &mut self.rows;
        let columns: Vec<ArrayRef> =
            vec![Arc::new(rows.id.finish()), Arc::new(rows.images.finish()), Arc::new(rows.turns.finish())];
        (rows.len, rows.bytes) = (0, 0);
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| ParquetError::External(Box::new(e)));
        let written = batch.and_then(|batch| writer.write(&batch)).and_then(|()| writer.flush());
        let (_, io) = self.dir.file(self.names.last().map_or("", String::as_str));
        written.map_err(|error| io(unwrapped(error)))
    }

    fn close(&mut self) -> Result<(), ExportError> {
        self.flush()?;
        let Some(writer) = self.open.take() else { return Ok(()) };
        let (_, io) = self.dir.file(self.names.last().map_or("", String::as_str));
        writer.close().map(drop).map_err(|error| io(unwrapped(error)))
    }
}

/// The underlying system error, if there is one.
fn unwrapped(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => *error,
            Err(source) => std::io::Error::other(source),
        },
        other => std::io::Error::other(other),
    }
}

impl Writer for TableWriter {
    fn add(&mut self, index: usize, sample: &Sample, images: &[Image]) -> Result<(), ExportError> {
        if index.is_multiple_of(self.shard) {
            self.open(index / self.shard)?;
        }
        let id = sample.id().map_or(index.to_string(), String::from);
        self.rows
            .add(&id, sample, images)
            .ok_or_else(|| ExportError::Impossible("the table's columns are not of their types".into()))?;
        if self.rows.len >= GROUP_ROWS || self.rows.bytes >= GROUP_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, ExportError> {
        self.close()?;
        Ok(self.names.iter().map(PathBuf::from).collect())
    }
}
