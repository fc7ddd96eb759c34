//! Reads the caption files of COCO and of Karpathy's splits: JSON objects with a list of images and their captions. Each
//! caption is a sample.

mod index;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_models::outside::{Budget, excerpt};
use serde_json::{Value, json};

use self::index::{Indexed, Unread, read_value};
use super::export::{ExportError, Named, Sharding, Writer};
use super::file_range::FileRange;
use super::format::{DataFormat, Opening, Reader};
use super::image_root::ImageRoot;
use super::sample_record::{self as record, Fault};
use super::stamps::Stamps;
use super::{DataError, ImageSource, Sample, Samples, fingerprint};

/// The split that is read if none is named.
const DEFAULT_SPLIT: &str = "train";
/// The most splits that a message names.
const NAMED: usize = 16;
/// The bytes that are counted for an entry of the index besides its texts.
const ENTRY: u64 = 128;

/// COCO's caption files (`captions_train2017.json`): `images`, and `annotations` with a caption each.
pub(super) struct CocoCaptions;

/// Karpathy's files (`dataset_coco.json`, `dataset_flickr30k.json`): `images` with their split and their sentences.
pub(super) struct KarpathySplits;

impl DataFormat for CocoCaptions {
    fn name(&self) -> &'static str {
        "coco"
    }

    fn begins(&self, head: &[u8]) -> bool {
        let Some((key, rest)) = first_key(head) else { return false };
        let has = |name: &str| rest.contains(&format!("\"{name}\""));
        match key {
            "info" => has("images") || has("licenses") || has("annotations"),
            "images" => has("file_name") && !has("sentids") && list_of_objects(rest),
            "annotations" => has("image_id") && list_of_objects(rest),
            "licenses" => list_of_objects(rest) && has("url"),
            _ => false,
        }
    }

    fn lies_in(&self, _: &Path, _: &[PathBuf]) -> bool {
        false
    }

    fn open(&self, set: &Opening<'_>, _: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        Ok(Box::new(CaptionData::coco(set.single()?, set.images, set.limit)?))
    }

    fn writer(&self, _: Named, _: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        Err(not_written())
    }
}

impl DataFormat for KarpathySplits {
    fn name(&self) -> &'static str {
        "karpathy"
    }

    fn begins(&self, head: &[u8]) -> bool {
        let Some((key, rest)) = first_key(head) else { return false };
        match key {
            "images" => rest.contains("\"sentids\"") && list_of_objects(rest),
            "dataset" => {
                let images = rest.split_once("\"images\"").and_then(|(_, rest)| rest.trim_start().strip_prefix(':'));
                images.is_some_and(list_of_objects)
            }
            _ => false,
        }
    }

    fn lies_in(&self, _: &Path, _: &[PathBuf]) -> bool {
        false
    }

    fn has_splits(&self) -> bool {
        true
    }

    fn open(&self, set: &Opening<'_>, _: &mut Stamps) -> Result<Box<dyn Reader>, DataError> {
        let split = set.split.unwrap_or(DEFAULT_SPLIT);
        Ok(Box::new(CaptionData::karpathy(set.single()?, split, set.images, set.limit)?))
    }

    fn writer(&self, _: Named, _: Sharding) -> Result<Box<dyn Writer>, ExportError> {
        Err(not_written())
    }
}

fn not_written() -> ExportError {
    ExportError::Impossible("a file of captions has no place for conversations: use another format".into())
}

/// The first key of a JSON object, and the text after its colon.
fn first_key(head: &[u8]) -> Option<(&str, &str)> {
    let head = record::without_mark(head);
    // The head may end within a character.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
    };
    let (key, rest) = text.trim_start().strip_prefix('{')?.trim_start().strip_prefix('"')?.split_once('"')?;
    Some((key, rest.trim_start().strip_prefix(':')?))
}

