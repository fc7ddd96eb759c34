//! Makes token ids, labels and the positions of images from rendered pieces, in a single tokenization.

use std::ops::Range;

use super::piece::overlaps;
use super::{Encoded, ProcessorError, RenderedPiece, Result, Tokenizer, expand_images};
use crate::config::Tiles;

/// The label of a token without a loss.
pub const IGNORE: i64 = -100;

/// A tokenized sample for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token, its id if the loss covers its prediction, otherwise [`IGNORE`].
    pub labels: Vec<i64>,
    /// For each image, the range of tokens that its visual embeddings and newlines replace.
    pub image_positions: Vec<Range<usize>>,
    /// The tiles of each image.
    pub tiles: Vec<Tiles>,
}

/// A tokenized prompt for generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each image, the range of tokens that its visual embeddings and newlines replace.
    pub image_positions: Vec<Range<usize>>,
    /// The tiles of each image.
    pub tiles: Vec<Tiles>,
}

/// Tokenizes the concatenated pieces once and labels each token by the pieces that it overlaps.
///
/// A token that overlaps both a prompt and an answer belongs to the answer, because the model has to generate it.
/// Tokens that the post-processor adds and image tokens have no loss. Special tokens in texts of users
/// ([`RenderedPiece::literal`]) are plain text. `images` has the tiles of each image, which determine its tokens. If the text begins with the beginning-of-sequence token (chat templates
/// write it), none is added, as in transformers' processors.
///
/// # Errors
/// Returns [`ProcessorError::PlaceholderCount`] unless the pieces contain an image token for each image, `MissingToken` or
/// `ImageTokenCount` if the tokenizer does not know the image token, `Tokenize`, and `NothingSupervised`.
pub fn tokenize(tokenizer: &Tokenizer, pieces: &[RenderedPiece], images: &[Tiles]) -> Result<Example> {
    let token = &tokenizer.specials().image;
    let placeholders = pieces.iter().map(|piece| piece.images(token).len()).sum();
    if placeholders != images.len() {
        return Err(ProcessorError::PlaceholderCount { placeholders, images: images.len(), token: token.clone() });
    }
    let counts: Vec<usize> = images.iter().map(Tiles::tokens).collect();
    let mut ahead = counts.as_slice();
    let mut whole = RenderedPiece::default();
    let mut answers: Vec<Range<usize>> = Vec::new();
    for piece in pieces {
        let start = whole.text.len();
        // There are as many counts as placeholders.
        let (own, rest) = ahead.split_at_checked(piece.images(token).len()).unwrap_or((ahead, &[]));
        whole.append(&piece.expanded(token, own)?);
        ahead = rest;
        match answers.last_mut() {
            _ if !piece.supervised => {}
            Some(last) if last.end == start => last.end = whole.text.len(),
            _ => answers.push(start..whole.text.len()),
        }
    }
    let encoded = encode(tokenizer, &whole)?;
    let image_positions = find_images(tokenizer, &encoded.ids, &counts)?;
    let mut labels = labels(&encoded, &answers);
    image_positions.iter().for_each(|places| labels[places.clone()].fill(IGNORE));
    if labels.iter().all(|&label| label == IGNORE) {
        return Err(ProcessorError::NothingSupervised { tokens: labels.len() });
    }
    Ok(Example { ids: encoded.ids, labels, image_positions, tiles: images.to_vec() })
}

/// Tokenizes a prompt for generation and expands its image tokens. The prompt comes from
/// [`render_prompt`](super::render_prompt) or was typed as text, in which special tokens are special.
///
/// # Errors
/// Returns the errors of [`tokenize`], except `NothingSupervised`.
pub fn tokenize_prompt(tokenizer: &Tokenizer, prompt: impl Into<RenderedPiece>, images: &[Tiles]) -> Result<Prompt> {
    let counts: Vec<usize> = images.iter().map(Tiles::tokens).collect();
    let prompt = prompt.into().expanded(&tokenizer.specials().image, &counts)?;
    let ids = encode(tokenizer, &prompt)?.ids;
    let image_positions = find_images(tokenizer, &ids, &counts)?;
    Ok(Prompt { ids, image_positions, tiles: images.to_vec() })
}

