//! MMBench in English and Chinese: a question is right only if it is answered right in every rotation of its options.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use basic_data::ImageSource;
use basic_models::atomic_file::write_atomically;
use basic_models::outside::{self, Budget};

use super::benchmark_folders::Root;
use super::options;
use super::question_files::{LETTER, unique};
use super::{Asked, Benchmark, BenchmarkError, Judged, Task};

pub(super) const ENGLISH: Benchmark = Benchmark {
    name: "mmbench",
    max_new_tokens: 1024,
    read: |root| read(root, "mmbench/mmbench_dev_20230712", LETTER),
};
pub(super) const CHINESE: Benchmark = Benchmark {
    name: "mmbench_cn",
    max_new_tokens: 1024,
    read: |root| read(root, "mmbench_cn/mmbench_dev_cn_20231003", "请直接回答选项字母。"),
};

/// The rotations of a question have its index plus multiples of this number.
const ROTATION: u64 = 1_000_000;
/// The cells that pandas, and so the official scripts, read as missing.
const MISSING: [&str; 18] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan",
];
/// The columns that LLaVA's script drops from the submission.
const LEFT_OUT: [&str; 6] = ["hint", "category", "source", "image", "comment", "l2-category"];
/// The index of the column where LLaVA's script puts the predictions.
const PREDICTION: usize = 6;

/// A tab-separated table of MMBench.
struct Table {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn open(path: &Path) -> Result<Self, BenchmarkError> {
        if !path.is_file() {
            let need = "it comes from download.openmmlab.com/mmclassification/datasets/mmbench".into();
            return Err(BenchmarkError::Missing { path: path.into(), need });
        }
        let wrong = |e: csv::Error| {
            let entry = e.position().map_or("the table".into(), |place| format!("line {}", place.line()));
            BenchmarkError::entry(path, entry, format!("not a table of tabs: {e}"))
        };
        let io = |source| BenchmarkError::Io { path: path.into(), source };
        let bytes = outside::read(path).map_err(io)?;
        let budget = Budget::of(path);
        let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(&bytes[..]);
        let columns = reader.headers().map_err(wrong)?.iter().map(String::from).collect();
        let rows = reader.records().map(|row| {
            let row = row.map_err(wrong)?;
            // Each cell becomes a String of its own, whose size counts even if the cell is short.
            let cells = (row.len() * size_of::<String>()) as u64;
            budget.take(cells.saturating_add(row.as_slice().len() as u64)).map_err(|over| io(over.into()))?;
            Ok(row.iter().map(String::from).collect())
        });
        let table = Self { path: path.into(), columns, rows: rows.collect::<Result<_, BenchmarkError>>()? };
        for column in ["index", "question", "image", "A", "B"] {
            if table.column(column).is_none() {
                return Err(BenchmarkError::entry(path, format!("column {column:?}"), "is not there"));
            }
        }
        match table.rows.is_empty() {
            true => Err(BenchmarkError::entry(path, "the table", "holds no question")),
            false => Ok(table),
        }
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The text of a cell; `None` if the cell is missing or empty.
    fn cell(&self, row: usize, column: &str) -> Option<&str> {
        let cell = self.rows[row].get(self.column(column)?)?;
        (!MISSING.contains(&cell.as_str()) && cell != "null").then_some(cell)
    }

    fn index(&self, row: usize) -> Result<u64, BenchmarkError> {
        let cell = self.cell(row, "index").unwrap_or_default();
        let wrong = |_| BenchmarkError::entry(&self.path, format!("row {}", row + 1), format!("{cell:?} is no index"));
        cell.parse().map_err(wrong)
    }

    fn choices(&self, row: usize) -> Vec<(char, String)> {
        ('A'..='Z').filter_map(|c| Some((c, self.cell(row, &c.to_string())?.to_string()))).collect()
    }

    /// The prompt: the hint, the question, the options A to D up to the first missing one, and the request.
    fn prompt(&self, row: usize, request: &str) -> String {
        let question = self.cell(row, "question").unwrap_or_default();
        let hint = self.cell(row, "hint").filter(|hint| !["nan", "none"].contains(&hint.to_lowercase().as_str()));
        let mut lines: Vec<String> = hint.into_iter().chain([question]).map(String::from).collect();
        for letter in ["A", "B", "C", "D"] {
            let option = self.cell(row, letter).filter(|text| !["nan", "none"].contains(&text.to_lowercase().as_str()));
            let Some(option) = option else { break };
            lines.push(format!("{letter}. {option}"));
        }
        lines.push(request.into());
        lines.join("\n")
    }

