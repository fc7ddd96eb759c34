//! Reads a benchmark's questions from the table that they are published in: VLMEvalKit's TSV, Parquet in the layout of the
//! Hugging Face Hub, or JSON lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use basic_data::{ImageSource, ParquetRows};
use basic_models::outside::{Budget, excerpt};
use serde_json::{Map, Value};

use super::BenchmarkError;
use super::asked_image::AskedImage;
use super::benchmark_folders::Root;
use super::python_list;
use super::question_files::jsonl;
use super::sheet::Sheet;

/// Where a benchmark's table lies, and what it is called.
pub(super) struct Layout {
    /// The folder below the root.
    pub dir: &'static str,
    /// The table's name in VLMEvalKit, without ".tsv"; a file of JSON lines has this name too.
    pub name: &'static str,
    /// What the names of the Parquet files begin with, which is the split; they lie in the folder or in one below it.
    pub split: &'static [&'static str],
    /// The column with the image in Parquet files.
    pub image: &'static str,
    /// Where the files come from.
    pub need: &'static str,
}

/// A question's row.
pub(super) struct Row {
    path: Arc<Path>,
    /// Names the row in messages.
    place: String,
    cells: Map<String, Value>,
    image: Option<AskedImage>,
}

/// The rows of a table; there is at least one.
pub(super) struct Rows {
    pub path: PathBuf,
    pub rows: Vec<Row>,
}

/// The bytes that are counted for a cell besides its text.
const CELL: u64 = 96;

impl Layout {
    /// Reads the benchmark's table: the TSV if it is there, else the Parquet files, else the JSON lines.
    pub fn read(&self, root: &Root) -> Result<Rows, BenchmarkError> {
        self.find(root)?.ok_or_else(|| {
            let dir = root.join(self.dir);
            let parquet = self.split.iter().map(|split| format!("{split}*.parquet")).collect::<Vec<_>>().join(" and ");
            let need = format!("nor are {parquet} or {}.jsonl in {}: {}", self.name, dir.display(), self.need);
            BenchmarkError::Missing { path: dir.join(format!("{}.tsv", self.name)), need }
        })
    }

    /// Like [`Layout::read`], for benchmarks that have a layout besides tables; `None` if there is no table.
    pub fn find(&self, root: &Root) -> Result<Option<Rows>, BenchmarkError> {
        let dir = root.join(self.dir);
        let sheet = dir.join(format!("{}.tsv", self.name));
        if sheet.is_file() {
            return from_sheet(&sheet, self.need).map(Some);
        }
        let files = parquet_files(&dir, self.split)?;
        if !files.is_empty() {
            return from_parquet(&files, self.image).map(Some);
        }
        let lines = dir.join(format!("{}.jsonl", self.name));
        lines.is_file().then(|| from_lines(root, &dir, &lines, self.need)).transpose()
    }
}

fn from_sheet(path: &Path, need: &str) -> Result<Rows, BenchmarkError> {
    let sheet = Sheet::open(path, need, &["question"])?;
    let shared: Arc<Path> = path.into();
    let row = |row: usize| {
        let cells = sheet.columns.iter().filter_map(|name| Some((name.clone(), sheet.cell(row, name)?.into())));
        let place = match sheet.cell(row, "index") {
            Some(index) => format!("question {}", excerpt(index)),
            None => format!("row {}", row + 1),
        };
        Row { path: shared.clone(), place, cells: cells.collect(), image: sheet.image(row) }
    };
    Ok(Rows { path: path.into(), rows: (0..sheet.rows.len()).map(row).collect() })
}

/// The Parquet files of a split in a folder or in one below it, sorted by path.
fn parquet_files(dir: &Path, split: &[&str]) -> Result<Vec<PathBuf>, BenchmarkError> {
    let list = |dir: &Path| -> Result<Vec<PathBuf>, BenchmarkError> {
        let entries = std::fs::read_dir(dir).map_err(BenchmarkError::io(dir))?;
        let entries = entries.map(|entry| entry.map(|entry| entry.path()));
        entries.collect::<Result<_, _>>().map_err(BenchmarkError::io(dir))
    };
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = list(dir)?;
    for below in files.clone().iter().filter(|path| path.is_dir()) {
        files.extend(list(below)?);
    }
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".parquet") && split.iter().any(|split| name.starts_with(split)) && file.is_file()
    });
    files.sort();
    Ok(files)
}

