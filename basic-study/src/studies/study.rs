//! A study as a TOML file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use basic_data::shapes::SCENE_LIMIT;
use basic_models::outside;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::AblateError;
use super::factor::{Factor, Grid, Variant};
use super::held_out::HeldOutConfig;
use super::lens::LensConfig;
use super::places::Moved;
use basic_train::recipe::recipe_keys;

/// Those of a recipe's own keys that the study or the command line decides.
pub(super) const TAKEN: [(&str, &str); 3] =
    [("seed", "write the study's `seeds`"), ("device", "give --device or --devices"), ("output", "give --out")];

/// Cells times settings times seeds.
const MOST_RUNS: usize = 10_000;
/// Stages behind each other.
const MOST_STAGES: usize = 100;
/// Questions answered together, and tokens of an answer.
const MOST_BATCH: usize = 1 << 20;

/// A study: what `basic ablate` reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Its name, the heading of its tables.
    pub name: String,
    /// What it asks, in a sentence or two.
    #[serde(default)]
    pub description: String,
    /// Each cell runs once with each of them.
    pub seeds: Vec<u64>,
    /// The cell that the others are compared with, where a factor names none.
    #[serde(default)]
    pub baseline: Option<String>,
    /// Keep the checkpoints of finished cells.
    #[serde(default)]
    pub keep_checkpoints: bool,
    /// Data and backbones of the embedded world, which the study makes for itself.
    #[serde(default)]
    pub world: Option<WorldConfig>,
    /// A directory in the place of the one that the study names.
    #[serde(skip)]
    pub moved: Option<Moved>,
    /// Recipe keys of every stage.
    #[serde(default)]
    pub recipe: Table,
    /// The stages; each but the first starts from the one before.
    pub stages: Vec<StageConfig>,
    /// What is measured on.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// Everything below is done in each of these.
    #[serde(default)]
    pub settings: Vec<Variant>,
    /// Groups of cells that differ in one thing.
    #[serde(default)]
    pub factors: Vec<Factor>,
    /// Cells for all combinations of several things.
    #[serde(default)]
    pub grid: Option<Grid>,
}

/// `[world]`: scenes of each split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldConfig {
    /// Scenes to train on.
    pub train: usize,
    /// Scenes to choose by.
    pub validation: usize,
    /// Scenes to report.
    pub eval: usize,
    /// The scenes' seed.
    #[serde(default)]
    pub seed: u64,
}

/// `[[stages]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Its name in tables and in `set`s.
    pub name: String,
    /// Its recipe: a file's path, relative to the study, or the keys themselves.
    pub recipe: RecipeSource,
    /// Recipe keys to change.
    #[serde(default)]
    pub set: Table,
    /// What is measured after it; by default accuracy, benchmarks and choices, as far as `[evaluation]` has them.
    #[serde(default)]
    pub measure: Option<Vec<Measure>>,
    /// Look for its best step by a validation set.
    #[serde(default)]
    pub early_stopping: Option<EarlyStopping>,
}

/// A recipe, elsewhere or here.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum RecipeSource {
    /// A file.
    File(PathBuf),
    /// Its keys.
    Inline(Table),
}

/// What can be measured of a stage's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Exact match on `evaluation.questions`, overall and per type.
    Accuracy,
    /// The benchmarks' scores.
    Benchmarks,
    /// Mean cross entropy of captions that were not trained on.
    CaptionLoss,
    /// The share of object patches whose nearest token is true of the object.
    Grounding,
    /// The mean length of the visual embeddings.
    VNorm,
    /// The norms of the projector's gradients by loss.
    Gradients,
    /// The measurements of the token lens on `evaluation.lens`, layer by layer.
    Lens,
    /// The choices of `evaluation.choices` ranked by likelihood.
    Choices,
    /// The same with each visual embedding replaced by its nearest token's embedding.
    ReplacedChoices,
}

