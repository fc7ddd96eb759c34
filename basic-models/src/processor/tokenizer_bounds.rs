//! Limits on a tokenizer.json: its steps must be deterministic and must not lengthen a text by more
//! than a fixed factor.
//!
//! The tokenizers library runs whatever steps the file has and cannot be stopped once it runs: forty replacements that
//! each double a text would fill all memory. The worst that the steps can do to a text is computed from the file alone.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::charsmap;
use crate::outside::excerpt;

/// The largest factor by which a text may grow in the worst case. The largest of a real tokenizer is 36, for
/// NFKC with Metaspace.
const LARGEST_GROWTH: f64 = 256.0;
/// The most bytes that the steps of a tokenizer may add to a text.
const MOST_ADDED: f64 = 65536.0;
/// How deep sequences of steps may be nested: the library tries each level several times.
const DEEPEST: usize = 8;
/// The most steps, in all sequences together.
const MOST_STEPS: usize = 256;
/// The longest regular expression of a step, in bytes.
const LONGEST_PATTERN: usize = 65536;
/// The most bytes of memory that a tokenizer takes per byte of its file, which is for short tokens and merges.
pub(super) const MEMORY: u64 = 20;

/// Regular expressions whose time is proportional to the length of any text: those of GPT-2, Llama 3 and Qwen
/// 2, and simple ones.
pub(super) const QUICK: [&str; 9] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\s+",
    r"\s",
    " ",
    " +",
    " {2,}",
    r"[0-9][0-9][0-9]",
];

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(rename = "vocab")]
    _vocab: Option<IgnoredAny>,
}

/// Checks a tokenizer.json's steps; an error says what is wrong and at which key. What is not valid JSON passes,
/// because the library reports it.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Ok(parts) = serde_json::from_slice::<Parts>(bytes) else { return Ok(()) };
    if let Some(model) = &parts.model {
        if !model.dropout.is_null() && model.dropout.as_f64() != Some(0.0) {
            return Err(format!(
                "model.dropout is {dropout}, so that the same text has other tokens every time; set it to null",
                dropout = excerpt(&model.dropout.to_string())
            ));
        }
        for (key, text) in [
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
        ] {
            if text.as_str().is_some_and(|text| text.len() > 256) {
                return Err(format!("model.{key} has more than 256 bytes"));
            }
        }
    }
    let places = [
        ("normalizer", &parts.normalizer),
        ("pre_tokenizer", &parts.pre_tokenizer),
        ("post_processor", &parts.post_processor),
        ("decoder", &parts.decoder),
    ];
    for (place, step) in places {
        let mut text = Text { growth: 1.0, added: 0.0, steps: 0 };
        text.pass(place, step, 0)?;
    }
    Ok(())
}

/// The worst-case growth of a text of unknown length.
struct Text {
    growth: f64,
    added: f64,
    steps: usize,
}

impl Text {
    fn pass(&mut self, place: &str, step: &Value, depth: usize) -> Result<(), String> {
        self.steps += 1;
        if depth > DEEPEST || self.steps > MOST_STEPS {
            return Err(format!(
                "{place} has more than {MOST_STEPS} steps, or sequences more than {DEEPEST} deep in one another"
            ));
        }
        for key in ["normalizers", "pretokenizers", "processors", "decoders"] {
            for inner in step[key].as_array().into_iter().flatten() {
                self.pass(place, inner, depth + 1)?;
            }
        }
        let bytes = |key: &str| step[key].as_str().map_or(0.0, |text| text.len() as f64);
        let pattern = ["String", "Regex"].into_iter().find_map(|kind| step["pattern"][kind].as_str());
        if pattern.is_some_and(|pattern| pattern.len() > LONGEST_PATTERN) {
            return Err(format!("{place} has a pattern of more than {LONGEST_PATTERN} bytes"));
        }
        match kind_of(step) {
            Some("Replace") => {
                let content = bytes("content");
                // A regular expression may match a single byte, or nothing; then the content is inserted
                // between any two bytes.
                let (growth, added) = match step["pattern"]["String"].as_str() {
                    Some("") => (1.0 + content, content),
                    Some(text) => (content / text.len() as f64, 0.0),
                    None if may_be_empty(step["pattern"]["Regex"].as_str()) => (1.0 + content, content),
                    None => (content, 0.0),
                };
                self.grow(growth.max(1.0), added);
            }
            Some("Precompiled") => match step["precompiled_charsmap"].as_str() {
                Some(table) => self.grow(charsmap::growth(table).map_err(|e| format!("{place}: {e}"))?.max(1.0), 0.0),
                None => return Err(format!("{place} has a \"Precompiled\" without a precompiled_charsmap")),
            },
            Some("Prepend") => self.grow(1.0, bytes("prepend")),
            Some("NFKC" | "NFKD") => self.grow(12.0, 0.0),
            Some("NFC" | "NFD" | "Lowercase" | "BertNormalizer" | "Metaspace") => self.grow(3.0, 4.0),
            Some("ByteLevel") => self.grow(2.0, 2.0),
            Some("TemplateProcessing") => {
                let single = step["single"].as_array().map_or(&[][..], Vec::as_slice);
                let texts = single.iter().filter(|piece| piece.get("Sequence").is_some()).count();
                let tokens = |piece: &Value| {
                    let id = piece["SpecialToken"]["id"].as_str()?;
                    step["special_tokens"][id]["ids"].as_array().map(Vec::len)
                };
                let added: usize = single.iter().filter_map(tokens).sum();
                self.grow(texts.max(1) as f64, added as f64);
            }
            Some("BPEDecoder" | "WordPiece" | "CTC") => self.grow(1.0 + bytes("prefix").min(1.0), 0.0),
            _ => {}
        }
        if self.growth > LARGEST_GROWTH || self.added > MOST_ADDED {
            return Err(format!(
                "{place} may make a text more than {LARGEST_GROWTH} times as long, or put more than {MOST_ADDED} bytes to \
                 it; take out the replacements that lengthen it"
            ));
        }
        Ok(())
    }

