//! JSON from outside, whose values take up to a hundred times its bytes in memory.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::{Budget, OverBudget, read_text};

/// What the place of a value in a list that grows takes, the list's room to grow included.
const ITEM: u64 = 144;
/// What a list takes beside its values: room for the first four.
const LIST: u64 = 288;
/// What an object takes beside its values: room for the first four, their keys and their hashes.
const OBJECT: u64 = 560;

/// Why JSON was not read.
#[derive(Debug, thiserror::Error)]
pub enum Unparsed {
    /// It is none, or not what was expected.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// It would take more than its budget.
    #[error(transparent)]
    Costly(#[from] OverBudget),
}

/// What the values of `json` take in memory, at most.
pub fn json_bytes(json: &[u8]) -> u64 {
    let cost = |byte: &u8| match byte {
        b',' => ITEM,
        b'[' => LIST,
        b'{' => OBJECT,
        _ => 1,
    };
    json.iter().map(cost).sum()
}

/// Parses JSON, for whose values it takes from `budget` before it makes them.
///
/// # Errors
/// [`Unparsed`].
pub fn parse_json(json: &[u8], budget: &Budget) -> Result<Value, Unparsed> {
    budget.take(json_bytes(json))?;
    Ok(serde_json::from_slice(json)?)
}

/// The text of a file of JSON, whose values fit the file's budget: [`read_text`] for what is to be parsed.
///
/// # Errors
/// Those of [`read_text`], and what its values would take.
pub fn read_json_text(path: &Path) -> io::Result<String> {
    let text = read_text(path)?;
    check_json(text.as_bytes(), &Budget::of(path))?;
    Ok(text)
}

/// Checks that the values of a line of JSON fit into what is left of `budget`, and takes nothing: what is made of a line that
/// is parsed into a type is little of it.
///
/// # Errors
/// [`OverBudget`].
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
        // A gibibyte, which nobody raised.
        std::fs::write(file.path(), format!("[{}0]", "[0],".repeat(3_000_000))).unwrap();
        assert!(read_json_text(file.path()).unwrap_err().to_string().contains("--file-bytes"));
    }
}
