//! Copies `generation_config.json` so that every version of transformers that loads a checkpoint can save it again.
//!
//! transformers 4.38 to 4.57 load a file whose settings contradict each other (Vicuna's has a temperature and
//! no `do_sample`) but refuse to save it. Settings without effect are therefore left out here, which does not
//! change generation.

use std::path::Path;

use serde_json::{Map, Value};

use super::CheckpointError;
use crate::outside::{excerpt, read_json_text};

const NAME: &str = "generation_config.json";

/// Settings that have no effect without sampling, with the values at which transformers does not complain about them.
const SAMPLING: [(&str, Option<f64>); 7] = [
    ("temperature", Some(1.0)),
    ("top_p", Some(1.0)),
    ("min_p", None),
    ("typical_p", Some(1.0)),
    ("top_k", Some(50.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
];

/// Settings that have no effect without several beams.
const BEAMS: [(&str, Option<f64>); 5] = [
    ("early_stopping", None),
    ("length_penalty", Some(1.0)),
    ("num_beam_groups", Some(1.0)),
    ("diversity_penalty", Some(0.0)),
    ("constraints", None),
];

/// Settings that have no effect unless the result is a dictionary.
const OUTPUTS: [&str; 4] = ["output_attentions", "output_hidden_states", "output_scores", "output_logits"];

/// Settings that have no effect without a cache.
const CACHE: [&str; 3] = ["cache_implementation", "cache_config", "return_legacy_cache"];

/// Arguments of transformers' `generate` that it refuses in this file.
const ARGUMENTS: [&str; 9] = [
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "use_model_defaults",
];

/// The text to write for a directory's file; `None` if there is none.
///
/// # Errors
///
/// Returns [`CheckpointError::Beside`] if the file cannot be read or has settings that transformers refuses.
pub(super) fn generation_config(dir: &Path) -> Result<Option<String>, CheckpointError> {
    let path = dir.join(NAME);
    let wrong = |reason: String| CheckpointError::Beside {
        path: path.clone(),
        reason: format!("{reason}; mend the file, or remove it: then one is written from config.json"),
    };
    let text = match read_json_text(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            return Ok(None);
        }
        Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
    };
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("is not JSON: {error}")))?;
    let Value::Object(mut map) = value else { return Err(wrong("is no JSON object".into())) };
    check(&map).map_err(wrong)?;
    let before = map.len();
    map.retain({
        let idle = idle(&map);
        move |key, _| !idle.contains(key)
    });
    Ok(Some(if map.len() == before { text } else { format!("{:#}\n", Value::Object(map)) }))
}

/// Checks for settings that transformers refuses to load, or to save even after the others are left out.
fn check(map: &Map<String, Value>) -> Result<(), String> {
    let given = |key: &str| map.get(key).filter(|value| !value.is_null());
    let said = |value: &Value| excerpt(&value.to_string());
    for (key, _) in SAMPLING.iter().chain(&BEAMS[1..4]) {
        if let Some(value) = given(key).filter(|value| !value.is_number()) {
            return Err(format!("{key} is {}, which is no number", said(value)));
        }
    }
    for key in ["max_new_tokens", "max_length", "num_beams", "num_return_sequences"] {
        let above = |value: &&Value| value.as_u64().is_none_or(|count| count == 0);
        if let Some(value) = given(key).filter(above) {
            return Err(format!("{key} is {}, and must be a whole number above 0", said(value)));
        }
    }
    for key in ["do_sample", "use_cache", "return_dict_in_generate"] {
        if let Some(value) = given(key).filter(|value| !value.is_boolean()) {
            return Err(format!("{key} is {}, and must be true or false", said(value)));
        }
    }
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        let id = |value: &Value| value.as_i64().is_some();
        let ids = |value: &&Value| !id(value) && !value.as_array().is_some_and(|ids| ids.iter().all(id));
        if let Some(value) = given(key).filter(ids) {
            return Err(format!("{key} is {}, which is no token's id", said(value)));
        }
    }
    if let Some(value) = given("early_stopping").filter(|value| !value.is_boolean() && *value != "never") {
        return Err(format!("early_stopping is {}, and must be true, false or \"never\"", said(value)));
    }
    let count = |key: &str| given(key).and_then(Value::as_u64).unwrap_or(1);
    let (beams, sequences) = (count("num_beams"), count("num_return_sequences"));
    if sequences > 1 && (if beams > 1 { sequences > beams } else { !samples(map) }) {
        return Err(format!("num_return_sequences is {sequences}, which {beams} beam(s) without sampling cannot give"));
    }
    match ARGUMENTS.iter().find(|key| map.contains_key(**key)) {
        Some(key) => Err(format!("{key} is an argument of `generate` and none of this file's")),
        None => Ok(()),
    }
}

