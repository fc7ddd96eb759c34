//! Held-out captions and questions with choices, for measures of models on any data.

use std::path::{Path, PathBuf};

use basic_data::{DataConfig, DataSet, ImageBase, Sample, Samples, StyleChoice, VisionCache, prepare};
use basic_eval::lens::{Lens, LensOptions};
use basic_eval::questions::{EvalOptions, Question, Ranker, rank_choices, read_questions, score_choices};
use basic_models::nn::Llava;
use basic_models::{Batch, Checkpoint, CheckpointError};
use burn::module::Module;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::AblateError;
use super::event::{Event, Observer};
use super::measure::Loaded;
use super::result::Values;

/// `evaluation.captions` and `evaluation.choices`: data that models are measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutConfig {
    /// The file: a data set with captions, or questions with choices as `basic eval --choices` reads them.
    pub data: PathBuf,
    /// The folder that image paths are relative to; by default the file's folder.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Use only the first samples.
    #[serde(default)]
    pub limit: Option<usize>,
    /// How a caption or a question is turned into text.
    #[serde(default)]
    pub conversation: StyleChoice,
}

/// Captions that models were not trained on.
pub(super) struct CaptionSet {
    samples: Vec<Sample>,
    conversation: StyleChoice,
    batch: usize,
    device: Device,
}

impl CaptionSet {
    /// Captions that are already there, in the style in which the pretrain stage learns them.
    pub fn new(samples: Vec<Sample>, batch: usize, device: &Device) -> Self {
        Self { samples, conversation: StyleChoice::Auto, batch, device: device.clone().without_autodiff() }
    }

    /// Reads the captions of a data set.
    pub fn open(config: &HeldOutConfig, batch: usize, device: &Device) -> Result<Self, AblateError> {
        let HeldOutConfig { data, images, limit, conversation } = config.clone();
        let wrong = |source: basic_data::DataError| AblateError::from(basic_eval::questions::EvalError::Root(source));
        let data = DataSet::open(&DataConfig { images, limit, ..DataConfig::new(data) }, 0).map_err(wrong)?;
        let samples = (0..data.len()).map(|index| data.sample(index)).collect::<Result<Vec<_>, _>>();
        let device = device.clone().without_autodiff();
        Ok(Self { samples: samples.map_err(wrong)?, conversation, batch, device })
    }

    /// The captions with their images' features.
    pub fn batches(
        &self,
        model: &Llava,
        checkpoint: &Checkpoint,
        cache: &mut VisionCache,
    ) -> Result<Vec<Batch>, AblateError> {
        let style = self.conversation.resolve(checkpoint, true).map_err(CheckpointError::from)?;
        let mut batches = Vec::new();
        for chunk in self.samples.chunks(self.batch.max(1)) {
            let (mut tokens, mut images) = (Vec::new(), Vec::new());
            for sample in chunk {
                let prepared = prepare(sample, checkpoint, &style)?;
                tokens.push(prepared.tokens);
                images.extend(prepared.images);
            }
            let mut batch = Batch::collate(&tokens, checkpoint.pad_id(), checkpoint.image_shape(), &self.device);
            batch.features = cache.features(model, checkpoint, &images)?;
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// Questions whose choices are ranked by their likelihood.
#[derive(Debug)]
pub(super) struct ChoiceSet {
    questions: Vec<Question>,
    base: ImageBase,
    conversation: StyleChoice,
    path: PathBuf,
}

impl ChoiceSet {
    /// Reads the questions. Every image must be there.
    pub fn open(config: &HeldOutConfig) -> Result<Self, AblateError> {
        let HeldOutConfig { data: path, images, limit, conversation } = config.clone();
        let mut questions = read_questions(&path)?;
        questions.truncate(limit.unwrap_or(usize::MAX));
        let base = ImageBase::of(images.as_deref(), &path, None)?
            .advising("make that folder, or one above it, evaluation.choices.images");
        basic_eval::questions::images(&questions, &base).map_err(|error| error.of(&path))?;
        Ok(Self { questions, base, conversation, path })
    }

    /// Ranks the choices and returns the scores; with `replace` from the nearest tokens of the visual embeddings.
    pub fn values(
        &self,
        Loaded { checkpoint, model }: &Loaded,
        batch_size: usize,
        replace: bool,
        cache: &mut VisionCache,
        observer: Observer,
    ) -> Result<Values, AblateError> {
        let model = &model.valid();
        let options = EvalOptions { batch_size, conversation: self.conversation, ..EvalOptions::default() };
        observer(Event::Part("ranking choices", self.questions.len()));
        let mut progress = |done| observer(Event::Done(done));
        let lens = replace.then(|| Lens::new(model, checkpoint, LensOptions::nearest())).transpose()?;
        let ranker = Ranker::new(checkpoint, &options)?;
        let ranker = lens.iter().fold(ranker, Ranker::replacing);
        let rankings = rank_choices(&ranker, model, &self.questions, &self.base, cache, &mut progress);
        let scores = score_choices(&rankings.map_err(|error| error.of(&self.path))?).all;
        if replace {
            return Ok(Values::from([
                (REPLACED_RANK.into(), scores.rank),
                (REPLACED_ACCURACY.into(), scores.accuracy),
            ]));
        }
        Ok(Values::from([
            (ACCURACY.into(), scores.accuracy),
            (ACCURACY_NORMALIZED.into(), scores.accuracy_normalized),
            (RANK.into(), scores.rank),
            (RANK_NORMALIZED.into(), scores.rank_normalized),
            (RECIPROCAL_RANK.into(), scores.reciprocal_rank),
        ]))
    }
}

/// The keys of what [`ChoiceSet::values`] returns.
pub(super) const REPLACED_RANK: &str = "choices.replaced.rank";
pub(super) const REPLACED_ACCURACY: &str = "choices.replaced.accuracy";
pub(super) const ACCURACY: &str = "choices.accuracy";
pub(super) const ACCURACY_NORMALIZED: &str = "choices.accuracy_normalized";
pub(super) const RANK: &str = "choices.rank";
pub(super) const RANK_NORMALIZED: &str = "choices.rank_normalized";
pub(super) const RECIPROCAL_RANK: &str = "choices.reciprocal_rank";

impl HeldOutConfig {
    /// The same with its paths as `at` places them.
    pub(super) fn placed(&self, at: &dyn Fn(&PathBuf) -> Result<PathBuf, AblateError>) -> Result<Self, AblateError> {
        let images = self.images.as_ref().map(at).transpose()?;
        Ok(Self { data: at(&self.data)?, images, ..self.clone() })
    }

    /// The file that the measurements depend on.
    pub(super) fn file(&self) -> &Path {
        &self.data
    }
}
