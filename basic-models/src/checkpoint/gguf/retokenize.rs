//! Makes tokenizer.json from the tokens, merges or scores of a GGUF file.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::super::CheckpointError;
use super::error::GgufError;
use super::metadata::Metadata;
use super::pre_tokenizer::{Known, readable};
use super::vocabulary::{SPACE, token};
use crate::outside::{Budget, excerpt};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// The pre-tokenizers of byte-level vocabularies for which llama.cpp begins a text with BOS if the file does not say.
const BEGIN_WITH_BOS: [&str; 6] = ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"];

/// The longest token in bytes that merges are looked for in: splitting it everywhere takes the square of its length.
const LONGEST: usize = 1024;

/// Bytes of memory for each merge of a vocabulary of pieces.
const MERGE_MEMORY: u64 = 256;

/// A tokenizer in the files of Hugging Face.
pub(super) struct Files {
    /// tokenizer.json.
    pub json: String,
    /// tokenizer_config.json.
    pub config: Value,
}

/// The tokenizer of a file.
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Files, CheckpointError> {
    let config = config(metadata)?;
    if let Some(whole) = metadata.text("tokenizer.huggingface.json")? {
        return Ok(Files { json: whole.into(), config });
    }
    let words = Words::of(metadata)?;
    let model = metadata.text(MODEL)?.ok_or_else(|| metadata.wrong(MODEL, "is missing"))?;
    let json = match model {
        "gpt2" => byte_level(metadata, &words)?,
        "llama" => pieces(metadata, &words)?,
        other => {
            let reason =
                format!("{:?} is not supported: gpt2 (byte-level BPE) or llama (SentencePiece's BPE)", excerpt(other));
            return Err(metadata.wrong(MODEL, reason).into());
        }
    };
    Ok(Files { json: json.to_string(), config })
}

/// The tokens with their types.
struct Words<'a> {
    texts: &'a [String],
    types: Vec<i64>,
}

impl<'a> Words<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let texts = metadata.texts(TOKENS)?.ok_or_else(|| metadata.wrong(TOKENS, "is missing"))?;
        let types = match metadata.integers(TYPES)? {
            None => vec![i64::from(token::NORMAL); texts.len()],
            Some(types) if types.len() == texts.len() => types.to_vec(),
            Some(types) => {
                let reason = format!("has {} entries, and there are {} tokens", types.len(), texts.len());
                return Err(metadata.wrong(TYPES, reason));
            }
        };
        Ok(Self { texts, types })
    }

    /// The tokens without the unused ones at the end, which stand for rows of the table without a token.
    fn used(&self) -> usize {
        let unused = self.types.iter().rev().take_while(|kind| **kind == i64::from(token::UNUSED));
        self.texts.len() - unused.count()
    }

    /// The tokens as `vocab` of tokenizer.json, each once.
    fn vocabulary(&self, metadata: &Metadata) -> Result<HashMap<&'a str, u32>, GgufError> {
        let mut ids = HashMap::with_capacity(self.texts.len());
        for (text, id) in self.texts.iter().zip(0u32..).take(self.used()) {
            if let Some(first) = ids.insert(text.as_str(), id) {
                let reason = format!("has {:?} twice, as {first} and as {id}", excerpt(text));
                return Err(metadata.wrong(TOKENS, reason));
            }
        }
        Ok(ids)
    }

    /// The tokens that are looked for in a text before it is cut.
    fn added(&self) -> Vec<Value> {
        let special = |kind: i64| kind == i64::from(token::CONTROL) || kind == i64::from(token::UNKNOWN);
        let words = self.texts.iter().zip(&self.types).enumerate();
        let added = words.filter(|(_, (_, kind))| special(**kind) || **kind == i64::from(token::USER_DEFINED));
        let entry = |(id, (text, kind)): (usize, (&String, &i64))| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special(*kind),
            })
        };
        added.filter(|(_, (text, _))| !text.is_empty()).map(entry).collect()
    }
}

/// A map in the order of the ids, so that the same file always gives the same text.
fn ordered(vocabulary: HashMap<&str, u32>) -> Value {
    let mut words: Vec<(&str, u32)> = vocabulary.into_iter().collect();
    words.sort_unstable_by_key(|(_, id)| *id);
    Value::Object(words.into_iter().map(|(text, id)| (text.to_owned(), json!(id))).collect())
}

