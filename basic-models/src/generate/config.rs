//! The settings of a generation, and reading their defaults from generation_config.json.

use std::path::Path;

use serde_json::Value;

use super::GenerateError;
use crate::Checkpoint;
use crate::outside::{excerpt, read_json_text};

/// How many tokens are generated and how they are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// The most new tokens.
    pub max_new_tokens: usize,
    /// The ids that end a sequence.
    pub eos: Vec<u32>,
    /// The id that pads shorter prompts and finished sequences.
    pub pad: u32,
    /// The penalty for ids that are already in the sequence, including the prompt: their positive logits are divided by
    /// it and their negative ones multiplied; 1 for none.
    pub repetition_penalty: f64,
    /// How the next token is drawn; `None` takes the most likely one.
    pub sampling: Option<Sampling>,
}

/// How tokens are drawn: the logits are divided by the temperature, then filtered by top-k, top-p and min-p in this
/// order, which is that of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Must be above 0; values below 1 sharpen the distribution, values above 1 flatten it.
    pub temperature: f64,
    /// Keeps this many of the most likely tokens, and those that tie with the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together have this share of the probability, in (0, 1]; 1 keeps all.
    pub top_p: f64,
    /// Keeps tokens with at least this fraction of the most likely token's probability, in \[0, 1\]; 0 keeps all.
    pub min_p: f64,
    /// The same seed gives the same result: row i draws from a stream of its own, which does not depend
    /// on the other rows.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution, with seed 0.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl GenerationConfig {
    /// Settings that choose the most likely token at every step.
    pub fn greedy(max_new_tokens: usize, eos: Vec<u32>, pad: u32) -> Self {
        Self { max_new_tokens, eos, pad, repetition_penalty: 1.0, sampling: None }
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    ///
    /// Returns [`GenerateError::Setting`], which names it.
    pub fn validate(&self) -> Result<(), GenerateError> {
        let check = |name, value: f64, expected, fits: bool| {
            if fits { Ok(()) } else { Err(GenerateError::Setting { name, value: value.to_string(), expected }) }
        };
        let positive = |name, value: f64| check(name, value, "a number over 0", value > 0.0 && value.is_finite());
        positive("repetition_penalty", self.repetition_penalty)?;
        if let Some(sampling) = &self.sampling {
            positive("temperature", sampling.temperature)?;
            let (top_p, min_p) = (sampling.top_p, sampling.min_p);
            check("top_p", top_p, "a number over 0, at most 1", top_p > 0.0 && top_p <= 1.0)?;
            check("min_p", min_p, "a number from 0 to 1", (0.0..=1.0).contains(&min_p))?;
        }
        Ok(())
    }
}

/// The settings in a checkpoint's generation_config.json, except `do_sample` and the lengths, which the caller decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// The end-of-sequence ids.
    pub eos_token_id: Vec<u32>,
    /// The temperature.
    pub temperature: Option<f64>,
    /// The number of tokens that top-k keeps.
    pub top_k: Option<usize>,
    /// The value for top-p.
    pub top_p: Option<f64>,
    /// The value for min-p.
    pub min_p: Option<f64>,
    /// The repetition penalty, which also applies to greedy generation.
    pub repetition_penalty: Option<f64>,
    /// Texts that end a generation.
    pub stop_strings: Vec<String>,
    /// Keys that change what transformers generates but are not supported here.
    pub not_followed: Vec<String>,
}

