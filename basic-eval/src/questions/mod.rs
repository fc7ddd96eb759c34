//! Asks a model the questions of a file and scores the answers by exact match (`basic eval`).

mod answerer;
mod choices;
mod error;
mod ranker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use basic_data::{ImageBase, ImageSource, StyleChoice, VisionCache};
use basic_models::Checkpoint;
use basic_models::atomic_file::write_atomically;
use basic_models::nn::Llava;
use basic_models::outside::{Budget, check_json, excerpt, read_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::answerer::tiles_of;
pub use self::answerer::{Answerer, Prompts};
pub use self::choices::{ChoiceEvaluation, ChoiceScore, Ranking, check_choices, rank_choices, score_choices};
pub use self::error::EvalError;
pub use self::ranker::Ranker;

/// A question of LLaVA's evaluation files, with its answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Question {
    /// The question's id.
    #[serde(default)]
    pub question_id: Value,
    /// The image's path, relative to the file or to `--images`; `None` for a question without an image.
    #[serde(default)]
    pub image: Option<String>,
    /// The question.
    pub text: String,
    /// The true answer.
    pub answer: String,
    /// The question's type; `all` if the file names none.
    #[serde(default = "unnamed")]
    pub category: String,
    /// The answers to choose from, the true one among them; empty for a question with a free answer.
    #[serde(default)]
    pub choices: Vec<String>,
}

impl Question {
    /// Identifies the question in messages: its index in the file, from 0, and its id if it has one.
    pub(crate) fn place(&self, index: usize) -> String {
        match &self.question_id {
            Value::Null => index.to_string(),
            id => format!("{index} (id {})", excerpt(&id.to_string())),
        }
    }
}

fn unnamed() -> String {
    "all".into()
}

/// A question and the model's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prediction {
    /// The question's id.
    pub question_id: Value,
    /// The image's path, as in the question.
    pub image: Option<String>,
    /// The question.
    pub text: String,
    /// The true answer.
    pub expected: String,
    /// The model's answer.
    pub answer: String,
    /// The question's type.
    pub category: String,
    /// Whether the two are equal up to case, spaces and a final period.
    pub correct: bool,
}

/// The scores of a file of questions.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Exact match over all questions, 0 to 1.
    pub accuracy: f64,
    /// The number of questions.
    pub questions: usize,
    /// Exact match and the number of questions, per question type.
    pub per_type: BTreeMap<String, TypeScore>,
    /// The file with the predictions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictions: Option<PathBuf>,
}

/// The score of one question type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TypeScore {
    /// Exact match, 0 to 1.
    pub accuracy: f64,
    /// The number of questions.
    pub questions: usize,
}

/// How questions are answered.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// How many questions are answered in one batch.
    pub batch_size: usize,
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// The chat template or conversation style of the prompts.
    pub conversation: StyleChoice,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { batch_size: 32, max_new_tokens: 16, conversation: StyleChoice::Auto }
    }
}

/// Reads a JSONL file of questions.
///
/// # Errors
///
/// [`EvalError`] that names the file and the line.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, EvalError> {
    if path.is_dir() {
        return Err(EvalError::Folder(path.into()));
    }
    let text = read_text(path).map_err(|source| EvalError::Io { path: path.into(), source })?;
    let budget = Budget::of(path);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let questions: Result<Vec<Question>, _> = lines
        .map(|(index, line)| {
            let wrong = |source| EvalError::Line { path: path.into(), line: index + 1, source };
            check_json(line.as_bytes(), &budget)
                .map_err(|over| EvalError::Io { path: path.into(), source: over.into() })?;
            serde_json::from_str(line).map_err(wrong)
        })
        .collect();
    match questions? {
        questions if questions.is_empty() => Err(EvalError::Empty(path.into())),
        questions => Ok(questions),
    }
}

/// The image of each question. Every image must exist and lie below the folders of `base`.
///
/// # Errors
///
/// [`EvalError::Image`] that names the question and the image.
pub fn images(questions: &[Question], base: &ImageBase) -> Result<Vec<Option<ImageSource>>, EvalError> {
    let image = |(index, question): (usize, &Question)| {
        let wrong = |source| EvalError::Image { question: question.place(index), source };
        question.image.as_ref().map(|name| base.file(name).map(ImageSource::from).map_err(wrong)).transpose()
    };
    questions.iter().enumerate().map(image).collect()
}

