//! Reads keys of a file's JSON with the type that they should have. A value of another type is an error that names the
//! file and the key; it is never treated like an absent key.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ProcessorError, Result};
use crate::outside::excerpt;

/// A boolean key; `None` if it is absent or null.
pub(super) fn flag(path: &Path, file: &Value, key: &str) -> Result<Option<bool>> {
    match &file[key] {
        Value::Null => Ok(None),
        Value::Bool(set) => Ok(Some(*set)),
        other => Err(wrong(path, key, other, "true or false")),
    }
}

/// A key with a text; `None` if it is absent or null.
pub(super) fn text<'a>(path: &Path, file: &'a Value, key: &str) -> Result<Option<&'a str>> {
    match &file[key] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(wrong(path, key, other, "a text")),
    }
}

/// A key with a token: a text, or an object with the text as its `content`; `None` if it is absent or null.
pub(super) fn token<'a>(path: &Path, file: &'a Value, key: &str) -> Result<Option<&'a str>> {
    match &file[key] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Object(token) if token.get("content").is_some_and(Value::is_string) => Ok(token["content"].as_str()),
        other => Err(wrong(path, key, other, "a token, or an object with its \"content\"")),
    }
}

/// Parses a whole file or a part of one; an error names the key of the wrong type.
pub(super) fn typed<T: DeserializeOwned>(path: &Path, file: &Value) -> Result<T> {
    serde_path_to_error::deserialize(file).map_err(|error| {
        let key = error.path().to_string();
        let reason = error.into_inner();
        let pointer = format!("/{}", key.replace('.', "/"));
        match file.pointer(&pointer) {
            Some(value) => {
                let said = format!("{}: {reason}", excerpt(&value.to_string()));
                ProcessorError::Unsupported {
                    path: path.into(),
                    key,
                    value: said,
                    supported: "what transformers writes",
                }
            }
            None => ProcessorError::Json { path: path.into(), source: reason },
        }
    })
}

pub(super) fn wrong(path: &Path, key: &str, value: &Value, supported: &'static str) -> ProcessorError {
    ProcessorError::Unsupported { path: path.into(), key: key.into(), value: value.to_string(), supported }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::{flag, text, token};

    #[test]
    fn absent_is_none_and_another_type_names_the_file_and_the_key() {
        let file = json!({ "a": true, "b": "true", "c": null, "d": { "content": "<s>" }, "e": { "content": 3 } });
        let path = Path::new("here/tokenizer_config.json");
        assert_eq!(flag(path, &file, "a").unwrap(), Some(true));
        assert_eq!((flag(path, &file, "c").unwrap(), flag(path, &file, "x").unwrap()), (None, None));
        assert_eq!((text(path, &file, "b").unwrap(), token(path, &file, "d").unwrap()), (Some("true"), Some("<s>")));
        for error in [flag(path, &file, "b").unwrap_err(), text(path, &file, "a").unwrap_err()] {
            assert!(error.to_string().starts_with("here/tokenizer_config.json: \""), "{error}");
        }
        assert!(token(path, &file, "e").unwrap_err().to_string().contains("\"e\" is {\"content\":3}"));
        assert!(token(path, &file, "a").is_err());
    }
}
