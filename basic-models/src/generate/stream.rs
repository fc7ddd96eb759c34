//! Turns new ids into text as they are generated: in whole characters, with the tokenizer's spaces, and
//! without stop strings.

use std::borrow::Cow;

use crate::processor::{Result, Tokenizer};

/// The number of tokens that are decoded together, and how many of them remain when the others are settled. Decoding
/// needs several, because a token's text depends on whether it is the first one, and bytes join into characters.
const WINDOW: usize = 64;
const KEPT: usize = 8;

/// Beginnings of texts that a tokenizer with `clean_up_tokenization_spaces` rewrites (" ." to ".", " n't" to "n't").
/// Text that ends with one of them may still change.
const UNSETTLED: [&str; 6] = [" n'", " 'v", " 'r", " n", " '", " "];

/// Decodes a sequence token by token. The pieces together equal the text of all ids decoded at once, cut before the
/// first stop string.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stop: Cow<'a, [String]>,
    window: Vec<u32>,
    text: String,
    base: usize,        // bytes of `text` from ids before the window
    sent: usize,        // bytes of `text` that were returned already
    run: Option<usize>, // bytes of `text` before the byte tokens at its end, if there are any
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream that ends at any of `stop`; empty stop strings are ignored.
    pub fn new(tokenizer: &'a Tokenizer, stop: impl Into<Cow<'a, [String]>>) -> Self {
        let (text, window, stop) = (String::new(), Vec::new(), stop.into());
        Self { tokenizer, stop, window, text, base: 0, sent: 0, run: None, stopped: false }
    }

    /// Takes the next id and returns the text that is final by now, which may be empty.
    ///
    /// # Errors
    ///
    /// Returns the tokenizer's errors.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        if self.stopped {
            return Ok("");
        }
        let before = self.text.len();
        self.window.push(id);
        let tail = self.tokenizer.decode(&self.window, true)?;
        self.text.truncate(self.base);
        self.text.push_str(&tail);
        // Byte tokens are decoded together when their run ends, and to other characters if it is not UTF-8.
        self.run = is_byte(self.tokenizer, id).then(|| self.run.unwrap_or(before));
        let end = match self.stop_at() {
            // The text may now end before the window begins: nothing more is decoded.
            Some(at) => {
                self.stopped = true;
                self.text.truncate(at);
                at
            }
            None => {
                self.settle()?;
                self.certain()
            }
        };
        Ok(self.hand_out(end))
    }

    /// Returns the text that was held back, after the last id.
    pub fn finish(&mut self) -> &str {
        self.hand_out(self.text.len())
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text of all pieces.
    pub fn into_text(mut self) -> String {
        self.text.truncate(self.sent);
        self.text
    }

    fn hand_out(&mut self, end: usize) -> &str {
        let start = self.sent.min(end);
        self.sent = self.sent.max(end);
        self.text.get(start..end).unwrap_or_default()
    }

    /// The position of the first stop string. It is after what was returned, because the beginning of a stop
    /// string is held back.
    fn stop_at(&self) -> Option<usize> {
        let new = self.text.get(self.sent..)?;
        let found = self.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| new.find(stop.as_str()));
        found.min().map(|at| self.sent + at)
    }

    /// The length of the text that no further id changes and whose end cannot begin a stop string.
    fn certain(&self) -> usize {
        let text = self.run.and_then(|run| self.text.get(..run)).unwrap_or(&self.text);
        let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let unsettled = UNSETTLED.into_iter().find(|end| text.ends_with(end)).map_or(0, str::len);
        let text = &text[..text.len() - unsettled];
        let begun = |stop: &String| {
            let mut lengths = (1..stop.len()).rev().filter(|n| stop.is_char_boundary(*n));
            lengths.find(|n| text.ends_with(&stop[..*n])).unwrap_or(0)
        };
        text.len() - self.stop.iter().map(begun).max().unwrap_or(0)
    }

    /// Shortens the window, so that long texts are not decoded repeatedly.
    fn settle(&mut self) -> Result<()> {
        if self.window.len() < WINDOW || self.run.is_some() {
            return Ok(());
        }
        let kept = &self.window[self.window.len() - KEPT..];
        let tail = self.tokenizer.decode(kept, true)?;
        // A window that begins within a character or with byte tokens would be decoded differently.
        if !tail.is_empty() && !is_byte(self.tokenizer, kept[0]) && self.text[self.base..].ends_with(&tail) {
            self.window.drain(..self.window.len() - KEPT);
            self.base = self.text.len() - tail.len();
        }
        Ok(())
    }
}

/// Whether a token stands for one byte (`<0xE4>` in SentencePiece's vocabularies).
fn is_byte(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer.token_of(id).is_some_and(|token| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'))
}