    /// The image of each row. A cell holds the image, or the index of another row that holds it.
    fn images(&self) -> Result<Vec<ImageSource>, BenchmarkError> {
        let wrong =
            |index: u64, problem: String| BenchmarkError::entry(&self.path, format!("question {index}"), problem);
        let (mut places, mut own) = (HashMap::new(), Vec::with_capacity(self.rows.len()));
        for row in 0..self.rows.len() {
            let index = self.index(row)?;
            places.insert(index, row);
            let Some(text) = self.cell(row, "image").map(str::trim).filter(|text| !text.is_empty()) else {
                return Err(wrong(index, "has no image".into()));
            };
            own.push(match reference(text) {
                Some(of) => Cell::Of(index, of),
                None => {
                    let bytes = STANDARD.decode(text);
                    let bytes = bytes.map_err(|e| {
                        let cell = outside::excerpt(text);
                        wrong(
                            index,
                            format!("its image is not base64: {e}, nor is it another question's index: {cell}"),
                        )
                    })?;
                    Cell::Image(ImageSource::Bytes { name: self.path.join(index.to_string()), bytes: bytes.into() })
                }
            });
        }
        let found = own.iter().map(|cell| match cell {
            Cell::Image(image) => Ok(image.clone()),
            Cell::Of(index, of) => match of.parse().ok().and_then(|of: u64| places.get(&of)).map(|row| &own[*row]) {
                Some(Cell::Image(image)) => Ok(image.clone()),
                Some(Cell::Of(..)) => {
                    Err(wrong(*index, format!("its image is that of question {of}, which holds no image itself")))
                }
                None => Err(wrong(*index, format!("its image is that of question {of}, which is not in the file"))),
            },
        });
        found.collect()
    }

