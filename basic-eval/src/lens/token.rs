//! The readable texts of vocabulary tokens.

use std::collections::HashMap;

use basic_models::processor::Tokenizer;
use serde::Serialize;

/// The characters for a space that mark the beginning of a word, in SentencePiece and in byte-level tokenizers.
const WORD_STARTS: [char; 2] = ['\u{2581}', '\u{0120}'];

/// A token of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenText {
    /// The token as the vocabulary writes it; `None` for a row of the embedding table that has no token.
    pub token: Option<String>,
    /// The token's text, including a space before it; as the vocabulary writes it if it is only part of a character.
    pub text: String,
    /// The text without outer spaces, in lower case.
    #[serde(skip)]
    pub folded: String,
    /// Whether the token is a whole word: it consists of at least three letters and, in a vocabulary that marks the
    /// beginnings of words, it has that mark.
    #[serde(skip)]
    pub word: bool,
}

/// The tokens of a tokenizer, each decoded once.
#[derive(Debug)]
pub struct TokenTexts<'a> {
    tokenizer: &'a Tokenizer,
    marked: bool,
    known: HashMap<u32, TokenText>,
}

impl<'a> TokenTexts<'a> {
    /// The tokens of `tokenizer`.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let last = tokenizer.largest_id().map_or(0, |(_, id)| id);
        let starts = |id| {
            tokenizer.token_of(id).is_some_and(|token| token.chars().count() > 1 && token.starts_with(WORD_STARTS))
        };
        Self { tokenizer, marked: (0..=last).any(starts), known: HashMap::new() }
    }

    /// The token of a row of the embedding table.
    pub fn get(&mut self, id: u32) -> &TokenText {
        let (tokenizer, marked) = (self.tokenizer, self.marked);
        self.known.entry(id).or_insert_with(|| {
            let token = tokenizer.token_of(id);
            let text = token.as_ref().map_or_else(|| format!("(row {id})"), |token| readable(tokenizer, id, token));
            let folded = fold(&text);
            let letters = folded.chars().all(char::is_alphabetic) && folded.chars().count() >= 3;
            let starts = !marked || token.as_ref().is_some_and(|token| token.starts_with(WORD_STARTS));
            TokenText { word: token.is_some() && letters && starts, folded, token, text }
        })
    }
}

/// A token's text. SentencePiece's decoders drop the first space of a text, so the mark for a space is replaced here.
fn readable(tokenizer: &Tokenizer, id: u32, token: &str) -> String {
    if token.starts_with(WORD_STARTS[0]) {
        return token.replace(WORD_STARTS[0], " ");
    }
    match tokenizer.decode(&[id], false) {
        Ok(text) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) => text,
        _ => token.to_string(),
    }
}

/// The text without outer spaces, in lower case.
pub(super) fn fold(text: &str) -> String {
    text.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use basic_models::processor::TokenIds;
    use serde_json::json;

    use super::*;

    fn tokenizer(tokens: &[&str]) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0]},
        });
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::load(dir.path(), &TokenIds::default()).unwrap()
    }

    #[test]
    fn where_beginnings_of_words_are_marked_only_they_are_whole_words() {
        let tokenizer = tokenizer(&["\u{2581}Dog", "house", "\u{2581}of", "\u{2581}x1y", "\u{2581}"]);
        let mut texts = TokenTexts::new(&tokenizer);
        let dog = texts.get(0).clone();
        assert_eq!((dog.text.as_str(), dog.folded.as_str(), dog.word), (" Dog", "dog", true));
        let house = texts.get(1).clone();
        assert_eq!((house.text.as_str(), house.word), ("house", false), "it goes on another word");
        assert!(!texts.get(2).word && !texts.get(3).word && !texts.get(4).word);
    }

    #[test]
    fn without_marks_three_letters_make_a_word() {
        let tokenizer = tokenizer(&["red", "a", "it's"]);
        let mut texts = TokenTexts::new(&tokenizer);
        assert_eq!([0, 1, 2].map(|id| texts.get(id).word), [true, false, false]);
    }

    #[test]
    fn a_row_without_a_token_says_so_and_is_no_word() {
        let tokenizer = tokenizer(&["red"]);
        let mut texts = TokenTexts::new(&tokenizer);
        let row = texts.get(70);
        assert_eq!((row.token.as_ref(), row.text.as_str(), row.word), (None, "(row 70)", false));
    }
}
