//! Stores the model's answers in a file as they are generated, so that an interrupted evaluation can be resumed.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use basic_models::atomic_file::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::question_files::id;
use super::score_record::forget;
use super::{Asked, BenchmarkError, Peers};

/// What is stored for each question.
pub trait Stored: Serialize + DeserializeOwned + Clone + Send {
    /// The name of the file.
    const FILE: &'static str;
    /// The name of the file beside it that says how its lines were made.
    const MADE: &'static str;
}

/// A generated answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Said {
    /// The answer.
    pub text: String,
}

impl Stored for Said {
    const FILE: &'static str = "answers.jsonl";
    const MADE: &'static str = "made.txt";
}

/// The likelihoods of a question's options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Likelihoods {
    /// The log-likelihood of each option, in nats.
    pub log_likelihoods: Vec<f64>,
}

impl Stored for Likelihoods {
    const FILE: &'static str = "likelihoods.jsonl";
    const MADE: &'static str = "likelihoods.txt";
}

/// A line of the file, with the keys of LLaVA's answer files.
#[derive(Serialize, Deserialize)]
struct Line<T> {
    question_id: Value,
    prompt: String,
    #[serde(flatten)]
    stored: T,
}

/// What a model gave for the questions of one benchmark, in a file that grows; another file beside it says how it was
/// made.
#[derive(Debug)]
pub struct Store<T> {
    path: PathBuf,
    /// `None` in a process that follows another, which writes.
    file: Option<File>,
    held: HashMap<(String, String), T>,
}

/// The generated answers of one benchmark, in `answers.jsonl`; `made.txt` beside it says how they were made.
pub type Answers = Store<Said>;

/// The likelihoods of the options of one benchmark's questions, in `likelihoods.jsonl`.
pub type Rankings = Store<Likelihoods>;

impl<T: Stored> Store<T> {
    /// Opens the answers to `asked` in the folder `dir`, which is created if needed. `made` describes the checkpoint
    /// and the settings; stored answers must have been made in the same way. An incomplete last line is dropped; with
    /// `fresh`, all answers are. If answers are missing, the scores of an earlier evaluation are deleted.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] if a line answers none of `asked`, or if the stored answers were made in another way.
    pub fn open(dir: &Path, asked: &[Asked], made: &str, fresh: bool) -> Result<Self, BenchmarkError> {
        let (path, note) = (dir.join(T::FILE), dir.join(T::MADE));
        std::fs::create_dir_all(dir).map_err(BenchmarkError::io(dir))?;
        let mut old = if fresh { None } else { read_if_there(&path)? }.unwrap_or_default();
        // An incomplete line may end within a UTF-8 character, so it is cut off before decoding.
        old.truncate(old.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let whole = old.len();
        let text = String::from_utf8(old).map_err(|e| {
            let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            BenchmarkError::line(&path, line, "is not UTF-8: give --fresh to begin anew")
        })?;
        if whole > 0 {
            let was = read_if_there(&note)?.map(|was| String::from_utf8_lossy(&was).into_owned());
            let was = was.unwrap_or_else(|| "in a way that is not known".into());
            if was != made {
                return Err(BenchmarkError::Stale { path, was, now: made.into() });
            }
        }
        write_atomically(&note, made.as_bytes()).map_err(BenchmarkError::io(&note))?;
        let known: HashSet<(String, String)> = asked.iter().map(key).collect();
        let mut held = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let wrong =
                |e| BenchmarkError::line(&path, index + 1, format!("no answer: {e}: give --fresh to begin anew"));
            let line: Line<T> = serde_json::from_str(line).map_err(wrong)?;
            let key = (id(&line.question_id), line.prompt);
            if !known.contains(&key) {
                let problem = format!("answers question {}, which is not asked: give --fresh to begin anew", key.0);
                return Err(BenchmarkError::line(&path, index + 1, problem));
            }
            held.insert(key, line.stored);
        }
        if held.len() < known.len() {
            forget(dir)?;
        }
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(whole as u64)?;
            Ok(file)
        };
        let file = open().map_err(BenchmarkError::io(&path))?;
        Ok(Self { path, file: Some(file), held })
    }

    /// [`open`](Self::open) in processes that share the questions: the first one opens the file and writes it, the others
    /// hold what it holds.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), in the first process, and [`BenchmarkError::Peers`].
    pub fn open_among(
        peers: &dyn Peers,
        dir: &Path,
        asked: &[Asked],
        made: &str,
        fresh: bool,
    ) -> Result<Self, BenchmarkError> {
        let own = (peers.rank() == 0).then(|| Self::open(dir, asked, made, fresh)).transpose()?;
        let held: Vec<_> = own.iter().flat_map(|own| &own.held).collect();
        let all: Vec<Vec<((String, String), T)>> = peers.gather(&held)?;
        match own {
            Some(own) => Ok(own),
            None => {
                let held = all.into_iter().next().unwrap_or_default().into_iter().collect();
                Ok(Self { path: dir.join(T::FILE), file: None, held })
            }
        }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many questions have an answer.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Whether a question has an answer.
    pub(super) fn holds(&self, question: &Asked) -> bool {
        self.held.contains_key(&key(question))
    }

    /// Returns the answers in the order of `asked`, and rewrites the file in this order.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] that names the file, and the question if one has no answer.
    pub fn finish(self, asked: &[Asked]) -> Result<Vec<T>, BenchmarkError> {
        let (mut lines, mut all) = (String::new(), Vec::with_capacity(asked.len()));
        for question in asked {
            let missing =
                || BenchmarkError::entry(&self.path, format!("question {}", id(&question.id)), "has no answer");
            let stored = self.held.get(&key(question)).ok_or_else(missing)?;
            lines += &self.line(question, stored)?;
            all.push(stored.clone());
        }
        if self.file.is_some() {
            write_atomically(&self.path, lines.as_bytes()).map_err(BenchmarkError::io(&self.path))?;
        }
        Ok(all)
    }

    /// Appends the answers to those questions of `batch` that have none yet, in one write.
    pub(super) fn add(&mut self, batch: &[&Asked], made: Vec<T>) -> Result<(), BenchmarkError> {
        let mut lines = String::new();
        for (question, stored) in batch.iter().zip(made) {
            if !self.holds(question) {
                lines += &self.line(question, &stored)?;
                self.held.insert(key(question), stored);
            }
        }
        match &mut self.file {
            Some(file) => file.write_all(lines.as_bytes()).map_err(BenchmarkError::io(&self.path)),
            None => Ok(()),
        }
    }

    fn line(&self, question: &Asked, stored: &T) -> Result<String, BenchmarkError> {
        let (question_id, prompt) = (question.id.clone(), question.prompt.clone());
        let line = Line { question_id, prompt, stored: stored.clone() };
        let wrong = |e| BenchmarkError::entry(&self.path, format!("question {}", line.question_id), e);
        Ok(serde_json::to_string(&line).map_err(wrong)? + "\n")
    }
}

