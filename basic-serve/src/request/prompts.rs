//! The prompts of a completion: texts, or lists of token ids.

use basic_data::ImageSource;
use basic_models::processor::{Prompt, tokenize_prompt};
use serde_json::Value;

use super::fields::expected;
use super::images;
use super::sampling::may_fit;
use crate::engine::Engine;
use crate::error::ApiError;

/// The most prompts of a request.
const MOST_PROMPTS: usize = 256;

/// Reads `prompt`: a text, a list of texts, a list of token ids, or a list of those. Each has a placeholder for each of
/// `images`; in texts, special tokens are special, as in `basic generate --prompt`.
pub(super) fn read(given: Value, engine: &Engine, images: &[(String, ImageSource)]) -> Result<Vec<Prompt>, ApiError> {
    let tiles = images::tiles(&engine.checkpoint, images)?;
    let several = match given {
        Value::Array(list) if list.first().is_some_and(|first| !first.is_number()) => list,
        one => vec![one],
    };
    if several.len() > MOST_PROMPTS {
        return Err(ApiError::field("prompt", format!("has more than {MOST_PROMPTS} prompts")));
    }
    let single = several.len() == 1;
    let prompts = several.into_iter().enumerate().map(|(index, prompt)| {
        let field = if single { "prompt".into() } else { format!("prompt[{index}]") };
        match prompt {
            Value::String(text) => may_fit(engine, text.len(), &field)
                .and_then(|()| {
                    tokenize_prompt(&engine.checkpoint.tokenizer, text.as_str(), &tiles)
                        .map_err(|error| ApiError::field(&*field, error.to_string()))
                })
                .and_then(|prompt| match prompt.ids.is_empty() {
                    true => Err(ApiError::field(&*field, "has no tokens")),
                    false => Ok(prompt),
                }),
            Value::Array(ids) => ids_prompt(&ids, &field, engine, images.len()),
            other => Err(ApiError::field(&*field, expected("a text or a list of token ids", &other))),
        }
    });
    prompts.collect()
}

/// A prompt of token ids, which cannot show an image.
fn ids_prompt(ids: &[Value], field: &str, engine: &Engine, images: usize) -> Result<Prompt, ApiError> {
    let vocabulary = engine.checkpoint.config.text_config.vocab_size;
    let image = engine.checkpoint.tokenizer.ids().image;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok())?;
        ((id as usize) < vocabulary && Some(id) != image).then_some(id)
    };
    let known: Option<Vec<u32>> = ids.iter().map(id).collect();
    match known {
        Some(ids) if !ids.is_empty() && images == 0 => {
            Ok(Prompt { ids, image_positions: Vec::new(), tiles: Vec::new() })
        }
        Some(_) if images > 0 => Err(ApiError::field(field, "token ids show no images: send the prompt as a text")),
        _ => {
            let wanted = format!("one token id or more, each below {vocabulary} and not the image token's");
            Err(ApiError::field(field, format!("expected {wanted}")))
        }
    }
}