/// Whether a value begins as a list of objects. (In LLaVA's lines, `images` is a list of names.)
fn list_of_objects(value: &str) -> bool {
    value.trim_start().strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'))
}

/// A data set of images with captions in one file. Opening it finds where each caption is, and the names of COCO's images.
#[derive(Debug)]
pub struct CaptionData {
    file: Arc<Path>,
    source: FileRange,
    root: ImageRoot,
    layout: Layout,
    /// What chose the samples besides the file.
    choice: u64,
}

#[derive(Debug)]
enum Layout {
    /// The annotations, and the image files by their id.
    Coco { annotations: Vec<Range<u64>>, names: HashMap<String, Box<str>> },
    /// The images of the split, and the index of each one's first caption; `len` captions in all.
    Karpathy { images: Vec<Range<u64>>, firsts: Vec<usize>, len: usize },
}

impl CaptionData {
    /// Indexes COCO's captions in `path`; images are relative to `root`, by default the file's folder. `limit` keeps the
    /// first captions.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file, and the place where it is not of this form.
    pub fn coco(path: &Path, root: Option<&Path>, limit: Option<usize>) -> Result<Self, DataError> {
        let file = Indexed::open(path)?;
        let [images, annotations] = file.members(["images", "annotations"])?;
        let budget = Budget::of(path);
        let mut names = HashMap::new();
        for (number, range) in file.elements(images, usize::MAX, &budget)?.into_iter().enumerate() {
            let value = file.value(&range)?;
            let name = value["file_name"].as_str();
            let (Some(name), false) = (name, value["id"].is_null()) else {
                let reason =
                    format!("entry images[{number}] has no \"id\" and \"file_name\": is it COCO's file of captions?");
                return Err(file.wrong(reason));
            };
            let id = key(&value["id"]);
            budget.take(ENTRY + (id.len() + name.len()) as u64).map_err(|over| file.io(over.into()))?;
            names.insert(id, name.into());
        }
        let annotations = file.elements(annotations, limit.unwrap_or(usize::MAX), &budget)?;
        let Some(first) = annotations.first() else { return Err(DataError::Empty(path.into())) };
        if file.value(first)?["caption"].is_null() {
            let reason = "its annotations hold no captions: COCO's files of captions are called captions_*.json";
            return Err(file.wrong(reason.into()));
        }
        Self::of(path, root, Layout::Coco { annotations, names }, 0)
    }

    /// Indexes the captions of a split in one of Karpathy's files; `split` may name several, as `train+restval`.
    ///
    /// # Errors
    ///
    /// [`DataError`] that names the file, and the place where it is not of this form, or the splits that there are.
    pub fn karpathy(path: &Path, split: &str, root: Option<&Path>, limit: Option<usize>) -> Result<Self, DataError> {
        let file = Indexed::open(path)?;
        let [all] = file.members(["images"])?;
        let wanted: BTreeSet<&str> = split.split('+').map(str::trim).collect();
        let limit = limit.unwrap_or(usize::MAX);
        let budget = Budget::of(path);
        let mut known: BTreeSet<String> = BTreeSet::new();
        let (mut images, mut firsts, mut len) = (Vec::new(), Vec::new(), 0usize);
        for (number, range) in file.elements(all, usize::MAX, &budget)?.into_iter().enumerate() {
            let value = file.value(&range)?;
            let (Some(own), Some(sentences)) = (value["split"].as_str(), value["sentences"].as_array()) else {
                let reason =
                    format!("entry images[{number}] has no \"split\" and \"sentences\": is it Karpathy's file?");
                return Err(file.wrong(reason));
            };
            if known.len() < NAMED && !known.contains(own) {
                known.insert(own.into());
            }
            if wanted.contains(own) && !sentences.is_empty() && len < limit {
                images.push(range);
                firsts.push(len);
                len = len.saturating_add(sentences.len()).min(limit);
            }
        }
        if known.is_empty() {
            return Err(DataError::Empty(path.into()));
        }
        let lacking = wanted.iter().find(|name| !known.contains(**name) && known.len() < NAMED);
        if let Some(name) = lacking {
            let there: Vec<String> = known.iter().map(|name| excerpt(name)).collect();
            let reason = format!("has no split {:?}: its splits are {}", excerpt(name), there.join(", "));
            return Err(file.wrong(reason));
        }
        if len == 0 {
            return Err(DataError::Empty(path.into()));
        }
        let choice = fingerprint::combine(wanted.iter().flat_map(|name| name.bytes().map(u64::from).chain([256])));
        Self::of(path, root, Layout::Karpathy { images, firsts, len }, choice)
    }

