//! Checks the files that a command leaves: complete ones if it accepted its input, none if it refused it.

use std::fs;
use std::path::Path;

/// The output of a command that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// No output is checked.
    Nothing,
    /// A folder with `config.json` and complete weights, or nothing.
    Checkpoint(&'static str),
    /// A complete file, or nothing: HTML with its last tag, safetensors with its last byte.
    File(&'static str),
    /// A folder, or nothing.
    Folder(&'static str),
    /// A file that may be missing after a refusal and must otherwise equal the result of the undamaged input, so that
    /// damage that the command overlooks is noticed. It is compared with `SAME`.
    Same(&'static str),
}

/// The name of the undamaged input's result in the working folder.
pub(crate) const SAME: &str = "whole-result";

/// Checks that no temporary file or folder is left.
pub(crate) fn without_leftovers(dir: &Path) -> Result<(), String> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // The manifests of exported data sets are hidden files too, and are meant to stay.
        if name.starts_with(".tmp") || (name.starts_with(".basic-") && !name.ends_with(".json")) {
            return Err(format!("{name} is left"));
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            without_leftovers(&entry.path())?;
        }
    }
    Ok(())
}

/// Checks that the output is complete, or absent if the input was refused.
pub(crate) fn whole(leaves: Leaves, dir: &Path, taken: bool) -> Result<(), String> {
    let (Leaves::Checkpoint(name) | Leaves::File(name) | Leaves::Folder(name) | Leaves::Same(name)) = leaves else {
        return Ok(());
    };
    let path = dir.join(name);
    match (leaves, taken) {
        (Leaves::Same(_), true) => match (fs::read(&path), fs::read(dir.join(SAME))) {
            (Ok(ours), Ok(theirs)) if ours == theirs => Ok(()),
            (Ok(_), Ok(_)) => Err(format!("{name} is another than from the whole input")),
            // The first run, whose result later runs are compared with.
            (Ok(_), Err(_)) => Ok(()),
            _ => Err(format!("{name} is not there")),
        },
        (Leaves::Same(_), false) => Ok(()),
        (_, false) => {
            if path.exists() {
                Err(format!("refused, yet {name} is there"))
            } else {
                Ok(())
            }
        }
        (Leaves::Folder(_), true) => {
            if path.is_dir() {
                Ok(())
            } else {
                Err(format!("{name} is not there"))
            }
        }
        (Leaves::Checkpoint(_), true) => checkpoint(&path),
        (_, true) => file(&path),
    }
}

fn checkpoint(dir: &Path) -> Result<(), String> {
    let config = fs::read(dir.join("config.json")).map_err(|error| format!("config.json: {error}"))?;
    serde_json::from_slice::<serde_json::Value>(&config).map_err(|error| format!("config.json: {error}"))?;
    let entries = fs::read_dir(dir).map_err(|error| error.to_string())?.flatten();
    let weights: Vec<_> =
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    if weights.is_empty() {
        return Err("a checkpoint without weights".into());
    }
    weights.iter().try_for_each(|path| file(path))
}

fn file(path: &Path) -> Result<(), String> {
    let name = path.display();
    let bytes = fs::read(path).map_err(|error| format!("{name}: {error}"))?;
    if path.extension().is_some_and(|extension| extension == "html") {
        return if bytes.trim_ascii_end().ends_with(b"</html>") { Ok(()) } else { Err(format!("{name} is cut short")) };
    }
    let header = || {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
        let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
        let end = header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max().unwrap_or(0);
        (end == data.len() as u64).then_some(())
    };
    header().ok_or_else(|| format!("{name} is no whole file of tensors"))
}
