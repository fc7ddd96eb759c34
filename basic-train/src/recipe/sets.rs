//! Applies changes from the command line (`--set key.path=value`) and finds out whether a file or a change makes a
//! recipe invalid.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Layers, Recipe, RecipeError};

/// The largest number of keys in the path of a value; recipes use at most three.
const MOST_KEYS: usize = 16;

/// The error for `reason`: it names the first set with which the reason holds, or the file at fault.
pub(super) fn blame(path: &Path, layers: &Layers, sets: &[String], reason: String) -> RecipeError {
    let mut table = layers.table();
    let holds = |table: &Table| {
        Recipe::deserialize(table.clone()).is_ok_and(|recipe| recipe.check().is_err_and(|other| other == reason))
    };
    if !holds(&table) {
        for set in sets {
            if apply_set(&mut table, set).is_ok() && holds(&table) {
                return RecipeError::Set { set: set.clone(), reason: format!("{}: {reason}", path.display()) };
            }
        }
    }
    RecipeError::Invalid { path: layers.contradicting(&reason).into(), reason }
}

/// The error of the set that caused `error`. A table may be incomplete until all sets are applied.
pub(super) fn culprit(mut table: Table, sets: &[String], error: &toml::de::Error) -> RecipeError {
    let mut guilty = sets.first();
    for set in sets {
        let applied = apply_set(&mut table, set).is_ok();
        if applied && Recipe::deserialize(table.clone()).is_err_and(|e| e.message() == error.message()) {
            guilty = Some(set);
            break;
        }
    }
    RecipeError::Set { set: guilty.cloned().unwrap_or_default(), reason: error.message().into() }
}

/// Applies one `key.path=value` to a recipe's table.
///
/// # Errors
///
/// [`RecipeError::Set`] that says what is wrong with it.
pub fn apply_set(table: &mut Table, set: &str) -> Result<(), RecipeError> {
    let wrong = |reason: &str| RecipeError::Set { set: set.into(), reason: reason.into() };
    let (key, value) = set.split_once('=').ok_or_else(|| wrong("write key=value, such as optimizer.lr=1e-4"))?;
    let value = match toml::from_str::<Table>(&format!("v = {value}")) {
        Ok(mut parsed) => parsed.remove("v").ok_or_else(|| wrong("has no value"))?,
        Err(_) => Value::String(value.into()),
    };
    let mut keys: Vec<&str> = key.trim().split('.').collect();
    if keys.len() > MOST_KEYS {
        return Err(wrong("has more keys in its path than any value of a recipe"));
    }
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| wrong("has no key"))?;
    let mut table = table;
    for key in keys {
        let entry = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(|| wrong("goes through a key that is not a table"))?;
    }
    table.insert(last.into(), value);
    Ok(())
}
