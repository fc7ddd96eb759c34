//! Reads an `adapter_config.json`, which determines the adapters' scales.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::CheckpointError;
use super::patterns::{MOST, MOST_EXPRESSIONS, Pattern};
use crate::outside::{excerpt, read_json_text};

/// The content of an `adapter_config.json`.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub base: Option<String>,
    alpha: f64,
    /// PEFT's `alpha_pattern`: the first expression that matches the end of a module's name applies.
    alphas: Vec<(Pattern, f64)>,
    /// The value of `r`; the factors' shapes must agree with it.
    rank: Option<u64>,
    /// PEFT's `rank_pattern`, with the text of each key in the file.
    ranks: Vec<(Pattern, String, u64)>,
    /// PEFT's `modules_to_save`.
    pub saved: Vec<String>,
    /// The last names of layers that must all have adapters in a part in which one has: those of a `target_modules`
    /// that is a list, if no other key excludes layers.
    pub targets: Vec<String>,
    /// Whether the scale is `alpha / sqrt(rank)`.
    rank_stabilized: bool,
    /// PEFT's `ensure_weight_tying`: a table or a head that was saved is used for both.
    pub keeps_tied: bool,
}

/// Keys with boolean values.
const FLAGS: [&str; 8] = [
    "use_rslora",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "inference_mode",
    "ensure_weight_tying",
];

/// Keys whose values are texts.
const TEXTS: [&str; 4] = ["peft_type", "base_model_name_or_path", "bias", "task_type"];

/// Keys that change an adapter's computation in ways that are not supported, with the values at which they do not.
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

/// Keys that exclude layers which `target_modules` names.
const LEAVE_OUT: [&str; 3] = ["layers_to_transform", "exclude_modules", "layers_pattern"];

/// Initializations of adapters that change the base model's weights.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError::AdapterConfig`], which names the key.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let wrong =
            |key: &str, reason: String| CheckpointError::AdapterConfig { path: path.into(), key: key.into(), reason };
        let text = read_json_text(path).map_err(CheckpointError::io(path))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| wrong("not JSON", error.to_string()))?;
        let Value::Object(object) = value else { return Err(wrong("not an object", "save the adapters again".into())) };
        types(&object).map_err(|(key, reason)| wrong(key, reason))?;
        match object.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => {
                let found = excerpt(other.unwrap_or("absent"));
                return Err(wrong("peft_type", format!("is {found}: only LORA is read")));
            }
        }
        for (key, harmless) in UNSUPPORTED {
            if let Some(value) = object.get(key).filter(|value| !empty(value))
                && !harmless.contains(value)
            {
                return Err(wrong(
                    key,
                    format!("{} is not supported: merge the adapters with peft", excerpt(&value.to_string())),
                ));
            }
        }
        if let Some(bias) = object.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
            return Err(wrong("bias", format!("{} is not supported: only none is", excerpt(bias))));
        }
        if let Some(start) = object.get("init_lora_weights").and_then(Value::as_str)
            && CHANGES_BASE.iter().any(|name| start.starts_with(name))
        {
            let reason = format!("{start} changes the weights below: convert the adapters to ordinary ones with peft");
            return Err(wrong("init_lora_weights", reason));
        }
        let alpha = number(&object, "lora_alpha").map_err(|reason| wrong("lora_alpha", reason))?.unwrap_or(8.0);
        let patterns = |name: &str| {
            let mut read = Vec::new();
            let Some(Value::Object(patterns)) = object.get(name) else { return Ok(read) };
            let mut expressions = 0;
            for (pattern, value) in patterns {
                let key = format!("{name}.{}", excerpt(pattern));
                let expression = Pattern::new(pattern);
                let expression = expression.ok_or_else(|| wrong(&key, "is no expression that can be read".into()))?;
                expressions += usize::from(expression.is_expression());
                if expressions > MOST_EXPRESSIONS {
                    let reason = format!("more than {MOST_EXPRESSIONS} expressions: name the layers instead");
                    return Err(wrong(name, reason));
                }
                read.push((expression, key, value));
            }
            Ok(read)
        };
        let mut alphas = Vec::new();
        for (expression, key, value) in patterns("alpha_pattern")? {
            let alpha = number_of(value).map_err(|reason| wrong(&key, reason))?;
            alphas.extend(alpha.map(|alpha| (expression, alpha)));
        }
        let mut ranks = Vec::new();
        for (expression, key, value) in patterns("rank_pattern")? {
            ranks.extend(value.as_u64().map(|rank| (expression, key, rank)));
        }
        let names = |key: &str| match object.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(String::from).collect(),
            _ => Vec::new(),
        };
        let all_layers = LEAVE_OUT.iter().all(|key| object.get(*key).is_none_or(empty));
        Ok(Self {
            rank: object.get("r").and_then(Value::as_u64),
            ranks,
            saved: names("modules_to_save"),
            targets: if all_layers { names("target_modules") } else { Vec::new() },
            base: object.get("base_model_name_or_path").and_then(Value::as_str).map(String::from),
            alpha,
            alphas,
            keeps_tied: object.get("ensure_weight_tying") == Some(&Value::Bool(true)),
            rank_stabilized: object.get("use_rslora") == Some(&Value::Bool(true)),
        })
    }

    /// The scale of an adapter of rank `rank`, by its layer's name in the file.
    pub fn scale(&self, layer: &str, rank: usize) -> f64 {
        let layer = module(layer);
        let found = self.alphas.iter().find(|(expression, _)| expression.matches(layer));
        let alpha = found.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}

