//! MLflow's file store: `OUT/0/RUN_ID` with a file for each metric, whose lines are `timestamp value step`, and one for
//! each parameter and tag. MLflow 3 no longer develops such stores, but shows them on request and migrates them to a
//! database (`mlflow migrate-filestore`).

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;
use basic_models::checkpoint::StagedDir;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

use super::records::Records;
use super::{ExportError, plain};

/// MLflow's default experiment.
const EXPERIMENT: &str = "0";

/// Adds the run to the store `out`, which is made if it is not there.
pub(super) fn write(records: &Records, out: &Path) -> Result<PathBuf, ExportError> {
    let (first, last) = (records.times.values().next().copied(), records.times.values().next_back().copied());
    let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
    // The same run gets the same id, so that it does not stand there twice.
    let id = format!("{:032x}", xxh3_128(records.dir.as_os_str().as_encoded_bytes()));
    let experiment = out.join(EXPERIMENT);
    let target = experiment.join(&id);
    if target.symlink_metadata().is_ok() {
        return Err(ExportError::Exists(target));
    }
    let staged = StagedDir::new(&target, false)?;
    let file = |name: &str, text: &str| {
        let path = staged.path().join(name);
        let folder = path.parent().unwrap_or(staged.path());
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, text)).map_err(ExportError::io(&target.join(name)))
    };
    for (index, name) in records.names.iter().enumerate() {
        let mut lines = String::new();
        for (step, values) in &records.rows {
            let value = values.iter().rev().find(|(at, _)| *at == index);
            if let (Some((_, value)), Some(time)) = (value, records.times.get(step)) {
                // Writing to a text does not fail.
                let _ = writeln!(lines, "{time} {value} {step}");
            }
        }
        file(&format!("metrics/{name}"), &lines)?;
    }
    for (key, value) in records.recipe() {
        if is_name(&key) {
            file(&format!("params/{key}"), &plain(&value))?;
        }
    }
    file("tags/mlflow.runName", &records.name)?;
    for key in ["version", "revision"] {
        if let Some(text) = records.info[key].as_str() {
            file(&format!("tags/basic.{key}"), &plain(&json!(text)))?;
        }
    }
    // MLflow's numbers of a run's state: 1 running, 3 finished, 4 failed, 5 killed.
    let status = match records.info["status"].as_str() {
        Some("running") => 1,
        Some("failed") => 4,
        Some("stopped") => 5,
        _ => 3,
    };
    let (text, ended) = (|text: &str| json!(text), if status == 1 { json!(null) } else { json!(last) });
    // YAML takes JSON's form of values.
    let meta = [
        ("artifact_uri", text(&format!("{}/artifacts", absolute(&target)))),
        ("end_time", ended),
        ("entry_point_name", text("")),
        ("experiment_id", text(EXPERIMENT)),
        ("lifecycle_stage", text("active")),
        ("run_id", text(&id)),
        ("run_name", text(&records.name)),
        ("run_uuid", text(&id)),
        ("source_name", text("")),
        ("source_type", json!(4)),
        ("source_version", text("")),
        ("start_time", json!(first)),
        ("status", json!(status)),
        ("tags", json!([])),
        ("user_id", text("")),
    ];
    file("meta.yaml", &yaml(&meta))?;
    fs::create_dir(staged.path().join("artifacts")).map_err(ExportError::io(&target.join("artifacts")))?;
    let about = experiment.join("meta.yaml");
    if !about.is_file() {
        let meta = [
            ("artifact_location", text(&absolute(&experiment))),
            ("creation_time", json!(first)),
            ("experiment_id", text(EXPERIMENT)),
            ("last_update_time", json!(last)),
            ("lifecycle_stage", text("active")),
            ("name", text("Default")),
        ];
        write_atomically(&about, yaml(&meta).as_bytes()).map_err(ExportError::io(&about))?;
    }
    staged.commit()?;
    Ok(target)
}

/// Whether a key of the recipe can be a file's name.
fn is_name(key: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-. ".contains(c);
    !key.is_empty() && key.len() <= 200 && !key.starts_with('.') && key.chars().all(plain)
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.into()).display().to_string()
}

fn yaml(pairs: &[(&str, serde_json::Value)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}
