//! Finds the positions of the samples in a JSON file in one pass, without holding any of them in memory.
//!
//! The pass recognizes only strings, escapes and brackets. Everything between two commas is left to serde_json, which
//! parses it when the sample is read.

use std::io::{self, Read};
use std::ops::Range;

/// Why a file could not be split into samples.
#[derive(Debug)]
pub(super) enum ScanError {
    /// The file could not be read.
    Io(io::Error),
    /// The file is not a JSON array of samples from this byte on.
    Syntax { offset: u64, reason: &'static str },
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A buffered reader that tracks its offset.
struct Bytes<R> {
    reader: R,
    buffer: Vec<u8>,
    filled: usize,
    at: usize,
    /// The offset of the buffer's first byte.
    base: u64,
}

impl<R: Read> Bytes<R> {
    fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; 1 << 18], filled: 0, at: 0, base: 0 }
    }

    fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The bytes from the current position to the end of the buffer; empty at the end of the file.
    fn rest(&mut self) -> io::Result<&[u8]> {
        while self.at == self.filled {
            self.base += self.filled as u64;
            (self.at, self.filled) = (0, 0);
            match self.reader.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => self.filled = read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.at..self.filled])
    }

    /// Advances to the next occurrence of either byte, without consuming it.
    fn skip_to(&mut self, first: u8, second: u8) -> io::Result<Option<u8>> {
        loop {
            let rest = self.rest()?;
            if rest.is_empty() {
                return Ok(None);
            }
            match memchr::memchr2(first, second, rest) {
                Some(place) => {
                    let byte = rest[place];
                    self.at += place;
                    return Ok(Some(byte));
                }
                None => self.at = self.filled,
            }
        }
    }

    /// Advances over bytes that satisfy `skip`; returns the byte after them, if any, without consuming it.
    fn skip_while(&mut self, skip: impl Fn(u8) -> bool) -> io::Result<Option<u8>> {
        loop {
            let rest = self.rest()?;
            if rest.is_empty() {
                return Ok(None);
            }
            match rest.iter().position(|byte| !skip(*byte)) {
                Some(place) => {
                    let byte = rest[place];
                    self.at += place;
                    return Ok(Some(byte));
                }
                None => self.at = self.filled,
            }
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The UTF-8 byte-order mark that some editors put at the beginning of a file.
pub(super) const MARK: &[u8] = b"\xef\xbb\xbf";

/// The byte ranges of the first `limit` elements of a JSON array.
pub(super) fn array_elements(reader: impl Read, limit: usize) -> Result<Vec<Range<u64>>, ScanError> {
    let mut bytes = Bytes::new(reader);
    let syntax = |offset, reason| Err(ScanError::Syntax { offset, reason });
    bytes.skip_while(|byte| MARK.contains(&byte))?;
    if bytes.skip_while(is_space)? != Some(b'[') {
        return syntax(bytes.offset(), "expected '['");
    }
    bytes.at += 1;
    let mut elements = Vec::new();
    while elements.len() < limit {
        let found = bytes.skip_while(is_space)?;
        let start = bytes.offset();
        match found {
            None => return syntax(start, "the file ends inside the array: is it truncated?"),
            Some(b']') if elements.is_empty() => {}
            Some(b',' | b']' | b'}') => return syntax(start, "expected a sample"),
            Some(_) => elements.push(start..element_end(&mut bytes, b']')?),
        }
        if bytes.skip_while(is_space)? == Some(b']') {
            bytes.at += 1;
            if bytes.skip_while(is_space)?.is_some() {
                return syntax(bytes.offset(), "more follows after the array");
            }
            break;
        }
        bytes.at += 1; // the comma, at which `element_end` stopped
    }
    Ok(elements)
}

/// The longest name of a member that is looked for.
const LONGEST: usize = 64;

/// The byte ranges of the values of a JSON object's members with these names; of several members of one name, that of the
/// last.
pub(super) fn members<const N: usize>(
    reader: impl Read,
    names: [&str; N],
) -> Result<[Option<Range<u64>>; N], ScanError> {
    let mut bytes = Bytes::new(reader);
    let syntax = |offset, reason| Err(ScanError::Syntax { offset, reason });
    let mut found = [const { None }; N];
    bytes.skip_while(|byte| MARK.contains(&byte))?;
    if bytes.skip_while(is_space)? != Some(b'{') {
        return syntax(bytes.offset(), "expected '{'");
    }
    bytes.at += 1;
    loop {
        match bytes.skip_while(is_space)? {
            Some(b'"') => {}
            Some(b'}') => return Ok(found),
            None => return syntax(bytes.offset(), "the file ends inside the object: is it truncated?"),
            Some(_) => return syntax(bytes.offset(), "expected a name in quotes"),
        }
        let name = short_name(&mut bytes)?;
        if bytes.skip_while(is_space)? != Some(b':') {
            return syntax(bytes.offset(), "expected ':'");
        }
        bytes.at += 1;
        bytes.skip_while(is_space)?;
        let start = bytes.offset();
        let end = element_end(&mut bytes, b'}')?;
        if let Some(place) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            found[place] = Some(start..end);
        }
        if bytes.skip_while(is_space)? == Some(b',') {
            bytes.at += 1;
        }
    }
}

/// The name that begins at a quote, up to its end; of a name that is too long, only its beginning. Escapes stay as they
/// are written.
fn short_name(bytes: &mut Bytes<impl Read>) -> Result<Vec<u8>, ScanError> {
    let start = bytes.offset();
    bytes.at += 1;
    let (mut name, mut escaped) = (Vec::new(), false);
    loop {
        let Some(byte) = bytes.rest()?.first().copied() else {
            return Err(ScanError::Syntax { offset: start, reason: "a text that begins here is never closed" });
        };
        bytes.at += 1;
        if byte == b'"' && !escaped {
            return Ok(name);
        }
        escaped = byte == b'\\' && !escaped;
        if name.len() <= LONGEST {
            name.push(byte);
        }
    }
}

/// Advances to the comma or the bracket `close` that ends an element; returns the offset after its last byte that is not
/// white space.
fn element_end(bytes: &mut Bytes<impl Read>, close: u8) -> Result<u64, ScanError> {
    let mut depth = 0usize;
    let mut end = bytes.offset();
    loop {
        let plain = |byte| !matches!(byte, b'"' | b'[' | b'{' | b']' | b'}' | b',') && !is_space(byte);
        let from = bytes.offset();
        let found = bytes.skip_while(plain)?;
        if bytes.offset() > from {
            end = bytes.offset();
        }
        match found {
            None => {
                let reason = "the file ends inside a sample: is it truncated?";
                return Err(ScanError::Syntax { offset: bytes.offset(), reason });
            }
            Some(byte) if depth == 0 && (byte == b',' || byte == close) => return Ok(end),
            Some(b'"') => {
                skip_string(bytes)?;
                end = bytes.offset();
                continue;
            }
            Some(b'[' | b'{') => depth += 1,
            // An extra closing bracket is reported by serde_json.
            Some(b']' | b'}') => depth = depth.saturating_sub(1),
            Some(byte) if is_space(byte) => {
                bytes.at += 1;
                continue;
            }
            Some(_) => {}
        }
        bytes.at += 1;
        end = bytes.offset();
    }
}

/// Advances from an opening quote to just after the closing one.
fn skip_string(bytes: &mut Bytes<impl Read>) -> Result<(), ScanError> {
    let start = bytes.offset();
    let open = |offset| ScanError::Syntax { offset, reason: "a text that begins here is never closed" };
    bytes.at += 1;
    loop {
        match bytes.skip_to(b'"', b'\\')? {
            None => return Err(open(start)),
            Some(b'"') => {
                bytes.at += 1;
                return Ok(());
            }
            Some(_) => {
                bytes.at += 1;
                if bytes.rest()?.is_empty() {
                    return Err(open(start));
                }
                bytes.at += 1; // the escaped byte
            }
        }
    }
}

/// The byte ranges of the first `limit` lines that are not blank.
pub(super) fn lines(reader: impl Read, limit: usize) -> Result<Vec<Range<u64>>, ScanError> {
    let mut bytes = Bytes::new(reader);
    bytes.skip_while(|byte| MARK.contains(&byte))?;
    let mut lines = Vec::new();
    while lines.len() < limit && bytes.skip_while(is_space)?.is_some() {
        let start = bytes.offset();
        bytes.skip_to(b'\n', b'\n')?;
        lines.push(start..bytes.offset());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::{ScanError, array_elements, lines, members};

    #[test]
    fn members_of_an_object_are_found_by_name() {
        let text = r#" {"a": [1, {"b": 2}], "b" :"x,}" , "\"c": 3, "b": {"d": 5} }"#;
        let found = members(Slowly(text.as_bytes()), ["b", "a", "c"]).unwrap();
        let told = found.map(|range| range.map(|range| &text[range.start as usize..range.end as usize]));
        assert_eq!(told, [Some(r#"{"d": 5}"#), Some(r#"[1, {"b": 2}]"#), None]);
        assert_eq!(members(&b"{}"[..], ["a"]).unwrap(), [None]);
        for wrong in ["", "[]", "{\"a\" 1}", "{\"a\": 1", "{\"a", "{a: 1}", "{\"a\": [1}"] {
            assert!(members(wrong.as_bytes(), ["a"]).is_err(), "{wrong}");
        }
    }

    /// Returns one byte at a time, so that every boundary falls between two reads.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let taken = self.0.len().min(1).min(buffer.len());
            buffer[..taken].copy_from_slice(&self.0[..taken]);
            self.0 = &self.0[taken..];
            Ok(taken)
        }
    }

    fn elements(text: &str) -> Result<Vec<&str>, (u64, &'static str)> {
        let found = array_elements(Slowly(text.as_bytes()), usize::MAX);
        match found {
            Ok(ranges) => Ok(ranges.into_iter().map(|r| &text[r.start as usize..r.end as usize]).collect()),
            Err(ScanError::Syntax { offset, reason }) => Err((offset, reason)),
            Err(ScanError::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn elements_are_found_whatever_their_texts_hold() {
        let text = r#" [ {"a": "x,]}\"[{\\"} ,[1, {"b": []}] , 3,"t" , null ] "#;
        let expected = [r#"{"a": "x,]}\"[{\\"}"#, r#"[1, {"b": []}]"#, "3", r#""t""#, "null"];
        assert_eq!(elements(text).unwrap(), expected);
        assert_eq!(elements("[]").unwrap(), Vec::<&str>::new());
        assert_eq!(array_elements("[1,2,3".as_bytes(), 2).unwrap(), [1..2, 3..4], "the rest is not looked at");
    }

    #[test]
    fn what_is_no_array_is_told_by_its_place() {
        for (text, offset, mention) in [
            ("{}", 0, "'['"),
            ("", 0, "'['"),
            ("[1, ", 4, "truncated"),
            ("[{\"a\": 1", 8, "truncated"),
            ("[\"abc", 1, "never closed"),
            ("[\"abc\\", 1, "never closed"),
            ("[1,,2]", 3, "expected a sample"),
            ("[1,]", 3, "expected a sample"),
            ("[1] 2", 4, "more follows"),
        ] {
            let (at, reason) = elements(text).unwrap_err();
            assert!(at == offset && reason.contains(mention), "{text}: {at} {reason}");
        }
    }

    #[test]
    fn blank_lines_hold_no_sample() {
        let text = "\u{feff}{\"a\": 1}\r\n\n  \n {}";
        let found: Vec<&str> = lines(Slowly(text.as_bytes()), 9)
            .unwrap()
            .into_iter()
            .map(|r| &text[r.start as usize..r.end as usize])
            .collect();
        assert_eq!(found, ["{\"a\": 1}\r", "{}"]);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".*", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_elements_of_any_array_are_those_that_serde_json_finds(values in prop::collection::vec(json(), 0..6), pretty: bool) {
            let value = Value::from(values.clone());
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            let found: Vec<Value> =
                elements(&text).unwrap().into_iter().map(|e| serde_json::from_str(e).unwrap()).collect();
            prop_assert_eq!(found, values);
        }
    }
}
