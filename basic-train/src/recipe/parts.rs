//! How a run trains each part of the model.

use std::path::PathBuf;

use basic_models::checkpoint::EncoderFiles;
use basic_models::{CheckpointError, LlavaConfig};
use serde::{Deserialize, Serialize};

use crate::optim::Group;

use super::{Recipe, Stage};

/// A part of the model that a run may train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The vision encoder.
    Vision,
    /// The projector.
    Projector,
    /// The decoder with its output head.
    Decoder,
    /// The trainable head of a supervision method, if it has one.
    Head,
    /// The vision encoders beside the first one, if the model has several.
    #[serde(rename = "fused_vision")]
    FusedVision,
}

impl Part {
    /// All parts: those that every model has, in its order, then those that some have.
    pub const ALL: [Self; 5] = [Self::Vision, Self::Projector, Self::Decoder, Self::Head, Self::FusedVision];

    /// The part's name in recipes and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Projector => "projector",
            Self::Decoder => "decoder",
            Self::Head => "head",
            Self::FusedVision => "fused_vision",
        }
    }

    /// The prefixes of the paths of the part's parameters.
    pub fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Vision => &["vision_tower"],
            Self::Projector => &["multi_modal_projector"],
            Self::Decoder => &["language_model", "lm_head"],
            Self::Head => &["heads"],
            Self::FusedVision => &["fused_vision_towers"],
        }
    }
}

/// How a part is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The part is not trained.
    #[default]
    Frozen,
    /// All of the part's parameters are trained.
    Full,
    /// Low-rank adapters beside the part's frozen matrices are trained.
    Lora,
    /// Low-rank adapters beside quantized matrices are trained.
    Qlora,
}

/// The settings of a part in a recipe.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartConfig {
    /// How the part is trained; by default as the stage or `train.trainable` determines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The part's peak learning rate; by default the optimizer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The part's weight decay; by default the optimizer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// The rank of the adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The scale of the adapters is `alpha / rank`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The linear layers that get adapters, by their own names (`q_proj`, ..); by default all layers of the part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Bits per element of a quantized matrix, 8 or 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Number of elements of a quantized matrix that share a scale; it must divide the number of outputs of every
    /// target. 64 if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u8>,
    /// A directory of adapters to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<PathBuf>,
}

/// `[parts.vision]`, `[parts.projector]`, `[parts.decoder]`, `[parts.head]` and `[parts.fused_vision]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parts {
    /// The vision encoder.
    pub vision: PartConfig,
    /// The projector.
    pub projector: PartConfig,
    /// The decoder with its output head.
    pub decoder: PartConfig,
    /// A supervision method's head.
    #[serde(skip_serializing_if = "is_default")]
    pub head: PartConfig,
    /// The vision encoders beside the first one; by default they are trained as `vision` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fused_vision: Option<PartConfig>,
}

fn is_default(config: &PartConfig) -> bool {
    *config == PartConfig::default()
}

impl Parts {
    /// The settings of a part.
    pub fn of(&self, part: Part) -> &PartConfig {
        match part {
            Part::Vision => &self.vision,
            Part::Projector => &self.projector,
            Part::Decoder => &self.decoder,
            Part::Head => &self.head,
            Part::FusedVision => self.fused_vision.as_ref().unwrap_or(&self.vision),
        }
    }

    /// Whether a part has settings of its own in every recipe, or those of this recipe.
    pub fn is_apart(&self, part: Part) -> bool {
        part != Part::FusedVision || self.fused_vision.is_some()
    }

    fn of_mut(&mut self, part: Part) -> &mut PartConfig {
        match part {
            Part::Vision => &mut self.vision,
            Part::Projector => &mut self.projector,
            Part::Decoder => &mut self.decoder,
            Part::Head => &mut self.head,
            Part::FusedVision => self.fused_vision.as_mut().unwrap_or(&mut self.vision),
        }
    }
}

impl Recipe {
    /// How a part is trained: by its own settings, else by `train.trainable`, else by LLaVA's recipe for the stage.
    pub fn mode(&self, part: Part) -> Mode {
        if part == Part::Head {
            return if self.objective.has_head() { Mode::Full } else { Mode::Frozen };
        }
        if let Some(mode) = self.parts.of(part).mode {
            return mode;
        }
        let part = if part == Part::FusedVision { Part::Vision } else { part };
        let trained = match (&self.train.trainable, self.stage) {
            (Some(parts), _) => parts.contains(&part),
            (None, Stage::Pretrain) => part == Part::Projector,
            (None, Stage::Finetune) => part != Part::Vision,
        };
        if trained { Mode::Full } else { Mode::Frozen }
    }

    /// The parts that are trained, fully or through adapters. The vision encoders beside the first one are a part of
    /// their own if the recipe has settings for them.
    pub fn trainable(&self) -> Vec<Part> {
        let apart = |part: &Part| self.parts.is_apart(*part);
        Part::ALL.into_iter().filter(apart).filter(|part| self.mode(*part) != Mode::Frozen).collect()
    }

    /// Whether no vision encoder is trained, so that the features of an image never change.
    pub fn freezes_encoders(&self) -> bool {
        [Part::Vision, Part::FusedVision].into_iter().all(|part| self.mode(part) == Mode::Frozen)
    }

