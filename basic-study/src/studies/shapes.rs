//! A Shapes data set, for what is measured on its scenes and captions.

use std::path::Path;

use basic_models::processor::{Message, Role};
use burn::tensor::Device;

use super::AblateError;
use super::held_out::CaptionSet;
use basic_data::shapes::{SceneRecord, Split};
use basic_data::{ImageBase, Sample};
use basic_eval::questions::EvalError;

/// Images that grounding and caption loss are measured on.
const IMAGES: usize = 100;
/// Captions of a batch.
const BATCH: usize = 25;

/// What is read of the data set: its eval split.
pub(super) struct ShapesSet {
    pub images: ImageBase,
    /// Scenes that grounding is measured on.
    pub scenes: Vec<SceneRecord>,
    /// The captions of the first images.
    pub captions: CaptionSet,
}

impl ShapesSet {
    /// Reads the data set in a folder.
    pub fn open(dir: &Path, device: &Device) -> Result<Self, AblateError> {
        let images = ImageBase::new(dir, None)?.advising("a Shapes data set holds its images itself");
        let path = dir.join("eval.jsonl");
        let lines = |path: &Path| basic_models::outside::read_text(path).map_err(AblateError::io(path));
        let scene_file = dir.join("scenes.jsonl");
        let mut scenes: Vec<SceneRecord> = Vec::new();
        for line in lines(&scene_file)?.lines() {
            let record: SceneRecord =
                serde_json::from_str(line).map_err(|error| AblateError::io(&scene_file)(error.into()))?;
            if record.split == Split::Eval {
                scenes.push(record);
            }
        }
        scenes.truncate(IMAGES);
        let mut captions: Vec<Sample> = Vec::new();
        for line in lines(&path)?.lines() {
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|error| AblateError::io(&path)(error.into()))?;
            let name = value["image"].as_str().unwrap_or_default();
            let wrong = |source| EvalError::Image { question: captions.len().to_string(), source };
            let image = images.file(name).map_err(|source| wrong(source).of(&path))?;
            if captions.last().is_some_and(|s| s.images[0].name() == image) {
                continue;
            }
            let caption = value["caption"].as_str().unwrap_or_default();
            captions.push(Sample {
                file: path.as_path().into(),
                place: captions.len().to_string(),
                images: vec![image.into()],
                messages: vec![Message::new(Role::User, "<image>"), Message::new(Role::Assistant, caption)],
                dropped_turns: 0,
            });
        }
        captions.truncate(IMAGES);
        Ok(Self { images, scenes, captions: CaptionSet::new(captions, BATCH, device) })
    }
}
