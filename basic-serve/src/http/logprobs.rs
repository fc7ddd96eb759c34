//! Log-probabilities in OpenAI's two shapes.

use basic_models::generate::LogProbs;
use basic_models::processor::Tokenizer;
use serde_json::{Map, Value, json};

/// A token's text, and its bytes where they are known: if it is whole characters, a byte, or a part of a character in a
/// byte-level vocabulary.
pub(super) fn token_text(tokenizer: &Tokenizer, id: u32) -> (String, Option<Vec<u8>>) {
    let token = tokenizer.token_of(id).unwrap_or_else(|| format!("(token {id})"));
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        return (token, Some(vec![byte]));
    }
    // SentencePiece's decoders drop the first space of a text.
    let text = match token.contains('\u{2581}') {
        true => token.replace('\u{2581}', " "),
        false => tokenizer.decode(&[id], false).ok().filter(|text| !text.is_empty()).unwrap_or_else(|| token.clone()),
    };
    let bytes = match text.contains(char::REPLACEMENT_CHARACTER) {
        true => token.chars().map(byte_of).collect(),
        false => Some(text.clone().into_bytes()),
    };
    (text, bytes)
}

/// The byte that a character of a byte-level vocabulary stands for (GPT-2's alphabet): printable Latin-1 characters stand
/// for themselves, and those from 256 on for the other bytes in order.
fn byte_of(character: char) -> Option<u8> {
    let own = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character).checked_sub(256) {
        None => u8::try_from(character).ok().filter(own),
        Some(nth) => (0..=u8::MAX).filter(|byte| !own(byte)).nth(nth as usize),
    }
}

/// A token's text as OpenAI's completions write it: parts of characters by their bytes.
fn written(tokenizer: &Tokenizer, id: u32) -> String {
    match token_text(tokenizer, id) {
        (text, Some(bytes)) if text.contains(char::REPLACEMENT_CHARACTER) => {
            bytes.iter().fold("bytes:".into(), |text, byte| format!("{text}\\x{byte:02x}"))
        }
        (text, _) => text,
    }
}

/// An entry of `logprobs.content` of a chat completion.
pub(super) fn chat_entry(tokenizer: &Tokenizer, id: u32, logprobs: &LogProbs) -> Value {
    let entry = |id: u32, logprob: f32| {
        let (token, bytes) = token_text(tokenizer, id);
        json!({ "token": token, "logprob": logprob, "bytes": bytes })
    };
    let top: Vec<Value> = logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
    let mut own = entry(id, logprobs.chosen);
    own["top_logprobs"] = top.into();
    own
}

/// `logprobs` of a completion: lists with an entry for each token. `offset` is the length of the text before them, in
/// characters.
pub(super) fn completion_entries(tokenizer: &Tokenizer, tokens: &[(u32, LogProbs)], mut offset: usize) -> Value {
    let (mut texts, mut own, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, logprobs) in tokens {
        let (text, _) = token_text(tokenizer, *id);
        let mut best: Map<String, Value> = Map::new();
        for (id, logprob) in &logprobs.top {
            // Two tokens may have one text; the likelier of them is told.
            best.entry(written(tokenizer, *id)).or_insert((*logprob).into());
        }
        offsets.push(offset);
        offset = offset.saturating_add(text.chars().count());
        own.push(logprobs.chosen);
        top.push(Value::Object(best));
        texts.push(written(tokenizer, *id));
    }
    json!({ "tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::byte_of;

    #[test]
    fn characters_of_byte_level_vocabularies_are_all_bytes() {
        assert_eq!("Ġaðł".chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap(), [0x20, b'a', 0xf0, 0xa0]);
        let all: BTreeSet<u8> = ('!'..='\u{143}').filter_map(byte_of).collect();
        assert_eq!(all.len(), 256, "each byte has one character");
        assert_eq!(('!'..='\u{143}').filter_map(byte_of).count(), 256);
        assert_eq!([' ', '\u{ad}', '\u{144}', '漢'].map(byte_of), [None; 4]);
    }
}
