//! A tokenizer as keys of GGUF: byte-level BPE as `gpt2` with its merges, BPE of SentencePiece's kind as `llama` with
//! scores.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::super::CheckpointError;
use super::super::opened::Checkpoint;
use super::export::Refusal;
use super::pre_tokenizer;
use super::write::Item;
use crate::outside::{Budget, excerpt, parse_json};
use crate::processor::{ChatTemplate, read_tokenizer_files};

/// llama.cpp's types of tokens.
pub(super) mod token {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// SentencePiece's sign for a space.
pub(super) const SPACE: &str = "▁";

/// The score of added tokens, which no merge makes.
const ADDED: f32 = -1000.0;

/// The keys of a checkpoint's tokenizer and chat template.
pub(super) fn describe(checkpoint: &Checkpoint) -> Result<Vec<(String, Item)>, CheckpointError> {
    let dir = checkpoint.tokenizer_files.dir();
    let (path, bytes) = read_tokenizer_files(dir)?;
    let budget = Budget::of(&path);
    let unread = |error: crate::outside::Unparsed| CheckpointError::Mismatch(format!("{}: {error}", path.display()));
    let json = parse_json(&bytes, &budget).map_err(unread)?;
    drop(bytes);
    let rows = checkpoint.config.text_config.vocab_size;
    let refused = |refusal: Refusal| CheckpointError::from(refusal.at(&path));
    if json["model"]["type"] != "BPE" {
        let what = format!("model.type = {}", excerpt(&json["model"]["type"].to_string()));
        return Err(refused(Refusal::new(what, "BPE tokenizers are written")));
    }
    let spm = json["model"]["byte_fallback"] == Value::Bool(true);
    let words = Words::of(&json, rows, checkpoint, spm).map_err(refused)?;
    let mut items =
        if spm { sentencepiece(&json, &words).map_err(refused)? } else { byte_level(checkpoint, &json, &path)? };
    items.push(("tokenizer.ggml.tokens", Item::Texts(words.texts)));
    items.push(("tokenizer.ggml.token_type", Item::Integers(words.types)));
    specials(checkpoint, &path, &mut items)?;
    if let Some(template) = template(checkpoint, dir)? {
        items.push(("tokenizer.chat_template", Item::Text(template)));
    }
    // The whole of it, so that a reader of this kind gets the same tokenizer again; llama.cpp does not use it.
    items.push(("tokenizer.huggingface.json", Item::Text(json.to_string())));
    Ok(items.into_iter().map(|(key, item)| (key.to_string(), item)).collect())
}

fn template(checkpoint: &Checkpoint, dir: &Path) -> Result<Option<String>, CheckpointError> {
    let own = ChatTemplate::source(dir)?.map(|(source, _)| source);
    Ok(own.or_else(|| checkpoint.template_source.map(String::from)))
}

/// The tokens by their ids, with their types; rows of the table without a token get one that is not used.
struct Words {
    texts: Vec<String>,
    types: Vec<i32>,
    /// The ids of the vocabulary's own tokens.
    ids: HashMap<String, usize>,
}

impl Words {
    fn of(json: &Value, rows: usize, checkpoint: &Checkpoint, spm: bool) -> Result<Self, Refusal> {
        let mut texts: Vec<String> = (0..rows).map(|row| format!("[PAD{row}]")).collect();
        let mut types = vec![token::UNUSED; rows];
        let mut ids = HashMap::new();
        let outside = |text: &str, id: &Value| {
            let what = format!("the token {:?}", excerpt(text));
            Refusal::new(what, format!("its id {} is no row of the table of {rows} rows", excerpt(&id.to_string())))
        };
        let row = |text: &str, id: &Value| {
            let row = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|row| *row < rows);
            row.ok_or_else(|| outside(text, id))
        };
        for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            let row = row(text, id)?;
            texts[row].clone_from(text);
            types[row] = if spm && byte(text).is_some() { token::BYTE } else { token::NORMAL };
            ids.insert(text.clone(), row);
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let text = added["content"].as_str().unwrap_or_default();
            let row = row(text, &added["id"])?;
            let special = added["special"] == Value::Bool(true);
            types[row] = if special { token::CONTROL } else { token::USER_DEFINED };
            // llama.cpp looks for such tokens in the text before spaces are replaced.
            texts[row] = if special { text.into() } else { text.replace(SPACE, " ") };
        }
        // Special tokens that the vocabulary does not mark; the tokenizer marks them when it is loaded.
        for text in checkpoint.tokenizer.specials().all() {
            if let Some(row) = ids.get(text) {
                types[*row] = token::CONTROL;
            }
        }
        let unknown = json["model"]["unk_token"].as_str().or(checkpoint.tokenizer.specials().unk.as_deref());
        if let Some(row) = unknown.or(Some("<unk>")).filter(|_| spm).and_then(|text| ids.get(text)) {
            types[*row] = token::UNKNOWN;
        }
        Ok(Self { texts, types, ids })
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

type Items = Vec<(&'static str, Item)>;

fn byte_level(checkpoint: &Checkpoint, json: &Value, path: &Path) -> Result<Items, CheckpointError> {
    let Some(pre) = pre_tokenizer::name(&checkpoint.tokenizer, json)? else {
        let what = format!("pre_tokenizer = {}", excerpt(&json["pre_tokenizer"].to_string()));
        let reason =
            "llama.cpp knows pre-tokenizers by name, and this one (with its normalizer) is none that is known here";
        return Err(Refusal::new(what, reason).at(path).into());
    };
    let merges = merges(json).map_err(|refusal| refusal.at(path))?;
    let merges = merges.into_iter().map(|[left, right]| format!("{left} {right}")).collect();
    Ok(vec![
        ("tokenizer.ggml.model", Item::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Item::Text(pre.into())),
        ("tokenizer.ggml.merges", Item::Texts(merges)),
    ])
}

/// The merges, each as its two parts.
fn merges(json: &Value) -> Result<Vec<[&str; 2]>, Refusal> {
    let list = json["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|merge| {
            parts(merge).ok_or_else(|| {
                Refusal::new(format!("the merge {}", excerpt(&merge.to_string())), "it does not have two parts")
            })
        })
        .collect()
}

fn parts(merge: &Value) -> Option<[&str; 2]> {
    let (left, right) = match merge {
        Value::String(text) => text.split_once(' ')?,
        other => (other.get(0)?.as_str()?, other.get(1)?.as_str()?),
    };
    Some([left, right])
}

/// SentencePiece's BPE merges the pair whose whole has the best score; the scores follow from the order of merges.
fn sentencepiece(json: &Value, words: &Words) -> Result<Items, Refusal> {
    let missing = (0..=255u8).find(|byte| !words.ids.contains_key(&format!("<0x{byte:02X}>")));
    if let Some(byte) = missing {
        return Err(Refusal::new(format!("<0x{byte:02X}>"), "llama.cpp needs a token for every byte"));
    }
    let prefix = prefix(json)?;
    let mut scores: Vec<f32> =
        words.types.iter().map(|kind| if *kind == token::NORMAL { f32::NAN } else { 0.0 }).collect();
    let merges = merges(json)?;
    for (rank, [left, right]) in merges.iter().enumerate() {
        if let Some(row) = words.ids.get(&format!("{left}{right}"))
            && scores[*row].is_nan()
        {
            scores[*row] = -(rank as f32);
        }
    }
    // Pieces that no merge makes are single characters, whose scores nothing asks for.
    let last = -(merges.len() as f32);
    for (score, kind) in scores.iter_mut().zip(&words.types) {
        match *kind {
            token::NORMAL if score.is_nan() => *score = last,
            token::USER_DEFINED => *score = ADDED,
            _ => {}
        }
    }
    Ok(vec![
        ("tokenizer.ggml.model", Item::Text("llama".into())),
        ("tokenizer.ggml.pre", Item::Text("default".into())),
        ("tokenizer.ggml.scores", Item::Floats(scores)),
        ("tokenizer.ggml.add_space_prefix", Item::Flag(prefix)),
    ])
}

/// Whether a space is put before a text. The steps must be those of Llama's or Gemma's tokenizers.
fn prefix(json: &Value) -> Result<bool, Refusal> {
    let (normalizer, pre) = (&json["normalizer"], &json["pre_tokenizer"]);
    let replaces =
        |step: &Value| step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE;
    let prepends = |step: &Value| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let steps: Vec<&Value> = match normalizer["type"].as_str() {
        Some("Sequence") => normalizer["normalizers"].as_array().into_iter().flatten().collect(),
        Some(_) => vec![normalizer],
        None => Vec::new(),
    };
    if let Some(other) = steps.iter().find(|step| !replaces(step) && !prepends(step)) {
        let what = format!("normalizer = {}", excerpt(&other.to_string()));
        return Err(Refusal::new(what, "llama.cpp replaces spaces in texts, and changes nothing else"));
    }
    let prepended = steps.iter().any(|step| prepends(step));
    match pre["type"].as_str() {
        None => Ok(prepended),
        Some("Metaspace") if pre["replacement"] == SPACE => {
            let scheme = pre["prepend_scheme"].as_str();
            let before = scheme.map_or(pre["add_prefix_space"] != Value::Bool(false), |scheme| scheme != "never");
            Ok(prepended || before)
        }
        Some("Split") if pre["pattern"]["String"] == " " => Ok(prepended),
        Some(_) => {
            let what = format!("pre_tokenizer = {}", excerpt(&pre.to_string()));
            Err(Refusal::new(what, "llama.cpp cuts texts for SentencePiece's BPE nowhere"))
        }
    }
}

/// The ids of the special tokens, and whether the first and the last are added to a text.
fn specials(checkpoint: &Checkpoint, path: &Path, items: &mut Items) -> Result<(), CheckpointError> {
    let tokenizer = &checkpoint.tokenizer;
    let (ids, config) = (tokenizer.ids(), &checkpoint.config.text_config);
    let ends = config.eos_ids();
    let Some(end) = ids.eos.or(ends.first().copied()) else {
        let reason = "llama.cpp takes another token as the end of an answer if the file names none: set eos_token_id";
        return Err(Refusal::new("eos_token_id = null", reason).at(path).into());
    };
    items.push(("tokenizer.ggml.eos_token_id", Item::U32(end)));
    if let Some(other) = ends.iter().copied().find(|id| *id != end) {
        items.push(("tokenizer.ggml.eot_token_id", Item::U32(other)));
    }
    let begin = ids.bos.or(config.bos_token_id);
    let unknown = tokenizer.specials().unk.as_deref().and_then(|text| tokenizer.id_of(text));
    let pad = ids.pad.or(config.pad_token_id);
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", begin),
        ("tokenizer.ggml.unknown_token_id", unknown),
        ("tokenizer.ggml.padding_token_id", pad),
    ] {
        items.extend(id.filter(|id| (*id as usize) < config.vocab_size).map(|id| (key, Item::U32(id))));
    }
    let encoded = tokenizer.encode_with_offsets("a", true)?;
    let adds = |id: Option<u32>, at: Option<usize>| {
        at.is_some_and(|at| encoded.added[at] && id.is_some_and(|id| encoded.ids[at] == id))
    };
    let (first, last) = ((!encoded.ids.is_empty()).then_some(0), encoded.ids.len().checked_sub(1));
    items.push(("tokenizer.ggml.add_bos_token", Item::Flag(adds(begin, first))));
    items.push(("tokenizer.ggml.add_eos_token", Item::Flag(adds(Some(end), last))));
    Ok(())
}
