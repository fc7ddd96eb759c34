//! A stage's result on disk.

use std::collections::BTreeMap;

use basic_models::atomic_file::write_atomically;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::AblateError;
use super::expand::Planned;
use basic_eval::questions::Prediction;

/// Numbers by name.
pub type Values = BTreeMap<String, f64>;

/// `cells/HASH/result.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageResult {
    /// The hash of `key`.
    pub hash: String,
    /// basic's version.
    pub version: String,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Where it was computed.
    pub device: String,
    /// Steps of the stage.
    pub steps: usize,
    /// Seconds of training, of the last start.
    pub train_seconds: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Seconds of measuring.
    pub measure_seconds: f64,
    /// What was measured. JSON writes null for a number that is not finite, which becomes NaN.
    #[serde(deserialize_with = "numbers")]
    pub values: Values,
    /// Some of the answers to the study's questions, where they are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<SampleAnswer>,
    /// All that it depends on.
    pub key: Value,
}

fn numbers<'de, D: Deserializer<'de>>(source: D) -> Result<Values, D::Error> {
    let values: BTreeMap<String, Option<f64>> = BTreeMap::deserialize(source)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// A question with what a model said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleAnswer {
    /// The image's path.
    pub image: String,
    /// The question.
    pub question: String,
    /// The true answer.
    pub expected: String,
    /// What the model said.
    pub answer: String,
    /// The question's kind.
    pub kind: String,
}

impl SampleAnswer {
    /// At most so many answers, evenly spread.
    pub(super) fn spread(answers: &[Prediction], most: usize) -> Vec<Self> {
        let every = (answers.len() / most.max(1)).max(1);
        let of = |answer: &Prediction| Self {
            image: answer.image.clone().unwrap_or_default(),
            question: answer.text.clone(),
            expected: answer.expected.clone(),
            answer: answer.answer.clone(),
            kind: answer.category.clone(),
        };
        answers.iter().step_by(every).take(most).map(of).collect()
    }
}

impl StageResult {
    /// The result of a stage, where there is one.
    pub(super) fn read(planned: &Planned) -> Result<Option<Self>, AblateError> {
        let path = planned.folder.join("result.json");
        let text = match basic_models::outside::read_json_text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AblateError::Io { path, source }),
        };
        let wrong = |reason: String| AblateError::Result { path: path.clone(), reason };
        let found: Self = serde_json::from_str(&text).map_err(|error| wrong(format!("is no result: {error}")))?;
        if found.key != planned.key {
            return Err(wrong("is of another recipe".into()));
        }
        Ok(Some(found))
    }

    pub(super) fn write(&self, planned: &Planned) -> Result<(), AblateError> {
        let path = planned.folder.join("result.json");
        let text = serde_json::to_string_pretty(self).map_err(|e| std::io::Error::other(e.to_string()));
        text.and_then(|text| write_atomically(&path, (text + "\n").as_bytes())).map_err(AblateError::io(&path))
    }
}
