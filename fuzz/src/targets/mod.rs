//! The targets: the files that are damaged and the commands that read them.

mod answers;
mod checkpoints;
mod sets;
mod training;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::mutate::Kind;
use crate::outputs::Leaves;

/// A folder of valid files, the one that is damaged, and the command that reads it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The group of formats that the target belongs to.
    pub format: &'static str,
    /// The name of the target within its group.
    pub name: &'static str,
    /// The format of the damaged file.
    pub kind: Kind,
    /// Files of the repository with their places in the working folder. Folders are copied with their contents.
    files: Vec<(PathBuf, &'static str)>,
    /// Further files with their contents.
    texts: Vec<(&'static str, Vec<u8>)>,
    /// Commands that make further files from these, once; they may make the file that is damaged.
    pub made_by: Vec<&'static [&'static str]>,
    /// A change to the files after these commands.
    adjusted: Option<fn(&Path) -> io::Result<()>>,
    /// The file that is damaged; `*` for the first of a folder's entries.
    pub damaged: &'static str,
    /// The command's arguments, relative to the working folder.
    pub line: &'static [&'static str],
    /// The output of the command that is checked.
    pub leaves: Leaves,
}

impl Target {
    fn new(
        format: &'static str,
        name: &'static str,
        kind: Kind,
        damaged: &'static str,
        line: &'static [&'static str],
    ) -> Self {
        let (files, texts, made_by) = (Vec::new(), Vec::new(), Vec::new());
        Self { format, name, kind, files, texts, made_by, adjusted: None, damaged, line, leaves: Leaves::Nothing }
    }

    fn with(mut self, from: impl Into<PathBuf>, to: &'static str) -> Self {
        self.files.push((from.into(), to));
        self
    }

    fn text(mut self, name: &'static str, text: impl Into<Vec<u8>>) -> Self {
        self.texts.push((name, text.into()));
        self
    }

    fn made(mut self, line: &'static [&'static str]) -> Self {
        self.made_by.push(line);
        self
    }

    fn adjusted(mut self, adjust: fn(&Path) -> io::Result<()>) -> Self {
        self.adjusted = Some(adjust);
        self
    }

    fn leaves(mut self, leaves: Leaves) -> Self {
        self.leaves = leaves;
        self
    }

    /// The target's name as a file name.
    pub fn folder(&self) -> String {
        self.name.replace([' ', '/'], "-")
    }

    /// Writes the undamaged files to an empty folder.
    ///
    /// # Errors
    ///
    /// The operating system's error.
    pub fn lay(&self, folder: &Path) -> io::Result<()> {
        for (from, to) in &self.files {
            copy(from, &folder.join(to))?;
        }
        for (name, text) in &self.texts {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(path, text)?;
        }
        Ok(())
    }

    /// The path of the damaged file, relative to the folder with the files.
    ///
    /// # Errors
    ///
    /// The operating system's error.
    pub fn place(&self, folder: &Path) -> io::Result<PathBuf> {
        let mut place = PathBuf::new();
        for part in Path::new(self.damaged) {
            if part != "*" {
                place.push(part);
                continue;
            }
            let entries = fs::read_dir(folder.join(&place))?.map(|entry| entry.map(|entry| entry.file_name()));
            let entries = entries.collect::<io::Result<Vec<_>>>()?;
            place.push(entries.into_iter().min().ok_or_else(|| io::Error::other("an empty folder"))?);
        }
        Ok(place)
    }

    /// Changes the undamaged files to a state that no command leaves.
    ///
    /// # Errors
    ///
    /// The operating system's error.
    pub fn adjust(&self, folder: &Path) -> io::Result<()> {
        self.adjusted.map_or(Ok(()), |adjust| adjust(folder))
    }
}

/// Copies a file, or a folder with its contents.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().unwrap_or(Path::new(".")))?;
        fs::copy(from, to)?;
        // The record of answers has the modification time of the weights, so it must be kept.
        return fs::File::options().write(true).open(to)?.set_modified(fs::metadata(from)?.modified()?);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// All targets, made from the repository's `tests/fixtures`.
pub fn targets(fixtures: &Path) -> Vec<Target> {
    let of = [checkpoints::targets, sets::targets, training::targets, answers::targets];
    of.into_iter().flat_map(|targets| targets(fixtures)).collect()
}

/// The inputs of a target that failed in the past, before a fix; they are kept in this crate's folder.
pub fn regressions(target: &Target) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.folder());
    let mut files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files
}

/// A folder of this crate's seed files.
fn seeds(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name)
}

const RECORD: &str = r#"{"id":"1","image":"a.png","conversations":[{"from":"human","value":"<image>\nwhat?"},{"from":"gpt","value":"a red circle"}]}"#;

fn data() -> String {
    format!("[{RECORD},{RECORD}]")
}
