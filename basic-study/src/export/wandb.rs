//! A folder for Weights & Biases: `history.jsonl` with a line for each step, `config.json` with the recipe, and `upload.py`,
//! which hands both to W&B's own client.

use std::path::{Path, PathBuf};

use basic_models::checkpoint::StagedDir;
use serde_json::{Map, Value, json};

use super::ExportError;
use super::records::Records;

/// The script, which needs nothing but the package `wandb`.
const UPLOAD: &str = include_str!("wandb_upload.py");

/// Writes the folder `out`.
pub(super) fn write(records: &Records, out: &Path) -> Result<PathBuf, ExportError> {
    if out.symlink_metadata().is_ok() {
        return Err(ExportError::Exists(out.into()));
    }
    let mut history = String::new();
    for (step, values) in &records.rows {
        let mut line = Map::new();
        line.insert("_step".into(), json!(step));
        if let Some(time) = records.times.get(step) {
            line.insert("_timestamp".into(), json!(*time as f64 / 1000.0));
        }
        for (index, value) in values {
            line.insert(records.names[*index].clone(), json!(value));
        }
        history.push_str(&Value::Object(line).to_string());
        history.push('\n');
    }
    let config = json!({
        "name": records.name,
        "config": { "recipe": records.info["recipe"], "version": records.info["version"],
            "revision": records.info["revision"] },
    });
    let staged = StagedDir::new(out, false)?;
    staged.write("history.jsonl", history.as_bytes())?;
    staged.write("config.json", format!("{config:#}\n").as_bytes())?;
    staged.write("upload.py", UPLOAD.as_bytes())?;
    staged.commit()?;
    Ok(out.into())
}
