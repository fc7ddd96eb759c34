//! The paper's benchmarks, from files laid out as LLaVA's evaluation guide has them (docs/benchmarks.md): questions and
//! prompts, scores by the official rules, and files for the servers where the answers are hidden.
//!
//! [`find`] names a benchmark, [`Benchmark::open`] reads its folder, [`Answers`] keeps what the model said,
//! [`respond`] asks for the rest on one device or several, [`Task::judge`] and [`Task::submit`] make of it what is reported,
//! and [`ScoreRecord`] keeps that beside the answers.

mod answers;
mod benchmark_folders;
mod error;
mod gqa;
mod interval;
mod judged;
mod mmbench;
mod mmvet;
pub mod normalize;
pub mod options;
mod pope;
mod question_files;
mod respond;
mod scienceqa;
mod score_record;
mod textvqa;
mod vizwiz;
mod vizwiz_val;
pub mod vqa;
mod vqav2;
mod vqav2_val;

#[cfg(test)]
mod fixture_tests;

use std::path::{Path, PathBuf};

use basic_data::ImageSource;
use serde_json::Value;

pub use answers::Answers;
pub use error::BenchmarkError;
pub use interval::Metric;
pub use judged::{Judged, Kind, Measure, Outcome, measures, metrics};
pub use respond::{check_prompts, respond};
pub use score_record::{ScoreRecord, judged_file, record_file};

use benchmark_folders::Root;

/// Every benchmark, in the paper's order.
pub const BENCHMARKS: [Benchmark; 11] = [
    vqav2::BENCHMARK,
    vqav2_val::BENCHMARK,
    gqa::BENCHMARK,
    vizwiz::BENCHMARK,
    vizwiz_val::BENCHMARK,
    textvqa::BENCHMARK,
    scienceqa::BENCHMARK,
    mmbench::ENGLISH,
    mmbench::CHINESE,
    mmvet::BENCHMARK,
    pope::BENCHMARK,
];

/// A benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark {
    /// Its name on the command line.
    pub name: &'static str,
    /// At most this many tokens an answer, as LLaVA's script for it has.
    pub max_new_tokens: usize,
    read: fn(&Root) -> Result<Task, BenchmarkError>,
}

impl Benchmark {
    /// Reads the benchmark's files below `root` (LLaVA's playground/data/eval).
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file and the entry.
    pub fn open(&self, root: &Path) -> Result<Task, BenchmarkError> {
        self.open_within(root, None)
    }

    /// [`Benchmark::open`] where images may also lie below the folder `image_root`. Otherwise each lies below the
    /// benchmark's folder of images, which may itself be a link, or below `root`.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file and the entry.
    pub fn open_within(&self, root: &Path, image_root: Option<&Path>) -> Result<Task, BenchmarkError> {
        let root = Root::new(root, image_root);
        let task = (self.read)(&root)?;
        Ok(Task { image_roots: root.image_roots(), ..task })
    }
}

/// The benchmark called `name`.
///
/// # Errors
///
/// [`BenchmarkError::Unknown`] with the names there are.
pub fn find(name: &str) -> Result<Benchmark, BenchmarkError> {
    BENCHMARKS.into_iter().find(|benchmark| benchmark.name == name).ok_or_else(|| {
        let names = BENCHMARKS.map(|benchmark| benchmark.name);
        BenchmarkError::Unknown { name: name.into(), known: names.join(", ") }
    })
}

/// A question as it is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The question's id in the benchmark's files.
    pub id: Value,
    /// What the model is told, with or without its `<image>`.
    pub prompt: String,
    /// The image, if the question has one.
    pub image: Option<ImageSource>,
}

type Judge = Box<dyn Fn(&[Asked], &[String]) -> Vec<Judged>>;
type Submission = Box<dyn Fn(&[String], &Path) -> Result<PathBuf, BenchmarkError>>;

/// A benchmark's questions, and what is made of the answers.
pub struct Task {
    /// The questions.
    pub questions: Vec<Asked>,
    image_roots: Vec<PathBuf>,
    measure: Option<&'static str>,
    judge: Option<Judge>,
    submission: Option<Submission>,
}

/// What an answer is worth.
struct Mark {
    score: f64,
    expected: String,
    category: Option<String>,
    /// How a yes-or-no answer was read.
    yes: Option<bool>,
}

impl Task {
    /// Questions whose answers are judged or submitted by what [`Task::judged`] and [`Task::submitted`] add.
    fn new(questions: Vec<Asked>) -> Self {
        Self { questions, image_roots: Vec::new(), measure: None, judge: None, submission: None }
    }

    /// Answers judged all together; their mean is called `measure`.
    fn judged(self, measure: &'static str, judge: impl Fn(&[Asked], &[String]) -> Vec<Judged> + 'static) -> Self {
        Self { measure: Some(measure), judge: Some(Box::new(judge)), ..self }
    }

    /// Answers judged one by one, by the question's place.
    fn marked(self, measure: &'static str, mark: impl Fn(usize, &str) -> Mark + 'static) -> Self {
        self.judged(measure, move |asked, answers| {
            let one = |(index, (asked, answer)): (usize, (&Asked, &String))| {
                let Mark { score, expected, category, yes } = mark(index, answer);
                let judged = Judged::unscored(asked, answer);
                Judged { score: Some(score), expected: Some(expected), category, yes, ..judged }
            };
            asked.iter().zip(answers).enumerate().map(one).collect()
        })
    }

    fn submitted(self, submission: impl Fn(&[String], &Path) -> Result<PathBuf, BenchmarkError> + 'static) -> Self {
        Self { submission: Some(Box::new(submission)), ..self }
    }

    /// The folders, without links, that the images lie below.
    pub fn image_roots(&self) -> &[PathBuf] {
        &self.image_roots
    }

    /// What the mean of the scores is called; `None` where the true answers are hidden.
    pub fn measure(&self) -> Option<&'static str> {
        self.measure
    }

    /// The questions with `answers`, one a question in the questions' order, and their scores where the true answers are
    /// known. MMBench's rotations are one question.
    pub fn judge(&self, answers: &[String]) -> Vec<Judged> {
        match &self.judge {
            Some(judge) => judge(&self.questions, answers),
            None => self.questions.iter().zip(answers).map(|(asked, answer)| Judged::unscored(asked, answer)).collect(),
        }
    }

    /// Writes what the benchmark's server takes into the folder `out`, where there is one.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError::Io`] that names the file.
    pub fn submit(&self, answers: &[String], out: &Path) -> Result<Option<PathBuf>, BenchmarkError> {
        self.submission.as_ref().map(|submission| submission(answers, out)).transpose()
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("questions", &self.questions.len()).finish_non_exhaustive()
    }
}