/// Keys that this crate does not support, with the values (besides null) at which they have no effect.
const NOT_FOLLOWED: [(&str, &[f64]); 22] = [
    ("bad_words_ids", &[]),
    ("begin_suppress_tokens", &[]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
    ("forced_bos_token_id", &[]),
    ("forced_eos_token_id", &[]),
    ("guidance_scale", &[1.0]),
    ("max_time", &[]),
    ("min_length", &[0.0]),
    ("min_new_tokens", &[0.0]),
    ("no_repeat_ngram_size", &[0.0]),
    ("num_beams", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("prompt_lookup_num_tokens", &[0.0]),
    ("sequence_bias", &[]),
    ("suppress_tokens", &[]),
    ("top_h", &[1.0]),
    ("typical_p", &[1.0]),
    ("watermarking_config", &[]),
];

/// Keys that must have the same JSON type (or be null), the type's name for messages, and its check.
type Typed = (&'static [&'static str], &'static str, fn(&Value) -> bool);

/// The types of transformers' keys, including those without an effect here.
const TYPES: [Typed; 4] = [
    (
        &[
            "do_sample",
            "low_memory",
            "output_attentions",
            "output_hidden_states",
            "output_logits",
            "output_scores",
            "remove_invalid_values",
            "renormalize_logits",
            "return_dict_in_generate",
            "token_healing",
            "use_cache",
        ],
        "true or false",
        Value::is_boolean,
    ),
    (&["early_stopping"], "true, false or \"never\"", |found| found.is_boolean() || found == "never"),
    (
        &[
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "num_beams",
            "num_beam_groups",
            "num_return_sequences",
            "num_assistant_tokens",
            "prompt_lookup_num_tokens",
            "bos_token_id",
            "pad_token_id",
        ],
        "a whole number",
        |found| found.is_i64() || found.is_u64() || found.as_f64().is_some_and(|x| x.fract() == 0.0),
    ),
    (
        &[
            "assistant_confidence_threshold",
            "diversity_penalty",
            "encoder_repetition_penalty",
            "epsilon_cutoff",
            "eta_cutoff",
            "guidance_scale",
            "length_penalty",
            "max_time",
            "penalty_alpha",
            "top_h",
            "typical_p",
        ],
        "a number",
        Value::is_number,
    ),
];

impl GenerationDefaults {
    /// Reads generation_config.json; if it does not exist, nothing is set.
    ///
    /// # Errors
    ///
    /// Returns [`GenerateError::File`] or [`GenerateError::Defaults`], which name the file and the key.
    pub fn load(dir: &Path) -> Result<Self, GenerateError> {
        let path = dir.join("generation_config.json");
        let text = match read_json_text(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(GenerateError::File { path, source }),
        };
        Self::parse(&text).map_err(|reason| GenerateError::Defaults { path, reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if !value.is_object() {
            return Err("expected an object".into());
        }
        let wrong =
            |key: &str, expected: &str| format!("{key} is {}, expected {expected}", excerpt(&value[key].to_string()));
        // Unsupported keys are checked too: a wrong type means a broken file, which transformers would refuse or
        // misread.
        for (keys, expected, fits) in TYPES {
            if let Some(key) = keys.iter().find(|key| !value[**key].is_null() && !fits(&value[**key])) {
                return Err(wrong(key, expected));
            }
        }
        let number = |key: &str| match &value[key] {
            Value::Null => Ok(None),
            found => found.as_f64().map(Some).ok_or_else(|| wrong(key, "a number")),
        };
        let top_k = match &value["top_k"] {
            Value::Null => None,
            found => Some(found.as_u64().ok_or_else(|| wrong("top_k", "a whole number, 0 for all"))? as usize),
        };
        let neutral = |key: &str, neutral: &[f64]| match &value[key] {
            Value::Null => true,
            found => found.as_f64().is_some_and(|x| neutral.contains(&x)),
        };
        let defaults = Self {
            eos_token_id: one_or_more(match &value["eos_token_id"] {
                none if none.as_i64() == Some(-1) => &Value::Null, // as in config.json
                given => given,
            })
            .ok_or_else(|| wrong("eos_token_id", "an id or several"))?,
            temperature: number("temperature")?,
            top_k,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            stop_strings: one_or_more(&value["stop_strings"])
                .ok_or_else(|| wrong("stop_strings", "a text or several"))?,
            not_followed: NOT_FOLLOWED
                .into_iter()
                .filter(|(key, values)| !neutral(key, values))
                .map(|(key, _)| key.into())
                .collect(),
        };
        let config = GenerationConfig {
            repetition_penalty: defaults.repetition_penalty.unwrap_or(1.0),
            sampling: Some(defaults.sampling(Sampling::default())),
            ..GenerationConfig::greedy(0, Vec::new(), 0)
        };
        config.validate().map_err(|e| e.to_string())?;
        Ok(defaults)
    }

    /// `base`, with the file's settings on top.
    pub fn sampling(&self, base: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            seed: base.seed,
        }
    }

    /// The ids that end an answer of `checkpoint`: those of this file, of config.json and of the tokenizer.
    pub fn end_ids(&self, checkpoint: &Checkpoint) -> Vec<u32> {
        let mut ids = checkpoint.eos_ids();
        ids.extend(&self.eos_token_id);
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Reads `null`, `2` or `[2, 3]`.
fn one_or_more<T: serde::de::DeserializeOwned>(value: &Value) -> Option<Vec<T>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(_) => serde_json::from_value(value.clone()).ok(),
        one => serde_json::from_value(one.clone()).ok().map(|one| vec![one]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_token_and_several_are_read() {
        let ends = |text: &str| GenerationDefaults::parse(text).unwrap().eos_token_id;
        assert_eq!(ends(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(ends(r#"{"eos_token_id": [2, 32000], "do_sample": true}"#), [2, 32000]);
        assert_eq!(ends("{}"), [0; 0]);
    }

    #[test]
    fn keys_that_are_not_followed_are_listed_where_they_do_something() {
        let parse = |text: &str| GenerationDefaults::parse(text).unwrap();
        let quiet = parse(r#"{"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": null}"#);
        assert_eq!(quiet, GenerationDefaults::default());
        let loud = parse(r#"{"num_beams": 4, "bad_words_ids": [[3]], "top_k": 0}"#);
        assert_eq!(loud.not_followed, ["bad_words_ids", "num_beams"]);
    }

    #[test]
    fn what_transformers_writes_is_read() {
        let text = r#"{"do_sample": true, "use_cache": false, "early_stopping": "never", "max_length": 4096,
            "pad_token_id": -1, "bos_token_id": 1, "length_penalty": 1, "num_beams": null}"#;
        assert_eq!(GenerationDefaults::parse(text).unwrap(), GenerationDefaults::default());
    }

    #[test]
    fn a_long_wrong_value_is_not_repeated() {
        let text = format!(r#"{{"temperature": "{}"}}"#, "x".repeat(100_000));
        let error = GenerationDefaults::parse(&text).unwrap_err();
        assert!(error.starts_with("temperature is \"xxx") && error.len() < 300, "{} bytes", error.len());
    }

    #[test]
    fn wrong_values_are_named_by_their_key() {
        for (text, message) in [
            (r#"{"temperature": "hot"}"#, "temperature is \"hot\", expected a number"),
            (r#"{"temperature": 0.0}"#, "temperature is 0, expected a number over 0"),
            (r#"{"top_k": -1}"#, "top_k is -1, expected a whole number, 0 for all"),
            (r#"{"eos_token_id": ["</s>"]}"#, "eos_token_id is [\"</s>\"], expected an id or several"),
            (r#"{"do_sample": "false"}"#, "do_sample is \"false\", expected true or false"),
            (r#"{"use_cache": 1}"#, "use_cache is 1, expected true or false"),
            (r#"{"early_stopping": "ever"}"#, "early_stopping is \"ever\", expected true, false or \"never\""),
            (r#"{"max_new_tokens": "20"}"#, "max_new_tokens is \"20\", expected a whole number"),
            (r#"{"num_beams": [1]}"#, "num_beams is [1], expected a whole number"),
            (r#"{"typical_p": true}"#, "typical_p is true, expected a number"),
            ("[]", "expected an object"),
        ] {
            assert_eq!(GenerationDefaults::parse(text).unwrap_err(), message);
        }
    }
}
