//! Reads JSON from outside within a budget: its values can take up to a hundred times its bytes in memory.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::{Budget, OverBudget, read_text};

/// Bytes for the slot of a value in a growing list, including the list's room to grow.
const ITEM: u64 = 144;
/// Bytes for a list without its values: room for the first four.
const LIST: u64 = 288;
/// Bytes for an object without its values: room for the first four, their keys and their hashes.
const OBJECT: u64 = 560;

/// Why JSON could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unparsed {
    /// It is not JSON, or not of the expected form.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// It would take more than its budget.
    #[error(transparent)]
    Costly(#[from] OverBudget),
}

/// The most bytes of memory that the values of `json` can take.
pub fn json_bytes(json: &[u8]) -> u64 {
    let cost = |byte: &u8| match byte {
        b',' => ITEM,
        b'[' => LIST,
        b'{' => OBJECT,
        _ => 1,
    };
    json.iter().map(cost).sum()
}

/// Parses JSON. The memory for its values is taken from `budget` first.
///
/// # Errors
/// Returns [`Unparsed`].
pub fn parse_json(json: &[u8], budget: &Budget) -> Result<Value, Unparsed> {
    budget.take(json_bytes(json))?;
    Ok(serde_json::from_slice(json)?)
}

/// Reads a file of JSON as text, for a caller that parses it: [`read_text`] with a check that its values fit
/// the file's budget.
///
/// # Errors
/// Returns the errors of [`read_text`], and [`OverBudget`] if the values would not fit.
pub fn read_json_text(path: &Path) -> io::Result<String> {
    let text = read_text(path)?;
    check_json(text.as_bytes(), &Budget::of(path))?;
    Ok(text)
}

/// Checks that the values of a line of JSON fit in the rest of `budget`, without taking anything: a line that is parsed
/// into a type leaves little of its values in memory.
///
/// # Errors
/// Returns [`OverBudget`] if they do not fit.
pub fn check_json(json: &[u8], budget: &Budget) -> Result<(), OverBudget> {
    let bytes = json_bytes(json);
    budget.take(bytes)?;
    budget.give_back(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Unparsed, check_json, json_bytes, parse_json, read_json_text};
    use crate::outside::{Budget, FileLimits};

    #[test]
    fn small_values_are_counted_as_what_they_become_and_long_texts_as_they_are() {
        let lists = format!("[{}[0]]", "[0],".repeat(100_000));
        let objects = format!("[{}0]", r#"{"":0},"#.repeat(100_000));
        let text = format!("[{:?}]", "a long answer ".repeat(10_000));
        assert!(json_bytes(lists.as_bytes()) > 80 * lists.len() as u64);
        assert!(json_bytes(objects.as_bytes()) > 80 * objects.len() as u64);
        assert!(json_bytes(text.as_bytes()) < 2 * text.len() as u64);
        let budget = || Budget::within("a", FileLimits { bytes: 1 << 20, time: Duration::from_secs(60) });
        assert!(matches!(parse_json(lists.as_bytes(), &budget()), Err(Unparsed::Costly(_))));
        assert!(parse_json(text.as_bytes(), &budget()).unwrap().is_array());
        let left = budget();
        assert!(check_json(lists.as_bytes(), &left).is_err() && check_json(text.as_bytes(), &left).is_ok());
        assert_eq!(left.left(), 1 << 20);
        assert!(matches!(parse_json(b"[", &budget()), Err(Unparsed::Syntax(_))));
    }

    #[test]
    fn a_file_is_read_where_its_values_fit_its_budget_and_refused_where_they_do_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}{\"a\": [1, 2]}").unwrap();
        assert_eq!(read_json_text(file.path()).unwrap(), "{\"a\": [1, 2]}");
        // These values take more than a gibibyte, the default limit.
        std::fs::write(file.path(), format!("[{}0]", "[0],".repeat(3_000_000))).unwrap();
        assert!(read_json_text(file.path()).unwrap_err().to_string().contains("--file-bytes"));
    }
}
