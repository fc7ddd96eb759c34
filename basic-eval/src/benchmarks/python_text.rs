//! What Python's `str` and `float` do, where official scripts depend on it.

/// Whether Python's `str.split` and `str.strip` take the character for white space.
pub(super) fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\x1c'..='\x1f').contains(&char)
}

/// The words that Python's `text.split()` gives.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The number that Python's `float(text)` gives; `None` where it raises an error.
pub(super) fn float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    if !text.contains('_') {
        return text.parse().ok();
    }
    // Python allows an underscore between two digits.
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let fit = (0..bytes.len()).filter(|at| bytes[*at] == b'_');
    fit.clone().all(|at| digit(at.checked_sub(1)) && digit(Some(at + 1))).then(|| text.replace('_', "").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        for (text, number) in [
            (" 1.5\n", Some(1.5)),
            ("1e3", Some(1000.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("1_000", Some(1000.0)),
            ("+7", Some(7.0)),
            ("-inf", Some(f64::NEG_INFINITY)),
            ("1__0", None),
            ("_1", None),
            ("1,000", None),
            ("", None),
            ("0x10", None),
        ] {
            assert_eq!(float(text), number, "{text}");
        }
        assert!(float("NaN").unwrap().is_nan());
        assert_eq!(split(" a\x1cb\u{a0}c\n").collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
