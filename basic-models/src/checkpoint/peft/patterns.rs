//! PEFT's `alpha_pattern`: values for layers whose names end with an expression.

use regex::{Regex, RegexBuilder};

/// The most entries.
pub(super) const MOST: usize = 1 << 16;

/// The most entries that are regular expressions instead of names.
pub(super) const MOST_EXPRESSIONS: usize = 1000;

/// The most bytes of a compiled expression.
const SIZE: usize = 1 << 18;

/// The expression of an entry.
#[derive(Debug)]
pub(super) enum Pattern {
    /// Letters, digits, `_`, `-`, and dots, which match any character.
    Name(String),
    /// Anything else.
    Expression(Box<Regex>),
}

impl Pattern {
    /// Reads an expression; `None` if it is not valid.
    pub fn new(text: &str) -> Option<Self> {
        if text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return Some(Self::Name(text.into()));
        }
        let whole = format!(r"^(?:.*\.)?(?:{text})$");
        let expression = RegexBuilder::new(&whole).size_limit(SIZE).dfa_size_limit(SIZE).build().ok()?;
        Some(Self::Expression(Box::new(expression)))
    }

    /// Whether it is a regular expression instead of a name.
    pub fn is_expression(&self) -> bool {
        matches!(self, Self::Expression(_))
    }

    /// Whether a layer's name equals it or ends with it.
    pub fn matches(&self, layer: &str) -> bool {
        match self {
            Self::Expression(expression) => expression.is_match(layer),
            Self::Name(name) => {
                let Some(before) = layer.len().checked_sub(name.len()) else { return false };
                let (before, end) = layer.as_bytes().split_at(before);
                let same = |(wanted, found): (&u8, &u8)| wanted == found || (*wanted == b'.' && *found != b'\n');
                before.last().is_none_or(|last| *last == b'.') && name.as_bytes().iter().zip(end).all(same)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn a_name_matches_what_its_expression_would() {
        let layers = ["a.b.q_proj", "q_proj", "a.bq_proj", "a.bXq_proj", "proj", ""];
        for name in ["q_proj", "b.q_proj", "proj", "a.b.q_proj", "x.a.b.q_proj"] {
            let ours = Pattern::new(name).unwrap();
            assert!(!ours.is_expression());
            let theirs = Pattern::new(&format!("(?:{name})")).unwrap();
            assert!(theirs.is_expression());
            for layer in layers {
                assert_eq!(ours.matches(layer), theirs.matches(layer), "{name} in {layer}");
            }
        }
    }

    #[test]
    fn an_expression_of_any_size_is_refused() {
        assert!(Pattern::new(r"((a{1000}){1000}){1000}").is_none());
        assert!(Pattern::new("(").is_none());
    }
}
