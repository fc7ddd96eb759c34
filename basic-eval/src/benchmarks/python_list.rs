//! Reads a list of texts as Python writes it: `['a', "b's"]`. Benchmarks hold lists in this form in cells of text.

/// The texts of the list; `None` if the text is no list of texts.
pub(super) fn parse(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('[')?.trim_start();
    let mut items = Vec::new();
    loop {
        if let Some(end) = rest.strip_prefix(']') {
            return end.trim().is_empty().then_some(items);
        }
        let (item, after) = quoted(rest)?;
        items.push(item);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.starts_with(']') => {}
            None => return None,
        }
    }
}

/// The text in quotes at the beginning, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
    let mut chars = text.char_indices().skip(1);
    let mut out = String::new();
    while let Some((at, char)) = chars.next() {
        match char {
            _ if char == quote => return Some((out, &text[at + 1..])),
            '\\' => {
                let (_, escaped) = chars.next()?;
                match escaped {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    '\\' | '\'' | '"' => out.push(escaped),
                    'x' | 'u' | 'U' => {
                        let digits = match escaped {
                            'x' => 2,
                            'u' => 4,
                            _ => 8,
                        };
                        let code =
                            (0..digits).map(|_| chars.next().map(|(_, digit)| digit)).collect::<Option<String>>();
                        out.push(char::from_u32(u32::from_str_radix(&code?, 16).ok()?)?);
                    }
                    // Python keeps the backslash of what is no escape, as in LaTeX.
                    other => out.extend(['\\', other]),
                }
            }
            _ => out.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lists_of_texts_are_read_with_their_escapes_and_all_else_is_refused() {
        let found = |text| parse(text).map(|items| items.join("|"));
        assert_eq!(found(r#"['$6', "b's", 'c\'d', "\u00e9\x41\n"]"#).as_deref(), Some("$6|b's|c'd|\u{e9}A\n"));
        assert_eq!(found(r"['\frac{1}{2}', ]").as_deref(), Some(r"\frac{1}{2}"));
        assert_eq!((found("[]").as_deref(), found(" [ 'é,]' ] ").as_deref()), (Some(""), Some("é,]")));
        for wrong in ["", "[", "['a'", "['a' 'b']", "[1]", "['a']x", r"['\", r"['\x4']", r"['\ud800']", "['a"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
