//! The options of `basic export-metrics`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

#[derive(Debug, ClapArgs)]
pub struct ExportMetrics {
    /// The directory of a training run.
    pub run: PathBuf,
    /// The tool that the files are for.
    #[arg(long, value_enum)]
    pub format: MetricsFormat,
    /// The file (csv), the folder (wandb) or the store (mlflow) that is written; by default beside the run.
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

/// The tool that metrics are exported for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricsFormat {
    /// A folder with the history and a script that uploads it with W&B's client.
    Wandb,
    /// A run in MLflow's file store; a store that exists gets a further run.
    Mlflow,
    /// A table with a row for each step.
    Csv,
}
