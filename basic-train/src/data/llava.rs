//! LLaVA's JSON: an array of samples, or one a line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::processor::{PLACEHOLDER, from_llava};
use serde_json::Value;

use super::{DataError, ImageSource, Sample, Samples};

/// A data set in LLaVA's format, checked as a whole before the first step.
#[derive(Debug, Clone)]
pub struct LlavaData {
    /// The file.
    pub path: PathBuf,
    /// What the samples' image paths are relative to.
    pub root: PathBuf,
    /// The samples, in the file's order.
    pub samples: Vec<Sample>,
}

impl LlavaData {
    /// Reads `path`; images are relative to `root`, by default the file's folder. `limit` keeps the first samples.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file and the sample: not LLaVA's format, a missing image file, a sample with an
    /// image but without `<image>` (or the other way round), a conversation without an answer.
    pub fn open(path: &Path, root: Option<&Path>, limit: Option<usize>) -> Result<Self, DataError> {
        let text = std::fs::read_to_string(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        let json = |source| DataError::Json { path: path.into(), source };
        let mut values: Vec<Value> = if text.trim_start().starts_with('[') {
            serde_json::from_str(&text).map_err(json)?
        } else {
            let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            stream.collect::<Result<_, _>>().map_err(json)?
        };
        values.truncate(limit.unwrap_or(usize::MAX));
        if values.is_empty() {
            return Err(DataError::Empty(path.into()));
        }
        let root = match root {
            Some(root) => root.to_path_buf(),
            None => path.parent().unwrap_or(Path::new("")).to_path_buf(),
        };
        let file: Arc<Path> = path.into();
        let samples: Result<Vec<_>, _> =
            values.iter().enumerate().map(|(index, value)| sample(&file, &root, index, value)).collect();
        Ok(Self { path: path.into(), root, samples: samples? })
    }
}

impl Samples for LlavaData {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        Ok(self.samples[index].clone())
    }
}

fn sample(path: &Arc<Path>, root: &Path, index: usize, value: &Value) -> Result<Sample, DataError> {
    let place = match &value["id"] {
        Value::Null => format!("{index}"),
        Value::String(id) => format!("{index} (id {id})"),
        id => format!("{index} (id {id})"),
    };
    let wrong = |reason: String| DataError::Sample { path: path.to_path_buf(), place: place.clone(), reason };
    let files: Vec<&str> = match &value["image"] {
        Value::Null => Vec::new(),
        Value::String(file) => vec![file],
        Value::Array(files) => {
            let names: Option<Vec<&str>> = files.iter().map(Value::as_str).collect();
            names.ok_or_else(|| wrong("\"image\" must hold file names".into()))?
        }
        _ => return Err(wrong("\"image\" must be a file name or a list of them".into())),
    };
    let images: Vec<PathBuf> = files.iter().map(|file| root.join(file)).collect();
    if let Some(missing) = images.iter().find(|image| !image.is_file()) {
        let hint = "image files are looked up below the data file's folder, or below `data.images`";
        return Err(wrong(format!("image {} does not exist: {hint}", missing.display())));
    }
    let messages = from_llava(value).map_err(|source| DataError::Conversation {
        path: path.to_path_buf(),
        place: place.clone(),
        source,
    })?;
    let places: usize = messages.iter().map(|m| m.content.matches(PLACEHOLDER).count()).sum();
    if places != images.len() {
        return Err(wrong(format!(
            "has {} image(s) but {places} \"{PLACEHOLDER}\" in its conversation: write one for each image",
            images.len()
        )));
    }
    Ok(Sample { file: path.clone(), place, images: images.into_iter().map(ImageSource::File).collect(), messages })
}