/// Makes a sample from a prompt and an answer that are tokenized *separately*, with the end-of-sequence token after the
/// answer, so that the boundary between them is a boundary between tokens. `basic losses` and its reference do this.
///
/// # Errors
/// Returns the errors of [`tokenize_prompt`], and `MissingToken` if there is no end-of-sequence token.
pub fn tokenize_apart(tokenizer: &Tokenizer, prompt: &str, answer: &str, images: &[Tiles]) -> Result<Example> {
    let counts: Vec<usize> = images.iter().map(Tiles::tokens).collect();
    // The reference's processor always adds special tokens, whatever the prompt begins with.
    let text = expand_images(prompt, &tokenizer.specials().image, &counts)?;
    let mut ids = tokenizer.encode(&text, true)?;
    let image_positions = find_images(tokenizer, &ids, &counts)?;
    let mut labels = vec![IGNORE; ids.len()];
    let mut tail = tokenizer.encode(answer, false)?;
    tail.push(tokenizer.eos_id()?);
    labels.extend(tail.iter().map(|&id| i64::from(id)));
    ids.extend(tail);
    Ok(Example { ids, labels, image_positions, tiles: images.to_vec() })
}

/// Tokenizes a whole sample or prompt. If the template wrote the beginning-of-sequence token, none is added.
fn encode(tokenizer: &Tokenizer, piece: &RenderedPiece) -> Result<Encoded> {
    let bos = tokenizer.specials().bos.as_deref().filter(|bos| !bos.is_empty());
    let begins = bos.is_some_and(|bos| piece.text.starts_with(bos) && !overlaps(&piece.literal, &(0..bos.len())));
    tokenizer.encode_with_literals(&piece.text, &piece.literal, !begins)
}

/// For each token, its id if it overlaps an answer. `answers` must be ascending and disjoint.
fn labels(encoded: &Encoded, answers: &[Range<usize>]) -> Vec<i64> {
    let mut before = 0; // where the text covered so far ends
    let mut next = 0; // the first answer that does not end before the token
    let tokens = encoded.ids.iter().zip(&encoded.spans).zip(&encoded.added);
    let label = |((&id, own), &added): ((&u32, &Range<usize>), &bool)| {
        if added {
            return IGNORE;
        }
        // Byte-level tokenizers may remove the space from a token's span, so that the span of a token that is only a
        // space is empty. Such a token covers the gap since the previous token; if there is no gap (the tokenizer
        // inserted the space), it belongs to the text that follows.
        let span = match (own.is_empty(), before < own.end) {
            (false, _) => own.clone(),
            (true, true) => before..own.end,
            (true, false) => own.end..own.end + 1,
        };
        before = before.max(own.end);
        while answers.get(next).is_some_and(|answer| answer.end <= span.start) {
            next += 1;
        }
        let overlaps = answers.get(next).is_some_and(|answer| answer.start < span.end);
        if overlaps { i64::from(id) } else { IGNORE }
    };
    tokens.map(label).collect()
}

/// For each image, the range of its tokens, of which there are `counts`.
fn find_images(tokenizer: &Tokenizer, ids: &[u32], counts: &[usize]) -> Result<Vec<Range<usize>>> {
    let expected = counts.iter().fold(0usize, |sum, count| sum.saturating_add(*count));
    let Some(id) = tokenizer.ids().image else {
        return if expected == 0 { Ok(Vec::new()) } else { tokenizer.image_id().map(|_| Vec::new()) };
    };
    let places: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == id).collect();
    let fail =
        || ProcessorError::ImageTokenCount { found: places.len(), expected, token: tokenizer.specials().image.clone() };
    if places.len() != expected {
        return Err(fail());
    }
    let mut ahead = places.as_slice();
    let mut next = |count: &usize| {
        let (run, rest) = ahead.split_at_checked(*count).ok_or_else(fail)?;
        ahead = rest;
        match (run.first(), run.last()) {
            (Some(first), Some(last)) if last - first + 1 == *count => Ok(*first..last + 1),
            (None, None) => Ok(0..0),
            _ => Err(fail()),
        }
    };
    counts.iter().filter(|count| **count > 0).map(&mut next).collect()
}
