//! Writes a page about runs (`basic report`): training runs, evaluations and studies side by side in one HTML file that
//! needs neither a network nor other files.
//!
//! - `runs` reads the directories; `recipe` finds the keys in which their recipes differ.
//! - `figures` has the curves.
//! - `evaluations` has the scores with their intervals, `samples` the answered questions with their images, which
//!   `pictures` finds and scales down.
//! - `studies` reads the results of `basic ablate`, which are shown with the template of the study's own page.
//! - `page` fills the templates; [`crate::pages`] has the parts that all pages share.

mod evaluations;
mod figures;
mod page;
mod pictures;
mod recipe;
mod runs;
mod samples;
mod studies;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use basic_data::{DataError, ImageBase};
use basic_eval::compare::CompareError;
use basic_models::atomic_file::write_atomically;
use serde::Serialize;
use thiserror::Error;

use crate::pages::PageError;
use basic_eval::benchmarks::BenchmarkError;

/// Why the page could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file could not be read or written, or one of its lines is invalid.
    #[error(transparent)]
    File(#[from] BenchmarkError),
    /// A path is neither a training run nor an evaluation nor a study.
    #[error(
        "{path}: neither a training run (run.json, metrics.jsonl) nor what `basic eval` leaves (judged.jsonl, *.predictions.jsonl, *.choices.jsonl), nor the --out of `basic ablate` (results.json)",
        path = .0.display()
    )]
    NoRun(PathBuf),
    /// A path is given twice.
    #[error("{path}: given twice", path = .0.display())]
    Twice(PathBuf),
    /// The answers of an evaluation could not be read.
    #[error(transparent)]
    Answers(#[from] CompareError),
    /// The folder of images could not be opened.
    #[error(transparent)]
    Folder(#[from] DataError),
    /// A template failed, which is a bug in this crate.
    #[error(transparent)]
    Page(#[from] PageError),
}

/// Options of the page.
#[derive(Debug, Clone)]
pub struct Options {
    /// At most this many answered questions are shown of each benchmark.
    pub samples: usize,
    /// A further folder below which images may lie to be shown.
    pub image_root: Option<PathBuf>,
}

/// The page that was written.
#[derive(Debug, Clone, Serialize)]
pub struct Written {
    /// The path of the page.
    pub page: PathBuf,
    /// The names of the runs on the page.
    pub runs: Vec<String>,
    /// The names of the studies.
    pub studies: Vec<String>,
    /// The size of the page in bytes.
    pub bytes: usize,
}

/// Writes the page about the runs, evaluations and studies at `paths`.
///
/// # Errors
///
/// [`ReportError`] that names the file.
pub fn write(paths: &[PathBuf], out: &Path, options: &Options) -> Result<Written, ReportError> {
    let mut seen = HashSet::new();
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if let Some(twice) = paths.iter().find(|path| !seen.insert(place(path))) {
        return Err(ReportError::Twice(twice.clone()));
    }
    if let Some(folder) = &options.image_root {
        ImageBase::new(folder, None)?;
    }
    let (mut studies, mut others) = (Vec::new(), Vec::new());
    for path in paths {
        match studies::read(path)? {
            Some(study) => studies.push(study),
            None => others.push(path.clone()),
        }
    }
    let runs = runs::open(&others)?;
    let html = page::render(&runs, &studies, options)?;
    write_atomically(out, html.as_bytes()).map_err(|source| BenchmarkError::Io { path: out.into(), source })?;
    Ok(Written {
        page: out.into(),
        runs: runs.into_iter().map(|run| run.name).collect(),
        studies: studies.into_iter().map(|study| study.study).collect(),
        bytes: html.len(),
    })
}