impl Measure {
    /// Its name in `measure`.
    fn name(&self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Benchmarks => "benchmarks",
            Self::CaptionLoss => "caption_loss",
            Self::Grounding => "grounding",
            Self::VNorm => "v_norm",
            Self::Gradients => "gradients",
            Self::Lens => "lens",
            Self::Choices => "choices",
            Self::ReplacedChoices => "replaced_choices",
        }
    }
}

/// `early_stopping`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// The model is kept and looked at after every so many steps, and after the last one.
    pub every: usize,
    /// What decides.
    #[serde(default)]
    pub by: StopBy,
    /// With `by = "accuracy"`: validation questions.
    #[serde(default)]
    pub questions: Option<PathBuf>,
    /// The first of them only.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// What the best step is best by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopBy {
    /// Exact match on validation questions.
    #[default]
    Accuracy,
    /// The language-model loss on the recipe's `[eval]`.
    Loss,
}

/// `[evaluation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Questions with answers, as `basic eval` reads them.
    pub questions: Option<PathBuf>,
    /// What their images' paths are relative to; by default the file's folder.
    pub images: Option<PathBuf>,
    /// The first questions only.
    pub limit: Option<usize>,
    /// A folder that `basic data shapes` wrote: for caption loss, grounding, lengths and gradients.
    pub shapes: Option<PathBuf>,
    /// Captions that were not trained on: for caption loss, lengths and gradients, instead of those of `shapes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<HeldOutConfig>,
    /// Questions with choices, which are ranked by likelihood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<HeldOutConfig>,
    /// A data set for the token lens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lens: Option<LensConfig>,
    /// Benchmarks by name.
    pub benchmarks: Vec<String>,
    /// Their folders, laid out as LLaVA's playground/data/eval.
    pub root: Option<PathBuf>,
    /// Questions answered together.
    pub batch_size: usize,
    /// At most so many tokens an answer; a benchmark has its own number.
    pub max_new_tokens: usize,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            questions: None,
            images: None,
            limit: None,
            shapes: None,
            captions: None,
            choices: None,
            lens: None,
            benchmarks: Vec::new(),
            root: None,
            batch_size: 32,
            max_new_tokens: 16,
        }
    }
}

/// The parts of `[evaluation]` that measures are made on, each with these measures.
const PARTS: [(&str, &[Measure]); 6] = [
    ("questions", &[Measure::Accuracy]),
    ("benchmarks", &[Measure::Benchmarks]),
    ("captions", &[Measure::CaptionLoss, Measure::VNorm, Measure::Gradients]),
    ("choices", &[Measure::Choices, Measure::ReplacedChoices]),
    ("lens", &[Measure::Lens]),
    ("shapes", &[Measure::CaptionLoss, Measure::VNorm, Measure::Gradients, Measure::Grounding]),
];

impl EvaluationConfig {
    /// Which of the [`PARTS`] are there.
    fn parts(&self) -> [bool; 6] {
        let Self { questions, shapes, captions, choices, lens, benchmarks, .. } = self;
        [
            questions.is_some(),
            !benchmarks.is_empty(),
            captions.is_some(),
            choices.is_some(),
            lens.is_some(),
            shapes.is_some(),
        ]
    }

    /// The same without the parts that none of these measures is made on.
    pub(super) fn used_by(&self, measures: &[Measure]) -> Self {
        let [questions, benchmarks, captions, choices, lens, shapes] =
            PARTS.map(|(_, by)| by.iter().any(|measure| measures.contains(measure)));
        Self {
            questions: self.questions.clone().filter(|_| questions),
            benchmarks: if benchmarks { self.benchmarks.clone() } else { Vec::new() },
            captions: self.captions.clone().filter(|_| captions),
            choices: self.choices.clone().filter(|_| choices),
            lens: self.lens.clone().filter(|_| lens),
            shapes: self.shapes.clone().filter(|_| shapes),
            ..self.clone()
        }
    }
}

