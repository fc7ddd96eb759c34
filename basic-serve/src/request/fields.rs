//! Reads the fields of a JSON object one by one, so that every error names its field, and none is passed over.

use std::ops::RangeInclusive;

use basic_models::outside::excerpt;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of an object that have not been read yet. `null` counts as absent, as in OpenAI's API.
pub(crate) struct Fields {
    path: String,
    left: Map<String, Value>,
}

impl Fields {
    /// The fields of `value`; `path` is what errors call it, and empty for a request's body.
    pub fn of(value: Value, path: impl Into<String>) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(left) => Ok(Self { path, left }),
            other if path.is_empty() => Err(ApiError::field("body", expected("an object", &other))),
            other => Err(ApiError::field(path, expected("an object", &other))),
        }
    }

    /// The path of one of the fields.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    /// An error about one of the fields.
    pub fn error(&self, name: &str, message: impl Into<String>) -> ApiError {
        ApiError::field(self.path(name), message)
    }

    /// Takes a field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub fn need(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| self.error(name, "is missing").coded("missing_required_parameter"))
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(name, expected("a text", &other))),
        }
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.error(name, expected("true or false", &other))),
        }
    }

    /// Takes a number within a range.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let fits = value.as_f64().filter(|number| range.contains(number));
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        fits.map(Some).ok_or_else(|| self.error(name, expected(&wanted, &value)))
    }

    /// Takes a whole number within a range.
    pub fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        // Some clients write 16.0.
        let whole = |number: f64| (number.fract() == 0.0 && (0.0..=9e15).contains(&number)).then_some(number as u64);
        let fits = value.as_u64().or_else(|| whole(value.as_f64()?)).filter(|number| range.contains(number));
        let wanted = match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        fits.map(Some).ok_or_else(|| self.error(name, expected(&wanted, &value)))
    }

    /// Takes a text or a list of at most `most` texts.
    pub fn texts(&mut self, name: &str, most: usize) -> Result<Option<Vec<String>>, ApiError> {
        let wanted = format!("a text or a list of at most {most} texts");
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(list)) if list.len() <= most => {
                let texts: Option<Vec<String>> = list.iter().map(|text| text.as_str().map(String::from)).collect();
                texts.map(Some).ok_or_else(|| self.error(name, expected(&wanted, &Value::Array(list))))
            }
            Some(other) => Err(self.error(name, expected(&wanted, &other))),
        }
    }

    /// Takes fields that change nothing about an answer.
    pub fn pass_over(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.left.remove(*name)));
    }

    /// Takes a field that is accepted only with a value that asks for nothing.
    pub fn only(&mut self, name: &str, harmless: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless(&value) => Err(self
                .error(name, format!("{} is not supported by this server: leave it out", excerpt(&value.to_string())))
                .coded("unsupported_parameter")),
            _ => Ok(()),
        }
    }

    /// Refuses what is left.
    pub fn end(self) -> Result<(), ApiError> {
        match self.left.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let name = excerpt(name);
                Err(self.error(&name, "is not supported by this server: leave it out").coded("unsupported_parameter"))
            }
            None => Ok(()),
        }
    }
}

/// What a wrong value should have been.
pub(crate) fn expected(wanted: &str, found: &Value) -> String {
    let found = match found {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".into(),
        other => excerpt(&other.to_string()),
    };
    format!("expected {wanted}, found {found}")
}
