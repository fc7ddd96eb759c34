//! Recipes that extend others: `extends = "other.toml"`, a path relative to the recipe's own file. What the other says
//! holds where the recipe itself says nothing, key by key.

use std::path::{Path, PathBuf};

use basic_models::outside::{self, excerpt};
use serde::Deserialize;
use toml::{Spanned, Table, Value};

use super::{Recipe, RecipeError};

/// The key of the other recipe's path.
const EXTENDS: &str = "extends";

/// Recipes that a recipe may extend, one behind the other; docs/limits.md says so.
const MOST_EXTENDED: usize = 8;

/// A file of a recipe that extends another, or is extended.
struct Layer {
    path: PathBuf,
    /// Its text; blanks stand for the line of `extends`, which is no key of a recipe.
    text: String,
    table: Table,
}

/// A recipe's text with what it extends.
pub struct Layers {
    /// The recipe that is extended first, the recipe itself last.
    layers: Vec<Layer>,
}

impl Layers {
    /// Reads a recipe and what it extends.
    ///
    /// # Errors
    ///
    /// [`RecipeError`] that names the file that cannot be read, or that extends what it must not.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = outside::read_text(path).map_err(|source| RecipeError::Io { path: path.into(), source })?;
        let (first, mut other) = Layer::of(path, text)?;
        let mut layers = vec![first];
        let mut known = vec![path.canonicalize().unwrap_or_else(|_| path.into())];
        while let Some(name) = other {
            // The last one read says what comes next.
            let from = layers.last().map_or(path, |layer| &layer.path).to_path_buf();
            let wrong = |reason: String| RecipeError::Extends { path: from.clone(), other: name.clone(), reason };
            let file = from.parent().unwrap_or(Path::new("")).join(&name);
            let place = file.canonicalize().map_err(|error| wrong(error.to_string()))?;
            if known.contains(&place) {
                return Err(wrong("a recipe cannot extend itself, nor what extends it".into()));
            }
            if layers.len() > MOST_EXTENDED {
                return Err(wrong(format!("at most {MOST_EXTENDED} recipes may extend each other in a row")));
            }
            let text = outside::read_text(&file).map_err(|error| wrong(error.to_string()))?;
            let (layer, next) = Layer::of(&file, text)?;
            known.push(place);
            layers.push(layer);
            other = next;
        }
        layers.reverse();
        Ok(Self { layers })
    }

    /// All of them in one table: what a recipe says holds over what it extends.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        self.layers.iter().for_each(|layer| merge(&mut table, &layer.table));
        table
    }

    /// The recipe.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Toml`] that names the file at fault, with the line where a line is.
    pub fn recipe(&self) -> Result<Recipe, RecipeError> {
        let [only] = &self.layers[..] else {
            return Recipe::deserialize(self.table()).map_err(|error| self.culprit(error));
        };
        toml::from_str(&only.text).map_err(|source| RecipeError::Toml { path: only.path.clone(), source })
    }

    /// The file that first has what `error` says; with its own error, which has a line, where that is the same.
    fn culprit(&self, error: toml::de::Error) -> RecipeError {
        let fails = |table: &Table| Recipe::deserialize(table.clone()).is_err_and(|e| e.message() == error.message());
        // What is missing in the recipe and all that it extends is the recipe's to add.
        let missing = error.message().starts_with("missing field");
        let layer = if missing { &self.layers[self.layers.len() - 1] } else { self.first(fails) };
        match toml::from_str::<Recipe>(&layer.text) {
            Err(own) if own.message() == error.message() => RecipeError::Toml { path: layer.path.clone(), source: own },
            // What a file by itself lacks, another may have.
            _ => RecipeError::Toml { path: layer.path.clone(), source: error },
        }
    }

    /// The file whose keys first make a recipe that has `reason` against it.
    pub fn contradicting(&self, reason: &str) -> &Path {
        let fails = |table: &Table| {
            Recipe::deserialize(table.clone()).is_ok_and(|recipe| recipe.check().is_err_and(|other| other == reason))
        };
        &self.first(fails).path
    }

    /// The first layer with which `fails` holds of all up to it and from there on; the recipe's own where none does.
    fn first(&self, fails: impl Fn(&Table) -> bool) -> &Layer {
        let mut table = Table::new();
        let mut first = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            merge(&mut table, &layer.table);
            match fails(&table) {
                true => first = first.min(index),
                // What came before has been mended by this one.
                false => first = self.layers.len() - 1,
            }
        }
        &self.layers[first]
    }
}

impl Layer {
    /// A file and the path of what it extends.
    fn of(path: &Path, mut text: String) -> Result<(Self, Option<String>), RecipeError> {
        #[derive(Deserialize)]
        struct Head {
            extends: Option<Spanned<Value>>,
        }
        let toml = |source| RecipeError::Toml { path: path.into(), source };
        let mut table: Table = toml::from_str(&text).map_err(toml)?;
        table.remove(EXTENDS);
        let Some(extends) = toml::from_str::<Head>(&text).map_err(toml)?.extends else {
            return Ok((Self { path: path.into(), text, table }, None));
        };
        let other = match extends.get_ref() {
            Value::String(other) if !other.trim().is_empty() => other.clone(),
            value => {
                let other = excerpt(&value.to_string());
                let reason = "write the path of another recipe as text, relative to this file".into();
                return Err(RecipeError::Extends { path: path.into(), other, reason });
            }
        };
        // Blanks keep the places of all else in the file.
        let start = text[..extends.span().start].rfind('\n').map_or(0, |end| end + 1);
        let blank = |c: char| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8());
        let blanks: String = text[start..extends.span().end].chars().flat_map(blank).collect();
        text.replace_range(start..extends.span().end, &blanks);
        Ok((Self { path: path.into(), text, table }, Some(other)))
    }
}

/// `from` over `into`, table by table.
pub fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
