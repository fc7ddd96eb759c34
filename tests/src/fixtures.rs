//! Reads and copies tests/fixtures, which the scripts in tests/reference made.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::tensors::{read, write};

/// The path of a file or folder of the fixtures.
pub fn fixture(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The reference's calls of `command` ("losses", "generate" or "preprocess"), from cases.json.
pub fn cases(command: &str) -> Vec<Value> {
    let all = read_json(&fixture("cases.json"));
    let all = all.as_array().expect("cases.json is a list").clone();
    all.into_iter().filter(|case| case["command"] == command).collect()
}

/// Reads a JSON file.
#[track_caller]
pub fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a JSONL file.
#[track_caller]
pub fn read_jsonl(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// The string in a JSON value.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is a text"))
}

/// The number in a JSON value.
#[track_caller]
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// The numbers in a JSON list.
#[track_caller]
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("{value} is a list")).iter().map(number).collect()
}

/// Copies the files of a fixture folder into `dir`, which is created.
pub fn copy_of(name: &str, dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).expect("a temporary folder can be made");
    for entry in fs::read_dir(fixture(name)).expect("the fixture is a folder") {
        let path = entry.expect("the fixture can be listed").path();
        fs::copy(&path, dir.join(path.file_name().expect("a listed file has a name")))
            .expect("a fixture can be copied");
    }
    dir.to_path_buf()
}

/// Every file below `dir`, as its relative path and its bytes, sorted by path.
pub fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below dir").to_path_buf();
                files.push((name, fs::read(&path).expect("the file can be read")));
            }
        }
    }
    files.sort();
    files
}

/// The names of the files and folders in `dir`, sorted.
pub fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten();
    let mut found: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    found
}

/// The relative paths of all files below `dir`, sorted, as in [`tree`].
pub fn names(dir: &Path) -> Vec<String> {
    tree(dir).into_iter().map(|(name, _)| name.display().to_string()).collect()
}

/// The decoder of the fixture `plain` by itself, in the folder `llm` of `dir`.
pub fn decoder_of_plain(dir: &Path) -> PathBuf {
    let llm = dir.join("llm");
    fs::create_dir_all(&llm).unwrap();
    let all = read(&fixture("plain/model.safetensors"));
    let own = all.into_iter().filter_map(|(name, x)| Some((name.strip_prefix("language_model.")?.to_string(), x)));
    write(&llm.join("model.safetensors"), &own.collect());
    let config = read_json(&fixture("plain/config.json"))["text_config"].to_string();
    fs::write(llm.join("config.json"), config).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("plain").join(name), llm.join(name)).unwrap();
    }
    llm
}