    /// Writes the submission file for MMBench's server, as LLaVA's script does.
    fn submission(&self, answers: &[String], path: &Path) -> Result<PathBuf, BenchmarkError> {
        let wrong = |e: rust_xlsxwriter::XlsxError| BenchmarkError::entry(path, "the submission", e);
        let mut columns: Vec<Option<usize>> =
            (0..self.columns.len()).filter(|i| !LEFT_OUT.contains(&self.columns[*i].as_str())).map(Some).collect();
        columns.insert(PREDICTION.min(columns.len()), None);
        let mut book = rust_xlsxwriter::Workbook::new();
        // A fixed creation time, so that the same answers give the same file.
        let created = rust_xlsxwriter::ExcelDateTime::from_ymd(2000, 1, 1).map_err(wrong)?;
        book.set_properties(&rust_xlsxwriter::DocProperties::new().set_creation_datetime(&created));
        let sheet = book.add_worksheet();
        for (x, column) in (0u16..).zip(&columns) {
            let name = column.map_or("prediction", |i| self.columns[i].as_str());
            sheet.write_string(0, x, name).map_err(wrong)?;
            for (y, (row, answer)) in (1u32..).zip(self.rows.iter().zip(answers)) {
                let cell = column.map_or(answer, |i| &row[i]);
                // pandas writes missing values as empty cells.
                if column.is_some() && MISSING.contains(&cell.as_str()) {
                    continue;
                }
                match cell.parse::<u32>() {
                    Ok(number) if name == "index" => sheet.write_number(y, x, number).map_err(wrong)?,
                    _ => sheet.write_string(y, x, cell).map_err(wrong)?,
                };
            }
        }
        let bytes = book.save_to_buffer().map_err(wrong)?;
        write_atomically(path, &bytes).map_err(BenchmarkError::io(path))?;
        Ok(path.to_path_buf())
    }
}

/// The content of a cell of the column "image".
enum Cell {
    Image(ImageSource),
    /// The question's own index, and the index of the question that holds its image.
    Of(u64, String),
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

/// One rotation of a question, as far as scoring needs it.
#[derive(Debug)]
pub(super) struct MmbenchRow {
    pub index: u64,
    pub choices: Vec<(char, String)>,
    pub answer: String,
    pub category: String,
}

/// For each question, sorted by index: its index, whether it is right in all its rotations, and its category. A
/// rotation whose answer names no option counts as wrong (the server would ask a GPT model which option is meant).
pub(super) fn circular(rows: &[MmbenchRow], answers: &[String]) -> Vec<(u64, bool, String)> {
    let mut questions: BTreeMap<u64, (bool, String)> = BTreeMap::new();
    for (row, answer) in rows.iter().zip(answers) {
        let right = options::mmbench(answer, &row.choices).is_some_and(|c| row.answer.chars().eq([c]));
        let question = questions.entry(row.index % ROTATION).or_insert((true, String::new()));
        question.0 &= right;
        if row.index < ROTATION {
            question.1 = row.category.clone();
        }
    }
    questions.into_iter().map(|(index, (right, category))| (index, right, category)).collect()
}

fn read(root: &Root, name: &str, request: &str) -> Result<Task, BenchmarkError> {
    let table = Table::open(&root.join(format!("{name}.tsv")))?;
    let (mut asked, mut rows) = (Vec::new(), Vec::new());
    for (row, image) in table.images()?.into_iter().enumerate() {
        let index = table.index(row)?;
        asked.push(Asked { id: index.into(), prompt: table.prompt(row, request), image: Some(image) });
        let text = |column| table.cell(row, column).unwrap_or_default().to_string();
        rows.push(MmbenchRow {
            index,
            choices: table.choices(row),
            answer: text("answer"),
            category: text("category"),
        });
    }
    unique(&table.path, asked.iter().map(|asked| asked.id.to_string()))?;
    // The test split's answers are hidden.
    let known = rows.iter().all(|row| !row.answer.is_empty());
    let file = format!("{}.xlsx", Path::new(name).file_name().unwrap_or_default().to_string_lossy());
    let task = Task::new(asked).submitted(move |answers, out| table.submission(answers, &out.join(&file)));
    if !known {
        return Ok(task);
    }
    Ok(task.judged("circular accuracy", move |asked, answers| {
        // The rows of each question's rotations, in the table's order.
        let mut rotations: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (place, row) in rows.iter().enumerate() {
            rotations.entry(row.index % ROTATION).or_default().push(place);
        }
        let hits = circular(&rows, answers).into_iter();
        hits.map(|(index, right, category)| {
            let places = &rotations[&index];
            let join = |text: &dyn Fn(usize) -> String| places.iter().map(|i| text(*i)).collect::<Vec<_>>().join(" | ");
            Judged {
                question_id: index.into(),
                prompt: asked[places[0]].prompt.clone(),
                image: None,
                answer: join(&|i| answers[i].clone()),
                expected: Some(join(&|i| rows[i].answer.clone())),
                category: Some(category),
                score: Some(f64::from(u8::from(right))),
                yes: None,
            }
        })
        .collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u64, answer: &str) -> MmbenchRow {
        let choices = [('A', "cat"), ('B', "dog")].map(|(c, text)| (c, text.to_string())).into();
        MmbenchRow { index, choices, answer: answer.into(), category: format!("kind {index}") }
    }

    #[test]
    fn a_question_is_right_only_in_all_its_rotations() {
        let rows = [row(7, "A"), row(8, "B"), row(1_000_007, "B"), row(1_000_008, "A")];
        let answers = ["A", "B", "B.", "no idea"].map(String::from);
        let told = circular(&rows, &answers);
        assert_eq!(told, [(7, true, "kind 7".to_string()), (8, false, "kind 8".to_string())]);
    }

    #[test]
    fn cells_keep_their_line_breaks_and_options_end_at_the_first_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tsv");
        let text = "index\tquestion\thint\tA\tB\tC\tD\timage\n3\t\"Which?\nThis?\"\tnan\tone\ttwo\t\tfour\tAAAA\n";
        std::fs::write(&path, text).unwrap();
        let table = Table::open(&path).unwrap();
        assert_eq!(table.prompt(0, "Go."), "Which?\nThis?\nA. one\nB. two\nGo.");
        assert_eq!(table.choices(0).iter().map(|(c, _)| *c).collect::<String>(), "ABD");
        std::fs::write(&path, "index\tquestion\tA\tB\timage\n3\tq\ta\tb\t???\n").unwrap();
        let error = Table::open(&path).unwrap().images().unwrap_err().to_string();
        assert!(error.contains("question 3") && error.contains("not base64"), "{error}");
    }

    #[test]
    fn a_row_may_have_the_image_of_another_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tsv");
        let images = |cells: &[&str]| {
            let rows = cells.iter().enumerate().map(|(i, cell)| format!("{}\tq\ta\tb\t{cell}\n", 7 + i));
            std::fs::write(&path, format!("index\tquestion\tA\tB\timage\n{}", rows.collect::<String>())).unwrap();
            Table::open(&path).unwrap().images().map_err(|error| error.to_string())
        };
        let bytes = |image: &ImageSource| match image {
            ImageSource::Bytes { bytes, .. } => bytes.to_vec(),
            other => panic!("{other:?}"),
        };
        let found = images(&["9", "QUFB", "QkJC", "8", "9.0", "MTIz"]).unwrap();
        assert_eq!(found.iter().map(bytes).collect::<Vec<_>>(), [b"BBB", b"AAA", b"BBB", b"AAA", b"BBB", b"123"]);
        for (cells, mention) in [
            (&["QUFB", "9", "8"][..], "question 8: its image is that of question 9, which holds no image itself"),
            (&["7"], "question 7: its image is that of question 7, which holds no image itself"),
            (&["QUFB", "12"], "question 8: its image is that of question 12, which is not in the file"),
            (&["99999999999999999999999"], "which is not in the file"),
            (&["QUFB", "nan"], "question 8: has no image"),
        ] {
            let error = images(cells).unwrap_err();
            assert!(error.contains(mention), "{error}");
        }
    }
}
