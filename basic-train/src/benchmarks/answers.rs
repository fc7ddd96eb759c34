//! What the model said so far: a file that grows as it answers, so that an evaluation goes on where it was stopped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reading::id;
use super::{Asked, BenchmarkError};
use crate::evaluate::Answerer;
use crate::files::write_atomically;

/// A line of the file, with LLaVA's keys.
#[derive(Serialize, Deserialize)]
struct Line {
    question_id: Value,
    prompt: String,
    text: String,
}

/// The answers of one benchmark, in `answers.jsonl`; `made.txt` beside it says how they were made.
#[derive(Debug)]
pub struct Answers {
    path: PathBuf,
    file: File,
    held: HashMap<(String, String), String>,
}

impl Answers {
    /// Opens the answers in the folder `dir`, which is made, of answers to `asked` that are made in the way `made`. A
    /// last line that was not written whole is dropped; with `fresh`, all of them.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] where a line is none of `asked`'s or the answers were made in another way.
    pub fn open(dir: &Path, asked: &[Asked], made: &str, fresh: bool) -> Result<Self, BenchmarkError> {
        let (path, note) = (dir.join("answers.jsonl"), dir.join("made.txt"));
        std::fs::create_dir_all(dir).map_err(BenchmarkError::io(dir))?;
        let old = if fresh { None } else { read_if_there(&path)? };
        let whole = old.as_deref().and_then(|text| text.rfind('\n')).map_or(0, |end| end + 1);
        let text = &old.as_deref().unwrap_or_default()[..whole];
        if whole > 0 {
            let was = read_if_there(&note)?.unwrap_or_else(|| "in a way that is not known".into());
            if was != made {
                return Err(BenchmarkError::Stale { path, was, now: made.into() });
            }
        }
        write_atomically(&note, made.as_bytes()).map_err(BenchmarkError::io(&note))?;
        let known: std::collections::HashSet<(String, String)> = asked.iter().map(key).collect();
        let mut held = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line: Line = serde_json::from_str(line).map_err(|e| BenchmarkError::line(&path, index + 1, e))?;
            let key = (id(&line.question_id), line.prompt);
            if !known.contains(&key) {
                let problem = format!("answers question {}, which is not asked: give --fresh to begin anew", key.0);
                return Err(BenchmarkError::line(&path, index + 1, problem));
            }
            held.insert(key, line.text);
        }
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(whole as u64)?;
            Ok(file)
        };
        let file = open().map_err(BenchmarkError::io(&path))?;
        Ok(Self { path, file, held })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The answers in the order of `asked`; `None` while one is missing.
    pub fn of(&self, asked: &[Asked]) -> Option<Vec<String>> {
        asked.iter().map(|question| self.held.get(&key(question)).cloned()).collect()
    }

    /// How many of `asked` are answered.
    pub fn answered(&self, asked: &[Asked]) -> usize {
        asked.iter().filter(|question| self.held.contains_key(&key(question))).count()
    }

    fn add(&mut self, batch: &[&Asked], texts: Vec<String>) -> Result<(), BenchmarkError> {
        let mut lines = String::new();
        for (question, text) in batch.iter().zip(texts) {
            let line = Line { question_id: question.id.clone(), prompt: question.prompt.clone(), text };
            let wrong = |e| BenchmarkError::entry(&self.path, format!("question {}", line.question_id), e);
            lines += &serde_json::to_string(&line).map_err(wrong)?;
            lines.push('\n');
            self.held.insert(key(question), line.text);
        }
        self.file.write_all(lines.as_bytes()).map_err(BenchmarkError::io(&self.path))
    }
}

/// Answers what `answers` lacks of `asked`, `batch` questions at a time, and keeps each batch at once; `progress` sees how
/// many are answered.
///
/// # Errors
///
/// [`BenchmarkError`] that names the question or the file.
pub fn respond(
    answerer: &mut Answerer<'_>,
    asked: &[Asked],
    batch: usize,
    answers: &mut Answers,
    progress: &mut dyn FnMut(usize),
) -> Result<(), BenchmarkError> {
    let mut open: Vec<&Asked> = asked.iter().filter(|question| !answers.held.contains_key(&key(question))).collect();
    let mut done = asked.len() - open.len();
    progress(done);
    // Prompts of like length share a batch: less padding.
    open.sort_by_key(|question| question.prompt.len());
    for batch in open.chunks(batch.max(1)) {
        let prompts =
            batch.iter().map(|question| (id(&question.id), question.prompt.as_str(), question.image.as_ref()));
        let texts = answerer.answer(&prompts.collect::<Vec<_>>())?;
        answers.add(batch, texts)?;
        done += batch.len();
        progress(done);
    }
    Ok(())
}

/// What tells a question from the others: TextVQA's ids are those of images, which have several questions each.
fn key(question: &Asked) -> (String, String) {
    (id(&question.id), question.prompt.clone())
}

fn read_if_there(path: &Path) -> Result<Option<String>, BenchmarkError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BenchmarkError::Io { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(ids: &[u64]) -> Vec<Asked> {
        ids.iter().map(|id| Asked { id: (*id).into(), prompt: format!("q{id}"), image: None }).collect()
    }

    #[test]
    fn a_torn_line_is_dropped_and_its_question_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let questions = asked(&[1, 2]);
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        answers.add(&[&questions[0]], vec!["one".into()]).unwrap();
        let path = answers.path().to_path_buf();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"question_id\":2,\"pro")).unwrap();
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        assert_eq!((answers.answered(&questions), answers.of(&questions)), (1, None));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        answers.add(&[&questions[1]], vec!["two".into()]).unwrap();
        let answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        assert_eq!(answers.of(&questions).unwrap(), ["one", "two"]);
    }

    #[test]
    fn answers_to_other_questions_or_of_another_model_are_refused_but_for_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let questions = asked(&[1, 2]);
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        answers.add(&[&questions[1]], vec!["two".into()]).unwrap();
        let error = Answers::open(dir.path(), &asked(&[1]), "now", false).unwrap_err().to_string();
        assert!(error.contains("answers.jsonl:1: answers question 2"), "{error}");
        let error = Answers::open(dir.path(), &questions, "later", false).unwrap_err().to_string();
        assert!(error.contains("were made now, not later"), "{error}");
        let answers = Answers::open(dir.path(), &questions, "later", true).unwrap();
        assert_eq!(answers.answered(&questions), 0);
        assert_eq!(std::fs::read_to_string(answers.path()).unwrap(), "");
    }
}
