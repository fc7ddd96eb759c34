//! A CSV table: a row for each step, a column for each metric, empty where a step lacks it.

use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;

use super::ExportError;
use super::records::Records;

/// Writes the table to `out`.
pub(super) fn write(records: &Records, out: &Path) -> Result<PathBuf, ExportError> {
    if out.symlink_metadata().is_ok() {
        return Err(ExportError::Exists(out.into()));
    }
    let failed = |error: csv::Error| ExportError::Io { path: out.into(), source: error.into() };
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["step"].into_iter().chain(records.names.iter().map(String::as_str))).map_err(failed)?;
    let mut cells = vec![String::new(); records.names.len() + 1];
    for (step, values) in &records.rows {
        cells.iter_mut().for_each(String::clear);
        cells[0] = step.to_string();
        for (index, value) in values {
            cells[index + 1] = value.to_string();
        }
        table.write_record(&cells).map_err(failed)?;
    }
    let bytes = table.into_inner().map_err(|error| failed(error.into_error().into()))?;
    write_atomically(out, &bytes).map_err(ExportError::io(out))?;
    Ok(out.into())
}
