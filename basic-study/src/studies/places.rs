//! Where a study's paths lead: into the embedded world, into a directory that stands for another, or where they say.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::embedded_world::World;

/// What a path begins with that lies in the world: `world:data/pretrain.json`, `world:backbones/llm`.
const WORLD: &str = "world:";

/// A directory in the place of the one that a study names. Results are kept under the study's own name of it, so that
/// they are found wherever the directory lies.
#[derive(Debug, Clone)]
pub struct Moved {
    /// What paths begin with in the study, such as `real/`.
    pub from: String,
    /// The directory that they are below.
    pub to: PathBuf,
}

/// Where a study's paths lead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    pub world: Option<&'a World>,
    pub moved: Option<&'a Moved>,
}

impl Places<'_> {
    /// Where a path of the study leads.
    ///
    /// # Errors
    ///
    /// A path in a world that the study does not have.
    pub fn place(self, path: &Path) -> Result<PathBuf, String> {
        let rest = |prefix: &str| path.to_str().and_then(|text| text.strip_prefix(prefix));
        match (rest(WORLD), self.world) {
            (Some(rest), Some(world)) => Ok(world.dir.join(rest)),
            (Some(_), None) => Err(format!("{} needs a [world] table in the study", path.display())),
            (None, _) => {
                let moved = self.moved.and_then(|moved| Some(moved.to.join(rest(&moved.from)?)));
                Ok(moved.unwrap_or_else(|| path.into()))
            }
        }
    }

    /// [`Places::place`] for every text of a recipe.
    pub fn place_all(self, table: &Table) -> Result<Table, String> {
        table.iter().map(|(key, value)| Ok((key.clone(), self.place_value(value)?))).collect()
    }

    fn place_value(self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => match self.place(Path::new(text))?.to_str() {
                Some(path) if path != text => Value::String(path.into()),
                _ => value.clone(),
            },
            Value::Table(table) => Value::Table(self.place_all(table)?),
            Value::Array(items) => Value::Array(items.iter().map(|v| self.place_value(v)).collect::<Result<_, _>>()?),
            other => other.clone(),
        })
    }
}

/// Whether a path lies in the world.
pub(super) fn within(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(WORLD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_moved_directory_lead_to_where_it_is_and_others_stay() {
        let moved = Moved { from: "real/".into(), to: "/data/mine".into() };
        let places = Places { world: None, moved: Some(&moved) };
        let table: Table =
            toml::from_str("a = \"real/llm\"\nb = [\"real/x\", \"unreal/x\"]\nc = { d = \"real\", e = 3 }").unwrap();
        let found = places.place_all(&table).unwrap();
        let wanted: Table =
            toml::from_str("a = \"/data/mine/llm\"\nb = [\"/data/mine/x\", \"unreal/x\"]\nc = { d = \"real\", e = 3 }")
                .unwrap();
        assert_eq!(found, wanted);
        assert!(places.place(Path::new("world:data/x")).unwrap_err().contains("[world] table"));
    }
}
