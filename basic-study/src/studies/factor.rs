//! What a study varies: settings, factors, and grids of several things.

use basic_models::outside::excerpt;
use serde::Deserialize;
use toml::{Table, Value};

/// Keys in the path of a value: a recipe has three.
const MOST_KEYS: usize = 16;

/// A name for some overrides of recipe keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The name.
    pub name: String,
    /// The number that it stands for: where all cells have one, they are drawn as a line.
    #[serde(default)]
    pub x: Option<f64>,
    /// Recipe keys, of one stage behind its name: `pretrain.data.limit = 16`.
    #[serde(default)]
    pub set: Table,
}

/// `[[factors]]`: cells that are named one by one, or the values of a key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factor {
    /// The factor's name.
    pub name: String,
    /// The cell that its cells are compared with, instead of the study's baseline.
    #[serde(default)]
    pub baseline: Option<String>,
    /// What all of its cells set.
    #[serde(default)]
    pub set: Table,
    /// Its cells.
    #[serde(default)]
    pub cells: Vec<Variant>,
    /// A recipe key,
    #[serde(default)]
    pub key: Option<String>,
    /// and a cell for each of these values.
    #[serde(default)]
    pub values: Vec<Value>,
}

/// `[grid]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Its name.
    #[serde(default = "grid_name")]
    pub name: String,
    /// Axis by axis the level of the cell that a cell is compared with; the other axes' levels are the cell's own.
    pub baseline: Table,
    /// What all of its cells set.
    #[serde(default)]
    pub set: Table,
    /// What is combined.
    pub axes: Vec<Factor>,
}

fn grid_name() -> String {
    "grid".into()
}

impl Factor {
    /// The factor's cells.
    pub(super) fn variants(&self) -> Result<Vec<Variant>, String> {
        match (&self.key, self.cells.is_empty(), self.values.is_empty()) {
            (None, false, true) => match self.cells.iter().find(|cell| cell.x.is_some_and(|x| !x.is_finite())) {
                Some(cell) => Err(format!("cell {}: x is no number", cell.name)),
                None => Ok(self.cells.clone()),
            },
            (Some(key), true, false) => self.values.iter().map(|value| variant(key, value)).collect(),
            _ => Err("needs either `cells`, or `key` and `values`".into()),
        }
    }
}

fn variant(key: &str, value: &Value) -> Result<Variant, String> {
    let name = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let x = value.as_float().or(value.as_integer().map(|n| n as f64));
    let keys: Vec<&str> = key.split('.').collect();
    if keys.len() > MOST_KEYS || keys.iter().any(|key| key.trim().is_empty()) {
        return Err(format!("key = \"{}\" is no recipe key", excerpt(key)));
    }
    let nested = keys.iter().rev().fold(value.clone(), |inner, key| {
        let mut table = Table::new();
        table.insert((*key).into(), inner);
        Value::Table(table)
    });
    match nested {
        Value::Table(set) => Ok(Variant { name, x, set }),
        _ => Err(format!("key = \"{key}\" is no recipe key")),
    }
}
