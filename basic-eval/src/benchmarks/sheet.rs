//! Reads VLMEvalKit's tables: tab-separated, with an image in base64 in each row, or the index of another row whose image
//! it is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use basic_data::ImageSource;
use basic_models::outside::{self, Budget, OverBudget};
use csv::{Position, Reader, ReaderBuilder, StringRecord};

use super::BenchmarkError;
use super::asked_image::AskedImage;

/// The cells that pandas, and so the official scripts, read as missing.
const MISSING: [&str; 18] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan",
];

/// Whether pandas reads a cell as missing.
pub(super) fn is_missing(cell: &str) -> bool {
    MISSING.contains(&cell)
}

/// A tab-separated table. The cells of its column "image" are not held: they are read when they are needed.
pub(super) struct Sheet {
    pub path: PathBuf,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
    images: Arc<SheetImages>,
}

/// Where the images of a table are.
#[derive(Debug)]
pub(super) struct SheetImages {
    path: PathBuf,
    column: usize,
    /// For each row the place of the row that holds its image, and that row's name; `None` for a row without an image.
    rows: Vec<Option<(Position, String)>>,
}

/// A file that refuses to give more bytes for one row than its budget has.
struct Metered {
    file: File,
    row: u64,
    most: u64,
    over: OverBudget,
}

impl Metered {
    fn open(path: &Path, budget: &Budget) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, row: 0, most: budget.left(), over: budget.over_bytes() })
    }
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.row = self.row.saturating_add(count as u64);
        match self.row > self.most {
            true => Err(self.over.clone().into()),
            false => Ok(count),
        }
    }
}

impl io::Seek for Metered {
    fn seek(&mut self, place: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(place)
    }
}

/// The content of a cell of the column "image".
enum Picture {
    None,
    Own,
    /// The index of the row that holds the image.
    Of(String),
}

/// An index has at most this many digits; a base64-encoded image is longer.
const SHORT: usize = 64;

/// The index that a cell holds in place of an image, as in VLMEvalKit's tables where questions share an image.
fn reference(cell: &str) -> Option<String> {
    // pandas writes integers as floats if their column has missing values.
    let digits = cell.strip_suffix(".0").unwrap_or(cell);
    let whole = !digits.is_empty() && digits.len() <= SHORT && digits.bytes().all(|byte| byte.is_ascii_digit());
    whole.then(|| digits.into())
}

fn builder() -> ReaderBuilder {
    let mut builder = ReaderBuilder::new();
    builder.delimiter(b'\t');
    builder
}

fn wrong(path: &Path, error: csv::Error) -> BenchmarkError {
    let entry = error.position().map_or("the table".into(), |place| format!("line {}", place.line()));
    match error.into_kind() {
        csv::ErrorKind::Io(source) => BenchmarkError::Io { path: path.into(), source },
        kind => BenchmarkError::entry(path, entry, format!("not a table of tabs: {}", csv_problem(&kind))),
    }
}

fn csv_problem(kind: &csv::ErrorKind) -> String {
    match kind {
        csv::ErrorKind::Utf8 { err, .. } => format!("not UTF-8 in field {}", err.field() + 1),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields, but the first line has {expected_len}")
        }
        _ => "it cannot be read".into(),
    }
}

