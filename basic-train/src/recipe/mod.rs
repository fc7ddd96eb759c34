//! A training run as a TOML file, which may extend another file.

mod extends;
mod keys;
mod limits;
mod model;
mod parallel;
mod parts;
mod sets;
mod watch;

use std::path::{Path, PathBuf};

use basic_core::{DeviceSpec, Objective};
use basic_data::LoaderConfig;
use basic_models::outside::excerpt;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::optim::{OptimizerConfig, Schedule};
pub use basic_data::{DataConfig, SetConfig};

pub use extends::{Layers, merge};
pub use keys::recipe_keys;
pub(crate) use limits::bounded;
pub use model::{Encoders, ModelConfig};
pub use parallel::{ParallelConfig, Shard};
pub use parts::{Mode, Part, PartConfig, Parts};
pub use sets::apply_set;
use sets::{blame, culprit};
pub use watch::{EvalConfig, WatchConfig};

/// The two stages of LLaVA's recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Alignment: the projector learns from captions.
    Pretrain,
    /// Visual instruction: projector and decoder learn from conversations.
    Finetune,
}

/// A training run: the TOML file that `basic train` reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `pretrain` or `finetune`.
    pub stage: Stage,
    /// Seed of the data order and of a fresh projector.
    #[serde(default)]
    pub seed: u64,
    /// The device to train on; `--device` overrides it.
    #[serde(default)]
    pub device: DeviceSpec,
    /// The directory that the run is written to; `--out` overrides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// The model to start from.
    pub model: ModelConfig,
    /// The data.
    pub data: DataConfig,
    /// The supervision methods and their settings.
    #[serde(default)]
    pub objective: Objective,
    /// AdamW's settings.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning-rate schedule.
    #[serde(default)]
    pub schedule: Schedule,
    /// The order, the length limit and the preparation of batches.
    #[serde(default)]
    pub loader: LoaderConfig,
    /// How each part of the model is trained.
    #[serde(default)]
    pub parts: Parts,
    /// The batch size, the number of steps and what is trained.
    pub train: TrainConfig,
    /// How the work is divided among several devices.
    #[serde(default)]
    pub parallel: ParallelConfig,
    /// How often states are saved and how many are kept.
    #[serde(default)]
    pub checkpoint: SaveConfig,
    /// Periodic evaluation on held-out samples; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
    /// Which records of the steps are written in addition.
    #[serde(default)]
    pub watch: WatchConfig,
}

/// The batch size, the number of steps and what is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of samples per step.
    pub batch_size: usize,
    /// Number of samples in memory at once; by default the whole batch. The gradients of the micro-batches are added
    /// up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Number of steps; an alternative to `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Number of passes over the data; an alternative to `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// The parts that are trained; by default the projector, and in the finetune stage also the decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable: Option<Vec<Part>>,
    /// MiB of memory for the features of a frozen vision encoder, so that each image is encoded only once.
    #[serde(default = "default_cache")]
    pub vision_cache_mib: usize,
    /// A folder that keeps the features of frozen vision encoders for other runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_store: Option<PathBuf>,
    /// The largest size of that folder in MiB; by default 4096. What is there already stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_store_mib: Option<usize>,
    /// The type that the run computes in.
    #[serde(default)]
    pub dtype: Precision,
    /// Recomputes the activations inside the decoder's layers in the backward pass instead of keeping them.
    #[serde(default)]
    pub recompute: bool,
    /// The largest number of consecutive steps that may be skipped because their loss or gradients are not finite.
    #[serde(default = "default_nonfinite")]
    pub max_nonfinite: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 1,
            micro_batch: None,
            steps: None,
            epochs: None,
            trainable: None,
            vision_cache_mib: default_cache(),
            vision_store: None,
            vision_store_mib: None,
            dtype: Precision::default(),
            recompute: false,
            max_nonfinite: default_nonfinite(),
        }
    }
}

impl TrainConfig {
    /// The largest size of `vision_store` in MiB.
    pub fn vision_store_mib(&self) -> usize {
        self.vision_store_mib.unwrap_or(DEFAULT_STORE)
    }
}

/// MiB of features on disk: those of 7,000 images by CLIP ViT-B/16.
const DEFAULT_STORE: usize = 4096;

