//! Which columns of a table hold images and which text.

use arrow_schema::{DataType, Schema};

use crate::data::record::{CAPTION_KEYS, TURN_KEYS};

/// The columns that are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// The images, where there are any.
    pub images: Option<String>,
    /// Whether the images are structures whose paths say as much as an outline needs.
    pub has_paths: bool,
    /// Turns or captions, and the id.
    pub text: Vec<String>,
}

impl Columns {
    /// Chooses them by name, and checks their types.
    pub fn of(schema: &Schema) -> Result<Self, String> {
        let find = |name: &str| schema.field_with_name(name).ok();
        let images = ["images", "image"].iter().find_map(|name| find(name));
        if let Some(field) = images
            && !is_image(field.data_type(), true)
        {
            return Err(format!(
                "column \"{}\" is {}: expected bytes, a path, a structure of \"bytes\" and \"path\", or a list of them",
                field.name(),
                field.data_type()
            ));
        }
        let mut text = Vec::new();
        for name in TURN_KEYS.iter().chain(&CAPTION_KEYS) {
            let Some(field) = find(name) else { continue };
            let turns = TURN_KEYS.contains(name);
            let fits = match field.data_type() {
                DataType::List(item) => turns && matches!(item.data_type(), DataType::Struct(_)),
                other => !turns && *other == DataType::Utf8,
            };
            if !fits {
                let expected = match turns {
                    true => "a list of structures such as {from, value}, {role, content} or {user, assistant}",
                    false => "text",
                };
                return Err(format!("column \"{name}\" is {}: expected {expected}", field.data_type()));
            }
            text.push(name.to_string());
        }
        if text.is_empty() {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let wanted: Vec<&str> = TURN_KEYS.into_iter().chain(CAPTION_KEYS).collect();
            return Err(format!("has none of the columns {}: its columns are {}", wanted.join(", "), names.join(", ")));
        }
        text.extend(find("id").map(|field| field.name().clone()));
        let has_paths = images.is_some_and(|field| match field.data_type() {
            DataType::List(item) => item_has_path(item.data_type()),
            other => item_has_path(other),
        });
        Ok(Self { images: images.map(|field| field.name().clone()), has_paths, text })
    }
}

fn item_has_path(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Struct(fields) if fields.iter().any(|field| field.name() == "path"))
}

fn is_image(data_type: &DataType, lists: bool) -> bool {
    match data_type {
        DataType::Binary | DataType::Utf8 => true,
        DataType::List(item) => lists && is_image(item.data_type(), false),
        DataType::Struct(fields) => {
            let of = |name: &str| fields.iter().find(|field| field.name() == name).map(|field| field.data_type());
            let bytes = of("bytes").is_none_or(|bytes| *bytes == DataType::Binary);
            let path = of("path").is_none_or(|path| *path == DataType::Utf8);
            bytes && path && (of("bytes").is_some() || of("path").is_some())
        }
        _ => false,
    }
}
