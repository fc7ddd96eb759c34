//! Reads a run's records: the numbers of every step and evaluation, and the recipe.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use basic_models::outside::{self, Budget, OverBudget, excerpt};
use serde_json::Value;

use super::ExportError;

/// The most different metrics of a run; runs have a few dozen.
const MOST_NAMES: usize = 4096;

/// The longest name of a metric, in bytes.
const LONGEST_NAME: usize = 200;

/// The largest step, which every tool can hold as a number.
const LAST_STEP: u64 = 1 << 53;

/// Bytes of memory for a row, and for each of its values.
const ROW: u64 = 96;
const CELL: u64 = 32;

/// The records of a run.
#[derive(Debug)]
pub(super) struct Records {
    /// The run's directory, with all links resolved.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
    /// run.json, if there is one.
    pub info: Value,
    /// The metrics' names; those of evaluations begin with `eval/`.
    pub names: Vec<String>,
    /// The values by their steps, each with the index of its name.
    pub rows: BTreeMap<u64, Vec<(usize, f64)>>,
    /// When each step ended, in milliseconds since 1970.
    pub times: BTreeMap<u64, u64>,
}

impl Records {
    /// Reads the run in `dir`. A last line that is not whole yet is left out.
    pub fn read(dir: &Path) -> Result<Self, ExportError> {
        let dir = dir.canonicalize().map_err(ExportError::io(dir))?;
        let name = dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
        let info = info(&dir.join("run.json"))?;
        let mut this =
            Self { name, info, names: Vec::new(), rows: BTreeMap::new(), times: BTreeMap::new(), dir: dir.clone() };
        let mut known = HashMap::new();
        let metrics = dir.join("metrics.jsonl");
        let found = this.add(&metrics, "", &mut known)?;
        if !found {
            return Err(ExportError::NoRun { path: dir, reason: "no training run: there is no metrics.jsonl" });
        }
        if this.rows.is_empty() {
            return Err(ExportError::NoRun { path: metrics, reason: "holds no complete step yet" });
        }
        this.add(&dir.join("eval.jsonl"), "eval/", &mut known)?;
        this.time(&metrics)?;
        Ok(this)
    }

    /// The index of a metric.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    /// The recipe with all defaults filled in, as pairs of a dotted key and its value.
    pub fn recipe(&self) -> Vec<(String, Value)> {
        let mut pairs = Vec::new();
        flat("", &self.info["recipe"], &mut pairs);
        pairs
    }

    /// Adds the numbers of a file's lines; false if there is no such file.
    fn add(&mut self, path: &Path, prefix: &str, known: &mut HashMap<String, usize>) -> Result<bool, ExportError> {
        let bytes = match outside::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(ExportError::Io { path: path.into(), source }),
        };
        let budget = Budget::of(path);
        let over = |over: OverBudget| ExportError::Io { path: path.into(), source: over.into() };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for (number, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let wrong = |problem: String| ExportError::Line { path: path.into(), line: number + 1, problem };
            outside::check_json(line, &budget).map_err(over)?;
            let parsed: Value =
                serde_json::from_slice(line).map_err(|error| wrong(format!("no record of a step: {error}")))?;
            let step = parsed["step"].as_u64().filter(|step| *step <= LAST_STEP);
            let step = step.ok_or_else(|| wrong("no record of a step: it has no whole number \"step\"".into()))?;
            let mut values = Vec::new();
            numbers(prefix, &parsed, &mut values).map_err(wrong)?;
            budget.take(ROW + CELL * values.len() as u64).map_err(over)?;
            for (name, value) in values {
                let next = known.len();
                let index = *known.entry(name.clone()).or_insert(next);
                if index == next {
                    if next >= MOST_NAMES {
                        return Err(wrong(format!("more than {MOST_NAMES} different metrics")));
                    }
                    self.names.push(name);
                }
                self.rows.entry(step).or_default().push((index, value));
            }
        }
        Ok(true)
    }

    /// Finds when the steps ended: the last one when the file was last written, each other one earlier by the seconds
    /// of those after it. The records have no times of day.
    fn time(&mut self, metrics: &Path) -> Result<(), ExportError> {
        let written = std::fs::metadata(metrics).and_then(|meta| meta.modified()).map_err(ExportError::io(metrics))?;
        let seconds = self.index("seconds");
        let mut at = written;
        for (step, values) in self.rows.iter().rev() {
            self.times.insert(*step, milliseconds(at));
            let took = values.iter().find(|(index, _)| Some(*index) == seconds).map_or(0.0, |(_, took)| *took);
            let took = Duration::try_from_secs_f64(took).unwrap_or_default();
            at = at.checked_sub(took).unwrap_or(UNIX_EPOCH);
        }
        Ok(())
    }
}

/// run.json, which must be an object if it is there.
fn info(path: &Path) -> Result<Value, ExportError> {
    let text = match outside::read_json_text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(ExportError::Io { path: path.into(), source }),
    };
    let wrong = |line: usize, problem: String| ExportError::Line { path: path.into(), line, problem };
    let value: Value =
        serde_json::from_str(&text).map_err(|e| wrong(e.line(), format!("not the record of a run: {e}")))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(wrong(1, "not the record of a run: it is no object".into())),
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The numbers of a record: `true` is 1, objects have one for each of their keys, and everything else (texts, lists,
/// null) is left out.
fn numbers(prefix: &str, record: &Value, into: &mut Vec<(String, f64)>) -> Result<(), String> {
    for (key, value) in record.as_object().into_iter().flatten() {
        if key == "step" && matches!(prefix, "" | "eval/") {
            continue;
        }
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::Bool(set) => Some(f64::from(u8::from(*set))),
            Value::Object(_) => None,
            _ => continue,
        };
        // The names become names of files.
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-. ".contains(c);
        if key.is_empty() || key.len() > LONGEST_NAME || key.starts_with('.') || !key.chars().all(plain) {
            return Err(format!("the key {:?} is no metric's name", excerpt(key)));
        }
        match number {
            Some(number) => into.push((format!("{prefix}{key}"), number)),
            // A record nests once.
            None if prefix.matches('/').count() < 2 => numbers(&format!("{prefix}{key}/"), value, into)?,
            None => {}
        }
    }
    Ok(())
}

fn flat(prefix: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flat(&dotted, value, into);
            }
        }
        Value::Null => {}
        other => into.push((prefix.into(), other.clone())),
    }
}