impl Study {
    /// Reads a study.
    ///
    /// # Errors
    ///
    /// [`AblateError`] that names the file and the key.
    pub fn open(path: &Path) -> Result<Self, AblateError> {
        let text = outside::read_text(path).map_err(|source| AblateError::Io { path: path.into(), source })?;
        let study: Self = toml::from_str(&text).map_err(|source| AblateError::Toml { path: path.into(), source })?;
        match study.check() {
            Some(reason) => Err(AblateError::Study { path: path.into(), reason }),
            None => Ok(study),
        }
    }

    /// What is wrong with it by itself; the first thing.
    pub(crate) fn check(&self) -> Option<String> {
        if let Some(seed) = repeated(self.seeds.iter()) {
            return Some(format!("seeds: {seed} is there twice"));
        }
        if let Some(reason) = self.out_of_bounds() {
            return Some(reason);
        }
        if self.seeds.is_empty() || self.stages.is_empty() {
            return Some("needs at least one seed and one of [[stages]]".into());
        }
        if self.factors.is_empty() && self.grid.is_none() {
            return Some("has no cells: write [[factors]] or a [grid]".into());
        }
        let names = [
            ("stages", self.stages.iter().map(|stage| &stage.name).collect::<Vec<_>>()),
            ("settings", self.settings.iter().map(|setting| &setting.name).collect()),
            ("factors", self.factors.iter().map(|f| &f.name).chain(self.grid.iter().map(|g| &g.name)).collect()),
        ];
        for (key, names) in names {
            if let Some(name) = repeated(names.iter()) {
                return Some(format!("{key}: two are called \"{name}\""));
            }
            if let Some(name) = names.iter().find(|name| name.trim().is_empty() || name.contains(['/', '.'])) {
                return Some(format!("{key}: \"{name}\" must be a name without / and ."));
            }
        }
        if let Some(setting) = self.settings.iter().find(|setting| setting.x.is_some()) {
            return Some(format!("settings: \"{}\" cannot have an x, which cells of a factor have", setting.name));
        }
        if let Some(stage) = self.stages.iter().find(|stage| recipe_keys().contains(&stage.name.as_str())) {
            return Some(format!("stages: \"{}\" is a key of recipes: call the stage otherwise", stage.name));
        }
        self.stages.iter().find_map(|stage| self.stage_problem(stage))
    }

    /// The parts of `[evaluation]` that no stage is measured on, and what would measure them.
    pub(super) fn unmeasured(&self) -> Vec<String> {
        let measured: Vec<Measure> = self.stages.iter().flat_map(|stage| self.measures(stage)).collect();
        let (there, used) = (self.evaluation.parts(), self.evaluation.used_by(&measured).parts());
        let unused = PARTS.iter().zip(there.into_iter().zip(used)).filter(|(_, (there, used))| *there && !used);
        let text = |(key, by): &(&str, &[Measure])| {
            let names = by.iter().map(|measure| measure.name()).collect::<Vec<_>>().join(" or ");
            format!("nothing is measured on evaluation.{key}: no stage's `measure` has {names}")
        };
        unused.map(|(part, _)| text(part)).collect()
    }

    /// Which of its numbers is beyond what a study may have; before anything is made of them.
    fn out_of_bounds(&self) -> Option<String> {
        let size = |factor: &Factor| factor.cells.len().max(factor.values.len());
        let grid = self.grid.as_ref().filter(|grid| !grid.axes.is_empty());
        let grid = grid.map_or(Some(0), |grid| grid.axes.iter().try_fold(1_usize, |n, axis| n.checked_mul(size(axis))));
        let factors = self.factors.iter().try_fold(0_usize, |n, factor| n.checked_add(size(factor)));
        let cells = grid.zip(factors).and_then(|(grid, factors)| grid.checked_add(factors));
        let runs = cells.and_then(|cells| cells.checked_mul(self.settings.len().max(1))?.checked_mul(self.seeds.len()));
        if runs.is_none_or(|runs| runs > MOST_RUNS) {
            let count = runs.map_or("more than can be counted".into(), |runs| runs.to_string());
            return Some(format!(
                "its cells in all settings with all seeds are {count}, at most {MOST_RUNS} may be: take fewer factors, \
                 settings, seeds, or levels of the grid's axes"
            ));
        }
        let scenes = self.world.as_ref().map(|world| [world.train, world.validation, world.eval]);
        if scenes.is_some_and(|scenes| scenes.iter().any(|n| *n > SCENE_LIMIT)) {
            return Some(format!("world: at most {SCENE_LIMIT} scenes of a split"));
        }
        let evaluation = &self.evaluation;
        let numbers = [
            ("stages", self.stages.len(), 0, MOST_STAGES),
            ("evaluation.batch_size", evaluation.batch_size, 1, MOST_BATCH),
            ("evaluation.max_new_tokens", evaluation.max_new_tokens, 1, MOST_BATCH),
        ];
        let wrong = numbers.into_iter().find(|(_, value, least, most)| value < least || value > most);
        wrong.map(|(key, value, least, most)| format!("{key}: {value} is not between {least} and {most}"))
    }