fn from_parquet(files: &[PathBuf], image: &str) -> Result<Rows, BenchmarkError> {
    let table = Arc::new(ParquetRows::open(files)?);
    let path = files.first().cloned().unwrap_or_default();
    let budget = Budget::of(&*path);
    let mut rows = Vec::new();
    for row in 0..table.len() {
        let cells = table.cells(row)?;
        let over =
            |over: basic_models::outside::OverBudget| BenchmarkError::Io { path: path.clone(), source: over.into() };
        budget.take(cells.iter().map(|(name, value)| name.len() as u64 + weight(value)).sum()).map_err(over)?;
        let picture = table.has_image(row, image)?.then(|| AskedImage::in_parquet(table.clone(), row, image));
        let (file, place) = table.place(row)?;
        rows.push(Row { path: file.into(), place: format!("row {place}"), cells, image: picture });
    }
    Ok(Rows { path, rows })
}

fn weight(value: &Value) -> u64 {
    CELL + match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() as u64 + weight(value)).sum(),
        _ => 0,
    }
}

/// The image of a line is a path relative to the folder, or base64.
fn from_lines(root: &Root, dir: &Path, path: &Path, need: &str) -> Result<Rows, BenchmarkError> {
    let images = root.images(dir.into())?;
    let shared: Arc<Path> = path.into();
    let row = |(number, mut cells): (usize, Map<String, Value>)| {
        let place = format!("line {number}");
        let image = match cells.remove("image") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => match STANDARD.decode(&text) {
                Ok(bytes) if !bytes.is_empty() && !dir.join(&text).is_file() => {
                    Some(ImageSource::Bytes { name: path.join(&place), bytes: bytes.into() }.into())
                }
                _ => Some(images.file(&text, &format!("{place} of {}", path.display()))?.into()),
            },
            Some(_) => return Err(BenchmarkError::line(path, number, "\"image\" is neither a path nor base64")),
        };
        Ok(Row { path: shared.clone(), place, cells, image })
    };
    let rows = jsonl(path, need)?.into_iter().map(row).collect::<Result<_, _>>()?;
    Ok(Rows { path: path.into(), rows })
}

impl Row {
    /// An error of this row.
    pub fn wrong(&self, problem: impl ToString) -> BenchmarkError {
        BenchmarkError::entry(&self.path, &self.place, problem)
    }

    /// A cell as text, also if it holds a number; `None` if it is missing.
    pub fn text(&self, key: &str) -> Option<String> {
        match self.cells.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    /// The text of the first of these cells that is not missing.
    pub fn need(&self, keys: &[&str]) -> Result<String, BenchmarkError> {
        let found = keys.iter().find_map(|key| self.text(key));
        found.ok_or_else(|| self.wrong(format!("has no \"{}\": {OTHER}", keys.join("\" or \""))))
    }

    /// A list of texts: a list, or the text of one in Python's or JSON's form.
    pub fn list(&self, key: &str) -> Result<Vec<String>, BenchmarkError> {
        match self.cells.get(key) {
            Some(Value::Array(items)) => Ok(items.iter().map(plain).collect()),
            Some(Value::String(text)) => python_list::parse(text)
                .or_else(|| serde_json::from_str(text).ok())
                .ok_or_else(|| self.wrong(format!("its \"{key}\" is no list: {}", excerpt(text)))),
            _ => Err(self.wrong(format!("has no list \"{key}\": {OTHER}"))),
        }
    }

    /// A cell as an id: a number if it is one, else text; `None` if it is missing.
    pub fn id(&self, key: &str) -> Option<Value> {
        let text = self.text(key)?;
        Some(text.parse::<u64>().map_or_else(|_| text.into(), Value::from))
    }

    /// The row's image.
    pub fn image(&self) -> Result<AskedImage, BenchmarkError> {
        self.image.clone().ok_or_else(|| self.wrong("has no image"))
    }

    /// The options in the columns A, B and so on; missing ones are left out.
    pub fn lettered(&self) -> Vec<(char, String)> {
        ('A'..='Z').filter_map(|letter| Some((letter, self.text(&letter.to_string())?))).collect()
    }
}

const OTHER: &str = "not this benchmark's table, or another version of it";

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
