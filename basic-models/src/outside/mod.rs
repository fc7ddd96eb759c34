//! Files that somebody else wrote: what reading one may cost, and what becomes of a library that gives up on one.
//!
//! Every reader of outside files takes from a [`Budget`] before it allocates, so that a small file cannot eat the machine,
//! and calls libraries that may panic on damaged bytes through [`guarded`]. [`excerpt`] keeps messages short that quote
//! such files. docs/limits.md names the limits and how to raise them.

mod budget;
mod guard;
mod json;

pub use budget::{Budget, FileLimits, OverBudget, file_limits, read, read_text, set_file_limits};
pub use guard::guarded;
pub use json::{Unparsed, check_json, json_bytes, parse_json, read_json_text};

/// The longest stretch of an outside value that a message repeats, in characters.
const EXCERPT: usize = 120;

/// What a message says of a value from outside: the value, or its beginning and how long it is.
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