impl Answers {
    /// Returns the texts of the answers in the order of `asked`, as [`Store::finish`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Store::finish`].
    pub fn texts(self, asked: &[Asked]) -> Result<Vec<String>, BenchmarkError> {
        Ok(self.finish(asked)?.into_iter().map(|said| said.text).collect())
    }
}

/// The key of a question. The id alone is not unique: TextVQA uses the image's id, and images have several questions.
pub(super) fn key(question: &Asked) -> (String, String) {
    (id(&question.id), question.prompt.clone())
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, BenchmarkError> {
    match basic_models::outside::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
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

    fn said(texts: &[&str]) -> Vec<Said> {
        texts.iter().map(|text| Said { text: (*text).into() }).collect()
    }

    #[test]
    fn a_torn_line_is_dropped_and_its_question_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let questions = asked(&[1, 2]);
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        answers.add(&[&questions[0]], said(&["one"])).unwrap();
        let path = answers.path().to_path_buf();
        let whole = std::fs::read_to_string(&path).unwrap();
        let torn = [whole.as_bytes(), b"{\"question_id\":2,\"prompt\":\"\xe8\xaf"].concat();
        std::fs::write(&path, torn).unwrap();
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        assert_eq!((answers.count(), answers.holds(&questions[0]), answers.holds(&questions[1])), (1, true, false));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        answers.add(&[&questions[1]], said(&["two"])).unwrap();
        let answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        assert_eq!(answers.texts(&questions).unwrap(), ["one", "two"]);
    }

    #[test]
    fn finished_answers_stand_in_the_questions_order_and_unfinished_ones_take_the_scores_away() {
        let dir = tempfile::tempdir().unwrap();
        let questions = asked(&[1, 2, 1]);
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        answers.add(&[&questions[1], &questions[0]], said(&["two", "one"])).unwrap();
        answers.add(&[&questions[0]], said(&["other"])).unwrap();
        let path = answers.path().to_path_buf();
        assert_eq!(answers.texts(&questions).unwrap(), ["one", "two", "one"], "asked twice, answered twice");
        let ids: Vec<Line<Said>> =
            std::fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(ids.iter().map(|line| line.question_id.clone()).collect::<Vec<_>>(), [1, 2, 1]);
        let scores = dir.path().join("judged.jsonl");
        std::fs::write(&scores, "").unwrap();
        Answers::open(dir.path(), &questions, "now", false).unwrap();
        assert!(scores.exists());
        let more = asked(&[1, 2, 3]);
        let error = Answers::open(dir.path(), &more, "now", false).unwrap().finish(&more).unwrap_err().to_string();
        assert!(error.contains("question 3: has no answer"), "{error}");
        assert!(!scores.exists());
    }

    #[test]
    fn answers_to_other_questions_or_of_another_model_are_refused_but_for_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let questions = asked(&[1, 2]);
        let mut answers = Answers::open(dir.path(), &questions, "now", false).unwrap();
        answers.add(&[&questions[1]], said(&["two"])).unwrap();
        let error = Answers::open(dir.path(), &asked(&[1]), "now", false).unwrap_err().to_string();
        assert!(error.contains("answers.jsonl:1: answers question 2"), "{error}");
        let error = Answers::open(dir.path(), &questions, "later", false).unwrap_err().to_string();
        assert!(error.contains("were made now, not later"), "{error}");
        let answers = Answers::open(dir.path(), &questions, "later", true).unwrap();
        assert_eq!(answers.count(), 0);
        assert_eq!(std::fs::read_to_string(answers.path()).unwrap(), "");
    }
}
