//! Reads the results of studies that `basic ablate` wrote.

use std::path::Path;

use super::ReportError;
use super::runs::json;
use crate::studies::Summary;
use basic_eval::benchmarks::BenchmarkError;

/// The results of the study at `path`; `None` if there are none, or if `path` is a training run.
pub(super) fn read(path: &Path) -> Result<Option<Summary>, ReportError> {
    let file = path.join("results.json");
    if path.join("run.json").exists() {
        return Ok(None);
    }
    let Some(text) = json(&file)? else { return Ok(None) };
    let broken = |line, problem: String| BenchmarkError::Line {
        path: file.clone(),
        line,
        problem: format!(
            "not the results of a study: {problem}: run `basic ablate` with the same --out again, which writes them anew"
        ),
    };
    let summary: Summary = serde_json::from_str(&text).map_err(|e| broken(e.line(), e.to_string()))?;
    let columns = summary.columns.len();
    let short = summary.groups.iter().flat_map(|group| group.all()).find(|row| row.entries.len() != columns);
    match short {
        Some(row) => {
            let problem = format!("cell {} has {} entries for {columns} columns", row.cell, row.entries.len());
            Err(broken(1, problem).into())
        }
        None => Ok(Some(summary)),
    }
}
