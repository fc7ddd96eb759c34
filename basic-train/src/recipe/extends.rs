//! Recipes that extend others with `extends = "other.toml"`, a path relative to the recipe's own file. The other recipe
//! provides the values of all keys that the recipe itself does not set.

use std::path::{Path, PathBuf};

use basic_models::outside::{self, excerpt};
use serde::Deserialize;
use toml::{Spanned, Table, Value};

use super::{Recipe, RecipeError};

/// The key that holds the path of the other recipe.
const EXTENDS: &str = "extends";

/// The largest number of recipes in a chain of `extends`; docs/limits.md states it.
const MOST_EXTENDED: usize = 8;

/// One file in a chain of recipes.
struct Layer {
    path: PathBuf,
    /// The file's text. Blanks replace the line with `extends`, which is not a field of [`Recipe`].
    text: String,
    table: Table,
}

/// A recipe's file together with the files that it extends.
pub struct Layers {
    /// The files in the order in which they are applied: the recipe itself is last.
    layers: Vec<Layer>,
}

impl Layers {
    /// Reads a recipe and what it extends.
    ///
    /// # Errors
    ///
    /// [`RecipeError`] that names the file that cannot be read, or whose `extends` is not allowed.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = outside::read_text(path).map_err(|source| RecipeError::Io { path: path.into(), source })?;
        let (first, mut other) = Layer::of(path, text)?;
        let mut layers = vec![first];
        let mut known = vec![path.canonicalize().unwrap_or_else(|_| path.into())];
        while let Some(name) = other {
            // `extends` of the file that was read last names the next one.
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

    /// All files merged into one table, in which a recipe overrides what it extends.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        self.layers.iter().for_each(|layer| merge(&mut table, &layer.table));
        table
    }

    /// The recipe that the files describe together.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Toml`] that names the faulty file, with the line if the error has one.
    pub fn recipe(&self) -> Result<Recipe, RecipeError> {
        let [only] = &self.layers[..] else {
            return Recipe::deserialize(self.table()).map_err(|error| self.culprit(error));
        };
        toml::from_str(&only.text).map_err(|source| RecipeError::Toml { path: only.path.clone(), source })
    }

    /// The first file that causes `error`. If the file on its own gives the same error, that error is returned, because
    /// it has a line.
    fn culprit(&self, error: toml::de::Error) -> RecipeError {
        let fails = |table: &Table| Recipe::deserialize(table.clone()).is_err_and(|e| e.message() == error.message());
        // A field that is missing in all files must be added to the recipe itself.
        let missing = error.message().starts_with("missing field");
        let layer = if missing { &self.layers[self.layers.len() - 1] } else { self.first(fails) };
        match toml::from_str::<Recipe>(&layer.text) {
            Err(own) if own.message() == error.message() => RecipeError::Toml { path: layer.path.clone(), source: own },
            // A file on its own may lack fields that another file provides.
            _ => RecipeError::Toml { path: layer.path.clone(), source: error },
        }
    }

    /// The first file whose keys make the recipe invalid for this `reason`.
    pub fn contradicting(&self, reason: &str) -> &Path {
        let fails = |table: &Table| {
            Recipe::deserialize(table.clone()).is_ok_and(|recipe| recipe.check().is_err_and(|other| other == reason))
        };
        &self.first(fails).path
    }

    /// The first file from which on `fails` holds for the merged table; the recipe's own file if there is none.
    fn first(&self, fails: impl Fn(&Table) -> bool) -> &Layer {
        let mut table = Table::new();
        let mut first = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            merge(&mut table, &layer.table);
            match fails(&table) {
                true => first = first.min(index),
                // This file has corrected what the earlier ones set.
                false => first = self.layers.len() - 1,
            }
        }
        &self.layers[first]
    }
}

impl Layer {
    /// Parses a file; also returns the path that it extends.
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
        // Blanks keep the positions of everything else in the file, for error messages.
        let start = text[..extends.span().start].rfind('\n').map_or(0, |end| end + 1);
        let blank = |c: char| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8());
        let blanks: String = text[start..extends.span().end].chars().flat_map(blank).collect();
        text.replace_range(start..extends.span().end, &blanks);
        Ok((Self { path: path.into(), text, table }, Some(other)))
    }
}

/// Merges `from` into `into`, table by table; values of `from` take precedence.
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