/// Builds every prompt, so that a question that cannot be asked is reported before the weights are read. `images` has the
/// image of each question.
///
/// # Errors
///
/// [`EvalError`] that names the question.
pub fn check_prompts(
    checkpoint: &Checkpoint,
    questions: &[Question],
    images: &[Option<ImageSource>],
    options: &EvalOptions,
) -> Result<(), EvalError> {
    let prompts = Prompts::new(checkpoint, options)?;
    questions.iter().zip(images).enumerate().try_for_each(|(index, (question, image))| {
        prompts.check(&question.place(index), &question.text, &tiles_of(image.as_ref(), checkpoint)?)
    })
}

/// Answers `questions` by greedy decoding; `progress` is called with the number of questions answered so far.
///
/// # Errors
///
/// [`EvalError`] that names the image or the question.
pub fn answer(
    model: &Llava,
    checkpoint: &Checkpoint,
    questions: &[Question],
    base: &ImageBase,
    options: &EvalOptions,
    cache: &mut VisionCache,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Prediction>, EvalError> {
    let mut answerer = Answerer::new(model, checkpoint, options, cache)?;
    let images = images(questions, base)?;
    // Every prompt is built before the first answer, so that an invalid one is reported at once. Prompts of similar
    // length share a batch, which needs less padding.
    let mut order = Vec::with_capacity(questions.len());
    for (index, question) in questions.iter().enumerate() {
        let prompt = answerer.prompts().prompt(
            &question.place(index),
            &question.text,
            &tiles_of(images[index].as_ref(), checkpoint)?,
        )?;
        order.push((prompt.ids.len(), index));
    }
    order.sort_unstable();
    let mut answers = vec![String::new(); questions.len()];
    let mut done = 0;
    for chunk in order.chunks(options.batch_size.max(1)) {
        let batch = chunk.iter().map(|(_, i)| (i.to_string(), questions[*i].text.as_str(), images[*i].as_ref()));
        let texts = answerer.answer(&batch.collect::<Vec<_>>())?;
        for ((_, index), text) in chunk.iter().zip(texts) {
            answers[*index] = text;
        }
        done += chunk.len();
        progress(done);
    }
    let judged = questions.iter().zip(answers).map(|(question, answer)| Prediction {
        question_id: question.question_id.clone(),
        image: question.image.clone(),
        text: question.text.clone(),
        expected: question.answer.clone(),
        correct: normalize(&answer) == normalize(&question.answer),
        answer,
        category: question.category.clone(),
    });
    Ok(judged.collect())
}

/// Scores predictions overall and per type.
pub fn score(predictions: &[Prediction]) -> Evaluation {
    let mut per_type: BTreeMap<String, TypeScore> = BTreeMap::new();
    for prediction in predictions {
        let score = per_type.entry(prediction.category.clone()).or_default();
        score.questions += 1;
        score.accuracy += f64::from(u8::from(prediction.correct));
    }
    let right: f64 = per_type.values().map(|s| s.accuracy).sum();
    for score in per_type.values_mut() {
        score.accuracy /= score.questions as f64;
    }
    let questions = predictions.len();
    Evaluation { accuracy: right / questions.max(1) as f64, questions, per_type, predictions: None }
}

/// Writes predictions as JSON, one per line.
///
/// # Errors
///
/// [`EvalError::Io`] that names the file.
pub fn write_predictions<P: Serialize>(path: &Path, predictions: &[P]) -> Result<(), EvalError> {
    let io = |source| EvalError::Io { path: path.into(), source };
    let mut text = String::new();
    for prediction in predictions {
        text += &serde_json::to_string(prediction).map_err(|e| io(std::io::Error::other(e.to_string())))?;
        text.push('\n');
    }
    write_atomically(path, text.as_bytes()).map_err(io)
}

/// An answer in lower case, with single spaces and without final periods: exact match compares this form.
pub(crate) fn normalize(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_end_matches('.').trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_spaces_and_a_final_period_do_not_make_an_answer_wrong() {
        assert_eq!(normalize("  Top  left."), normalize("top left"));
        assert_eq!(normalize("red ."), normalize("red"));
        assert_ne!(normalize("red"), normalize("dark red"));
    }

    #[test]
    fn scores_are_counted_per_type_and_overall() {
        let prediction = |category: &str, correct| Prediction {
            question_id: Value::Null,
            image: None,
            text: String::new(),
            expected: String::new(),
            answer: String::new(),
            category: category.into(),
            correct,
        };
        let scores =
            score(&[prediction("a", true), prediction("a", false), prediction("b", true), prediction("b", true)]);
        assert_eq!(scores.accuracy, 0.75);
        assert_eq!((scores.per_type["a"].accuracy, scores.per_type["b"].questions), (0.5, 2));
        assert_eq!(score(&[]).accuracy, 0.0);
    }
}
