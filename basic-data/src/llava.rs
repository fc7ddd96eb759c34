//! Reads LLaVA's JSON: an array of samples, or one sample per line. Only the samples' positions in the file are held in
//! memory.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::outside::{Budget, Unparsed, parse_json};
use serde_json::Value;

use super::export::{ExportError, JsonWriter, Named, Sharding, Writer};
use super::file_range::{FileRange, line_column};
use super::format::{DataFormat, Opening, Reader};
use super::image_root::ImageRoot;
use super::locate::at_home;
use super::sample_record::{self as record, Fault};
use super::scan::{self, ScanError};
use super::stamps::Stamps;
use super::{DataError, ImageSource, Sample, Samples, fingerprint};

/// A data set in LLaVA's format. Opening it finds the position of each sample; a sample is read and checked on request.
#[derive(Debug, Clone)]
pub struct LlavaData {
    file: Arc<Path>,
    source: FileRange,
    root: ImageRoot,
    places: Vec<Range<u64>>,
}

/// The layout of a JSON file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Array,
    Lines,
}

impl Layout {
    /// The name of an exported file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Array => "data.json",
            Self::Lines => "data.jsonl",
        }
    }

    /// Detects the layout by the first byte that is not white space.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(1 << 16).read_to_end(&mut bytes)).map_err(io)?;
        let text = record::without_mark(&bytes);
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
        Ok(if first == Some(&b'[') { Self::Array } else { Self::Lines })
    }
}

/// LLaVA's JSON as a format: `json`, an array of samples, or `jsonl`, one sample per line.
pub(super) struct LlavaJson(pub Layout);

impl LlavaJson {
    /// The file that `basic data export` would have written in this folder, if it is there.
    fn exported(&self, dir: &Path) -> Option<PathBuf> {
        Some(dir.join(self.0.file_name())).filter(|file| file.is_file())
    }
}

impl DataFormat for LlavaJson {
    fn name(&self) -> &'static str {
        match self.0 {
            Layout::Array => "json",
            Layout::Lines => "jsonl",
        }
    }

    fn reads_text(&self, file: &Path) -> Result<bool, DataError> {
        Ok(Layout::of(file)? == self.0)
    }

    fn lies_in(&self, dir: &Path, _: &[PathBuf]) -> bool {
        self.exported(dir).is_some()
    }

    fn files_of(&self, dir: &Path) -> Result<Vec<PathBuf>, DataError> {
        let file = self.exported(dir).ok_or_else(|| {
            let reason = format!("is a folder, {} is one file: name the file", self.name());
            DataError::Set { path: dir.into(), reason }
        })?;
        at_home(dir, &file)?;
        Ok(vec![file])
    }

    fn open(&self, set: &Opening<'_>, _: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        Ok(Box::new(LlavaData::open_as(set.single()?, self.0, set.images, set.limit)?))
    }

    fn writer(&self, dir: Named, _: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        Ok(Box::new(JsonWriter::new(dir, self.0.file_name(), self.0 == Layout::Array)?))
    }

    fn is_one_file(&self) -> bool {
        true
    }
}

impl Reader for LlavaData {
    fn root(&self) -> Option<&Path> {
        Some(self.root.path())
    }

    fn hash(&self) -> Result<u64, DataError> {
        fingerprint::of_contents(&[self.path().into()])
    }
}

impl LlavaData {
    /// Indexes `path`; images are relative to `root`, by default the file's folder. `limit` keeps the first samples.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the position if the file is neither an array nor lines, or holds no
    /// sample. What is wrong with a single sample (not LLaVA's format, a missing image file, an image without `<image>`
    /// or the reverse, no answer) is reported by [`Samples::sample`].
    pub fn open(path: &Path, root: Option<&Path>, limit: Option<usize>) -> Result<Self, DataError> {
        Self::open_as(path, Layout::of(path)?, root, limit)
    }

