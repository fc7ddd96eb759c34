//! The paper's benchmarks, from files laid out as LLaVA's evaluation guide has them (docs/benchmarks.md): questions and
//! prompts, scores by the official rules, and files for the servers where the answers are hidden.
//!
//! [`find`] names a benchmark, [`Benchmark::open`] reads its folder, [`Answers`] keeps what the model said,
//! [`respond`] asks for the rest, and [`Task::score`] and [`Task::submit`] make of it what is reported.

mod answers;
mod error;
mod gqa;
mod interval;
mod mmbench;
mod mmvet;
pub mod normalize;
pub mod options;
mod pope;
mod reading;
mod scienceqa;
mod textvqa;
mod vizwiz;
pub mod vqa;
mod vqav2;
mod vqav2_val;

#[cfg(test)]
mod fixture_tests;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use answers::{Answers, respond};
pub use error::BenchmarkError;
pub use interval::Metric;

use crate::data::ImageSource;

/// Every benchmark, in the paper's order.
pub const BENCHMARKS: [Benchmark; 10] = [
    vqav2::BENCHMARK,
    vqav2_val::BENCHMARK,
    gqa::BENCHMARK,
    vizwiz::BENCHMARK,
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
    read: fn(&Path) -> Result<Task, BenchmarkError>,
}

impl Benchmark {
    /// Reads the benchmark's files below `root` (LLaVA's playground/data/eval).
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file and the entry.
    pub fn open(&self, root: &Path) -> Result<Task, BenchmarkError> {
        (self.read)(root)
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

type Score = Box<dyn Fn(&[String]) -> Vec<Metric>>;
type Submission = Box<dyn Fn(&[String], &Path) -> Result<PathBuf, BenchmarkError>>;

/// A benchmark's questions, and what is made of the answers.
pub struct Task {
    /// The questions.
    pub questions: Vec<Asked>,
    score: Option<Score>,
    submission: Option<Submission>,
}

impl Task {
    /// Questions whose answers are scored or submitted by what [`Task::scored`] and [`Task::submitted`] add.
    fn new(questions: Vec<Asked>) -> Self {
        Self { questions, score: None, submission: None }
    }

    fn scored(self, score: impl Fn(&[String]) -> Vec<Metric> + 'static) -> Self {
        Self { score: Some(Box::new(score)), ..self }
    }

    fn submitted(self, submission: impl Fn(&[String], &Path) -> Result<PathBuf, BenchmarkError> + 'static) -> Self {
        Self { submission: Some(Box::new(submission)), ..self }
    }

    /// The scores of `answers`, one a question in the questions' order; none where the true answers are hidden.
    pub fn score(&self, answers: &[String]) -> Vec<Metric> {
        self.score.as_ref().map(|score| score(answers)).unwrap_or_default()
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
