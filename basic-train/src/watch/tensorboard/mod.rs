//! Writes event files for TensorBoard.
//!
//! Each process of a run writes its own file, so no file is ever truncated. A resumed run begins its file with a
//! `SessionLog START` at its first step, at which TensorBoard discards the values of that step and later ones in
//! earlier files.

mod framing;
mod message;

use std::fs::{File, create_dir_all, read_dir, read_to_string};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use basic_core::methods::TERMS;
use basic_core::{LM, TOTAL};
use prost::Message;
use serde_json::Value as Json;

use self::message::{Event, SESSION_START, SessionLog, Summary, Value};
use super::{Evaluation, StepMetrics, WatchError, Watcher};

/// The file version from which on TensorBoard handles restarts (`brain.Event:2`).
const FILE_VERSION: &str = "brain.Event:2";

/// The names of all losses, the language model's first, and of the objective.
const LOSSES: [&str; TERMS.len() + 2] = {
    let mut names = [LM; TERMS.len() + 2];
    let mut at = 0;
    while at < TERMS.len() {
        names[at + 1] = TERMS[at].name;
        at += 1;
    }
    names[at + 1] = TOTAL;
    names
};

/// The heading of each key of a step; other keys have no heading.
const GROUPS: [(&str, &[&str]); 6] = [
    ("loss", &LOSSES),
    ("optimizer", &["lr", "lrs", "grad_norm", "grad_norms", "skipped_steps"]),
    ("batch", &["samples", "tokens", "image_samples", "skipped_samples"]),
    ("speed", &["samples_per_s", "tokens_per_s", "seconds", "data_wait", "mfu"]),
    ("alignment", &["attention_mass", "cosine"]),
    ("memory", &["rss_mib", "device_mib", "device_reserved_mib"]),
];

/// Writes an event file. Every number in a step's metrics becomes a scalar under its JSON key (`loss/lm`,
/// `optimizer/grad_norms/projector`). The numbers of an evaluation become scalars under `eval/`, and its predictions a
/// text.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Creates a new event file in `dir`, and `dir` itself if needed. `done` is the number of steps that earlier
    /// processes of the run have done; their files are already there.
    ///
    /// # Errors
    ///
    /// [`WatchError::Io`] that names the file.
    pub fn create(dir: &Path, done: usize) -> Result<Self, WatchError> {
        let io = |path: &Path, source| WatchError::Io { path: path.into(), source };
        create_dir_all(dir).map_err(|e| io(dir, e))?;
        let (mut second, mut first) = (wall_time() as u64, true);
        // TensorBoard reads the files of a folder in the order of their names, which begin with the second of creation.
        // A process that starts within the same second as an earlier one needs a later name.
        for entry in read_dir(dir).map_err(|e| io(dir, e))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let earlier =
                name.strip_prefix("events.out.tfevents.").and_then(|rest| rest.split('.').next()?.parse().ok());
            second = second.max(earlier.map_or(0, |earlier: u64| earlier + 1));
            first &= earlier.is_none();
        }
        let name = format!("events.out.tfevents.{second:010}.{}.{}.0", host(), std::process::id());
        let path = dir.join(name);
        let file = File::create_new(&path).map_err(|e| io(&path, e))?;
        let mut writer = Self { path, file };
        writer.event(0, Event { file_version: Some(FILE_VERSION.into()), ..Event::default() })?;
        if !first {
            let session_log = Some(SessionLog { status: SESSION_START });
            writer.event(done + 1, Event { session_log, ..Event::default() })?;
        }
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one record in a single write.
    fn event(&mut self, step: usize, event: Event) -> Result<(), WatchError> {
        let event = Event { wall_time: wall_time(), step: step as i64, ..event };
        let bytes = framing::framed(&event.encode_to_vec());
        self.file.write_all(&bytes).map_err(|source| WatchError::Io { path: self.path.clone(), source })
    }

    fn summary(&mut self, step: usize, value: Vec<Value>) -> Result<(), WatchError> {
        self.event(step, Event { summary: Some(Summary { value }), ..Event::default() })
    }
}

impl Watcher for TensorBoard {
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), WatchError> {
        let step = metrics.step;
        let json = serde_json::to_value(metrics).map_err(|e| WatchError::Json { step, reason: e.to_string() })?;
        self.summary(step, scalars(&json, group))
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), WatchError> {
        let step = evaluation.step;
        let json = serde_json::to_value(evaluation).map_err(|e| WatchError::Json { step, reason: e.to_string() })?;
        let mut values = scalars(&json, |key| format!("eval/{key}"));
        values.push(Value::text("eval/predictions", &evaluation.markdown()));
        self.summary(step, values)
    }

    fn text(&mut self, step: usize, tag: &str, text: &str) -> Result<(), WatchError> {
        self.summary(step, vec![Value::text(tag, text)])
    }
}

/// The tag for a key of a step.
fn group(key: &str) -> String {
    match GROUPS.iter().find(|(_, keys)| keys.contains(&key)) {
        Some((heading, _)) => format!("{heading}/{key}"),
        None => key.into(),
    }
}

/// Every number of an object; those of nested objects are named by both keys.
fn scalars(record: &Json, tag: impl Fn(&str) -> String) -> Vec<Value> {
    fn collect(tag: String, value: &Json, found: &mut Vec<Value>) {
        match value {
            Json::Number(number) => found.extend(number.as_f64().map(|x| Value::scalar(&tag, x as f32))),
            Json::Object(fields) => {
                fields.iter().for_each(|(key, value)| collect(format!("{tag}/{key}"), value, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (key, value) in record.as_object().into_iter().flatten() {
        // Every event has the step already.
        if key != "step" {
            collect(tag(key), value, &mut found);
        }
    }
    found
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The machine's name, for the name of the event file.
fn host() -> String {
    let name = read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name: String = name.unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if name.is_empty() { "localhost".into() } else { name }
}
