//! Pieces of a rendered conversation, which record who wrote their text.

use std::ops::Range;

use super::{Message, PLACEHOLDER, ProcessorError, Result};

/// A piece of a rendered conversation.
///
/// All later steps (tokenization, labels, the positions of images) rely on what a piece records, so that no
/// text of a user or a data set can pass as the template's: a `</s>` in a question is four or five tokens of
/// text, not the end of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedPiece {
    /// The text, with one image token of the tokenizer for each image.
    pub text: String,
    /// Whether the loss covers it.
    pub supervised: bool,
    /// The byte ranges of `text` that a user or a data set wrote, ascending and disjoint: special tokens in them are
    /// plain text. The image tokens that replace placeholders are not part of them.
    pub literal: Vec<Range<usize>>,
}

impl RenderedPiece {
    /// A piece without a loss, in which special tokens are special.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A piece with a loss, in which special tokens are special.
    pub fn answer(text: impl Into<String>) -> Self {
        Self { supervised: true, ..Self::prompt(text) }
    }

    /// Appends text of the template.
    pub(super) fn fixed(&mut self, text: &str) -> &mut Self {
        self.text += text;
        self
    }

    /// Appends the text of a message; the placeholders of its images become the tokenizer's `image` tokens.
    pub(super) fn said(&mut self, message: &Message, image: &str) -> &mut Self {
        if !message.shows_images() {
            self.literal_text(&message.content);
            return self;
        }
        for (i, text) in message.content.split(PLACEHOLDER).enumerate() {
            if i > 0 {
                self.text += image;
            }
            self.literal_text(text);
        }
        self
    }

    /// Appends text in which no token is special.
    pub(super) fn literal_text(&mut self, text: &str) {
        let start = self.text.len();
        self.text += text;
        match self.literal.last_mut() {
            _ if text.is_empty() => {}
            Some(last) if last.end == start => last.end = self.text.len(),
            _ => self.literal.push(start..self.text.len()),
        }
    }

    /// Appends another piece, without its `supervised`.
    pub(super) fn append(&mut self, other: &Self) {
        let start = self.text.len();
        self.text += &other.text;
        self.literal.extend(other.literal.iter().map(|range| range.start + start..range.end + start));
    }

    /// The positions of those image tokens `token` that stand for an image: the ones outside what users wrote.
    pub(super) fn images(&self, token: &str) -> Vec<usize> {
        if token.is_empty() {
            return Vec::new();
        }
        let places = self.text.match_indices(token).map(|(at, _)| at);
        places.filter(|&at| !overlaps(&self.literal, &(at..at + token.len()))).collect()
    }

    /// The piece with `counts[i]` copies of the i-th image token, as in transformers' `LlavaProcessor`.
    ///
    /// # Errors
    /// Returns [`ProcessorError::PlaceholderCount`] unless there is one image token for each count.
    pub(super) fn expanded(&self, token: &str, counts: &[usize]) -> Result<Self> {
        let places = self.images(token);
        if places.len() != counts.len() {
            let (placeholders, images) = (places.len(), counts.len());
            return Err(ProcessorError::PlaceholderCount { placeholders, images, token: token.into() });
        }
        let mut out = Self { supervised: self.supervised, ..Self::default() };
        let mut literal = self.literal.iter().peekable();
        let mut copied = 0;
        let ends = places.into_iter().map(Some).chain([None]);
        for (image, place) in ends.enumerate() {
            let end = place.unwrap_or(self.text.len());
            let start = out.text.len();
            out.text += &self.text[copied..end];
            while let Some(range) = literal.next_if(|range| range.end <= end) {
                out.literal.push(range.start - copied + start..range.end - copied + start);
            }
            (0..counts.get(image).copied().unwrap_or(0)).for_each(|_| out.text += token);
            copied = end + place.map_or(0, |_| token.len());
        }
        Ok(out)
    }
}

impl From<&RenderedPiece> for RenderedPiece {
    fn from(piece: &RenderedPiece) -> Self {
        piece.clone()
    }
}

/// A typed prompt, in which special tokens are special.
impl From<&str> for RenderedPiece {
    fn from(text: &str) -> Self {
        Self::prompt(text)
    }
}

impl From<&String> for RenderedPiece {
    fn from(text: &String) -> Self {
        Self::prompt(text.as_str())
    }
}

/// Whether `span` shares a byte with any of `ranges`, which must be ascending and disjoint.
pub(super) fn overlaps(ranges: &[Range<usize>], span: &Range<usize>) -> bool {
    let first = ranges.partition_point(|range| range.end <= span.start);
    ranges.get(first).is_some_and(|range| range.start < span.end)
}
