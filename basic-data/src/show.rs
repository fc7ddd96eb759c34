//! Shows one sample as training sees it: its tokens, and which of them bear loss.

use basic_models::processor::IGNORE;
use serde::Serialize;

use super::{DataError, Preparer, Sample};

/// A token of a sample, or the run of tokens that stands for an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Token {
    /// The token's id.
    pub id: u32,
    /// The token as it is written in the vocabulary.
    pub text: String,
    /// Number of tokens that this entry stands for: 1, or all those of an image.
    pub count: usize,
    /// Whether the token bears loss.
    pub loss: bool,
}

/// The tokens of a sample; the tokens of an image form one entry.
///
/// # Errors
///
/// Those of [`Preparer::prepare`].
pub fn tokens(sample: &Sample, preparer: &Preparer) -> Result<Vec<Token>, DataError> {
    let prepared = preparer.prepare(sample)?.tokens;
    let ends: Vec<(usize, usize)> = prepared.images.iter().filter_map(|run| Some((*run.first()?, run.len()))).collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some((id, label)) = prepared.ids.get(at).zip(prepared.labels.get(at)) {
        let count = ends.iter().find(|(start, _)| *start == at).map_or(1, |(_, count)| (*count).max(1));
        let text = preparer.tokenizer().token_of(*id).unwrap_or_default();
        tokens.push(Token { id: *id, text, count, loss: *label != IGNORE });
        at += count;
    }
    Ok(tokens)
}
