//! Finds the keys in which recipes differ.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// A key of the recipes with its value in each run; `None` if the run's recipe does not have the key.
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct RecipeRow {
    pub key: String,
    pub values: Vec<Option<String>>,
}

/// Every key of the recipes, sorted.
pub(super) fn rows(recipes: &[&Value]) -> Vec<RecipeRow> {
    let flat: Vec<Vec<(String, String)>> = recipes.iter().map(|recipe| flatten(recipe)).collect();
    let keys: BTreeSet<&String> = flat.iter().flatten().map(|(key, _)| key).collect();
    let row = |key: &String| {
        let value = |pairs: &Vec<(String, String)>| {
            pairs.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
        };
        RecipeRow { key: key.clone(), values: flat.iter().map(value).collect() }
    };
    keys.into_iter().map(row).collect()
}

impl RecipeRow {
    /// Whether the runs differ in this key. The output directory is ignored, because it differs in all runs.
    pub fn differs(&self) -> bool {
        self.key != "output" && self.values.iter().any(|value| *value != self.values[0])
    }
}

/// Flattens nested tables to dotted keys; null values are left out.
fn flatten(value: &Value) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut open: Vec<(String, &Value)> = vec![(String::new(), value)];
    while let Some((key, value)) = open.pop() {
        match value {
            Value::Null => {}
            Value::Object(map) => {
                let join = |name: &String| if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                open.extend(map.iter().map(|(name, value)| (join(name), value)));
            }
            Value::String(text) => pairs.push((key, text.clone())),
            other => pairs.push((key, other.to_string())),
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_differ_are_found_at_any_depth() {
        let (a, b) = (
            json!({"seed": 0, "output": "a", "objective": {"das": true, "k": null}, "data": {"path": "x"}}),
            json!({"seed": 0, "output": "b", "objective": {"das": false, "k": 4}, "data": {"path": "x"}}),
        );
        let rows = rows(&[&a, &b]);
        assert_eq!(rows.len(), 5);
        let differ: Vec<&RecipeRow> = rows.iter().filter(|row| row.differs()).collect();
        let text = |text: &str| Some(text.to_string());
        assert_eq!(differ[0], &RecipeRow { key: "objective.das".into(), values: vec![text("true"), text("false")] });
        assert_eq!(differ[1], &RecipeRow { key: "objective.k".into(), values: vec![None, text("4")] });
        assert_eq!(differ.len(), 2);
    }
}