    pub(super) fn open_as(
        path: &Path,
        layout: Layout,
        root: Option<&Path>,
        limit: Option<usize>,
    ) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let wanted = limit.unwrap_or(usize::MAX);
        // For samples of only a byte or two, the positions would take many times the size of the file.
        let len = file.metadata().map_err(io)?.len();
        let room = len.saturating_add(Budget::of(path).left()) / size_of::<Range<u64>>() as u64;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let limit = wanted.min(room.saturating_add(1));
        let places = match layout {
            Layout::Array => scan::array_elements(file, limit),
            Layout::Lines => scan::lines(file, limit),
        };
        let places = places.map_err(|error| match error {
            ScanError::Io(source) => io(source),
            ScanError::Syntax { offset, reason } => match line_column(path, offset) {
                Ok((line, column)) => DataError::Syntax { path: path.into(), line, column, reason: reason.into() },
                Err(source) => io(source),
            },
        })?;
        if places.is_empty() {
            return Err(DataError::Empty(path.into()));
        }
        if places.len() > room {
            return Err(io(Budget::of(path).over_bytes().into()));
        }
        Ok(Self { file: path.into(), source: FileRange::Path(path.into()), root: ImageRoot::of(root, path)?, places })
    }

    /// The data file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// The folder that the samples' image paths are relative to.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Reads the record at `index`.
    fn record(&self, index: usize) -> Result<Value, DataError> {
        let io = |source| DataError::Io { path: self.file.to_path_buf(), source };
        let Range { start, end } = self.places[index];
        let len = end - start;
        let budget = record::budget(&self.file);
        let costly = || {
            let reason = format!("takes more memory than a sample may, of {len} bytes; --file-bytes raises the limit");
            Fault::Reason(reason).at(&self.file, &index.to_string())
        };
        budget.take(len).map_err(|_| costly())?;
        let bytes = self.source.read(start, usize::try_from(len).unwrap_or(usize::MAX)).map_err(io)?;
        parse_json(record::without_mark(&bytes), &budget).map_err(|error| {
            let Unparsed::Syntax(error) = error else { return costly() };
            let (line, column) = match line_column(&self.file, start) {
                Ok(place) => place,
                Err(source) => return io(source),
            };
            let column = if error.line() <= 1 {
                column + error.column().saturating_sub(1) as u64
            } else {
                error.column() as u64
            };
            let line = line + error.line().saturating_sub(1) as u64;
            let text = error.to_string();
            let said = text.rsplit_once(" at line ").map_or(text.as_str(), |(said, _)| said);
            let hint = "LLaVA's format is a JSON array of samples, or one sample a line";
            Fault::Reason(format!("line {line} column {column}: {said}: {hint}")).at(&self.file, &index.to_string())
        })
    }
}

impl Samples for LlavaData {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let record = self.record(index)?;
        let place = record::place(index, &record["id"]);
        let names = record::image_names(&record);
        let images = names.and_then(|names| {
            let files: Result<Vec<PathBuf>, String> = names.iter().map(|name| self.root.file(name)).collect();
            Ok(files.map_err(Fault::Image)?.into_iter().map(ImageSource::File).collect())
        });
        record::sample(&self.file, place.clone(), &record, images.map_err(|fault| fault.at(&self.file, &place))?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::LlavaData;
    use crate::Samples;

    fn turns(question: &str, answer: &str) -> String {
        format!(r#"[{{"from": "human", "value": "{question}"}}, {{"from": "gpt", "value": "{answer}"}}]"#)
    }

    fn written(text: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn samples_are_read_by_index_from_an_array_and_from_lines() {
        let one = |i: usize| format!(r#"{{"id": "{i}", "conversations": {}}}"#, turns("q", &format!("answer {i}")));
        let all: Vec<String> = (0..5).map(one).collect();
        for text in [format!("[{}]", all.join(",\n")), all.join("\n"), all.join("\r\n\r\n")] {
            let (_dir, path) = written(text.as_bytes());
            let data = LlavaData::open(&path, None, None).unwrap();
            assert_eq!(data.len(), 5);
            for index in [4, 0, 2] {
                let sample = data.sample(index).unwrap();
                assert_eq!(sample.messages[1].content, format!("answer {index}"));
                assert_eq!(sample.place, format!("{index} (id {index})"));
            }
            assert_eq!(LlavaData::open(&path, None, Some(2)).unwrap().len(), 2);
        }
    }

    #[test]
    fn a_sample_that_is_no_json_is_told_by_line_and_column_and_leaves_the_others() {
        let good = format!(r#"{{"conversations": {}}}"#, turns("q", "a"));
        let (_dir, path) = written(format!("[\n {good},\n {{\"id\": 1,\n  \"x\" 2}},\n {good}]").as_bytes());
        let data = LlavaData::open(&path, None, None).unwrap();
        assert!(data.sample(0).is_ok() && data.sample(2).is_ok());
        let error = data.sample(1).unwrap_err();
        assert!(error.is_sample());
        assert!(error.to_string().contains("sample 1: line 4 column 7: expected `:`"), "{error}");
        let (_dir, path) = written(format!("{good}\n  {{\"id\": 1").as_bytes());
        let error = LlavaData::open(&path, None, None).unwrap().sample(1).unwrap_err().to_string();
        assert!(error.contains("line 2 column 10"), "{error}");
    }

    proptest! {
        #[test]
        fn mutated_bytes_are_an_error_or_a_sample_and_never_a_panic(
            lines: bool,
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
        ) {
            let one = format!(r#"{{"id": 7, "image": "a.png", "conversations": {}}}"#, turns("<image>\\nq \\u00e9", "a"));
            let text = if lines { format!("{one}\n{one}\n") } else { format!("[{one},\n{one}]") };
            let mut bytes = text.into_bytes();
            for (at, byte, kind) in edits {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let (_dir, path) = written(&bytes);
            if let Ok(data) = LlavaData::open(&path, None, None) {
                for index in 0..data.len() {
                    if let Err(error) = data.sample(index) {
                        prop_assert!(error.is_sample() && error.to_string().contains("data.json"), "{}", error);
                    }
                }
            }
        }
    }
}