fn default_cache() -> usize {
    256
}

fn default_nonfinite() -> usize {
    5
}

/// The type that a run computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    Float32,
    /// bfloat16 parameters and activations; trained parameters have master weights in 32 bits.
    Bfloat16,
}

impl Precision {
    /// Burn's type.
    pub fn dtype(self) -> DType {
        match self {
            Self::Float32 => DType::F32,
            Self::Bfloat16 => DType::BF16,
        }
    }
}

/// The states that a run saves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaveConfig {
    /// The number of steps between two saved states; by default a state is saved only when a signal ends the run, and
    /// at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
    /// The number of saved states that are kept, counting from the latest; the best by the periodic evaluation is also
    /// kept.
    pub keep_last: usize,
    /// Whether the whole checkpoint is written beside each state, as `model/`.
    pub full: bool,
}

impl Default for SaveConfig {
    fn default() -> Self {
        Self { every: None, keep_last: 2, full: false }
    }
}

/// Why a recipe cannot be run.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not TOML, or it has an unknown key or a value of the wrong type.
    #[error("{path}: {}", toml_reason(source), path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The error, with the line.
        source: toml::de::Error,
    },
    /// A recipe extends a file that it cannot extend.
    #[error("{path}: extends = {}: {reason}", excerpt(other), path = path.display())]
    Extends {
        /// The file.
        path: PathBuf,
        /// The path that it extends, as written.
        other: String,
        /// Why it cannot be extended.
        reason: String,
    },
    /// A `--set` that cannot be applied.
    #[error("--set {}: {reason}", excerpt(set))]
    Set {
        /// The argument as given.
        set: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Values that contradict each other.
    #[error("{path}: {reason}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What to change.
        reason: String,
    },
}

/// TOML errors longer than this are shown without the line that they quote.
const MOST_REASON: usize = 1000;

impl Recipe {
    /// Reads a recipe with what it `extends`, and applies `sets`, each `key.path=value` with a TOML value (a bare word
    /// is a string).
    ///
    /// # Errors
    ///
    /// [`RecipeError`] that names the file and line, or the `--set`.
    pub fn open(path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        let layers = Layers::read(path)?;
        let recipe = if sets.is_empty() {
            layers.recipe()?
        } else {
            let mut table = layers.table();
            sets.iter().try_for_each(|set| apply_set(&mut table, set))?;
            match Self::deserialize(table) {
                Ok(recipe) => recipe,
                // Either the recipe itself is at fault, or one of the sets.
                Err(error) => {
                    return Err(layers.recipe().err().unwrap_or_else(|| culprit(layers.table(), sets, &error)));
                }
            }
        };
        match recipe.check() {
            Ok(()) => Ok(recipe),
            Err(reason) => Err(blame(path, &layers, sets, reason)),
        }
    }

    /// Checks the recipe for contradictions; the error describes the first one.
    pub fn check(&self) -> Result<(), String> {
        self.validate(Path::new("")).map_err(|error| match error {
            RecipeError::Invalid { reason, .. } => reason,
            other => other.to_string(),
        })
    }