impl AdapterConfig {
    /// The key and the value of an entry that gives a layer's factors another rank than `rank`.
    pub fn other_rank(&self, layer: &str, rank: usize) -> Option<(&str, u64)> {
        let layer = module(layer);
        let found = self.ranks.iter().find(|(expression, _, _)| expression.matches(layer));
        let said = found.map(|(_, key, rank)| (key.as_str(), *rank)).or(self.rank.map(|rank| ("r", rank)));
        said.filter(|(_, said)| *said != rank as u64)
    }
}

/// The name of a layer that PEFT's patterns are matched with.
fn module(layer: &str) -> &str {
    layer.strip_prefix("base_model.model.").unwrap_or(layer)
}

/// Checks that values have the types that PEFT writes: with another type, a key would be treated as absent.
fn types(object: &Map<String, Value>) -> Result<(), (&'static str, String)> {
    let found = |key: &str| object.get(key).filter(|value| !value.is_null());
    let not = |value: &Value, what: &str| format!("{} is not {what}", excerpt(&value.to_string()));
    for key in FLAGS {
        if let Some(value) = found(key).filter(|value| !value.is_boolean()) {
            return Err((key, not(value, "true or false")));
        }
    }
    for key in TEXTS {
        if let Some(value) = found(key).filter(|value| !value.is_string()) {
            return Err((key, not(value, "text")));
        }
    }
    if let Some(value) = found("init_lora_weights").filter(|value| !value.is_boolean() && !value.is_string()) {
        return Err(("init_lora_weights", not(value, "true, false or text")));
    }
    for key in ["modules_to_save", "target_modules"] {
        let texts = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
        if let Some(value) = found(key).filter(|value| !value.is_string() && !texts(value)) {
            return Err((key, not(value, "a list of names")));
        }
    }
    for key in ["exclude_modules", "layers_pattern"] {
        let texts = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
        if let Some(value) = found(key).filter(|value| !value.is_string() && !texts(value)) {
            return Err((key, not(value, "a name or a list of names")));
        }
    }
    let layer = |value: &Value| value.as_u64().is_some();
    let layers = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(layer));
    if let Some(value) = found("layers_to_transform").filter(|value| !layer(value) && !layers(value)) {
        return Err(("layers_to_transform", not(value, "a layer's number or a list of them")));
    }
    if let Some(value) = found("lora_dropout").filter(|value| !value.as_f64().is_some_and(|p| (0.0..=1.0).contains(&p)))
    {
        return Err(("lora_dropout", not(value, "a share")));
    }
    // Ranks are read from the factors' shapes; what PEFT would refuse is refused here too.
    if let Some(value) = found("r").filter(|value| value.as_u64().is_none_or(|rank| rank == 0)) {
        return Err(("r", not(value, "a whole number above 0")));
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        let Some(value) = found(key) else { continue };
        let Some(patterns) = value.as_object() else { return Err((key, not(value, "an object"))) };
        if patterns.len() > MOST {
            return Err((key, format!("{} entries, more than {MOST}", patterns.len())));
        }
        let rank = |value: &&Value| value.as_u64().is_none_or(|rank| rank == 0);
        if key == "rank_pattern"
            && let Some(value) = patterns.values().find(rank)
        {
            return Err((key, not(value, "a whole number above 0")));
        }
    }
    Ok(())
}

