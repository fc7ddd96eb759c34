//! What an `adapter_config.json` says of its adapters.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use super::super::{CheckpointError, read_text};

/// A read `adapter_config.json`. Ranks are not in it: the factors' shapes say them.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub base: Option<String>,
    alpha: f64,
    /// PEFT's `alpha_pattern`: the first expression that a module's name ends with wins.
    alphas: Vec<(Regex, f64)>,
    /// Whether the scale is `alpha / sqrt(rank)`.
    rank_stabilized: bool,
}

/// Keys that change what an adapter computes in ways that are not built, and the values at which they don't.
const UNSUPPORTED: [(&str, &[Value]); 11] = [
    ("use_dora", &[Value::Bool(false)]),
    ("use_qalora", &[Value::Bool(false)]),
    ("use_bdlora", &[Value::Bool(false)]),
    ("lora_bias", &[Value::Bool(false)]),
    ("fan_in_fan_out", &[Value::Bool(false)]),
    ("layer_replication", &[]),
    ("target_parameters", &[]),
    ("trainable_token_indices", &[]),
    ("alora_invocation_tokens", &[]),
    ("arrow_config", &[]),
    ("kasa_config", &[]),
];

/// Ways to start adapters that change the weights below them.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl AdapterConfig {
    /// # Errors
    ///
    /// [`CheckpointError::AdapterConfig`] that names the key.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let wrong =
            |key: &str, reason: String| CheckpointError::AdapterConfig { path: path.into(), key: key.into(), reason };
        let text = read_text(path)?;
        let value: Value = serde_json::from_str(&text).map_err(|error| wrong("not JSON", error.to_string()))?;
        let Value::Object(object) = value else { return Err(wrong("not an object", "save the adapters again".into())) };
        match object.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => {
                let found = other.unwrap_or("absent");
                return Err(wrong("peft_type", format!("is {found}: only LORA is read")));
            }
        }
        for (key, harmless) in UNSUPPORTED {
            if let Some(value) = object.get(key).filter(|value| !empty(value))
                && !harmless.contains(value)
            {
                return Err(wrong(key, format!("{value} is not supported: merge the adapters with peft")));
            }
        }
        if let Some(bias) = object.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
            return Err(wrong("bias", format!("{bias} is not supported: only none is")));
        }
        if let Some(start) = object.get("init_lora_weights").and_then(Value::as_str)
            && CHANGES_BASE.iter().any(|name| start.starts_with(name))
        {
            let reason = format!("{start} changes the weights below: convert the adapters to ordinary ones with peft");
            return Err(wrong("init_lora_weights", reason));
        }
        let alpha = number(&object, "lora_alpha").map_err(|reason| wrong("lora_alpha", reason))?.unwrap_or(8.0);
        let mut alphas = Vec::new();
        if let Some(patterns) = object.get("alpha_pattern").filter(|value| !empty(value)) {
            let patterns = patterns.as_object().ok_or_else(|| wrong("alpha_pattern", "is not an object".into()))?;
            for pattern in patterns.keys() {
                let key = format!("alpha_pattern.{pattern}");
                let expression = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
                let expression = expression.map_err(|_| wrong(&key, "is no expression that can be read".into()))?;
                let alpha = number(patterns, pattern).map_err(|reason| wrong(&key, reason))?;
                alphas.extend(alpha.map(|alpha| (expression, alpha)));
            }
        }
        Ok(Self {
            base: object.get("base_model_name_or_path").and_then(Value::as_str).map(String::from),
            alpha,
            alphas,
            rank_stabilized: object.get("use_rslora") == Some(&Value::Bool(true)),
        })
    }

    /// The scale of an adapter of `rank`, by its layer's name in the file.
    pub fn scale(&self, layer: &str, rank: usize) -> f64 {
        let found = self.alphas.iter().find(|(expression, _)| expression.is_match(layer));
        let alpha = found.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}

/// Whether a key says nothing.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("{value} is not a number")),
        },
    }
}
