//! Ranks the choices of questions by their likelihood (`basic eval --choices likelihood`).
//!
//! A choice's log-likelihood is the sum over the tokens of the answer, and of what ends it, of the log-probabilities that
//! the model gives them: minus the training loss of that answer times its tokens. The same divided by the choice's
//! characters is the length-normalized one, as `acc_norm` of lm-evaluation-harness divides it (which leaves the end of the
//! answer out).

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use basic_data::{ImageBase, ImageSource, VisionCache};
use basic_models::Checkpoint;
use basic_models::nn::Llava;
use serde::{Deserialize, Serialize};

use super::answerer::tiles_of;
use super::{EvalError, EvalOptions, Prediction, Question, Ranker, images};

/// A question, the likelihoods of its choices, and where the true answer stands among them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ranking {
    /// The question with the most likely choice as its answer.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// The choices.
    pub choices: Vec<String>,
    /// The log-likelihood of each choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// The true answer's rank by likelihood: 1 for the most likely choice; choices that are equally likely share the mean
    /// of their ranks.
    pub rank: f64,
    /// Its rank by likelihood divided by the choice's characters.
    pub rank_normalized: f64,
    /// Whether the choice with the largest normalized likelihood is the true answer.
    pub correct_normalized: bool,
}

/// The scores of a file of questions with choices, or of one type of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChoiceScore {
    /// The share of questions whose most likely choice is the true answer, 0 to 1.
    pub accuracy: f64,
    /// The same by length-normalized likelihood.
    pub accuracy_normalized: f64,
    /// What guessing would score: the mean of 1 / choices.
    pub chance: f64,
    /// The mean rank of the true answer, from 1.
    pub rank: f64,
    /// The same by length-normalized likelihood.
    pub rank_normalized: f64,
    /// The mean of 1 / rank.
    pub reciprocal_rank: f64,
    /// The number of questions.
    pub questions: usize,
}

/// The scores over all questions and per type.
#[derive(Debug, Clone, Serialize)]
pub struct ChoiceEvaluation {
    /// Over all questions.
    #[serde(flatten)]
    pub all: ChoiceScore,
    /// Per question type.
    pub per_type: BTreeMap<String, ChoiceScore>,
    /// The file with the rankings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictions: Option<PathBuf>,
}

/// Checks that every question can be ranked, so that a bad one is reported before the weights are read. `images` has the
/// image of each question.
///
/// # Errors
///
/// [`EvalError::Choices`] for a question with fewer than two choices, with two equal ones, or whose answer is not one of
/// them; [`EvalError`] for one whose prompt cannot be rendered, or is too long.
pub fn check_choices(
    checkpoint: &Checkpoint,
    questions: &[Question],
    images: &[Option<ImageSource>],
    options: &EvalOptions,
) -> Result<(), EvalError> {
    let ranker = Ranker::new(checkpoint, options)?;
    questions.iter().zip(images).enumerate().try_for_each(|(index, (question, image))| {
        let place = question.place(index);
        distinct(question, &place)?;
        ranker.check(&place, &question.text, &tiles_of(image.as_ref(), checkpoint)?, &question.choices)
    })
}

