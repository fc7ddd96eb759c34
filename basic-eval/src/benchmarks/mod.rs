//! Runs the paper's benchmarks on files laid out as in LLaVA's evaluation guide (docs/benchmarks.md): builds the
//! prompts, scores the answers by the official rules, and writes submission files for the benchmarks whose answers are
//! hidden.
//!
//! [`find`] looks up a benchmark by name, [`Benchmark::open`] reads its folder, [`Answers`] stores the answers on disk,
//! [`respond`] generates the missing ones on one device or several, [`Task::judge`] scores them, [`Task::submit`]
//! writes a submission file, and [`ScoreRecord`] stores the scores beside the answers.

mod ai2d;
mod answers;
mod asked_image;
mod benchmark_folders;
mod chartqa;
mod cv_bench;
mod docvqa;
mod error;
mod gqa;
mod grouping;
mod hallusion_bench;
mod interval;
mod judged;
mod llava_bench;
mod measure;
mod mmbench;
mod mme;
mod mmmu;
pub mod mmmu_answers;
mod mmstar;
mod mmvet;
mod mmvp;
mod multiple_choice;
pub mod normalize;
pub mod options;
mod peers;
mod pope;
mod python_list;
mod python_text;
mod question_files;
mod rank;
mod realworldqa;
mod respond;
mod rows;
mod scienceqa;
mod score_record;
mod seed_bench;
mod sheet;
mod textvqa;
mod vizwiz;
mod vizwiz_val;
pub mod vqa;
mod vqav2;
mod vqav2_val;

#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod fixture_tests_beyond_llava;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use answers::{Answers, Likelihoods, Rankings, Said, Store};
pub use asked_image::AskedImage;
pub use error::BenchmarkError;
pub use grouping::Grouping;
pub use interval::Metric;
pub use judged::{ByLikelihood, Judged};
pub use measure::{Kind, Measure, Outcome, measures, metrics};
pub use peers::Peers;
pub use rank::{check_options, rank};
pub use respond::{check_prompts, respond};
pub use score_record::{PREDICTIONS, RANKED, RANKED_FROM_TOKENS, ScoreRecord, judged_file, record_file};

use benchmark_folders::Root;

/// Every benchmark: those of the paper in its order, then the others.
pub const BENCHMARKS: [Benchmark; 24] = [
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
    mmstar::BENCHMARK,
    ai2d::BENCHMARK,
    chartqa::BENCHMARK,
    docvqa::VALIDATION,
    docvqa::TEST,
    mme::BENCHMARK,
    seed_bench::BENCHMARK,
    realworldqa::BENCHMARK,
    mmmu::BENCHMARK,
    mmvp::BENCHMARK,
    cv_bench::BENCHMARK,
    hallusion_bench::BENCHMARK,
    llava_bench::BENCHMARK,
];

/// A benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark {
    /// Its name on the command line.
    pub name: &'static str,
    /// The most tokens of an answer, as in LLaVA's evaluation script for this benchmark if there is one.
    pub max_new_tokens: usize,
    read: fn(&Root) -> Result<Task, BenchmarkError>,
}

impl Benchmark {
    /// Reads the benchmark's files below `root`, which is LLaVA's folder playground/data/eval.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file and the entry.
    pub fn open(&self, root: &Path) -> Result<Task, BenchmarkError> {
        self.open_within(root, None)
    }

    /// Like [`Benchmark::open`], but images may also lie below the folder `image_root`. Without it every image must lie
    /// below the benchmark's folder of images, which may itself be a symbolic link, or below `root`.
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
/// [`BenchmarkError::Unknown`], which lists the known names.
pub fn find(name: &str) -> Result<Benchmark, BenchmarkError> {
    BENCHMARKS.into_iter().find(|benchmark| benchmark.name == name).ok_or_else(|| {
        let names = BENCHMARKS.map(|benchmark| benchmark.name);
        BenchmarkError::Unknown { name: name.into(), known: names.join(", ") }
    })
}

/// A question in the form in which the model is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The question's id in the benchmark's files.
    pub id: Value,
    /// The prompt. The image goes before the text unless the prompt contains `<image>`.
    pub prompt: String,
    /// The image, if the question has one.
    pub image: Option<AskedImage>,
}

