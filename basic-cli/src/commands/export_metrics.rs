//! Runs `basic export-metrics`.

use anyhow::Result;
use basic_study::export::{Exported, Format, export};

use crate::args::{ExportMetrics, MetricsFormat};
use crate::output::say;

/// Runs `basic export-metrics`.
pub fn export_metrics(args: ExportMetrics) -> Result<()> {
    let format = match args.format {
        MetricsFormat::Wandb => Format::Wandb,
        MetricsFormat::Mlflow => Format::Mlflow,
        MetricsFormat::Csv => Format::Csv,
    };
    let Exported { path, steps, metrics } = export(&args.run, format, args.out.as_deref())?;
    say!("{}: {metrics} metrics of {steps} steps", path.display());
    if format == Format::Wandb {
        say!("python {} --project PROJECT hands them to W&B", path.join("upload.py").display());
    }
    Ok(())
}
