//! Edits the output of a finished run, so that it looks like that of a changed or killed run.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fixtures::read_json;

/// Changes a run's record as a user may, by removing its checksum, as the message about a wrong checksum says.
pub fn change_record(out: &Path, change: impl FnOnce(&mut Value)) {
    let path = out.join("run.json");
    let mut record = read_json(&path);
    change(&mut record);
    record.as_object_mut().unwrap().remove("checksum");
    fs::write(path, record.to_string()).unwrap();
}

/// Turns a finished run into one that was killed, with the states that it has.
pub fn killed(out: &Path) {
    let path = out.join("run.json");
    let mut record = read_json(&path);
    record["status"] = "running".into();
    fs::write(path, record.to_string()).unwrap();
    for file in ["model.safetensors", "config.json"] {
        fs::remove_file(out.join(file)).unwrap();
    }
}

/// Turns a finished run into one that was killed after `step`, without the states of later steps.
pub fn killed_behind(out: &Path, step: usize) {
    for entry in fs::read_dir(out.join("checkpoints")).unwrap().flatten() {
        let at: usize = entry.file_name().to_str().unwrap().trim_start_matches("step-").parse().unwrap();
        if at > step {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    killed(out);
}
