//! MMBench in English and Chinese: a question is right only if it is answered right in every rotation of its options.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;

use super::benchmark_folders::Root;
use super::multiple_choice::{MultipleChoice, letter, prompt};
use super::options;
use super::question_files::{LETTER, unique};
use super::sheet::{Sheet, is_missing};
use super::{Asked, Benchmark, BenchmarkError, Grouping, Judged, Task};

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
/// The columns that LLaVA's script drops from the submission.
const LEFT_OUT: [&str; 6] = ["hint", "category", "source", "image", "comment", "l2-category"];
/// The index of the column where LLaVA's script puts the predictions.
const PREDICTION: usize = 6;

const NEED: &str = "it comes from download.openmmlab.com/mmclassification/datasets/mmbench";

/// MMBench's table.
struct Table(Sheet);

impl Table {
    fn open(path: &Path) -> Result<Self, BenchmarkError> {
        Sheet::open(path, NEED, &["index", "question", "image", "A", "B"]).map(Self)
    }

    fn index(&self, row: usize) -> Result<u64, BenchmarkError> {
        let cell = self.0.cell(row, "index").unwrap_or_default();
        let wrong =
            |_| BenchmarkError::entry(&self.0.path, format!("row {}", row + 1), format!("{cell:?} is no index"));
        cell.parse().map_err(wrong)
    }

    fn choices(&self, row: usize) -> Vec<(char, String)> {
        ('A'..='Z').filter_map(|c| Some((c, self.0.cell(row, &c.to_string())?.to_string()))).collect()
    }

    /// The question after its hint.
    fn question(&self, row: usize) -> String {
        let question = self.0.cell(row, "question").unwrap_or_default();
        let hint = self.0.cell(row, "hint").filter(|hint| !["nan", "none"].contains(&hint.to_lowercase().as_str()));
        hint.into_iter().chain([question]).collect::<Vec<_>>().join("\n")
    }

    /// The options A to D up to the first missing one, which are those that LLaVA's prompt has.
    fn shown(&self, row: usize) -> Vec<(char, String)> {
        let option = |letter: char| {
            let text = self.0.cell(row, &letter.to_string())?;
            (!["nan", "none"].contains(&text.to_lowercase().as_str())).then(|| (letter, text.to_string()))
        };
        ('A'..='D').map_while(option).collect()
    }

    /// Writes the submission file for MMBench's server, as LLaVA's script does.
    fn submission(&self, answers: &[String], path: &Path) -> Result<PathBuf, BenchmarkError> {
        let wrong = |e: rust_xlsxwriter::XlsxError| BenchmarkError::entry(path, "the submission", e);
        let names = &self.0.columns;
        let mut columns: Vec<Option<usize>> =
            (0..names.len()).filter(|i| !LEFT_OUT.contains(&names[*i].as_str())).map(Some).collect();
        columns.insert(PREDICTION.min(columns.len()), None);
        let mut book = rust_xlsxwriter::Workbook::new();
        // A fixed creation time, so that the same answers give the same file.
        let created = rust_xlsxwriter::ExcelDateTime::from_ymd(2000, 1, 1).map_err(wrong)?;
        book.set_properties(&rust_xlsxwriter::DocProperties::new().set_creation_datetime(&created));
        let sheet = book.add_worksheet();
        for (x, column) in (0u16..).zip(&columns) {
            let name = column.map_or("prediction", |i| names[i].as_str());
            sheet.write_string(0, x, name).map_err(wrong)?;
            for (y, (row, answer)) in (1u32..).zip(self.0.rows.iter().zip(answers)) {
                let cell = column.map_or(answer, |i| &row[i]);
                // pandas writes missing values as empty cells.
                if column.is_some() && is_missing(cell) {
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
    let (mut asked, mut rows, mut ranked) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..table.0.rows.len() {
        let index = table.index(row)?;
        let Some(image) = table.0.image(row) else {
            return Err(BenchmarkError::entry(&table.0.path, format!("question {index}"), "has no image"));
        };
        let (question, shown) = (table.question(row), table.shown(row));
        let text = |column| table.0.cell(row, column).unwrap_or_default().to_string();
        let answer = text("answer");
        let one = MultipleChoice {
            id: index.into(),
            prompt: prompt(&question, &shown, request),
            question,
            image: Some(image),
            answer: letter(&answer, &shown).unwrap_or('?'),
            options: shown,
            category: None,
            grouping: Grouping::default(),
        };
        // Ranking does not depend on the order of the options, so that the rotations need none of their own.
        ranked.push(one.options().filter(|_| index < ROTATION));
        asked.push(Asked { id: one.id, prompt: one.prompt, image: one.image });
        rows.push(MmbenchRow { index, choices: table.choices(row), answer, category: text("category") });
    }
    unique(&table.0.path, asked.iter().map(|asked| asked.id.to_string()))?;
    // The test split's answers are hidden.
    let known = rows.iter().all(|row| !row.answer.is_empty());
    let file = format!("{}.xlsx", Path::new(name).file_name().unwrap_or_default().to_string_lossy());
    let task =
        Task::new(asked).ranked(ranked).submitted(move |answers, out| table.submission(answers, &out.join(&file)));
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
                grouping: Grouping::default(),
                by_likelihood: None,
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
    fn options_end_at_the_first_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tsv");
        let text = "index\tquestion\thint\tA\tB\tC\tD\timage\n3\t\"Which?\nThis?\"\tnan\tone\ttwo\t\tfour\tAAAA\n";
        std::fs::write(&path, text).unwrap();
        let table = Table::open(&path).unwrap();
        let shown = prompt(&table.question(0), &table.shown(0), "Go.");
        assert_eq!(shown, "Which?\nThis?\nA. one\nB. two\nGo.");
        assert_eq!(table.choices(0).iter().map(|(c, _)| *c).collect::<String>(), "ABD");
    }
}
