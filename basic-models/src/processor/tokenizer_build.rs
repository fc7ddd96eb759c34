//! A tokenizer.json's bytes to the tokenizers library, with a clock and a guard.

use std::path::Path;

use super::timed::Clock;
use super::{ProcessorError, Result, tokenizer_bounds};
use crate::outside::Budget;

/// What the tokenizers library makes of a tokenizer.json's bytes, which come from `path`: the one place that hands it
/// any. It has a clock, since it normalizes the added tokens, and a guard against panics.
///
/// # Errors
/// `LoadTokenizer`, also where the file takes more memory than a file may.
pub(crate) fn build_tokenizer(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let refused = |message: String| ProcessorError::LoadTokenizer { path: path.into(), message };
    let budget = Budget::of(path);
    let memory = (bytes.len() as u64).saturating_mul(tokenizer_bounds::MEMORY);
    budget.take(memory).map_err(|source| ProcessorError::Read { path: path.into(), source: source.into() })?;
    let whole = bytes.to_vec();
    let built = Clock::default().run(whole.len(), move || tokenizers::Tokenizer::from_bytes(&whole));
    built.map_err(|e| refused(e.to_string()))
}