impl Sheet {
    /// Reads the table, which must have the columns `required`; `need` says what the file is and where it comes from.
    /// Images are only checked to be base64.
    pub fn open(path: &Path, need: &str, required: &[&str]) -> Result<Self, BenchmarkError> {
        if !path.is_file() {
            return Err(BenchmarkError::Missing { path: path.into(), need: need.into() });
        }
        let io = |source| BenchmarkError::Io { path: path.into(), source };
        let budget = Budget::of(path);
        let mut reader: Reader<Metered> = builder().from_reader(Metered::open(path, &budget).map_err(io)?);
        let columns: Vec<String> = reader.headers().map_err(|e| wrong(path, e))?.iter().map(String::from).collect();
        let place = |name: &str| columns.iter().position(|column| column == name);
        for column in required {
            if place(column).is_none() {
                return Err(BenchmarkError::entry(path, format!("column {column:?}"), "is not there"));
            }
        }
        let (image, index) = (place("image"), place("index"));
        let (mut rows, mut places, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
        let mut record = StringRecord::new();
        loop {
            reader.get_mut().row = 0;
            if !reader.read_record(&mut record).map_err(|e| wrong(path, e))? {
                break;
            }
            let name = index.and_then(|at| record.get(at)).map_or_else(|| rows.len().to_string(), String::from);
            let cell = image.and_then(|at| record.get(at)).unwrap_or_default().trim();
            pictures.push(picture(cell).map_err(|problem| {
                BenchmarkError::entry(path, format!("question {}", outside::excerpt(&name)), problem)
            })?);
            places.push((record.position().cloned().unwrap_or_else(Position::new), name));
            let cells = record.iter().enumerate().map(|(at, cell)| if Some(at) == image { "" } else { cell });
            let cells: Vec<String> = cells.map(String::from).collect();
            // Each cell becomes a String of its own, whose size counts even if the cell is short.
            let own = (size_of::<String>() * cells.len() + size_of::<(Position, String)>() * 2) as u64;
            let text: usize = cells.iter().map(String::len).sum();
            budget.take(own.saturating_add(text as u64)).map_err(|over| io(over.into()))?;
            rows.push(cells);
        }
        if rows.is_empty() {
            return Err(BenchmarkError::entry(path, "the table", "holds no question"));
        }
        let found = resolve(path, places, &pictures)?;
        let images = SheetImages { path: path.into(), column: image.unwrap_or_default(), rows: found };
        Ok(Self { path: path.into(), columns, rows, images: Arc::new(images) })
    }

    /// The text of a cell; `None` if the cell is missing or empty.
    pub fn cell(&self, row: usize, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        let cell = self.rows[row].get(at)?;
        (!is_missing(cell) && cell != "null").then_some(cell)
    }

    /// The image of a row.
    pub fn image(&self, row: usize) -> Option<AskedImage> {
        self.images.rows[row].as_ref().map(|_| AskedImage::in_sheet(self.images.clone(), row))
    }
}

fn picture(cell: &str) -> Result<Picture, String> {
    if is_missing(cell) {
        return Ok(Picture::None);
    }
    if let Some(of) = reference(cell) {
        return Ok(Picture::Of(of));
    }
    STANDARD.decode(cell).map(|_| Picture::Own).map_err(|e| {
        let cell = outside::excerpt(cell);
        format!("its image is not base64: {e}, nor is it another question's index: {cell}")
    })
}

/// The place of each row's image. A cell holds the image, or the index of another row that holds it.
fn resolve(
    path: &Path,
    places: Vec<(Position, String)>,
    pictures: &[Picture],
) -> Result<Vec<Option<(Position, String)>>, BenchmarkError> {
    let by_index: HashMap<&str, usize> =
        places.iter().enumerate().map(|(row, (_, name))| (name.as_str(), row)).collect();
    let found = pictures.iter().zip(&places).map(|(picture, own)| {
        let wrong =
            |problem: String| BenchmarkError::entry(path, format!("question {}", outside::excerpt(&own.1)), problem);
        match picture {
            Picture::None => Ok(None),
            Picture::Own => Ok(Some(own.clone())),
            Picture::Of(of) => match by_index.get(of.as_str()).map(|row| (&pictures[*row], &places[*row])) {
                Some((Picture::Own, place)) => Ok(Some(place.clone())),
                Some(_) => Err(wrong(format!("its image is that of question {of}, which holds no image itself"))),
                None => Err(wrong(format!("its image is that of question {of}, which is not in the file"))),
            },
        }
    });
    found.collect()
}

impl SheetImages {
    /// Reads the image of a row.
    pub fn read(&self, row: usize) -> Result<ImageSource, BenchmarkError> {
        let io = |source| BenchmarkError::Io { path: self.path.clone(), source };
        let Some(Some((place, name))) = self.rows.get(row) else {
            return Err(BenchmarkError::entry(&self.path, format!("row {}", row + 1), "has no image"));
        };
        let entry = || format!("question {}", outside::excerpt(name));
        let budget = Budget::of(&*self.path);
        let file = Metered::open(&self.path, &budget).map_err(io)?;
        let mut reader = builder().has_headers(false).flexible(true).from_reader(file);
        let mut record = StringRecord::new();
        reader.seek(place.clone()).and_then(|()| reader.read_record(&mut record)).map_err(|e| wrong(&self.path, e))?;
        let cell = record.get(self.column).unwrap_or_default().trim();
        let bytes = STANDARD.decode(cell).map_err(|e| {
            BenchmarkError::entry(&self.path, entry(), format!("its image is not base64: {e}: has the file changed?"))
        })?;
        Ok(ImageSource::Bytes { name: self.path.join(name), bytes: bytes.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_may_have_the_image_of_another_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tsv");
        let images = |cells: &[&str]| {
            let rows = cells.iter().enumerate().map(|(i, cell)| format!("{}\t\"q\nq\"\ta\tb\t{cell}\n", 7 + i));
            std::fs::write(&path, format!("index\tquestion\tA\tB\timage\n{}", rows.collect::<String>())).unwrap();
            let sheet = Sheet::open(&path, "", &["index"]).map_err(|error| error.to_string())?;
            Ok((0..cells.len()).map(|row| sheet.image(row).map(|image| image.source().unwrap())).collect::<Vec<_>>())
        };
        let bytes = |image: &Option<ImageSource>| match image {
            Some(ImageSource::Bytes { bytes, .. }) => bytes.to_vec(),
            other => panic!("{other:?}"),
        };
        let found: Result<_, String> = images(&["9", "QUFB", "QkJC", "8", "9.0", "MTIz"]);
        let found = found.unwrap();
        assert_eq!(found.iter().map(bytes).collect::<Vec<_>>(), [b"BBB", b"AAA", b"BBB", b"AAA", b"BBB", b"123"]);
        assert_eq!(found[0].as_ref().unwrap().name(), path.join("9"), "the same image has the same name");
        assert!(images(&["QUFB", "nan"]).unwrap()[1].is_none());
        for (cells, mention) in [
            (&["QUFB", "9", "8"][..], "question 8: its image is that of question 9, which holds no image itself"),
            (&["7"], "question 7: its image is that of question 7, which holds no image itself"),
            (&["QUFB", "12"], "question 8: its image is that of question 12, which is not in the file"),
            (&["99999999999999999999999"], "which is not in the file"),
            (&["???"], "question 7: its image is not base64"),
        ] {
            let error = images(cells).unwrap_err();
            assert!(error.contains(mention), "{error}");
        }
    }

    #[test]
    fn cells_keep_their_line_breaks_and_what_pandas_reads_as_missing_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tsv");
        std::fs::write(&path, "index\tquestion\tA\timage\n3\t\"Which?\nThis?\"\tnan\tAAAA\n4\tq\tNone\tAAAA\n")
            .unwrap();
        let sheet = Sheet::open(&path, "", &["index", "A"]).unwrap();
        assert_eq!((sheet.cell(0, "question"), sheet.cell(0, "A")), (Some("Which?\nThis?"), None));
        assert_eq!((sheet.cell(1, "index"), sheet.cell(1, "B"), sheet.cell(1, "image")), (Some("4"), None, None));
        for (text, mention) in [
            ("index\tquestion\n1\t2\t3\n", "line 2: not a table of tabs: 3 fields, but the first line has 2"),
            ("index\tquestion\n", "holds no question"),
            ("index\n1\n", "column \"question\": is not there"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Sheet::open(&path, "", &["index", "question"]).err().unwrap().to_string();
            assert!(error.contains("t.tsv") && error.contains(mention), "{error}");
        }
    }
}
