//! The demo as a study: what `study.toml` says, changed as the command line wants it.

use toml::{Table, Value};

use super::DemoError;
use crate::studies::{AblateError, Factor, Measure, Study, Variant};

/// The settings with a sentence each.
pub const SETTINGS: [(&str, &str); 2] = [
    ("few", "24 captioned images, seen many times: the projector can overfit"),
    ("many", "2,000 captioned images, each seen about once: plenty for a small projector"),
];

/// How many seeds are run unless another number is asked for. The number follows from measured time alone: with it the demo
/// takes a little over six minutes on two cores (`docs/demo.md`). It was fixed before these seeds were run.
pub const SEEDS: u16 = 32;

/// The same for `--full`, of which a seed takes several times as long.
pub const FULL_SEEDS: u16 = 3;

/// The first seed of a sweep; the demo's own begin at 0.
const FIRST_SEED: u64 = 100;

/// What the command line changes of the recipes.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// BASIC's weight of the directional loss.
    pub lambda_das: Option<f64>,
    /// BASIC's weight of the semantic loss.
    pub lambda_sds: Option<f64>,
    /// Steps of the pretrain stage.
    pub pretrain_steps: Option<usize>,
    /// The pretrain stage's learning rate.
    pub pretrain_lr: Option<f64>,
    /// Steps of the finetune stage.
    pub finetune_steps: Option<usize>,
}

impl Changes {
    /// The same as recipe keys, `KEY=VALUE`.
    pub(super) fn sets(&self) -> Vec<String> {
        // Rust's debug form of a number is one of TOML: it has a point or an exponent.
        let float = |key: &str, value: Option<f64>| value.map(|value| format!("{key}={value:?}"));
        let whole = |key: &str, value: Option<usize>| value.map(|value| format!("{key}={value}"));
        let sets = [
            float("objective.lambda_das", self.lambda_das),
            float("objective.lambda_sds", self.lambda_sds),
            whole("pretrain.train.steps", self.pretrain_steps),
            float("pretrain.optimizer.lr", self.pretrain_lr),
            whole("finetune.train.steps", self.finetune_steps),
        ];
        sets.into_iter().flatten().collect()
    }
}

/// The study with the seeds 0 to `seeds` - 1; of its settings `only` that one. The validation split is asked every so many
/// steps of the pretrain stage.
pub(super) fn study(seeds: usize, only: Option<&str>, every: usize) -> Result<Study, DemoError> {
    let path = "demo/study.toml".into();
    let read = toml::from_str(include_str!("study.toml"));
    let mut study: Study = read.map_err(|source| AblateError::Toml { path, source })?;
    study.seeds = (0..seeds as u64).collect();
    study.settings.retain(|setting| only.is_none_or(|only| setting.name == only));
    for stop in study.stages.iter_mut().filter_map(|stage| stage.early_stopping.as_mut()) {
        stop.every = every.max(1);
    }
    Ok(study)
}

/// What the demo shows unless everything is asked for: the setting with few captions, after the pretrain stage, asked the eval
/// split once. Another setting stays where it is the only one.
pub(super) fn short(mut study: Study) -> Study {
    study.settings.truncate(1);
    study.stages.truncate(1);
    for stage in &mut study.stages {
        stage.measure = Some(vec![Measure::Accuracy]);
        stage.early_stopping = None;
    }
    study.evaluation.shapes = None;
    study
}

/// How the lambdas were chosen: the pretrain stage alone for every pair of them, with seeds that the demo does not use, asked
/// what the validation split asks. The eval split is not looked at.
pub(super) fn of_lambdas(mut study: Study, pairs: &[(f64, f64)]) -> Study {
    study.seeds.iter_mut().for_each(|seed| *seed += FIRST_SEED);
    study.keep_checkpoints = false;
    study.stages.truncate(1);
    let stage = study.stages.first_mut();
    if let Some(stop) = stage.and_then(|stage| {
        stage.measure = Some(vec![Measure::Accuracy]);
        stage.early_stopping.as_ref()
    }) {
        (study.evaluation.questions, study.evaluation.limit) = (stop.questions.clone(), stop.limit);
    }
    study.evaluation.shapes = None;
    let mut cells: Vec<Variant> = Vec::new();
    for pair in pairs {
        let name = cell(*pair);
        if cells.iter().all(|cell| cell.name != name) {
            cells.push(Variant { name, x: None, set: objective(*pair) });
        }
    }
    let baseline = cells.first().map(|cell| cell.name.clone());
    let (key, values) = (None, Vec::new());
    study.factors = vec![Factor { name: "lambdas".into(), baseline, set: Table::new(), cells, key, values }];
    study
}

/// What the cell of a pair of lambdas is called.
pub(super) fn cell((das, sds): (f64, f64)) -> String {
    format!("das{das}-sds{sds}")
}

/// Without either there is no supervision: that is the baseline.
fn objective((das, sds): (f64, f64)) -> Table {
    let keys = match das == 0.0 && sds == 0.0 {
        true => [("das", Value::Boolean(false)), ("sds", Value::Boolean(false))],
        false => [("lambda_das", Value::Float(das)), ("lambda_sds", Value::Float(sds))],
    };
    let objective: Table = keys.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    [("objective".to_string(), Value::Table(objective))].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_study_in_the_binary_is_whole_and_its_settings_are_those_with_a_sentence() {
        let whole = study(2, None, 0).unwrap();
        let names: Vec<&str> = whole.settings.iter().map(|setting| setting.name.as_str()).collect();
        assert_eq!(names, SETTINGS.map(|(name, _)| name));
        assert_eq!((whole.seeds, whole.stages[0].early_stopping.as_ref().unwrap().every), (vec![0, 1], 1));
        assert_eq!(study(1, Some("many"), 40).unwrap().settings.len(), 1);
    }

    #[test]
    fn the_short_study_is_the_first_setting_after_pretrain_and_measures_answers_alone() {
        let short_study = short(study(2, None, 40).unwrap());
        assert_eq!((short_study.settings[0].name.as_str(), short_study.settings.len()), ("few", 1));
        assert_eq!((short_study.stages[0].name.as_str(), short_study.stages.len()), ("pretrain", 1));
        assert_eq!(short_study.stages[0].measure, Some(vec![Measure::Accuracy]));
        assert!(short_study.stages[0].early_stopping.is_none() && short_study.check().is_none());
        assert_eq!(short(study(1, Some("many"), 40).unwrap()).settings[0].name, "many");
    }

    #[test]
    fn a_sweep_asks_the_validation_split_alone_and_takes_other_seeds() {
        let swept = of_lambdas(study(2, Some("few"), 40).unwrap(), &[(0.0, 0.0), (0.2, 0.05), (0.0, 0.0)]);
        assert_eq!((swept.seeds.as_slice(), swept.stages.len()), (&[100, 101][..], 1));
        assert_eq!(swept.evaluation.questions.unwrap(), std::path::PathBuf::from("world:data/validation.jsonl"));
        let cells: Vec<&str> = swept.factors[0].cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(cells, ["das0-sds0", "das0.2-sds0.05"]);
    }

    #[test]
    fn changes_are_recipe_keys_in_toml() {
        let changes = Changes { pretrain_lr: Some(1e-7), lambda_sds: Some(1.0), ..Changes::default() };
        assert_eq!(changes.sets(), ["objective.lambda_sds=1.0", "pretrain.optimizer.lr=1e-7"]);
    }
}