    /// Returns an error if the recipe has settings for vision encoders that the model does not have.
    pub(crate) fn check_encoders(&self, config: &LlavaConfig) -> Result<(), CheckpointError> {
        match self.parts.fused_vision.is_some() && !config.is_fused() {
            true => Err(CheckpointError::Mismatch(
                "parts.fused_vision: the model has one vision encoder (parts.vision): leave the table out".into(),
            )),
            false => Ok(()),
        }
    }

    /// The peak learning rate of a part.
    pub fn part_lr(&self, part: Part) -> f64 {
        self.parts.of(part).lr.unwrap_or_else(|| self.lr())
    }

    /// Whether the learning rate of every trained part is 0 at `step` (0-based) of `steps`.
    pub fn rate_is_zero(&self, step: usize, steps: usize) -> bool {
        let factor = self.schedule.factor(step, steps);
        self.trainable().into_iter().all(|part| self.part_lr(part) * factor == 0.0)
    }

    /// The width of the patch features that a supervision method compares with, for a model with this `config`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if another encoder cannot be opened.
    pub fn compared_width(&self, config: &LlavaConfig) -> Result<usize, CheckpointError> {
        match self.objective.encoder() {
            Some(name) => Ok(EncoderFiles::open(name)?.width()),
            None => Ok(config.feature_width()),
        }
    }

    /// Peak learning rates and weight decays by path.
    pub fn groups(&self) -> Vec<Group> {
        let of_part = |part: Part| {
            let weight_decay = self.parts.of(part).weight_decay.unwrap_or(self.optimizer.weight_decay);
            let rate = self.part_lr(part);
            let group = move |prefix: &&str| Group { prefix: (*prefix).into(), rate, weight_decay };
            part.prefixes().iter().map(group).collect::<Vec<_>>()
        };
        Part::ALL.into_iter().flat_map(of_part).collect()
    }

    /// Writes out the mode of every part, for the record of the run.
    pub fn resolve_parts(&mut self) {
        // The head's mode follows from the objective.
        for part in Part::ALL {
            if part == Part::Head || !self.parts.is_apart(part) {
                continue;
            }
            let mode = self.mode(part);
            self.parts.of_mut(part).mode = Some(mode);
        }
        let listed = |part: &Part| ![Part::Head, Part::FusedVision].contains(part);
        self.train.trainable = Some(self.trainable().into_iter().filter(listed).collect());
    }

    /// The first problem in the settings of the parts, if there is one.
    pub(super) fn parts_problem(&self) -> Option<String> {
        if self.train.trainable.iter().flatten().any(|part| *part == Part::Head) {
            return Some("train.trainable: a supervision method's head is always trained: leave `head` out".into());
        }
        if self.train.trainable.iter().flatten().any(|part| *part == Part::FusedVision) {
            return Some(
                "train.trainable: `vision` stands for all vision encoders: set parts.fused_vision.mode for the others"
                    .into(),
            );
        }
        for part in Part::ALL {
            let (config, name) = (self.parts.of(part), part.name());
            let mode = self.mode(part);
            let adapts = matches!(mode, Mode::Lora | Mode::Qlora);
            if part == Part::Head && config.mode.is_some() {
                return Some("parts.head.mode: a supervision method's head is always trained: leave it out".into());
            }
            if part == Part::Head && mode == Mode::Frozen && *config != PartConfig::default() {
                return Some("parts.head: the objective has no method with a head: leave the table out".into());
            }
            let own = [
                ("rank", config.rank.is_some()),
                ("alpha", config.alpha.is_some()),
                ("targets", config.targets.is_some()),
                ("adapters", config.adapters.is_some()),
            ];
            if let Some((key, _)) = own.iter().find(|(_, set)| *set && !adapts) {
                return Some(format!("parts.{name}.{key} needs mode = \"lora\" or \"qlora\""));
            }
            let taken = [
                ("rank", config.rank.is_some()),
                ("alpha", config.alpha.is_some()),
                ("targets", config.targets.is_some()),
            ];
            if let Some((key, _)) = taken.iter().find(|(_, set)| *set && config.adapters.is_some()) {
                return Some(format!(
                    "parts.{name}.{key} is what the directory of parts.{name}.adapters says: leave it out"
                ));
            }
            let quantized = [("bits", config.bits.is_some()), ("block", config.block.is_some())];
            if let Some((key, _)) = quantized.iter().find(|(_, set)| *set && mode != Mode::Qlora) {
                return Some(format!("parts.{name}.{key} needs mode = \"qlora\""));
            }
            if config.block == Some(0) {
                return Some(format!("parts.{name}.block must be at least 1"));
            }
            if config.bits.is_some_and(|bits| bits != 4 && bits != 8) {
                return Some(format!("parts.{name}.bits must be 4 or 8"));
            }
            if config.rank == Some(0) {
                return Some(format!("parts.{name}.rank must be at least 1"));
            }
            let numbers = [("lr", config.lr), ("weight_decay", config.weight_decay), ("alpha", config.alpha)];
            for (key, value) in numbers {
                if value.is_some_and(|value| !value.is_finite() || value < 0.0) {
                    return Some(format!("parts.{name}.{key} must be a finite number, at least 0"));
                }
            }
            if mode == Mode::Frozen && (config.lr.is_some() || config.weight_decay.is_some()) {
                return Some(format!("parts.{name} is frozen: lr and weight_decay have no meaning there"));
            }
        }
        None
    }
}
