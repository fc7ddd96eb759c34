//! Answers with their scores.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Asked, Grouping};
use crate::questions::Prediction;

/// A question with its answer and score: a line of `judged.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The question's id in the benchmark's files.
    pub question_id: Value,
    /// The prompt.
    pub prompt: String,
    /// The path of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The model's answer.
    pub answer: String,
    /// The true answer, or the most frequent of several; `None` if it is hidden.
    #[serde(default)]
    pub expected: Option<String>,
    /// The question's type or split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The answer's score, 0 to 1; `None` if the true answer is hidden.
    #[serde(default)]
    pub score: Option<f64>,
    /// For yes-or-no questions: whether the answer was read as yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yes: Option<bool>,
    /// The groups that the question belongs to, for scores that are not a plain mean over questions.
    #[serde(default, skip_serializing_if = "Grouping::is_plain")]
    pub grouping: Grouping,
    /// The outcome of ranking the question's options by their likelihood, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_likelihood: Option<ByLikelihood>,
}

/// The outcome of ranking a question's options by their likelihood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ByLikelihood {
    /// The most likely option.
    pub answer: String,
    /// 1 if it is the true answer, else 0.
    pub score: f64,
    /// The same by the likelihood divided by the option's characters.
    pub score_by_length: f64,
}

impl Judged {
    /// Converts a prediction of `basic eval`. A question without an id gets `place`, its index in the file.
    pub fn of(prediction: &Prediction, place: usize) -> Self {
        let id = &prediction.question_id;
        Self {
            question_id: if id.is_null() { place.into() } else { id.clone() },
            prompt: prediction.text.clone(),
            image: prediction.image.as_ref().map(PathBuf::from),
            answer: prediction.answer.clone(),
            expected: Some(prediction.expected.clone()),
            category: Some(prediction.category.clone()),
            score: Some(f64::from(u8::from(prediction.correct))),
            yes: None,
            grouping: Grouping::default(),
            by_likelihood: None,
        }
    }

    pub(super) fn unscored(asked: &Asked, answer: &str) -> Self {
        let image = asked.image.as_ref().and_then(|image| image.file());
        let image = image.map(|path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf()));
        Self {
            question_id: asked.id.clone(),
            prompt: asked.prompt.clone(),
            image,
            answer: answer.into(),
            expected: None,
            category: None,
            score: None,
            yes: None,
            grouping: Grouping::default(),
            by_likelihood: None,
        }
    }
}
