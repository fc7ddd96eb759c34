//! Ablations: what `basic ablate` left.

use std::path::Path;

use super::ReportError;
use super::runs::json;
use crate::ablate::Summary;

/// The results of the study at `path`; `None` where there is none, or a training run.
pub(super) fn read(path: &Path) -> Result<Option<Summary>, ReportError> {
    let file = path.join("results.json");
    if path.join("run.json").exists() {
        return Ok(None);
    }
    let Some(text) = json(&file)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| ReportError::Line {
        path: file,
        line: e.line(),
        problem: format!(
            "not the results of a study: {e}: run `basic ablate` with the same --out again, which writes them anew"
        ),
    })
}
