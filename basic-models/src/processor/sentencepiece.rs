//! SentencePiece's `tokenizer.model` without a tokenizer.json, as the original Llama and Vicuna checkpoints have it.
//!
//! The model becomes the tokenizer.json that transformers' `LlamaTokenizer` amounts to: BPE with byte fallback, whose
//! merges are all the ways to put a piece together out of two others, in the order of the pieces' ids.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::config::read_json_if_exists;
use super::{ProcessorError, Result};

pub(super) const MODEL_FILE: &str = "tokenizer.model";

/// More bytes than any real piece has: splitting a piece everywhere takes the square of its length.
const LONGEST_PIECE: usize = 1024;

/// What is needed of `sentencepiece_model.proto`.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<SentencePiece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct SentencePiece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BPE: i32 = 2;

/// The tokenizer.json for the tokenizer.model of a checkpoint, or `None` where there is none. `config` is
/// tokenizer_config.json, whose `legacy` (false by default) and `add_prefix_space` (true) decide where a space is put
/// in front.
///
/// # Errors
/// `Read` or `LoadTokenizer`; `Unsupported` for a model that isn't BPE or normalizes texts, and for a tokenizer class
/// other than Llama's.
pub(super) fn tokenizer_json(dir: &Path, config: &Value) -> Result<Option<Value>> {
    let path = dir.join(MODEL_FILE);
    let bytes = match crate::outside::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ProcessorError::Read { path, source }),
    };
    let broken = |message: String| ProcessorError::LoadTokenizer { path: path.clone(), message };
    let model = ModelProto::decode(bytes.as_slice()).map_err(|e| broken(format!("not a SentencePiece model: {e}")))?;
    drop(bytes);
    let unsupported = |path: &Path, key: &str, value: String, supported| {
        Err(ProcessorError::Unsupported { path: path.into(), key: key.into(), value, supported })
    };
    match model.trainer.as_ref().and_then(|trainer| trainer.model_type) {
        Some(BPE) => {}
        other => {
            let supported = "2 (BPE); convert other models to tokenizer.json with transformers";
            return unsupported(&path, "trainer_spec.model_type", other.unwrap_or(1).to_string(), supported);
        }
    }
    if model.normalizer.as_ref().and_then(|normalizer| normalizer.charsmap.as_ref()).is_some_and(|map| !map.is_empty())
    {
        let supported = "none (the rule \"identity\"); convert the model to tokenizer.json with transformers";
        return unsupported(&path, "normalizer_spec.precompiled_charsmap", "set".into(), supported);
    }
    if let Some(class) = config["tokenizer_class"].as_str()
        && !["LlamaTokenizer", "PreTrainedTokenizer", "TokenizersBackend"].contains(&class.trim_end_matches("Fast"))
    {
        let supported = "LlamaTokenizer; convert the model to tokenizer.json with transformers";
        return unsupported(&dir.join("tokenizer_config.json"), "tokenizer_class", class.into(), supported);
    }
    let pieces = model.pieces.iter().map(|piece| piece.piece.as_deref().unwrap_or_default());
    if let Some(long) = pieces.clone().find(|piece| piece.len() > LONGEST_PIECE) {
        return Err(broken(format!("a piece is {} bytes long, more than {LONGEST_PIECE}", long.len())));
    }
    let vocabulary: HashMap<&str, u32> = pieces.zip(0..).collect();
    let special = |piece: &SentencePiece| matches!(piece.kind, Some(UNKNOWN | CONTROL | USER_DEFINED));
    let mut added: Vec<Value> = model
        .pieces
        .iter()
        .zip(0u32..)
        .filter(|(piece, _)| special(piece))
        .map(|(piece, id)| {
            added_token(id, piece.piece.as_deref().unwrap_or_default(), piece.kind != Some(USER_DEFINED))
        })
        .collect();
    more_added_tokens(dir, config, &mut added)?;
    let prefix = config["add_prefix_space"].as_bool().unwrap_or(true);
    let scheme = match (prefix, config["legacy"].as_bool().unwrap_or(false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let merges = merges(&vocabulary);
    // In the order of the ids, so that the same model makes the same file.
    let mut ordered: Vec<(&str, u32)> = vocabulary.into_iter().collect();
    ordered.sort_unstable_by_key(|&(_, id)| id);
    let ordered: serde_json::Map<String, Value> =
        ordered.into_iter().map(|(piece, id)| (piece.to_owned(), json!(id))).collect();
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false },
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ordered, "merges": merges,
        },
    })))
}

/// Every way to put a piece together out of two, by the id of the whole, then the lengths of the two.
fn merges<'a>(vocabulary: &HashMap<&'a str, u32>) -> Vec<[&'a str; 2]> {
    let mut found = Vec::new();
    for (&whole, &id) in vocabulary {
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if let (Some(_), Some(_)) = (vocabulary.get(left), vocabulary.get(right)) {
                // The lengths of the two add up to the whole's: the left one's alone decides.
                found.push((id, at, [left, right]));
            }
        }
    }
    found.sort_unstable_by_key(|&(id, at, _)| (id, at));
    found.into_iter().map(|(_, _, pair)| pair).collect()
}

/// Tokens that were added after training: `added_tokens_decoder` in tokenizer_config.json, else added_tokens.json.
fn more_added_tokens(dir: &Path, config: &Value, added: &mut Vec<Value>) -> Result<()> {
    let path = dir.join("added_tokens.json");
    let mut more: Vec<(u32, String, bool)> = Vec::new();
    if let Some(decoder) = config["added_tokens_decoder"].as_object() {
        for (id, token) in decoder {
            if let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) {
                more.push((id, content.into(), token["special"].as_bool().unwrap_or(false)));
            }
        }
    } else if let Some(Value::Object(tokens)) = read_json_if_exists(&path)? {
        for (content, id) in tokens {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| ProcessorError::Unsupported {
                path: path.clone(),
                key: content.clone(),
                value: id.to_string(),
                supported: "a token's id",
            })?;
            more.push((id, content, true));
        }
    }
    more.sort_unstable();
    for (id, content, special) in more {
        added.retain(|token| token["id"] != json!(id));
        added.push(added_token(id, &content, special));
    }
    added.sort_by_key(|token| token["id"].as_u64());
    Ok(())
}

fn added_token(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}