    fn of(path: &Path, root: Option<&Path>, layout: Layout, choice: u64) -> Result<Self, DataError> {
        let root = ImageRoot::of(root, path)?;
        Ok(Self { file: path.into(), source: FileRange::Path(path.into()), root, layout, choice })
    }

    /// The JSON in a range of the file, for the sample at `index`.
    fn value(&self, index: usize, range: &Range<u64>) -> Result<Value, DataError> {
        read_value(&self.source, &self.file, range).map_err(|unread| match unread {
            Unread::Io(source) => DataError::Io { path: self.file.to_path_buf(), source },
            Unread::Reason(reason) => Fault::Reason(reason).at(&self.file, &index.to_string()),
        })
    }

    /// The caption at `index`, its id, and the name of its image.
    fn caption(&self, index: usize) -> Result<(Value, String, String), DataError> {
        let wrong = |reason: String| Fault::Reason(reason).at(&self.file, &index.to_string());
        match &self.layout {
            Layout::Coco { annotations, names } => {
                let value = self.value(index, &annotations[index])?;
                let image = key(&value["image_id"]);
                let name = names.get(&image).ok_or_else(|| {
                    wrong(format!("its image_id is {}, which is none of the file's images", excerpt(&image)))
                })?;
                Ok((value["caption"].clone(), key(&value["id"]), name.to_string()))
            }
            Layout::Karpathy { images, firsts, .. } => {
                let at = firsts.partition_point(|first| *first <= index) - 1;
                let value = self.value(index, &images[at])?;
                let sentence = &value["sentences"][index - firsts[at]];
                let name = value["filename"].as_str().ok_or_else(|| wrong("has no \"filename\"".into()))?;
                // COCO's images lie in a folder for each of its own splits.
                let name = match value["filepath"].as_str() {
                    Some(folder) if !folder.is_empty() => format!("{folder}/{name}"),
                    _ => name.to_string(),
                };
                Ok((sentence["raw"].clone(), key(&sentence["sentid"]), name))
            }
        }
    }
}

/// An id as text, whether it is a number or a string.
fn key(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

impl Reader for CaptionData {
    fn root(&self) -> Option<&Path> {
        Some(self.root.path())
    }

    fn hash(&self) -> Result<u64, DataError> {
        Ok(fingerprint::combine([fingerprint::of_contents(&[self.file.to_path_buf()])?, self.choice]))
    }
}

impl Samples for CaptionData {
    fn len(&self) -> usize {
        match &self.layout {
            Layout::Coco { annotations, .. } => annotations.len(),
            Layout::Karpathy { len, .. } => *len,
        }
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let (caption, id, name) = self.caption(index)?;
        let place = record::place(index, &json!(id));
        let wrong = |reason: &str| Fault::Reason(reason.into()).at(&self.file, &place);
        let caption = caption.as_str().map(str::trim).ok_or_else(|| wrong("has no caption"))?;
        if caption.is_empty() {
            return Err(wrong("its caption is empty"));
        }
        let image = self.root.file(&name).map_err(|reason| Fault::Image(reason).at(&self.file, &place))?;
        record::sample(&self.file, place.clone(), &json!({"caption": caption}), vec![ImageSource::File(image)])
    }
}

#[cfg(test)]
mod tests;
