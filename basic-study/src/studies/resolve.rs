//! From a stage's recipe and the overrides upon it to a recipe that can be run.

use std::path::Path;

use basic_train::recipe::{Layers, Recipe, merge, recipe_keys};
use serde::Deserialize;
use toml::{Table, Value};

use super::AblateError;
use super::places::Places;
use super::study::{RecipeSource, StageConfig, Study, TAKEN};

/// Overrides, and how an error calls them.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub origin: String,
    pub set: Table,
}

/// What a later stage's recipe has for its model until the stage before has an output.
pub(super) const EARLIER: &str = "the stage before";

/// A stage's recipe in both forms.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    /// As the study has it, before its paths are placed: what is hashed.
    pub named: Recipe,
    /// With all paths as they are.
    pub placed: Recipe,
}

/// Resolves recipes of one study.
pub(super) struct Resolver<'a> {
    path: &'a Path,
    study: &'a Study,
    places: Places<'a>,
    /// Each stage's own recipe, before any override.
    bases: Vec<Table>,
    /// What the command line sets.
    sets: Vec<Layer>,
}

impl<'a> Resolver<'a> {
    /// Reads the stages' recipes; `sets` are the command line's `KEY=VALUE`s.
    pub fn new(path: &'a Path, study: &'a Study, places: Places<'a>, sets: &[String]) -> Result<Self, AblateError> {
        let bases: Result<Vec<Table>, AblateError> =
            study.stages.iter().map(|stage| base(path, study, stage)).collect();
        let sets = sets.iter().map(|set| {
            let mut table = Table::new();
            basic_train::recipe::apply_set(&mut table, set)?;
            Ok(Layer { origin: format!("--set {set}"), set: table })
        });
        let sets: Result<Vec<Layer>, AblateError> = sets.collect();
        let found = Self { path, study, places, bases: bases?, sets: sets? };
        // A recipe that is wrong by itself is told before any cell.
        for stage in 0..study.stages.len() {
            found.recipe(stage, study.seeds[0], &[])?;
        }
        Ok(found)
    }

    fn wrong(&self, reason: String) -> AblateError {
        AblateError::Study { path: self.path.into(), reason }
    }

    /// The recipe of a stage with a seed and a cell's overrides.
    pub fn recipe(&self, stage: usize, seed: u64, cell: &[Layer]) -> Result<Resolved, AblateError> {
        let name = &self.study.stages[stage].name;
        let own = Layer { origin: format!("stage {name}: set"), set: self.study.stages[stage].set.clone() };
        let mut layers = Vec::new();
        for layer in std::iter::once(&own).chain(&self.sets).chain(cell) {
            layers.push(Layer { origin: layer.origin.clone(), set: self.of_stage(stage, layer)? });
        }
        let finish = |mut table: Table| {
            table.insert("seed".into(), Value::Integer(seed as i64));
            if stage > 0 {
                let model = table.entry("model").or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(model) = model {
                    ["vision", "llm", "projector", "image_grid_pinpoints"]
                        .iter()
                        .for_each(|key| drop(model.remove(*key)));
                    model.insert("checkpoint".into(), Value::String(EARLIER.into()));
                }
            }
            table
        };
        let mut table = self.bases[stage].clone();
        layers.iter().for_each(|layer| merge(&mut table, &layer.set));
        let table = finish(table);
        let named = match Recipe::deserialize(table.clone()) {
            Ok(recipe) => recipe,
            Err(error) => {
                let at = self.culprit(stage, &layers, &error, &finish);
                return Err(self.wrong(format!("{at}: {}", error.message())));
            }
        };
        let place = format!("{}, stage {name}", cell.last().map_or("its recipe", |layer| &layer.origin));
        let wrong = |reason: String| self.wrong(format!("{place}: {reason}"));
        named.check().map_err(&wrong)?;
        let placed = self.places.place_all(&table).map_err(&wrong)?;
        let placed = Recipe::deserialize(placed).map_err(|error| wrong(error.message().into()))?;
        Ok(Resolved { named, placed })
    }

    /// The part of a layer that touches a stage.
    fn of_stage(&self, stage: usize, layer: &Layer) -> Result<Table, AblateError> {
        let mut set = Table::new();
        let stages: Vec<&str> = self.study.stages.iter().map(|stage| stage.name.as_str()).collect();
        let wrong = |reason: String| self.wrong(format!("{}: {reason}", layer.origin));
        for (key, value) in &layer.set {
            let inner = match value {
                Value::Table(inner) if stages.contains(&key.as_str()) => {
                    if *key != self.study.stages[stage].name {
                        continue;
                    }
                    inner.clone()
                }
                _ if recipe_keys().contains(&key.as_str()) => [(key.clone(), value.clone())].into_iter().collect(),
                _ => {
                    let stages = stages.join(", ");
                    let keys = recipe_keys().join(", ");
                    let reason = format!("\"{key}\" is neither a recipe's key ({keys}) nor a stage ({stages})");
                    return Err(wrong(reason));
                }
            };
            if let Some((key, instead)) = TAKEN.iter().find(|(key, _)| inner.contains_key(*key)) {
                return Err(wrong(format!("a study cannot set {key}: {instead}")));
            }
            merge(&mut set, &inner);
        }
        Ok(set)
    }

    /// The key that brought `error`: a table may be incomplete until the last key is in.
    fn culprit(
        &self,
        stage: usize,
        layers: &[Layer],
        error: &toml::de::Error,
        finish: &impl Fn(Table) -> Table,
    ) -> String {
        let fails = |table: &Table| {
            Recipe::deserialize(finish(table.clone())).is_err_and(|other| other.message() == error.message())
        };
        let mut table = self.bases[stage].clone();
        if !fails(&table) {
            for layer in layers {
                for (key, leaf) in leaves(&layer.set, "") {
                    merge(&mut table, &leaf);
                    if fails(&table) {
                        return format!("{}: {key}", layer.origin);
                    }
                }
            }
        }
        format!("stage {}: recipe", self.study.stages[stage].name)
    }
}

/// A stage's recipe below the study's common keys' place: a file's or inline keys, over the common ones.
fn base(path: &Path, study: &Study, stage: &StageConfig) -> Result<Table, AblateError> {
    let mut table = study.recipe.clone();
    match &stage.recipe {
        RecipeSource::Inline(own) => merge(&mut table, own),
        RecipeSource::File(file) => {
            let file = path.parent().unwrap_or(Path::new(".")).join(file);
            merge(&mut table, &Layers::read(&file)?.table());
        }
    }
    // The study's own: they hold for a recipe that is run by itself.
    TAKEN.iter().for_each(|(key, _)| drop(table.remove(*key)));
    Ok(table)
}

/// Every value of a table that is none itself, with its path, each in a table of its own.
fn leaves(table: &Table, above: &str) -> Vec<(String, Table)> {
    let mut found = Vec::new();
    for (key, value) in table {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        let wrap = |inner: Value| -> Table { [(key.clone(), inner)].into_iter().collect() };
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                let below = leaves(inner, &path);
                found.extend(below.into_iter().map(|(path, leaf)| (path, wrap(Value::Table(leaf)))));
            }
            _ => found.push((path, wrap(value.clone()))),
        }
    }
    found
}
