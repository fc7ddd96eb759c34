//! Exact match on questions: `basic eval`.

mod answerer;
mod error;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use basic_data::{ImageBase, ImageSource, StyleChoice, VisionCache};
use basic_models::Checkpoint;
use basic_models::atomic_file::write_atomically;
use basic_models::nn::Llava;
use basic_models::outside::{Budget, check_json, excerpt, read_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::answerer::{Answerer, Prompts};
pub use self::error::EvalError;

/// A question of LLaVA's evaluation files, with its answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Question {
    /// The question's id.
    #[serde(default)]
    pub question_id: Value,
    /// The image, relative to the file or to `--images`; absent for a text-only question.
    #[serde(default)]
    pub image: Option<String>,
    /// The question.
    pub text: String,
    /// The true answer.
    pub answer: String,
    /// The question's type.
    #[serde(default = "unnamed")]
    pub category: String,
}

impl Question {
    /// Which one it is, for messages: its index in the file, and its id where it has one.
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

/// A question with what the model said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prediction {
    /// The question's id.
    pub question_id: Value,
    /// The image.
    pub image: Option<String>,
    /// The question.
    pub text: String,
    /// The true answer.
    pub expected: String,
    /// What the model said.
    pub answer: String,
    /// The question's type.
    pub category: String,
    /// Whether the two are the same, case, outer spaces and a final period aside.
    pub correct: bool,
}

/// Scores of a file.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Exact match over all questions, 0 to 1.
    pub accuracy: f64,
    /// Questions.
    pub questions: usize,
    /// Exact match and count per type.
    pub per_type: BTreeMap<String, TypeScore>,
    /// Where the predictions are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictions: Option<PathBuf>,
}

/// A type's score.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TypeScore {
    /// Exact match, 0 to 1.
    pub accuracy: f64,
    /// Questions.
    pub questions: usize,
}

/// How questions are answered.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Questions answered together.
    pub batch_size: usize,
    /// At most this many tokens an answer.
    pub max_new_tokens: usize,
    /// How a question becomes a prompt.
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

/// The questions' images, each of which must be there and below the folders of `base`.
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

/// Makes every prompt, for one that cannot be answered to be told before the weights are read.
///
/// # Errors
///
/// [`EvalError`] that names the question.
pub fn check_prompts(checkpoint: &Checkpoint, questions: &[Question], options: &EvalOptions) -> Result<(), EvalError> {
    let prompts = questions.iter().enumerate();
    let prompts =
        prompts.map(|(index, question)| (question.place(index), &question.text[..], question.image.is_some()));
    Prompts::new(checkpoint, options)?.check(prompts)
}

/// Answers `questions` greedily, in order; `progress` sees how many are done.
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
    // Every prompt is made before the first answer, for a wrong one to be told at once; those of like length share a
    // batch: less padding.
    let mut order = Vec::with_capacity(questions.len());
    for (index, question) in questions.iter().enumerate() {
        let prompt = answerer.prompts().prompt(&question.place(index), &question.text, question.image.is_some())?;
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

/// Writes predictions, one a line.
///
/// # Errors
///
/// [`EvalError::Io`] that names the file.
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> Result<(), EvalError> {
    let io = |source| EvalError::Io { path: path.into(), source };
    let mut text = String::new();
    for prediction in predictions {
        text += &serde_json::to_string(prediction).map_err(|e| io(std::io::Error::other(e.to_string())))?;
        text.push('\n');
    }
    write_atomically(path, text.as_bytes()).map_err(io)
}

/// Lower case, single spaces, no final period.
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
