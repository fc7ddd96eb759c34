//! Answers with their scores, and the measures that summarize them.

use std::path::PathBuf;

use basic_data::ImageSource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pope::rates;
use super::{Asked, Metric};
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
        }
    }

    pub(super) fn unscored(asked: &Asked, answer: &str) -> Self {
        let image = match &asked.image {
            Some(ImageSource::File(path)) => Some(path.canonicalize().unwrap_or_else(|_| path.clone())),
            _ => None,
        };
        Self {
            question_id: asked.id.clone(),
            prompt: asked.prompt.clone(),
            image,
            answer: answer.into(),
            expected: None,
            category: None,
            score: None,
            yes: None,
        }
    }
}

/// The kinds of measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The mean score.
    Mean,
    /// The share of the answers read as yes that is right.
    Precision,
    /// The share of the questions whose true answer is yes that is answered with yes.
    Recall,
    /// The harmonic mean of precision and recall.
    F1,
    /// The share of the answers that were read as yes.
    YesRatio,
}

/// The outcome of one question, as far as measures need it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The score, 0 to 1.
    pub score: f64,
    /// Whether the answer was read as yes.
    pub said: bool,
    /// Whether the true answer is yes.
    pub is: bool,
}

impl Kind {
    /// The measure's value over some questions; 0 where it is undefined.
    pub fn value(self, outcomes: impl Iterator<Item = Outcome>) -> f64 {
        let rate = match self {
            Self::Mean => {
                let (sum, count) = outcomes.fold((0.0, 0_usize), |(sum, n), outcome| (sum + outcome.score, n + 1));
                return sum / count.max(1) as f64;
            }
            Self::Precision => 1,
            Self::Recall => 2,
            Self::F1 => 3,
            Self::YesRatio => 4,
        };
        rates(&outcomes.map(|outcome| (outcome.said, outcome.is)).collect::<Vec<_>>())[rate]
    }
}

/// A measure over some of the questions.
#[derive(Debug, Clone)]
pub struct Measure {
    /// The measure's name, with the type of its questions.
    pub name: String,
    /// The kind of measure.
    pub kind: Kind,
    /// The indices of its questions.
    pub questions: Vec<usize>,
}

impl Measure {
    /// The outcomes of the measure's questions; questions without a score are left out.
    pub fn outcomes(&self, judged: &[Judged]) -> Vec<Outcome> {
        let outcome = |i: &usize| {
            let judged = &judged[*i];
            let is = judged.expected.as_deref() == Some("yes");
            Some(Outcome { score: judged.score?, said: judged.yes.unwrap_or(false), is })
        };
        self.questions.iter().filter_map(outcome).collect()
    }
}

/// The measures of `judged`: the mean score, called `name`, over all questions and by type; for yes-or-no questions
/// instead five measures of each type. Empty if the true answers are hidden.
pub fn measures(name: &str, judged: &[Judged]) -> Vec<Measure> {
    if judged.is_empty() || judged.iter().any(|judged| judged.score.is_none()) {
        return Vec::new();
    }
    let mut groups: Vec<&str> = judged.iter().filter_map(|judged| judged.category.as_deref()).collect();
    groups.sort_unstable();
    groups.dedup();
    let of = |group: &str| -> Vec<usize> {
        (0..judged.len()).filter(|i| judged[*i].category.as_deref() == Some(group)).collect()
    };
    if judged.iter().all(|judged| judged.yes.is_some()) {
        let kinds = [
            (name, Kind::Mean),
            ("precision", Kind::Precision),
            ("recall", Kind::Recall),
            ("F1", Kind::F1),
            ("yes ratio", Kind::YesRatio),
        ];
        let measure = |group: &str, (name, kind): (&str, Kind)| Measure {
            name: format!("{name}, {group}"),
            kind,
            questions: of(group),
        };
        return groups.iter().flat_map(|group| kinds.map(|kind| measure(group, kind))).collect();
    }
    let mut measures = vec![Measure { name: name.into(), kind: Kind::Mean, questions: (0..judged.len()).collect() }];
    if groups.len() > 1 || (groups.len() == 1 && groups[0] != "all") {
        let measure =
            |group: &&str| Measure { name: format!("{name}, {group}"), kind: Kind::Mean, questions: of(group) };
        measures.extend(groups.iter().map(measure));
    }
    measures
}

/// The values of [`measures`], with their 95% intervals.
pub fn metrics(name: &str, judged: &[Judged]) -> Vec<Metric> {
    let metric = |measure: Measure| {
        let outcomes = measure.outcomes(judged);
        let value = |chosen: &[usize]| measure.kind.value(chosen.iter().map(|i| outcomes[*i]));
        Metric::of(measure.name.clone(), outcomes.len(), value)
    };
    measures(name, judged).into_iter().map(metric).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(category: Option<&str>, score: f64, yes: Option<bool>, expected: &str) -> Judged {
        let asked = Asked { id: 1.into(), prompt: String::new(), image: None };
        let category = category.map(String::from);
        let expected = Some(expected.into());
        Judged { category, score: Some(score), yes, expected, ..Judged::unscored(&asked, "") }
    }

    #[test]
    fn types_follow_the_whole() {
        let all = [("b", 1.0), ("a", 0.0), ("b", 0.0)].map(|(group, score)| judged(Some(group), score, None, "x"));
        let metrics = metrics("accuracy", &all);
        let told: Vec<_> = metrics.iter().map(|m| (m.name.as_str(), m.value, m.questions)).collect();
        assert_eq!(told, [("accuracy", 1.0 / 3.0, 3), ("accuracy, a", 0.0, 1), ("accuracy, b", 0.5, 2)]);
        let untyped = super::metrics("accuracy", &[judged(None, 0.3, None, "x")]);
        assert_eq!(untyped.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["accuracy"]);
    }

    #[test]
    fn yes_or_no_questions_have_five_rates_a_type_and_hidden_ones_none() {
        let said = [(true, "yes"), (true, "no"), (false, "yes"), (false, "no"), (true, "yes")];
        let all =
            said.map(|(yes, is)| judged(Some("random"), f64::from(u8::from(yes == (is == "yes"))), Some(yes), is));
        let metrics = metrics("accuracy", &all);
        let names: Vec<_> = metrics.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            names,
            ["accuracy, random", "precision, random", "recall, random", "F1, random", "yes ratio, random"]
        );
        let expected = [0.6, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 0.6];
        assert!(metrics.iter().zip(expected).all(|(m, e)| (m.value - e).abs() < 1e-12), "{metrics:?}");
        let hidden = Judged { score: None, ..judged(None, 0.0, None, "") };
        assert!(measures("accuracy", &[hidden]).is_empty());
    }
}
