//! New ids to text as they come: whole characters, the tokenizer's own spaces, and nothing of a stop string.

use crate::processor::{Result, Tokenizer};

/// Tokens decoded together, and how many of them stay when the others are settled: a token's text depends on whether it
/// is the first one, and bytes join into characters.
const WINDOW: usize = 64;
const KEPT: usize = 8;

/// Beginnings of what a tokenizer with `clean_up_tokenization_spaces` rewrites (" ." to ".", " n't" to "n't"): text that
/// ends so may yet change.
const UNSETTLED: [&str; 6] = [" n'", " 'v", " 'r", " n", " '", " "];

/// Decodes a sequence token by token. The pieces together are what decoding all ids at once gives, cut before the first
/// stop string.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    window: Vec<u32>,
    text: String,
    base: usize,        // bytes of `text` that come from ids before the window
    sent: usize,        // bytes of `text` that were handed out
    run: Option<usize>, // bytes of `text` before the byte tokens at its end, where there are any
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream that ends at any of `stop`; empty ones end nothing.
    pub fn new(tokenizer: &'a Tokenizer, stop: &'a [String]) -> Self {
        let (text, window) = (String::new(), Vec::new());
        Self { tokenizer, stop, window, text, base: 0, sent: 0, run: None, stopped: false }
    }

    /// Takes the next id and gives the text that is certain by now: possibly none.
    ///
    /// # Errors
    ///
    /// The tokenizer's.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        if self.stopped {
            return Ok("");
        }
        let before = self.text.len();
        self.window.push(id);
        let tail = self.tokenizer.decode(&self.window, true)?;
        self.text.truncate(self.base);
        self.text.push_str(&tail);
        // Byte tokens decode together once their run ends, and to other characters if it is no UTF-8.
        self.run = is_byte(self.tokenizer, id).then(|| self.run.unwrap_or(before));
        let end = match self.stop_at() {
            Some(at) => {
                self.stopped = true;
                self.text.truncate(at);
                at
            }
            None => self.certain(),
        };
        self.settle()?;
        Ok(self.hand_out(end))
    }

    /// Gives what was held back: there will be no more ids.
    pub fn finish(&mut self) -> &str {
        self.hand_out(self.text.len())
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// All pieces together.
    pub fn into_text(mut self) -> String {
        self.text.truncate(self.sent);
        self.text
    }

    fn hand_out(&mut self, end: usize) -> &str {
        let start = self.sent.min(end);
        self.sent = self.sent.max(end);
        self.text.get(start..end).unwrap_or_default()
    }

    /// Where the first stop string begins. It lies behind what was handed out: the beginning of one is held back.
    fn stop_at(&self) -> Option<usize> {
        let new = self.text.get(self.sent..)?;
        let found = self.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| new.find(stop.as_str()));
        found.min().map(|at| self.sent + at)
    }

    /// Up to where no further id changes the text, nor makes a stop string of its end.
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

    /// Shortens the window, so that long texts are not decoded again and again.
    fn settle(&mut self) -> Result<()> {
        if self.window.len() < WINDOW || self.run.is_some() {
            return Ok(());
        }
        let kept = &self.window[self.window.len() - KEPT..];
        let tail = self.tokenizer.decode(kept, true)?;
        // A window that begins within a character or with bytes decodes to something else.
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