fn byte_level(metadata: &Metadata, words: &Words<'_>) -> Result<Value, GgufError> {
    let pre = metadata.text(PRE)?.ok_or_else(|| metadata.wrong(PRE, "is missing"))?;
    let Some(known) = Known::of(pre) else {
        return Err(metadata.wrong(PRE, format!("{:?} is not supported: {}", excerpt(pre), readable())));
    };
    let merges = metadata.texts(MERGES)?.ok_or_else(|| metadata.wrong(MERGES, "is missing"))?;
    if let Some(merge) = merges.iter().find(|merge| merge.split(' ').count() != 2) {
        return Err(metadata.wrong(MERGES, format!("{:?} does not have two parts", excerpt(merge))));
    }
    let normalizer = if known.composed { json!({ "type": "NFC" }) } else { Value::Null };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": words.added(),
        "normalizer": normalizer, "pre_tokenizer": known.to_json(), "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": known.ignore_merges,
            "vocab": ordered(words.vocabulary(metadata)?), "merges": merges,
        },
    }))
}

/// SentencePiece's BPE: the merges are all ways to split a piece into two others, ordered by the whole's score.
fn pieces(metadata: &Metadata, words: &Words<'_>) -> Result<Value, CheckpointError> {
    let scores = metadata.floats(SCORES)?.ok_or_else(|| metadata.wrong(SCORES, "is missing"))?;
    if scores.len() != words.texts.len() || scores.iter().any(|score| !score.is_finite()) {
        let reason = format!("must have a finite number for each of the {} tokens", words.texts.len());
        return Err(metadata.wrong(SCORES, reason).into());
    }
    let vocabulary = words.vocabulary(metadata)?;
    let budget = Budget::of(metadata.path());
    let mut found: Vec<(f32, u32, usize, [&str; 2])> = Vec::new();
    for (&whole, &id) in &vocabulary {
        if words.types[id as usize] != i64::from(token::NORMAL) {
            continue;
        }
        if whole.len() > LONGEST {
            let reason = format!("the token {id} has {} bytes, more than {LONGEST}", whole.len());
            return Err(metadata.wrong(TOKENS, reason).into());
        }
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if vocabulary.contains_key(left) && vocabulary.contains_key(right) {
                budget.take(MERGE_MEMORY)?;
                found.push((scores[id as usize], id, at, [left, right]));
            }
        }
    }
    found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    // llama.cpp puts the space after each special token too.
    let scheme = if prefix { "always" } else { "never" };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let merges: Vec<[&str; 2]> = found.into_iter().map(|(_, _, _, pair)| pair).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": words.added(),
        "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false },
        "post_processor": null, "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ordered(vocabulary), "merges": merges,
        },
    }))
}

/// The special tokens, and whether the first and the last are added to a text.
fn config(metadata: &Metadata) -> Result<Value, GgufError> {
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    let texts = metadata.texts(TOKENS)?.unwrap_or_default();
    let pieces = metadata.text(MODEL)? == Some("llama");
    // What a file does not say is what llama.cpp assumes.
    let usual = |id: u32| pieces.then_some(id);
    let keys =
        [("bos", "bos", usual(1)), ("eos", "eos", usual(2)), ("unk", "unknown", usual(0)), ("pad", "padding", None)];
    for (name, key, usual) in keys {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let Some(id) = metadata.count(&key)?.or(usual) else { continue };
        let Some(text) = texts.get(id as usize) else {
            return Err(metadata.wrong(&key, format!("is {id}, and there are {} tokens", texts.len())));
        };
        config[format!("{name}_token")] = json!(text);
    }
    for name in ["bos", "eos"] {
        let said = metadata.flag(&format!("tokenizer.ggml.add_{name}_token"))?;
        let usual = name == "bos" && (pieces || metadata.text(PRE)?.is_some_and(|pre| BEGIN_WITH_BOS.contains(&pre)));
        if let Some(adds) = said.or(usual.then_some(true)) {
            config[format!("add_{name}_token")] = json!(adds);
        }
    }
    Ok(config)
}
