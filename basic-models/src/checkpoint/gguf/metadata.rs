//! The keys and values of a GGUF file's metadata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::GgufError;

/// A value, with the integer and float types of the format widened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// An integer of any size and sign.
    Integer(i128),
    /// A number of single or double precision.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of integers.
    Integers(Vec<i64>),
    /// A list of numbers.
    Floats(Vec<f32>),
    /// A list of true and false.
    Flags(Vec<bool>),
}

impl Value {
    /// What the value is, as a message says it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Flag(_) => "true or false",
            Self::Text(_) => "a text",
            Self::Texts(_) => "a list of texts",
            Self::Integers(_) => "a list of integers",
            Self::Floats(_) => "a list of numbers",
            Self::Flags(_) => "a list of true and false",
        }
    }
}

/// The metadata of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { path: path.into(), values }
    }

    /// An error about a key.
    pub fn wrong(&self, key: &str, reason: impl Into<String>) -> GgufError {
        GgufError::Key { path: self.path.clone(), key: key.into(), reason: reason.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        take: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match take(value) {
            Some(taken) => Ok(Some(taken)),
            None => Err(self.wrong(key, format!("is {}, and must be {wanted}", value.kind()))),
        }
    }

    /// A text, if the key is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Text(text) => Ok(Some(text)),
            other => Err(self.wrong(key, format!("is {}, and must be a text", other.kind()))),
        }
    }

    /// A count from 0 to 2^32 - 1, if the key is there.
    pub fn count(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer from 0 to 4294967295", |value| match value {
            Value::Integer(count) => u32::try_from(*count).ok(),
            _ => None,
        })
    }

    /// A count that must be there.
    pub fn needed(&self, key: &str) -> Result<u32, GgufError> {
        self.count(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A finite number, if the key is there. It is taken with the digits of single precision, in which llama.cpp's
    /// converters write: 1e-5, and not 9.999999747378752e-6.
    pub fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", |value| match value {
            Value::Float(number) if number.is_finite() => {
                let single = *number as f32;
                match f64::from(single) == *number {
                    true => single.to_string().parse().ok(),
                    false => Some(*number),
                }
            }
            Value::Integer(number) => Some(*number as f64),
            _ => None,
        })
    }

    /// True or false, if the key is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "true or false", |value| match value {
            Value::Flag(set) => Some(*set),
            _ => None,
        })
    }

    /// A list of texts, if the key is there.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Texts(texts) => Ok(Some(texts)),
            other => Err(self.wrong(key, format!("is {}, and must be a list of texts", other.kind()))),
        }
    }

    /// A list of integers, if the key is there.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Integers(list) => Ok(Some(list)),
            other => Err(self.wrong(key, format!("is {}, and must be a list of integers", other.kind()))),
        }
    }

    /// A list of numbers, if the key is there.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Floats(list) => Ok(Some(list)),
            other => Err(self.wrong(key, format!("is {}, and must be a list of numbers", other.kind()))),
        }
    }
}
