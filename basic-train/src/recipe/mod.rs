//! A training run as a TOML file.

mod limits;
mod parts;
mod sets;
mod watch;

use std::path::{Path, PathBuf};

use basic_core::{DeviceSpec, Objective};
use basic_models::outside::{self, excerpt};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::Table;

use crate::data::LoaderConfig;
pub use crate::data::{DataConfig, SetConfig};
use crate::optim::{OptimizerConfig, Schedule};

pub(crate) use limits::bounded;
pub use parts::{Mode, Part, PartConfig, Parts};
pub(crate) use sets::apply_set;
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

/// A run: what `basic train` reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `pretrain` or `finetune`.
    pub stage: Stage,
    /// Seed of the data order, and of a fresh projector.
    #[serde(default)]
    pub seed: u64,
    /// Where to compute; `--device` overrides it.
    #[serde(default)]
    pub device: DeviceSpec,
    /// Where the run is written; `--out` overrides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// The model to start from.
    pub model: ModelConfig,
    /// The data.
    pub data: DataConfig,
    /// The method's knobs.
    #[serde(default)]
    pub objective: Objective,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// Order, length and preparation of batches.
    #[serde(default)]
    pub loader: LoaderConfig,
    /// What is done with each part of the model.
    #[serde(default)]
    pub parts: Parts,
    /// Batches and steps.
    pub train: TrainConfig,
    /// What a run keeps while it runs.
    #[serde(default)]
    pub checkpoint: SaveConfig,
    /// How the model is looked at on the way; by default it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
    /// What is kept of the steps.
    #[serde(default)]
    pub watch: WatchConfig,
}

/// The model to start from: a LLaVA directory, or a vision tower and a decoder with a fresh projector.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A LLaVA directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// A vision tower's directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision: Option<PathBuf>,
    /// A decoder's directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<PathBuf>,
    /// The fresh projector between them; `mlp2x_gelu` where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projector: Option<String>,
    /// `pad` fills images up to a square before they are resized, as LLaVA-1.5's second stage does; by default the
    /// model's own image processor decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_aspect_ratio: Option<String>,
    /// Images of more pixels are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
}

/// Batches and steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Samples a step.
    pub batch_size: usize,
    /// Samples in memory together; by default the whole batch. The gradients of the parts add up to the batch's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Steps; or give `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Passes over the data; or give `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// What is trained; by default the projector, and in the finetune stage the decoder too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable: Option<Vec<Part>>,
    /// Memory for the features of a frozen vision encoder, which are then computed once an image.
    #[serde(default = "default_cache")]
    pub vision_cache_mib: usize,
    /// The type that is computed in.
    #[serde(default)]
    pub dtype: Precision,
    /// Compute the activations inside the decoder's layers again in the backward pass instead of keeping them.
    #[serde(default)]
    pub recompute: bool,
    /// How many steps in a row may be skipped because their loss or gradients are not finite.
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
            dtype: Precision::default(),
            recompute: false,
            max_nonfinite: default_nonfinite(),
        }
    }
}

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
    /// 32 bits.
    #[default]
    Float32,
    /// bfloat16 parameters and activations; what is trained has master weights in 32 bits.
    Bfloat16,
}

impl Precision {
    /// Burn's name.
    pub fn dtype(self) -> DType {
        match self {
            Self::Float32 => DType::F32,
            Self::Bfloat16 => DType::BF16,
        }
    }
}

/// What a run keeps while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaveConfig {
    /// Save every so many steps; by default only where a signal ends the run, and at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
    /// How many of the saved states stay, the latest ones; the best by the periodic evaluation stays too.
    pub keep_last: usize,
    /// Write the whole checkpoint beside each state, as `model/`.
    pub full: bool,
}

impl Default for SaveConfig {
    fn default() -> Self {
        Self { every: None, keep_last: 2, full: false }
    }
}

/// A recipe that cannot be run.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a wrong type.
    #[error("{path}: {}", toml_reason(source), path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        source: toml::de::Error,
    },
    /// A `--set` that does not fit.
    #[error("--set {}: {reason}", excerpt(set))]
    Set {
        /// As given.
        set: String,
        /// Why.
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

/// A TOML error that is longer is told without the line that it quotes.
const MOST_REASON: usize = 1000;

impl Recipe {
    /// Reads a recipe and applies `sets`, each `key.path=value` with a TOML value (a bare word is a string).
    ///
    /// # Errors
    ///
    /// [`RecipeError`] that names the file and line, or the `--set`.
    pub fn open(path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        let text = outside::read_text(path).map_err(|source| RecipeError::Io { path: path.into(), source })?;
        let toml = |source| RecipeError::Toml { path: path.into(), source };
        let recipe = if sets.is_empty() {
            toml::from_str(&text).map_err(toml)?
        } else {
            let original: Table = toml::from_str(&text).map_err(toml)?;
            let mut table = original.clone();
            sets.iter().try_for_each(|set| apply_set(&mut table, set))?;
            match Self::deserialize(table) {
                Ok(recipe) => recipe,
                Err(error) => match toml::from_str::<Self>(&text) {
                    Err(own) => return Err(toml(own)),
                    Ok(_) => return Err(culprit(original, sets, &error)),
                },
            }
        };
        match recipe.check() {
            Ok(()) => Ok(recipe),
            Err(reason) => Err(blame(path, &text, sets, reason)),
        }
    }

    /// What contradicts itself; the first thing.
    pub(crate) fn check(&self) -> Result<(), String> {
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
        if model.image_aspect_ratio.as_deref().is_some_and(|ratio| !["pad", "square"].contains(&ratio)) {
            return invalid("model.image_aspect_ratio must be \"pad\" or \"square\"");
        }
        if let Some(reason) = self.data.contradiction() {
            return invalid(&reason);
        }
        if let Some(reason) = self.loader.contradiction(self.train.batch_size) {
            return invalid(&reason);
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
        if let (Some(key), true) = (self.objective.compares_with_own(), self.mode(Part::Vision) != Mode::Frozen) {
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
        // A token that no batch had has a gradient of 0: 0 / (0 + epsilon).
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

    /// Steps over `samples` samples.
    pub fn steps(&self, samples: usize) -> usize {
        match (self.train.steps, self.train.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => ((samples as f64 * epochs) / self.train.batch_size as f64).ceil().max(1.0) as usize,
            (None, None) => 1,
        }
    }
}

/// What is wrong with a TOML file and where, without a line that is as long as somebody wanted.
pub(crate) fn toml_reason(error: &toml::de::Error) -> String {
    let whole = error.to_string();
    match whole.len() > MOST_REASON {
        false => whole,
        // The first line says at which line and column.
        true => format!("{}: {}", excerpt(whole.lines().next().unwrap_or_default()), excerpt(error.message())),
    }
}