    fn validate(&self, path: &Path) -> Result<(), RecipeError> {
        let invalid = |reason: &str| Err(RecipeError::Invalid { path: path.into(), reason: reason.into() });
        let model = &self.model;
        match (&model.checkpoint, &model.vision, &model.llm) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            _ => return invalid("[model] needs either `checkpoint`, or `vision` and `llm`"),
        }
        if model.checkpoint.is_some() && model.projector.is_some() {
            return invalid("[model] has a `checkpoint`, which brings its projector: leave `projector` out");
        }
        if model.checkpoint.is_some() && model.image_grid_pinpoints.is_some() {
            return invalid(
                "[model] has a `checkpoint`, whose resolutions it brings: leave `image_grid_pinpoints` out",
            );
        }
        if model.vision.as_ref().is_some_and(|vision| vision.all().is_empty()) {
            return invalid("model.vision names no vision encoder");
        }
        if model.image_grid_pinpoints.as_ref().is_some_and(Vec::is_empty) {
            return invalid(
                "model.image_grid_pinpoints names no resolution: leave it out for a model that cuts no images",
            );
        }
        if model.image_aspect_ratio.as_deref().is_some_and(|ratio| !["pad", "square"].contains(&ratio)) {
            return invalid("model.image_aspect_ratio must be \"pad\" or \"square\"");
        }
        if let Some(reason) = self.data.contradiction() {
            return invalid(&reason);
        }
        if let Some(reason) = self.loader.contradiction(self.train.batch_size) {
            return invalid(&reason);
        }
        if self.train.vision_store.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
            return invalid("train.vision_store is empty: name a folder, or leave it out");
        }
        match (self.train.steps, self.train.epochs) {
            (Some(steps), None) if steps > 0 => {}
            (None, Some(epochs)) if epochs.is_finite() && epochs > 0.0 => {}
            _ => return invalid("[train] needs either `steps` or `epochs`, above 0"),
        }
        if let Some(reason) = self.out_of_bounds() {
            return invalid(&reason);
        }
        if let Err(error) = self.objective.bounds() {
            return invalid(&format!("objective.{error}"));
        }
        if let (Some(key), true) = (self.objective.compares_with_own(), !self.freezes_encoders()) {
            return invalid(&format!(
                "objective.{key} is the model's own vision encoder, which this recipe trains: freeze it (parts.vision), or \
                 name another encoder"
            ));
        }
        if !(0.0..=1.0).contains(&self.schedule.warmup_ratio) {
            return invalid("schedule.warmup_ratio must be between 0 and 1");
        }
        if !self.lr().is_finite() || self.lr() < 0.0 {
            return invalid("optimizer.lr must be a finite number, at least 0");
        }
        let optimizer = &self.optimizer;
        let settings = [optimizer.weight_decay, optimizer.max_grad_norm];
        if settings.iter().any(|x| !x.is_finite() || *x < 0.0) {
            return invalid("optimizer.weight_decay and max_grad_norm must be finite numbers, at least 0");
        }
        // A token that occurs in no batch has a gradient of 0; without epsilon its update would be 0 / 0.
        if !optimizer.epsilon.is_finite() || optimizer.epsilon <= 0.0 {
            return invalid("optimizer.epsilon must be a finite number above 0");
        }
        if ![optimizer.beta1, optimizer.beta2].iter().all(|beta| (0.0..1.0).contains(beta)) {
            return invalid("optimizer.beta1 and beta2 must be at least 0 and below 1");
        }
        if self.train.micro_batch.is_some_and(|micro| micro == 0 || micro > self.train.batch_size) {
            return invalid("train.micro_batch must be at least 1 and at most train.batch_size");
        }
        if self.checkpoint.every == Some(0) || self.checkpoint.keep_last == 0 {
            return invalid("checkpoint.every and checkpoint.keep_last must be at least 1");
        }
        if self.eval.as_ref().is_some_and(|eval| eval.every == 0 || eval.samples == 0) {
            return invalid("eval.every and eval.samples must be at least 1");
        }
        if let Some(reason) = self.parts_problem() {
            return invalid(&reason);
        }
        if self.trainable().is_empty() {
            return invalid("train.trainable is empty: nothing would be trained");
        }
        Ok(())
    }

    /// The peak learning rate: the recipe's, or LLaVA's for the stage (1e-3 and 2e-5).
    pub fn lr(&self) -> f64 {
        self.optimizer.lr.unwrap_or(match self.stage {
            Stage::Pretrain => 1e-3,
            Stage::Finetune => 2e-5,
        })
    }

    /// The number of steps for a data set of `samples` samples.
    pub fn steps(&self, samples: usize) -> usize {
        match (self.train.steps, self.train.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => ((samples as f64 * epochs) / self.train.batch_size as f64).ceil().max(1.0) as usize,
            (None, None) => 1,
        }
    }
}

/// What is wrong with a TOML file and where, without quoting lines that are very long.
pub fn toml_reason(error: &toml::de::Error) -> String {
    let whole = error.to_string();
    match whole.len() > MOST_REASON {
        false => whole,
        // The first line of the error states the line and column.
        true => format!("{}: {}", excerpt(whole.lines().next().unwrap_or_default()), excerpt(error.message())),
    }
}