fn samples(map: &Map<String, Value>) -> bool {
    map.get("do_sample") == Some(&Value::Bool(true))
}

/// The keys that have no effect but keep transformers from saving.
fn idle(map: &Map<String, Value>) -> Vec<String> {
    let differs = |(key, harmless): &(&str, Option<f64>)| {
        let value = map.get(*key).filter(|value| !value.is_null() && **value != false)?;
        (value.as_f64().is_none() || value.as_f64() != *harmless).then(|| key.to_string())
    };
    let mut idle: Vec<String> = Vec::new();
    if !samples(map) {
        idle.extend(SAMPLING.iter().filter_map(differs));
    }
    if map.get("num_beams").is_none_or(|beams| beams.is_null() || beams == 1) {
        idle.extend(BEAMS.iter().filter_map(differs));
    }
    if map.get("return_dict_in_generate") != Some(&Value::Bool(true)) {
        idle.extend(OUTPUTS.iter().filter(|key| map.get(**key) == Some(&Value::Bool(true))).map(|key| key.to_string()));
    }
    if map.get("use_cache") == Some(&Value::Bool(false)) {
        idle.extend(CACHE.iter().filter(|key| map.contains_key(**key)).map(|key| key.to_string()));
    }
    // Llama 1 has -1 if there is no such token.
    if map.get("pad_token_id").and_then(Value::as_i64).is_some_and(|id| id < 0) {
        idle.push("pad_token_id".into());
    }
    // Null is the default of all keys except `early_stopping` and the counts.
    let nulls = ["early_stopping", "num_beams", "num_return_sequences", "do_sample"];
    idle.extend(nulls.iter().filter(|key| map.get(**key).is_some_and(Value::is_null)).map(|key| key.to_string()));
    idle
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(value: Value) -> Result<Value, String> {
        written_text(value.to_string().as_bytes()).map(|text| serde_json::from_str(&text).unwrap())
    }

    fn written_text(bytes: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), bytes).unwrap();
        generation_config(dir.path()).map(Option::unwrap).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_without_effect_go_and_greedy_stays_greedy() {
        let vicuna =
            json!({"bos_token_id": 1, "max_length": 4096, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6});
        let left = json!({"bos_token_id": 1, "max_length": 4096, "pad_token_id": 0});
        assert_eq!(written(vicuna), Ok(left));
        let all = json!({"do_sample": false, "min_p": 0.1, "typical_p": 0.5, "top_k": 20, "epsilon_cutoff": 1e-4,
            "eta_cutoff": 1e-4, "num_beams": 1, "early_stopping": true, "length_penalty": 0.5, "output_scores": true,
            "use_cache": false, "cache_implementation": "static", "pad_token_id": -1});
        assert_eq!(written(all), Ok(json!({"do_sample": false, "num_beams": 1, "use_cache": false})));
    }

    #[test]
    fn what_has_an_effect_stays_as_it_is_written() {
        let text = "{\"do_sample\": true,\"temperature\": 0.6, \"top_k\": 20, \"transformers_version\": \"4.51.0\"}";
        assert_eq!(written_text(text.as_bytes()), Ok(text.into()));
        let beams = json!({"num_beams": 4, "early_stopping": true, "length_penalty": 0.8, "num_return_sequences": 2});
        assert_eq!(written(beams.clone()), Ok(beams));
        assert!(generation_config(Path::new("/nowhere/at/all")).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_or_saved_is_an_error_that_names_the_file() {
        for bytes in [&b"{\xff"[..], b"", b"[1]", b"{\"a\": NaN}"] {
            let error = written_text(bytes).unwrap_err();
            assert!(error.contains(NAME) && error.contains("remove it"), "{error}");
        }
        for (key, value) in [
            ("temperature", json!("x".repeat(100_000))),
            ("max_new_tokens", json!(0)),
            ("num_return_sequences", json!(3)),
            ("early_stopping", json!("sometimes")),
            ("do_sample", json!("false")),
            ("eos_token_id", json!(["</s>"])),
            ("streamer", json!(null)),
        ] {
            let error = written(json!({ key: value })).unwrap_err();
            assert!(error.contains(key) && error.len() < 500, "{error}");
        }
    }
}
