//! What a tokenizer.json may ask for: steps that are the same every time, and that make a text no more than so many times
//! as long.
//!
//! The tokenizers library runs whatever the file says, and nothing can stop it once it runs: forty replacements that each
//! double a text take all memory there is. What the steps can do to a text at worst is told from the file alone.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::charsmap;
use crate::outside::excerpt;

/// How many times as long a text may become, at worst. The largest of real tokenizers is NFKC with Metaspace, 36.
const LARGEST_GROWTH: f64 = 256.0;
/// Bytes that the steps of a tokenizer may put around a text.
const MOST_ADDED: f64 = 65536.0;
/// How deep sequences of steps may lie in one another: the library tries each level several times.
const DEEPEST: usize = 8;
/// Steps, all sequences together.
const MOST_STEPS: usize = 256;
/// The longest regular expression of a step, in bytes.
const LONGEST_PATTERN: usize = 65536;
/// Memory that a tokenizer takes for a byte of its file, at most: short tokens and merges.
pub(super) const MEMORY: u64 = 20;

/// Regular expressions that take time in proportion to a text's length, whatever the text: those of GPT-2, Llama 3 and
/// Qwen 2, and simple ones.
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

/// What is wrong with a tokenizer.json's steps, with the key; what is no such JSON at all is the library's to say.
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

/// What has become of a text of unknown length.
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
                // A regular expression may match a byte, or none: then the content goes between any two bytes.
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

/// What a step is; old files tell it by the keys alone.
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

/// Whether a part of a tokenizer.json holds a regular expression that may take longer than a text's length explains.
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

/// Whether a regular expression matches nothing at all, between any two characters; where that cannot be told, it may.
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
