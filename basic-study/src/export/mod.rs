//! Writes a run's metrics for other tools (`basic export-metrics`): a table for anything that reads CSV, a folder in
//! MLflow's own file store, and a folder with a script that hands the run to Weights & Biases.
//!
//! `records` reads the run; `table`, `mlflow` and `wandb` each write one format. docs/watching.md says why each has its
//! form.

mod mlflow;
mod records;
mod table;
#[cfg(test)]
mod tests;
mod wandb;

use std::path::{Path, PathBuf};

use basic_models::checkpoint::CheckpointError;
use basic_models::outside::excerpt;
use thiserror::Error;

use records::Records;

/// The format of exported metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A table with a row for each step.
    Csv,
    /// A run in MLflow's file store.
    Mlflow,
    /// A folder with the history, the configuration, and a script that uploads them with W&B's own client.
    Wandb,
}

/// Why metrics could not be exported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A path that is no training run, or one without a step.
    #[error("{path}: {reason}", path = path.display())]
    NoRun {
        /// The path.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// A line or a key that is not what a run writes.
    #[error("{path}:{line}: {problem}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The target exists already.
    #[error("{path}: exists already: choose another with --out, or remove it", path = .0.display())]
    Exists(PathBuf),
    /// The target's folder could not be written.
    #[error(transparent)]
    Folder(#[from] CheckpointError),
}

impl ExportError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The file or folder.
    pub path: PathBuf,
    /// The number of steps.
    pub steps: usize,
    /// The number of different metrics.
    pub metrics: usize,
}

/// Exports the metrics of the run in the directory `run`. Without `out`, the result lies beside the run, with the
/// run's name and `-metrics.csv`, `-mlruns` or `-wandb` behind it. A run is added to an MLflow store that exists; any
/// other target must not exist.
///
/// # Errors
///
/// Returns an [`ExportError`] that names the file and the line.
pub fn export(run: &Path, format: Format, out: Option<&Path>) -> Result<Exported, ExportError> {
    let records = Records::read(run)?;
    let ending = match format {
        Format::Csv => "-metrics.csv",
        Format::Mlflow => "-mlruns",
        Format::Wandb => "-wandb",
    };
    let beside = || records.dir.with_file_name(format!("{}{ending}", records.name));
    let out = out.map_or_else(beside, Path::to_path_buf);
    let path = match format {
        Format::Csv => table::write(&records, &out)?,
        Format::Mlflow => mlflow::write(&records, &out)?,
        Format::Wandb => wandb::write(&records, &out)?,
    };
    Ok(Exported { path, steps: records.rows.len(), metrics: records.names.len() })
}

/// A JSON value as a text: texts without quotes.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| excerpt(&value.to_string()), excerpt)
}
