//! Finds where the entries of a large JSON object lie, and reads one of them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use basic_models::outside::{Budget, Unparsed, parse_json};
use serde_json::Value;

use crate::DataError;
use crate::file_range::{FileRange, line_column};
use crate::sample_record as record;
use crate::scan::{self, ScanError};

/// A file that is being indexed.
pub(super) struct Indexed<'a> {
    path: &'a Path,
    source: FileRange,
}

impl<'a> Indexed<'a> {
    pub fn open(path: &'a Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        Ok(Self { path, source: FileRange::Open(Arc::new(file)) })
    }

    pub fn io(&self, source: io::Error) -> DataError {
        DataError::Io { path: self.path.into(), source }
    }

    pub fn wrong(&self, reason: String) -> DataError {
        DataError::Set { path: self.path.into(), reason }
    }

    fn scanned<T>(&self, start: u64, found: Result<T, ScanError>) -> Result<T, DataError> {
        found.map_err(|error| match error {
            ScanError::Io(source) => self.io(source),
            ScanError::Syntax { offset, reason } => match line_column(self.path, start.saturating_add(offset)) {
                Ok((line, column)) => self.wrong(format!("line {line} column {column}: {reason}")),
                Err(source) => self.io(source),
            },
        })
    }

    /// Where the values of these members of the file's object lie.
    pub fn members<const N: usize>(&self, names: [&str; N]) -> Result<[Range<u64>; N], DataError> {
        let file = File::open(self.path).map_err(|error| self.io(error))?;
        let found = self.scanned(0, scan::members(file, names))?;
        let lacking = names.iter().zip(&found).find(|(_, range)| range.is_none());
        if let Some((name, _)) = lacking {
            return Err(self.wrong(format!("is an object without \"{name}\"")));
        }
        Ok(found.map(Option::unwrap_or_default))
    }

    /// Where the first elements of the list in `range` lie.
    pub fn elements(&self, range: Range<u64>, limit: usize, budget: &Budget) -> Result<Vec<Range<u64>>, DataError> {
        let room = budget.left() / size_of::<Range<u64>>() as u64;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let section = self.source.section(range.start, range.end - range.start).map_err(|error| self.io(error))?;
        let found = scan::array_elements(section, limit.min(room.saturating_add(1)));
        let mut found = self.scanned(range.start, found)?;
        if found.len() > room {
            return Err(self.io(budget.over_bytes().into()));
        }
        let taken = (found.len() * size_of::<Range<u64>>()) as u64;
        budget.take(taken).map_err(|over| self.io(over.into()))?;
        for element in &mut found {
            *element = element.start + range.start..element.end + range.start;
        }
        Ok(found)
    }

    pub fn value(&self, range: &Range<u64>) -> Result<Value, DataError> {
        read_value(&self.source, self.path, range).map_err(|unread| match unread {
            Unread::Io(source) => self.io(source),
            Unread::Reason(reason) => self.wrong(reason),
        })
    }
}

/// Why a range of the file gives no JSON.
pub(super) enum Unread {
    Io(io::Error),
    Reason(String),
}

/// Parses the JSON in a range of the file.
pub(super) fn read_value(source: &FileRange, path: &Path, range: &Range<u64>) -> Result<Value, Unread> {
    let len = range.end - range.start;
    let costly = || {
        let reason =
            format!("an entry of {len} bytes takes more memory than a sample may; --file-bytes raises the limit");
        Unread::Reason(reason)
    };
    let budget = record::budget(path);
    budget.take(len).map_err(|_| costly())?;
    let bytes = source.read(range.start, usize::try_from(len).unwrap_or(usize::MAX)).map_err(Unread::Io)?;
    parse_json(&bytes, &budget).map_err(|error| {
        let Unparsed::Syntax(error) = error else { return costly() };
        let place = line_column(path, range.start).map_or_else(|_| String::new(), |(line, _)| format!("line {line}: "));
        let text = error.to_string();
        let said = text.rsplit_once(" at line ").map_or(text.as_str(), |(said, _)| said);
        Unread::Reason(format!("{place}no JSON: {said}"))
    })
}
