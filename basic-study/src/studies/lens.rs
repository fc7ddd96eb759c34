//! The token lens as a measure: what `basic analyze --data` says of a stage's model.

use std::path::{Path, PathBuf};

use basic_core::Basic;
use basic_data::{SetConfig, StyleChoice};
use basic_eval::lens::{
    Cases, Lens, LensError, LensOptions, Meaning, Rule, Scenes, check_replaceable, replacement, survey,
};
use basic_models::nn::Llava;
use basic_models::{Checkpoint, LlavaConfig};
use serde::{Deserialize, Serialize};

use super::AblateError;
use super::column::{Better, Column, LayerOf, Unit};
use super::result::Values;

/// Exact match with every visual embedding replaced by its nearest token's, and without.
pub(super) const REPLACED: &str = "lens.replaced";
pub(super) const ANSWERED: &str = "lens.answered";
/// The rank of the captions' words by the V^.
pub(super) const TARGET_WORD_RANK: &str = "lens.target_word_rank";
/// The mean cosine between the V^ of different images.
pub(super) const TARGET_ANISOTROPY: &str = "lens.target_anisotropy";

/// `evaluation.lens`: the options of `basic analyze --data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LensConfig {
    /// A data set, or questions as `basic eval` reads them.
    pub data: PathBuf,
    /// What its images' paths are relative to; by default the file's folder.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// The first samples with an image only.
    #[serde(default)]
    pub limit: Option<usize>,
    /// When an embedding is meaningful.
    #[serde(default)]
    pub meaningful: Rule,
    /// And what the cosine with its nearest token must be at least.
    #[serde(default)]
    pub min_similarity: Option<f32>,
    /// The scenes for the rule `labels`; by default the scenes.jsonl beside the data.
    #[serde(default)]
    pub labels: Option<PathBuf>,
    /// How conversations become text.
    #[serde(default)]
    pub conversation: StyleChoice,
    /// Answer again with the nearest tokens in the embeddings' places.
    #[serde(default)]
    pub replace: bool,
}

impl LensConfig {
    fn options(&self) -> LensOptions {
        let meaning = Meaning { rule: self.meaningful, min_similarity: self.min_similarity };
        LensOptions { basic: Basic::default(), top: 1, all: false, layers: None, meaning }
    }

    /// Checks that a model of this configuration can be looked at.
    pub(super) fn check(&self, config: &LlavaConfig) -> Result<(), LensError> {
        self.options().check(config)?;
        if self.replace { check_replaceable(config) } else { Ok(()) }
    }

    /// The files that what is measured depends on.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.data).chain(&self.labels)
    }
}

/// The data set, read.
pub(super) struct LensSet {
    config: LensConfig,
    cases: Cases,
    indices: Vec<usize>,
    asked: Vec<usize>,
    scenes: Option<Scenes>,
}

impl LensSet {
    /// Opens the data set; `at` finds the places of paths.
    pub fn open(
        config: &LensConfig,
        at: &dyn Fn(&PathBuf) -> Result<PathBuf, AblateError>,
    ) -> Result<Self, AblateError> {
        let data = at(&config.data)?;
        let set = SetConfig { images: config.images.as_ref().map(at).transpose()?, ..SetConfig::new(&data) };
        let cases = Cases::open(&set)?;
        let indices = cases.with_images(config.limit, true)?;
        let asked = if config.replace { cases.with_images(config.limit, false)? } else { Vec::new() };
        let labels = match &config.labels {
            Some(path) => at(path)?,
            None => data.parent().unwrap_or(Path::new("")).join("scenes.jsonl"),
        };
        let scenes = (config.meaningful == Rule::Labels).then(|| Scenes::read(&labels)).transpose()?;
        Ok(Self { config: config.clone(), cases, indices, asked, scenes })
    }

    /// Looks at a model. V^ is that of the paper's k and layer weights in every cell, for angles to be comparable.
    pub fn values(&self, model: &Llava, checkpoint: &Checkpoint, max_new_tokens: usize) -> Result<Values, AblateError> {
        let style = self.config.conversation.resolve(checkpoint, false).map_err(basic_models::CheckpointError::from)?;
        let mut lens = Lens::new(model, checkpoint, self.config.options())?;
        let seen = survey(&mut lens, &self.cases, &self.indices, &style, self.scenes.as_ref(), &mut |_| {})?;
        let mut values = Values::new();
        for found in &seen.layers {
            for quantity in &QUANTITIES {
                if let Some(value) = (quantity.of)(found) {
                    values.insert(quantity.key(found.layer), value);
                }
            }
        }
        values.extend(seen.target_word_rank.map(|rank| (TARGET_WORD_RANK.into(), rank.mean)));
        values.extend(seen.target_anisotropy.map(|found| (TARGET_ANISOTROPY.into(), found.cosine)));
        if self.config.replace {
            let found = replacement(&mut lens, &self.cases, &self.asked, &style, max_new_tokens, &mut |_| {})?;
            values.insert(REPLACED.into(), found.replaced.value);
            values.insert(ANSWERED.into(), found.accuracy.value);
        }
        Ok(values)
    }
}

/// Something that the lens says at every layer.
pub(super) struct Quantity {
    /// `lens.NAME.LAYER` is its key.
    name: &'static str,
    /// As tables call it.
    label: &'static str,
    unit: Unit,
    better: Better,
    of: fn(&basic_eval::lens::LayerShare) -> Option<f64>,
}

/// In the tables' order.
pub(super) const QUANTITIES: [Quantity; 7] = [
    Quantity {
        name: "meaningful",
        label: "meaningful, %",
        unit: Unit::Percent,
        better: Better::Higher,
        of: |layer| Some(layer.meaningful),
    },
    Quantity {
        name: "chance",
        label: "meaningful by chance, %",
        unit: Unit::Percent,
        better: Better::Neither,
        of: |layer| layer.chance,
    },
    Quantity {
        name: "similarity",
        label: "cosine with the nearest token",
        unit: Unit::Loss,
        better: Better::Neither,
        of: |layer| Some(layer.similarity),
    },
    Quantity {
        name: "end_share",
        label: "nearest to the end token, %",
        unit: Unit::Percent,
        better: Better::Neither,
        of: |layer| layer.end_share,
    },
    Quantity {
        name: "angle",
        label: "angle to V^, degrees",
        unit: Unit::Plain,
        better: Better::Neither,
        of: |layer| Some(layer.angle),
    },
    Quantity {
        name: "anisotropy",
        label: "cosine between images",
        unit: Unit::Loss,
        better: Better::Neither,
        of: |layer| layer.anisotropy.as_ref().map(|found| found.cosine),
    },
    Quantity {
        name: "word_rank",
        label: "rank of the caption's words",
        unit: Unit::Loss,
        better: Better::Lower,
        of: |layer| layer.word_rank.as_ref().map(|rank| rank.mean),
    },
];

impl Quantity {
    fn key(&self, layer: usize) -> String {
        format!("lens.{}.{layer}", self.name)
    }

    /// The layer of a key of this quantity.
    pub fn layer(&self, key: &str) -> Option<usize> {
        key.strip_prefix("lens.")?.strip_prefix(self.name)?.strip_prefix('.')?.parse().ok()
    }

    /// Its column at a layer.
    pub fn column(&self, stage: &str, layer: usize) -> Column {
        Column {
            stage: stage.into(),
            metric: self.key(layer),
            label: format!("layer {layer}"),
            unit: self.unit,
            better: self.better,
            main: false,
            layer: Some(LayerOf { quantity: self.label.into(), layer }),
        }
    }
}
