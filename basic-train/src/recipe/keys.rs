//! Lists the top-level keys of a recipe from the struct itself, so that new fields are included automatically.

use serde::de::value::Error;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::Recipe;

/// The top-level keys of a recipe, in the order of [`Recipe`]'s fields.
pub fn recipe_keys() -> &'static [&'static str] {
    keys_of::<Recipe>()
}

/// The keys of a struct, without those of nested structs.
fn keys_of<T: Deserialize<'static>>() -> &'static [&'static str] {
    let mut keys: &[&str] = &[];
    // The deserializer has no values; it only records which keys the struct requests.
    let _ = T::deserialize(Asked(&mut keys));
    keys
}

/// Records the keys that a struct requests, without providing values for them.
struct Asked<'a>(&'a mut &'static [&'static str]);

impl Deserializer<'static> for Asked<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'static>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = keys;
        Err(Error::custom("no value"))
    }

    fn deserialize_any<V: Visitor<'static>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("no value"))
    }

    forward_to_deserialize_any! {
        <W: Visitor<'static>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_that_a_recipe_takes_and_no_others() {
        let keys = recipe_keys();
        assert!(keys.contains(&"stage") && keys.contains(&"watch"), "{keys:?}");
        for key in keys.iter().chain(&["extends", "optimiser"]) {
            // A date, which no key accepts.
            let error = toml::from_str::<Recipe>(&format!("{key} = 1979-05-27")).unwrap_err().to_string();
            assert_eq!(error.contains(&format!("unknown field `{key}`")), !keys.contains(key), "{key}: {error}");
        }
        // Every field of a complete recipe.
        let text = "stage = \"pretrain\"\noutput = \"o\"\nmodel.checkpoint = \"m\"\ndata.path = \"d\"\n\
                    train = { batch_size = 1, steps = 1 }\neval = { path = \"e\", every = 1 }";
        let whole = toml::Table::try_from(toml::from_str::<Recipe>(text).unwrap()).unwrap();
        let mut written: Vec<&str> = whole.keys().map(String::as_str).collect();
        let mut known = keys.to_vec();
        written.sort_unstable();
        known.sort_unstable();
        assert_eq!(written, known);
    }
}
