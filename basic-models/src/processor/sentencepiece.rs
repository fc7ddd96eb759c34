//! Reads SentencePiece's `tokenizer.model` when there is no tokenizer.json, as in the original Llama and
//! Vicuna checkpoints.
//!
//! The model is converted to the tokenizer.json that transformers' `LlamaTokenizer` is equivalent to: BPE with byte
//! fallback, whose merges are all ways to split a piece into two others, in the order of the pieces' ids.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::tokenizer_added::named_tokens;
use super::wanted::{flag, text};
use super::{ProcessorError, Result};
use crate::outside::{Budget, OverBudget};

pub(super) const MODEL_FILE: &str = "tokenizer.model";

/// The longest piece in bytes, more than any real one has: splitting a piece everywhere takes the square of its length.
const LONGEST_PIECE: usize = 1024;
/// The most pieces, which is the largest vocabulary that a config.json may have.
const MOST_PIECES: usize = 1 << 24;
/// Bytes of memory per byte of the file while it is read (a piece has at least two), and per merge of
/// the tokenizer.json.
const MEMORY: u64 = 32;
const MERGE_MEMORY: u64 = 256;

/// The fields of `sentencepiece_model.proto` that are needed.
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
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
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

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;
const BPE: i32 = 2;

/// Converts a checkpoint's tokenizer.model to a tokenizer.json; `None` if there is no such file. `config` is
/// tokenizer_config.json, whose `legacy` (false by default) and `add_prefix_space` (true by default) determine where a
/// space is inserted at the start.
///
/// # Errors
/// Returns `Read` or `LoadTokenizer`, and `Unsupported` for a model that is not BPE or that normalizes texts, and for a
/// tokenizer class other than Llama's.
pub(super) fn tokenizer_json(dir: &Path, config: &Value) -> Result<Option<Value>> {
    let path = dir.join(MODEL_FILE);
    let bytes = match crate::outside::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ProcessorError::Read { path, source }),
    };
    let broken = |message: String| ProcessorError::LoadTokenizer { path: path.clone(), message };
    let budget = Budget::of(&path);
    let over = |source: OverBudget| ProcessorError::Read { path: path.clone(), source: source.into() };
    budget.take((bytes.len() as u64).saturating_mul(MEMORY)).map_err(over)?;
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
    if let Some(class) = text(&dir.join("tokenizer_config.json"), config, "tokenizer_class")?
        && !["LlamaTokenizer", "PreTrainedTokenizer", "TokenizersBackend"].contains(&class.trim_end_matches("Fast"))
    {
        let supported = "LlamaTokenizer; convert the model to tokenizer.json with transformers";
        return unsupported(&dir.join("tokenizer_config.json"), "tokenizer_class", class.into(), supported);
    }
    let vocabulary = vocabulary(&model.pieces).map_err(broken)?;
    let special = |piece: &SentencePiece| matches!(piece.kind, Some(UNKNOWN | CONTROL | USER_DEFINED));
    let added: Vec<Value> = model
        .pieces
        .iter()
        .zip(0u32..)
        .filter(|(piece, _)| special(piece))
        .map(|(piece, id)| {
            added_token(id, piece.piece.as_deref().unwrap_or_default(), piece.kind != Some(USER_DEFINED))
        })
        .collect();
    let added = more_added_tokens(dir, config, added)?;
    let config_path = dir.join("tokenizer_config.json");
    let prefix = flag(&config_path, config, "add_prefix_space")?.unwrap_or(true);
    let scheme = match (prefix, flag(&config_path, config, "legacy")?.unwrap_or(false)) {
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
    budget.take((merges.len() as u64).saturating_mul(MERGE_MEMORY)).map_err(over)?;
    // In the order of the ids, so that the same model always gives the same file.
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

/// The pieces with their ids, which are their indices; an error if SentencePiece would not have written these pieces.
fn vocabulary(pieces: &[SentencePiece]) -> std::result::Result<HashMap<&str, u32>, String> {
    if pieces.is_empty() || pieces.len() > MOST_PIECES {
        return Err(format!("it has {} pieces; supported: 1 to {MOST_PIECES}", pieces.len()));
    }
    let mut vocabulary = HashMap::with_capacity(pieces.len());
    for (piece, id) in pieces.iter().zip(0u32..) {
        let text = piece.piece.as_deref().unwrap_or_default();
        let wrong = |what: String| Err(format!("piece {id} ({:?}) {what}", text.chars().take(24).collect::<String>()));
        if text.is_empty() {
            return wrong("has no text".into());
        }
        if text.len() > LONGEST_PIECE {
            return wrong(format!("is {} bytes long, more than {LONGEST_PIECE}", text.len()));
        }
        if let Some(score) = piece.score.filter(|score| !score.is_finite()) {
            return wrong(format!("has the score {score}, which is no number to order pieces by"));
        }
        let kind = piece.kind.unwrap_or(NORMAL);
        if !(NORMAL..=BYTE).contains(&kind) {
            return wrong(format!("has the type {kind}, of {NORMAL} to {BYTE}"));
        }
        if let Some(first) = vocabulary.insert(text, id) {
            return wrong(format!("stands there a second time, after piece {first}"));
        }
    }
    Ok(vocabulary)
}

/// Every way to split a piece into two others, ordered by the id of the whole and then by the length of the left part.
fn merges<'a>(vocabulary: &HashMap<&'a str, u32>) -> Vec<[&'a str; 2]> {
    let mut found = Vec::new();
    for (&whole, &id) in vocabulary {
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if let (Some(_), Some(_)) = (vocabulary.get(left), vocabulary.get(right)) {
                // The lengths of the two add up to that of the whole, so the left one's is enough to sort by.
                found.push((id, at, [left, right]));
            }
        }
    }
    found.sort_unstable_by_key(|&(id, at, _)| (id, at));
    found.into_iter().map(|(_, _, pair)| pair).collect()
}

/// Tokens that were added after training: `added_tokens_decoder` in tokenizer_config.json, otherwise added_tokens.json.
/// They replace the model's tokens with the same ids.
fn more_added_tokens(dir: &Path, config: &Value, added: Vec<Value>) -> Result<Vec<Value>> {
    let mut by_id: BTreeMap<u64, Value> =
        added.into_iter().map(|token| (token["id"].as_u64().unwrap_or_default(), token)).collect();
    let (from, named) = named_tokens(dir, config)?;
    // added_tokens.json has no other properties of its tokens.
    let all_special = from.ends_with("added_tokens.json");
    for token in named {
        let special = all_special || token.flags["special"] == json!(true);
        by_id.insert(u64::from(token.id), added_token(token.id, &token.content, special));
    }
    Ok(by_id.into_values().collect())
}

fn added_token(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}