/// Whether a value has no effect.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    object.get(key).map_or(Ok(None), number_of)
}

fn number_of(value: &Value) -> Result<Option<f64>, String> {
    match value.as_f64() {
        _ if value.is_null() => Ok(None),
        // Weights are merged in f32.
        Some(number) if number.abs() <= f64::from(f32::MAX) => Ok(Some(number)),
        Some(number) => Err(format!("{number:e} is too large for a scale")),
        None => Err(format!("{} is not a number", excerpt(&value.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: &[(&str, Value)]) -> Result<AdapterConfig, String> {
        let mut config = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8 });
        change.iter().for_each(|(key, value)| config[*key] = value.clone());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        AdapterConfig::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn values_of_a_wrong_type_are_errors_that_name_the_file_and_the_key() {
        for (key, value) in FLAGS.iter().map(|key| (*key, json!("true"))).chain([
            ("use_rslora", json!(1)),
            ("bias", json!(true)),
            ("modules_to_save", json!([1])),
            ("target_modules", json!(3)),
            ("init_lora_weights", json!([])),
            ("r", json!(-1)),
            ("r", json!(0)),
            ("lora_alpha", json!("16")),
            ("lora_alpha", json!(1e308)),
            ("rank_pattern", json!({ "q_proj": "8" })),
            ("alpha_pattern", json!([])),
            ("rank_pattern", json!({ "q_proj(": 8 })),
            ("layers_to_transform", json!("0")),
            ("layers_to_transform", json!([0, -1])),
            ("exclude_modules", json!({})),
            ("lora_dropout", json!("0.1")),
            ("task_type", json!(1)),
            ("alpha_pattern", json!({ "q_proj": 1e300 })),
        ]) {
            let said = read(&[(key, value)]).unwrap_err();
            assert!(said.contains("adapter_config.json: ") && said.contains(key), "{said}");
        }
        assert!(read(&[("use_rslora", json!(null)), ("bias", json!("none"))]).is_ok());
    }

    #[test]
    fn a_rank_is_what_the_first_pattern_or_r_says() {
        let config =
            read(&[("rank_pattern", json!({ "layers.0.q_proj": 2, "^model.v_proj": 3, "q_proj": 16 }))]).unwrap();
        assert_eq!(config.other_rank("base_model.model.layers.0.q_proj", 2), None);
        assert_eq!(
            config.other_rank("base_model.model.layers.0.q_proj", 16),
            Some(("rank_pattern.layers.0.q_proj", 2))
        );
        assert_eq!(config.other_rank("base_model.model.model.v_proj", 4), Some(("rank_pattern.^model.v_proj", 3)));
        assert_eq!(config.other_rank("base_model.model.o_proj", 4), None);
        assert_eq!(config.other_rank("base_model.model.o_proj", 8), Some(("r", 4)));
        assert_eq!(read(&[("r", json!(null))]).unwrap().other_rank("x.q_proj", 99), None);
    }

    #[test]
    fn many_patterns_of_names_are_quick_and_many_expressions_are_refused() {
        let names: Map<String, Value> = (0..60_000).map(|i| (format!("layers.{i}.q_proj"), json!(i))).collect();
        let config = read(&[("alpha_pattern", names.into())]).unwrap();
        assert_eq!(config.scale("model.layers.59999.q_proj", 1), 59_999.0);
        let more: Map<String, Value> = (0..100_000).map(|i| (format!("layers.{i}.q_proj"), json!(i))).collect();
        assert!(read(&[("alpha_pattern", more.into())]).unwrap_err().contains("100000 entries"));
        let expressions: Map<String, Value> = (0..2000).map(|i| (format!("{i}.*q_proj"), json!(i))).collect();
        assert!(read(&[("alpha_pattern", expressions.into())]).unwrap_err().contains("name the layers"));
    }
}
