//! Passes the bytes of a tokenizer.json to the tokenizers library, with a time limit and a guard against panics.

use std::path::Path;

use super::timed::Clock;
use super::{ProcessorError, Result, tokenizer_bounds};
use crate::outside::Budget;

/// Builds a tokenizer from the bytes of a tokenizer.json, which come from `path`. This is the only place that
/// passes such bytes to the library. It has a time limit, because the library normalizes the added tokens, and a
/// guard against panics.
///
/// # Errors
/// Returns `LoadTokenizer`, also if the file would take more memory than a file may.
pub(crate) fn build_tokenizer(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let refused = |message: String| ProcessorError::LoadTokenizer { path: path.into(), message };
    let budget = Budget::of(path);
    let memory = (bytes.len() as u64).saturating_mul(tokenizer_bounds::MEMORY);
    budget.take(memory).map_err(|source| ProcessorError::Read { path: path.into(), source: source.into() })?;
    let whole = bytes.to_vec();
    let built = Clock::default().run(whole.len(), move || tokenizers::Tokenizer::from_bytes(&whole));
    built.map_err(|e| refused(e.to_string()))
}
