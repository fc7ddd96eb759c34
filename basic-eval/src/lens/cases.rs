//! The input of a survey: the samples of a data set, or a file of questions with answers.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_data::{DataError, ImageBase, ImageSource, OneSet, Sample, Samples, SetConfig};
use basic_models::outside::read_text;
use basic_models::processor::{Message, PLACEHOLDER, Role};
use serde_json::Value;

use super::LensError;
use crate::questions::{EvalError, Question, read_questions};

/// A sample with its type and the text that describes its images.
#[derive(Debug, Clone)]
pub struct Case {
    /// The conversation and its images.
    pub sample: Sample,
    /// The question's type; `all` in a data set.
    pub category: String,
    /// The text about the images, which the rule `caption` uses: the answers of a data set's sample; for a question its
    /// `caption`, or if it has none the answers to all questions about the same image.
    pub said: String,
}

/// The samples of a data set or of a file of questions, read by index.
#[derive(Debug)]
pub struct Cases {
    path: PathBuf,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Set(Box<OneSet>),
    Questions { questions: Vec<Question>, said: Vec<String>, base: ImageBase },
}

impl Cases {
    /// Opens a data set of any format, or a file of questions as for `basic eval`: JSON lines with `text` and `answer`.
    ///
    /// # Errors
    ///
    /// [`LensError`] that names the file and the line.
    pub fn open(config: &SetConfig) -> Result<Self, LensError> {
        Self::read(config, None, "make that folder, or one above it, `images`")
    }

    /// Like [`Cases::open`], but the images of a file of questions may also lie below the folder `image_root`.
    ///
    /// # Errors
    ///
    /// [`LensError`] that names the file and the line.
    pub fn open_within(config: &SetConfig, image_root: Option<&Path>) -> Result<Self, LensError> {
        Self::read(config, image_root, "--image-root DIR allows the files below another folder")
    }

    fn read(config: &SetConfig, image_root: Option<&Path>, hint: &'static str) -> Result<Self, LensError> {
        let path = config.path.clone();
        let reader = match holds_questions(&path) {
            true => {
                let questions = read_questions(&path)?;
                let base = ImageBase::of(config.images.as_deref(), &path, image_root)?.advising(hint);
                Reader::Questions { said: said_of(&path, &questions)?, questions, base }
            }
            false if image_root.is_some() => {
                let reason =
                    "--image-root goes with a file of questions: --images names the folder of a data set's images";
                return Err(DataError::Set { path, reason: reason.into() }.into());
            }
            false => Reader::Set(Box::new(OneSet::open(config)?)),
        };
        Ok(Self { path, reader })
    }

    /// The path of the file or folder, or the pattern.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        match &self.reader {
            Reader::Set(set) => set.len(),
            Reader::Questions { questions, .. } => questions.len(),
        }
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the sample with this index.
    ///
    /// # Errors
    ///
    /// [`LensError`] that names the file and the sample.
    pub fn get(&self, index: usize) -> Result<Case, LensError> {
        match &self.reader {
            Reader::Set(set) => {
                let sample = set.sample(index)?;
                let answers = sample.messages.iter().filter(|message| message.role == Role::Assistant);
                let said: Vec<&str> = answers.map(|message| message.content.as_str()).collect();
                Ok(Case { said: said.join("\n"), sample, category: "all".into() })
            }
            Reader::Questions { questions, said, base } => {
                let question = &questions[index];
                let place = question.place(index);
                let shown = question.image.is_some() && !question.text.contains(PLACEHOLDER);
                let text = if shown { format!("{PLACEHOLDER}\n{}", question.text) } else { question.text.clone() };
                let messages =
                    vec![Message::new(Role::User, text), Message::new(Role::Assistant, question.answer.clone())];
                let wrong = |source| EvalError::Image { question: place.clone(), source }.of(&self.path);
                let images = question.image.iter().map(|name| base.file(name).map(ImageSource::File).map_err(wrong));
                let images = images.collect::<Result<_, _>>()?;
                let sample = Sample { file: Arc::from(self.path.as_path()), place, images, messages, dropped_turns: 0 };
                Ok(Case { sample, category: question.category.clone(), said: said[index].clone() })
            }
        }
    }

    /// The indices of the first `limit` samples with an image. With `once`, only the first question about each image.
    ///
    /// # Errors
    ///
    /// [`LensError::NoImages`] if no sample has an image, and the errors of reading a sample.
    pub fn with_images(&self, limit: Option<usize>, once: bool) -> Result<Vec<usize>, LensError> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut met = HashSet::new();
        let mut found = Vec::new();
        for index in 0..self.len() {
            let wanted = match &self.reader {
                Reader::Set(set) => !set.outline(index)?.images.is_empty(),
                Reader::Questions { questions, base, .. } => match &questions[index].image {
                    Some(image) => {
                        let question = || questions[index].place(index);
                        let wrong = |source| EvalError::Image { question: question(), source }.of(&self.path);
                        base.file(image).map_err(wrong)?;
                        met.insert(image) || !once
                    }
                    None => false,
                },
            };
            if wanted {
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

/// The text about the image of each question: see [`Case::said`].
fn said_of(path: &Path, questions: &[Question]) -> Result<Vec<String>, LensError> {
    let text = read_text(path).map_err(|source| EvalError::Io { path: path.into(), source })?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let caption = |line: &str| serde_json::from_str::<Value>(line).ok()?["caption"].as_str().map(String::from);
    let mut answers: HashMap<Option<&str>, Vec<&str>> = HashMap::new();
    for question in questions {
        answers.entry(question.image.as_deref()).or_default().push(&question.answer);
    }
    let all =
        |question: &Question| answers.get(&question.image.as_deref()).map(|all| all.join("\n")).unwrap_or_default();
    Ok(questions.iter().zip(lines).map(|(question, line)| caption(line).unwrap_or_else(|| all(question))).collect())
}

/// Whether the first non-empty line of a file is a question with its answer.
fn holds_questions(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    // No question is longer than this, but a data set in JSON may be a single line of any length.
    let mut lines = BufReader::new(file.take(1 << 20)).lines();
    let first = lines.find_map(|line| match line {
        Ok(line) if line.trim().is_empty() => None,
        other => Some(other.unwrap_or_default()),
    });
    let value: Value =
        first.and_then(|line| serde_json::from_str(line.trim_start_matches('\u{feff}')).ok()).unwrap_or_default();
    value["text"].is_string() && value["answer"].is_string()
}