/// Ranks the choices of every question; `progress` is called with the number of questions done.
///
/// # Errors
///
/// [`EvalError`] that names the image or the question.
pub fn rank_choices(
    ranker: &Ranker<'_>,
    model: &Llava,
    questions: &[Question],
    base: &ImageBase,
    cache: &mut VisionCache,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Ranking>, EvalError> {
    let images = images(questions, base)?;
    let mut rankings = Vec::with_capacity(questions.len());
    for (index, (question, image)) in questions.iter().zip(&images).enumerate() {
        let place = question.place(index);
        distinct(question, &place)?;
        let found = ranker.rank(model, cache, &place, &question.text, image.as_ref(), &question.choices)?;
        rankings.push(Ranking::new(question, found));
        progress(index + 1);
    }
    Ok(rankings)
}

/// Refuses a question with two equal choices, or whose answer is none of them.
fn distinct(question: &Question, place: &str) -> Result<(), EvalError> {
    let wrong = |reason: &str| EvalError::Choices { question: place.into(), reason: reason.into() };
    let distinct: HashSet<&String> = question.choices.iter().collect();
    if distinct.len() < question.choices.len() {
        return Err(wrong("two of its \"choices\" are the same"));
    }
    match question.choices.len() < 2 || distinct.contains(&question.answer) {
        true => Ok(()),
        false => Err(wrong("its \"answer\" is none of its \"choices\"")),
    }
}

impl Ranking {
    fn new(question: &Question, log_likelihoods: Vec<f64>) -> Self {
        let choices = &question.choices;
        let truth = choices.iter().position(|choice| *choice == question.answer).unwrap_or_default();
        let characters = choices.iter().map(|choice| choice.chars().count().max(1) as f64);
        let normalized: Vec<f64> = log_likelihoods.iter().zip(characters).map(|(sum, length)| sum / length).collect();
        // Of equally likely choices, the first.
        let most = |values: &[f64]| (0..values.len()).reduce(|a, b| if values[b] > values[a] { b } else { a });
        let likeliest = most(&log_likelihoods).unwrap_or_default();
        let prediction = Prediction {
            question_id: question.question_id.clone(),
            image: question.image.clone(),
            text: question.text.clone(),
            expected: question.answer.clone(),
            answer: choices.get(likeliest).cloned().unwrap_or_default(),
            category: question.category.clone(),
            correct: likeliest == truth,
        };
        Self {
            prediction,
            choices: choices.clone(),
            rank: rank(&log_likelihoods, truth),
            rank_normalized: rank(&normalized, truth),
            correct_normalized: most(&normalized) == Some(truth),
            log_likelihoods,
        }
    }
}

/// The rank of one value among all, the largest first; equal values share the mean of their ranks.
fn rank(values: &[f64], of: usize) -> f64 {
    let Some(own) = values.get(of) else { return f64::NAN };
    let above = values.iter().filter(|value| *value > own).count();
    let equal = values.iter().filter(|value| *value == own).count();
    above as f64 + (equal as f64 + 1.0) / 2.0
}

/// Scores rankings overall and per type.
pub fn score_choices(rankings: &[Ranking]) -> ChoiceEvaluation {
    let mut per_type: BTreeMap<String, Vec<&Ranking>> = BTreeMap::new();
    for ranking in rankings {
        per_type.entry(ranking.prediction.category.clone()).or_default().push(ranking);
    }
    let per_type = per_type.into_iter().map(|(kind, rankings)| (kind, ChoiceScore::of(&rankings))).collect();
    ChoiceEvaluation { all: ChoiceScore::of(&rankings.iter().collect::<Vec<_>>()), per_type, predictions: None }
}

impl ChoiceScore {
    fn of(rankings: &[&Ranking]) -> Self {
        let questions = rankings.len();
        let mean =
            |of: fn(&Ranking) -> f64| rankings.iter().map(|ranking| of(ranking)).sum::<f64>() / questions.max(1) as f64;
        Self {
            accuracy: mean(|ranking| f64::from(u8::from(ranking.prediction.correct))),
            accuracy_normalized: mean(|ranking| f64::from(u8::from(ranking.correct_normalized))),
            chance: mean(|ranking| 1.0 / ranking.choices.len().max(1) as f64),
            rank: mean(|ranking| ranking.rank),
            rank_normalized: mean(|ranking| ranking.rank_normalized),
            reciprocal_rank: mean(|ranking| 1.0 / ranking.rank),
            questions,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn ranking(category: &str, answer: &str, log_likelihoods: &[f64]) -> Ranking {
        let question = Question {
            question_id: Value::Null,
            image: None,
            text: "what?".into(),
            answer: answer.into(),
            category: category.into(),
            choices: ["dog", "elephant", "cow"].map(String::from).to_vec(),
        };
        Ranking::new(&question, log_likelihoods.to_vec())
    }

    #[test]
    fn a_long_choice_can_win_by_normalized_likelihood_alone() {
        let found = ranking("a", "elephant", &[-3.0, -4.0, -6.0]);
        assert_eq!((found.prediction.answer.as_str(), found.prediction.correct, found.rank), ("dog", false, 2.0));
        // -1 and -0.5 and -2 a character.
        assert_eq!((found.correct_normalized, found.rank_normalized), (true, 1.0));
    }

    #[test]
    fn equally_likely_choices_share_the_mean_of_their_ranks() {
        assert_eq!(ranking("a", "cow", &[-1.0, -2.0, -2.0]).rank, 2.5);
        assert_eq!(ranking("a", "dog", &[-1.0, -1.0, -1.0]).rank, 2.0);
    }

    #[test]
    fn scores_are_means_over_the_questions_of_a_type_and_over_all() {
        let rankings = [
            ranking("a", "dog", &[-1.0, -5.0, -3.0]),
            ranking("a", "cow", &[-1.0, -9.0, -2.0]),
            ranking("b", "elephant", &[-1.0, -9.0, -2.0]),
        ];
        let found = score_choices(&rankings);
        assert_eq!((found.all.questions, found.all.accuracy, found.all.rank), (3, 1.0 / 3.0, 2.0));
        assert!((found.all.chance - 1.0 / 3.0).abs() < 1e-12);
        assert!((found.all.reciprocal_rank - (1.0 + 0.5 + 1.0 / 3.0) / 3.0).abs() < 1e-12);
        assert_eq!((found.per_type["a"].accuracy, found.per_type["b"].rank), (0.5, 3.0));
        assert_eq!(score_choices(&[]).all, ChoiceScore::default());
    }
}
