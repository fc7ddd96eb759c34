//! Reading files that others wrote: limits on their cost, and panics of libraries on damaged files.
//!
//! Every reader of outside files takes from a [`Budget`] before it allocates, so that a small file cannot fill the
//! memory, and calls libraries that may panic on damaged bytes through [`guarded`]. [`excerpt`] shortens values that
//! messages quote from such files. docs/limits.md lists the limits and says how to raise them.

mod budget;
mod guard;
mod json;

pub use budget::{Budget, FileLimits, OverBudget, file_limits, read, read_text, set_file_limits};
pub use guard::guarded;
pub use json::{Unparsed, check_json, json_bytes, parse_json, read_json_text};

/// The most characters of an outside value that a message repeats.
const EXCERPT: usize = 120;

/// A value from outside as a message quotes it: the whole value, or its beginning and its length.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT) {
        None => text.into(),
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::excerpt;

    #[test]
    fn a_long_value_is_cut_between_characters_and_its_length_is_told() {
        assert_eq!(excerpt("short"), "short");
        let long = "é".repeat(100_000);
        let said = excerpt(&long);
        assert!(said.ends_with("… (200000 bytes)"), "{said}");
        assert!(said.len() < 300, "{said}");
    }
}