    fn stage_problem(&self, stage: &StageConfig) -> Option<String> {
        let (name, evaluation) = (&stage.name, &self.evaluation);
        let has = |measure: Measure| stage.measure.as_ref().is_some_and(|listed| listed.contains(&measure));
        if has(Measure::Accuracy) && evaluation.questions.is_none() {
            return Some(format!("stage {name}: measure = [\"accuracy\"] needs evaluation.questions"));
        }
        if evaluation.benchmarks.is_empty() && has(Measure::Benchmarks) {
            return Some(format!("stage {name}: measure = [\"benchmarks\"] needs evaluation.benchmarks"));
        }
        if !evaluation.benchmarks.is_empty() && evaluation.root.is_none() {
            return Some("evaluation.benchmarks needs evaluation.root, the folder with the benchmarks' folders".into());
        }
        if evaluation.shapes.is_none() && has(Measure::Grounding) {
            return Some(format!("stage {name}: grounding needs evaluation.shapes, a folder of `basic data shapes`"));
        }
        let captions = [Measure::CaptionLoss, Measure::VNorm, Measure::Gradients];
        if evaluation.shapes.is_none() && evaluation.captions.is_none() && captions.into_iter().any(has) {
            return Some(format!(
                "stage {name}: caption_loss, v_norm and gradients need evaluation.captions, a data set, or \
                 evaluation.shapes, a folder of `basic data shapes`"
            ));
        }
        if evaluation.choices.is_none() && [Measure::Choices, Measure::ReplacedChoices].into_iter().any(has) {
            return Some(format!("stage {name}: choices and replaced_choices need evaluation.choices"));
        }
        if has(Measure::Lens) && evaluation.lens.is_none() {
            return Some(format!("stage {name}: measure = [\"lens\"] needs evaluation.lens"));
        }
        let stop = stage.early_stopping.as_ref()?;
        match stop.by {
            _ if stop.every == 0 => Some(format!("stage {name}: early_stopping.every must be at least 1")),
            StopBy::Accuracy if stop.questions.is_none() => {
                Some(format!("stage {name}: early_stopping by accuracy needs early_stopping.questions"))
            }
            _ => None,
        }
    }

    /// What is measured behind a stage.
    pub(super) fn measures(&self, stage: &StageConfig) -> Vec<Measure> {
        stage.measure.clone().unwrap_or_else(|| {
            let accuracy = self.evaluation.questions.as_ref().map(|_| Measure::Accuracy);
            let benchmarks = (!self.evaluation.benchmarks.is_empty()).then_some(Measure::Benchmarks);
            let choices = self.evaluation.choices.as_ref().map(|_| Measure::Choices);
            accuracy.into_iter().chain(benchmarks).chain(choices).collect()
        })
    }
}

/// The first that was there before.
pub(super) fn repeated<T: Ord>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    let mut again = None;
    while let (None, Some(value)) = (&again, values.next()) {
        if seen.contains(&value) {
            again = Some(value);
        } else {
            seen.insert(value);
        }
    }
    again
}
