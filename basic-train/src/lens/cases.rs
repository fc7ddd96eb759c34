//! What a survey looks at: the samples of a data set, or a file of questions with answers.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::processor::{Message, PLACEHOLDER, Role};
use serde_json::Value;

use super::LensError;
use crate::data::{ImageSource, OneSet, Sample, Samples, SetConfig};
use crate::evaluate::{Question, read_questions};

/// A sample and what kind it is of.
#[derive(Debug, Clone)]
pub struct Case {
    /// Turns and images.
    pub sample: Sample,
    /// The question's type; `all` in a data set.
    pub category: String,
}

impl Case {
    /// The texts of the answers: what the caption rule takes its words from.
    pub fn answers(&self) -> String {
        let answers = self.sample.messages.iter().filter(|message| message.role == Role::Assistant);
        answers.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// Samples by index.
#[derive(Debug)]
pub struct Cases {
    path: PathBuf,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Set(Box<OneSet>),
    Questions(Vec<Question>, PathBuf),
}

impl Cases {
    /// Opens a data set of any format, or a file of questions as `basic eval` takes it: JSON lines with `text` and
    /// `answer`.
    ///
    /// # Errors
    ///
    /// Names the file and the line.
    pub fn open(config: &SetConfig) -> Result<Self, LensError> {
        let path = config.path.clone();
        let reader = match holds_questions(&path) {
            true => {
                let root = config.images.clone().or_else(|| path.parent().map(Path::to_path_buf)).unwrap_or_default();
                Reader::Questions(read_questions(&path)?, root)
            }
            false => Reader::Set(Box::new(OneSet::open(config)?)),
        };
        Ok(Self { path, reader })
    }

    /// The file, folder or pattern.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many.
    pub fn len(&self) -> usize {
        match &self.reader {
            Reader::Set(set) => set.len(),
            Reader::Questions(questions, _) => questions.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// Names the file and the sample.
    pub fn get(&self, index: usize) -> Result<Case, LensError> {
        match &self.reader {
            Reader::Set(set) => Ok(Case { sample: set.sample(index)?, category: "all".into() }),
            Reader::Questions(questions, root) => {
                let question = &questions[index];
                let place = match &question.question_id {
                    Value::Null => index.to_string(),
                    id => format!("{index} (id {id})"),
                };
                let shown = question.image.is_some() && !question.text.contains(PLACEHOLDER);
                let text = if shown { format!("{PLACEHOLDER}\n{}", question.text) } else { question.text.clone() };
                let messages =
                    vec![Message::new(Role::User, text), Message::new(Role::Assistant, question.answer.clone())];
                let images = question.image.iter().map(|image| ImageSource::File(root.join(image))).collect();
                let sample = Sample { file: Arc::from(self.path.as_path()), place, images, messages };
                Ok(Case { sample, category: question.category.clone() })
            }
        }
    }

    /// The indices of the first `limit` samples with an image.
    ///
    /// # Errors
    ///
    /// [`LensError::NoImages`] where there is none, and what is wrong with a sample.
    pub fn with_images(&self, limit: Option<usize>) -> Result<Vec<usize>, LensError> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut found = Vec::new();
        for index in 0..self.len() {
            let images = match &self.reader {
                Reader::Set(set) => set.outline(index)?.images.len(),
                Reader::Questions(questions, _) => usize::from(questions[index].image.is_some()),
            };
            if images > 0 {
                found.push(index);
            }
            if found.len() >= limit {
                break;
            }
        }
        match found.is_empty() {
            true => Err(LensError::NoImages { data: self.path.clone(), samples: self.len() }),
            false => Ok(found),
        }
    }
}

/// Whether a file's first line is a question with its answer.
fn holds_questions(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    let mut lines = BufReader::new(file).lines();
    let first = lines.find_map(|line| match line {
        Ok(line) if line.trim().is_empty() => None,
        other => Some(other.unwrap_or_default()),
    });
    let value: Value = first.and_then(|line| serde_json::from_str(&line).ok()).unwrap_or_default();
    value["text"].is_string() && value["answer"].is_string()
}