/// The options of a multiple-choice question, as they are ranked by their likelihood.
#[derive(Debug, Clone)]
pub struct Options {
    /// The question without its options.
    pub text: String,
    /// The texts of the options, at least two.
    pub options: Vec<String>,
    /// The index of the true answer.
    pub answer: usize,
}

type Judge = Box<dyn Fn(&[Asked], &[String]) -> Vec<Judged>>;
type Submission = Box<dyn Fn(&[String], &Path) -> Result<PathBuf, BenchmarkError>>;

/// A benchmark's questions, and the rules for scoring or submitting the answers.
pub struct Task {
    /// The questions.
    pub questions: Vec<Asked>,
    /// For each question its options, if it has any to rank; empty if no question has.
    options: Vec<Option<Options>>,
    image_roots: Vec<PathBuf>,
    measure: Option<&'static str>,
    judge: Option<Judge>,
    submission: Option<Submission>,
}

/// The score of one answer.
#[derive(Default)]
struct Mark {
    score: f64,
    expected: String,
    category: Option<String>,
    /// For yes-or-no questions: whether the answer was read as yes.
    yes: Option<bool>,
    grouping: Grouping,
}

impl Task {
    /// A task without rules; [`Task::judged`] and [`Task::submitted`] add the rules for scoring and for submission.
    fn new(questions: Vec<Asked>) -> Self {
        let (options, image_roots) = (Vec::new(), Vec::new());
        Self { questions, options, image_roots, measure: None, judge: None, submission: None }
    }

    /// Adds a rule that scores all answers together; their mean score is called `measure`.
    fn judged(self, measure: &'static str, judge: impl Fn(&[Asked], &[String]) -> Vec<Judged> + 'static) -> Self {
        Self { measure: Some(measure), judge: Some(Box::new(judge)), ..self }
    }

    /// Adds a rule that scores each answer by itself, given the question's index.
    fn marked(self, measure: &'static str, mark: impl Fn(usize, &str) -> Mark + 'static) -> Self {
        self.judged(measure, move |asked, answers| {
            let one = |(index, (asked, answer)): (usize, (&Asked, &String))| {
                let Mark { score, expected, category, yes, grouping } = mark(index, answer);
                let judged = Judged::unscored(asked, answer);
                Judged { score: Some(score), expected: Some(expected), category, yes, grouping, ..judged }
            };
            asked.iter().zip(answers).enumerate().map(one).collect()
        })
    }

    /// Adds the options that can be ranked by their likelihood, for each question those that it has.
    fn ranked(self, options: Vec<Option<Options>>) -> Self {
        Self { options, ..self }
    }

    fn submitted(self, submission: impl Fn(&[String], &Path) -> Result<PathBuf, BenchmarkError> + 'static) -> Self {
        Self { submission: Some(Box::new(submission)), ..self }
    }

    /// The questions whose options can be ranked by their likelihood, with these; none if the benchmark has no options.
    pub fn rankable(&self) -> impl Iterator<Item = (&Asked, &Options)> {
        self.questions.iter().zip(&self.options).filter_map(|(asked, options)| Some((asked, options.as_ref()?)))
    }

    /// The folders that the images lie below, with symbolic links resolved.
    pub fn image_roots(&self) -> &[PathBuf] {
        &self.image_roots
    }

    /// The name of the mean score; `None` if the true answers are hidden.
    pub fn measure(&self) -> Option<&'static str> {
        self.measure
    }

    /// Scores `answers`, one for each question in order; the scores are `None` if the true answers are hidden. The
    /// rotations of an MMBench question are scored as one question.
    pub fn judge(&self, answers: &[String]) -> Vec<Judged> {
        match &self.judge {
            Some(judge) => judge(&self.questions, answers),
            None => self.questions.iter().zip(answers).map(|(asked, answer)| Judged::unscored(asked, answer)).collect(),
        }
    }

    /// Writes the submission file for the benchmark's server into the folder `out`; `None` if it has no server.
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