    fn grow(&mut self, growth: f64, added: f64) {
        self.growth *= growth;
        self.added = self.added * growth + added;
    }
}

/// The kind of a step; in old files only its keys show it.
fn kind_of(step: &Value) -> Option<&str> {
    let has = |key: &str| step.get(key).is_some();
    step["type"].as_str().or_else(|| match () {
        () if has("precompiled_charsmap") => Some("Precompiled"),
        () if has("pattern") && has("content") => Some("Replace"),
        () if has("prepend") => Some("Prepend"),
        () if has("single") => Some("TemplateProcessing"),
        () if has("prefix") => Some("WordPiece"),
        () if has("suffix") => Some("BPEDecoder"),
        () if has("replacement") => Some("Metaspace"),
        () if has("trim_offsets") => Some("ByteLevel"),
        () => None,
    })
}

/// Whether a part of a tokenizer.json contains a regular expression that may take more than linear time.
pub(super) fn may_be_slow(part: &Value) -> bool {
    match part {
        Value::Array(parts) => parts.iter().any(may_be_slow),
        Value::Object(keys) => keys.iter().any(|(key, value)| match value.as_str() {
            Some(pattern) => key == "Regex" && !QUICK.contains(&pattern),
            None => may_be_slow(value),
        }),
        _ => false,
    }
}

/// Whether a regular expression can match the empty text, between any two characters; true if that
/// cannot be determined.
fn may_be_empty(pattern: Option<&str>) -> bool {
    pattern.and_then(|pattern| regex::Regex::new(pattern).ok()).is_none_or(|regex| regex.is_match(""))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{check, may_be_slow};

    fn with(part: &str, step: Value) -> Result<(), String> {
        check(json!({ part: step, "model": { "type": "BPE", "vocab": {}, "merges": [] } }).to_string().as_bytes())
    }

    #[test]
    fn steps_that_lengthen_a_text_beyond_bounds_are_refused_wherever_they_stand() {
        let double = json!({ "type": "Replace", "pattern": { "Regex": "." }, "content": "aa" });
        let many = |key: &str, n: usize| json!({ "type": "Sequence", key: vec![double.clone(); n] });
        assert_eq!(with("normalizer", many("normalizers", 8)), Ok(()));
        assert!(with("normalizer", many("normalizers", 9)).unwrap_err().starts_with("normalizer may make"));
        assert!(with("decoder", many("decoders", 30)).unwrap_err().starts_with("decoder may make"));
        let long = json!({ "type": "Replace", "pattern": { "String": "" }, "content": "x".repeat(300) });
        assert!(with("normalizer", long).is_err(), "the empty pattern matches between all characters");
        assert!(with("normalizer", json!({ "type": "Prepend", "prepend": "x".repeat(100_000) })).is_err());
        let twice = json!({ "type": "TemplateProcessing", "special_tokens": {}, "pair": [],
            "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }] });
        assert!(with("post_processor", json!({ "type": "Sequence", "processors": vec![twice; 40] })).is_err());
    }

    #[test]
    fn the_steps_of_real_tokenizers_pass_and_deep_ones_do_not() {
        let llama = json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] });
        assert_eq!(with("normalizer", llama), Ok(()));
        assert_eq!(with("normalizer", json!({ "type": "NFKC" })), Ok(()));
        let mut deep = json!({ "type": "NFC" });
        for _ in 0..40 {
            deep = json!({ "type": "Sequence", "normalizers": [deep] });
        }
        assert!(with("normalizer", deep).is_err());
    }

    #[test]
    fn old_files_whose_steps_have_no_type_are_held_to_the_same_bounds() {
        let double = json!({ "pattern": { "Regex": "." }, "content": "aa" });
        assert!(with("normalizer", json!({ "normalizers": vec![double; 9] })).is_err());
        assert!(with("normalizer", json!({ "prepend": "x".repeat(100_000) })).is_err());
    }

    #[test]
    fn a_table_of_replacements_is_looked_through() {
        let table = |map: &str| json!({ "type": "Precompiled", "precompiled_charsmap": map });
        let said = with("normalizer", json!({ "type": "Sequence", "normalizers": [table("/////wAA")] })).unwrap_err();
        assert!(said.contains("precompiled_charsmap is damaged"), "{said}");
        assert!(with("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": 3 })).is_err());
    }

    #[test]
    fn patterns_of_real_tokenizers_are_quick_and_strange_ones_may_be_slow() {
        let split = |regex: &str| {
            json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
        ] })
        };
        assert!(may_be_slow(&split("(a+)+$")));
        assert!(may_be_slow(&split("a*b")));
        assert!(!may_be_slow(&split(super::QUICK[1])));
        assert!(!may_be_slow(&json!({ "type": "Replace", "pattern": { "String": "(a+)+$" }, "content": "" })));
    }

    #[test]
    fn dropout_is_refused_and_none_or_zero_is_not() {
        let model =
            |dropout: Value| check(json!({ "model": { "vocab": {}, "dropout": dropout } }).to_string().as_bytes());
        assert!(model(json!(0.1)).unwrap_err().contains("model.dropout is 0.1"));
        assert_eq!(model(json!(null)), Ok(()));
        assert_eq!(model(json!(0.0)), Ok(()));
    }
}
