//! Reads a section of config.json on top of the defaults of its class.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ConfigError, unsupported};
use crate::outside::excerpt;

/// The class's keys with the section's values. Null means the default, except for the `nullable` keys.
pub fn merged(
    section: &str,
    value: &Value,
    mut defaults: Map<String, Value>,
    nullable: &[&str],
) -> Result<Map<String, Value>, ConfigError> {
    let Some(given) = value.as_object() else {
        return Err(ConfigError::Inconsistent(format!("{section} is not an object")));
    };
    // transformers would load such weights in another format.
    if let Some(how) = given.get("quantization_config").filter(|v| !v.is_null()) {
        let method = how.get("quant_method").unwrap_or(how);
        return Err(unsupported(&format!("{section}.quantization_config"), method, "weights in f32, f16 or bf16"));
    }
    for (key, slot) in &mut defaults {
        match given.get(key) {
            Some(Value::Null) if !nullable.contains(&key.as_str()) => {}
            Some(value) => *slot = value.clone(),
            None => {}
        }
    }
    Ok(defaults)
}

/// Returns an error if the key has an unsupported value; null and an absent key pass.
pub fn must_be(section: &str, merged: &Map<String, Value>, key: &str, supported: &[Value]) -> Result<(), ConfigError> {
    match merged.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if supported.contains(value) => Ok(()),
        Some(value) => {
            let supported = if supported[0].is_boolean() { "false" } else { "0" };
            Err(unsupported(&format!("{section}.{key}"), value, supported))
        }
    }
}

/// Parses the section into its type; an error names the key.
pub fn parse<T: DeserializeOwned>(section: &str, merged: Map<String, Value>) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(Value::Object(merged)).map_err(|error| {
        let path = error.path().to_string();
        let key = if path == "." { section.to_string() } else { format!("{section}.{path}") };
        ConfigError::Type { key, reason: excerpt(&error.into_inner().to_string()) }
    })
}
