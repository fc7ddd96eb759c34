//! Chooses the columns of a table that hold images, text and other media.

use arrow_schema::{DataType, Field, Schema};

use crate::keys::{CAPTION_KEYS, TURN_KEYS};
use crate::media;

/// The columns that are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// The columns of images; a row's images are in the first of these that is not empty.
    pub images: Vec<Images>,
    /// The columns of turns or captions, and of the id.
    pub text: Vec<String>,
    /// Columns of videos, sound, and images under other names; only whether a row has any matters.
    pub media: Vec<String>,
}

/// A column of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Images {
    pub name: String,
    /// Whether they are structures with paths, which are enough for an outline.
    pub has_paths: bool,
}

impl Columns {
    /// Chooses the columns by name and checks their types.
    pub fn of(schema: &Schema) -> Result<Self, String> {
        let find = |name: &str| schema.field_with_name(name).ok();
        let images: Vec<&Field> = ["images", "image"].iter().filter_map(|name| find(name)).collect();
        if let Some(field) = images.iter().find(|field| !is_image(field.data_type(), true)) {
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
            let fits = is_text(field.data_type()) || turns && is_turns(field.data_type());
            if !fits {
                let expected = match turns {
                    true => {
                        "a list of structures such as {from, value}, {role, content} or {user, assistant}, or JSON of one"
                    }
                    false => "text",
                };
                return Err(format!("column \"{name}\" is {}: expected {expected}", field.data_type()));
            }
            text.push(name.to_string());
        }
        if text.is_empty() {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let wanted: Vec<&str> = TURN_KEYS.into_iter().chain(CAPTION_KEYS).collect();
            let names = basic_models::outside::excerpt(&names.join(", "));
            return Err(format!("has none of the columns {}: its columns are {names}", wanted.join(", ")));
        }
        text.extend(find("id").map(|field| field.name().clone()));
        let images = images.into_iter().map(Images::of);
        let names = schema.fields().iter().map(|field| field.name());
        let media = names.filter(|name| media::is_media(name)).cloned().collect();
        Ok(Self { images: images.collect(), text, media })
    }

    /// All columns of a table: images are structures with `bytes`, lists of these, and a column `image` of bytes; all
    /// others are read as JSON.
    pub fn all(schema: &Schema) -> Result<Self, String> {
        let pictured = |field: &Field| {
            let item = match field.data_type() {
                DataType::List(item) => item.data_type(),
                other => other,
            };
            let bytes = matches!(item, DataType::Struct(fields) if fields.iter().any(|field| field.name() == "bytes"));
            (bytes || field.name() == "image" && *item == DataType::Binary) && is_image(field.data_type(), true)
        };
        let (images, text): (Vec<&Field>, Vec<&Field>) =
            schema.fields().iter().map(AsRef::as_ref).partition(|field| pictured(field));
        let text = text.into_iter().map(|field| field.name().clone()).collect();
        Ok(Self { images: images.into_iter().map(Images::of).collect(), text, media: Vec::new() })
    }
}

impl Images {
    fn of(field: &Field) -> Self {
        let has_paths = match field.data_type() {
            DataType::List(item) => item_has_path(item.data_type()),
            other => item_has_path(other),
        };
        Self { name: field.name().clone(), has_paths }
    }
}

fn item_has_path(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Struct(fields) if fields.iter().any(|field| field.name() == "path"))
}

/// Whether a column can hold text. A column that is null everywhere has no type of its own.
fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::Null)
}

fn is_turns(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) => matches!(item.data_type(), DataType::Struct(_)) || is_text(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| matches!(field.data_type(), DataType::List(_))),
        _ => false,
    }
}

fn is_image(data_type: &DataType, lists: bool) -> bool {
    match data_type {
        DataType::Binary | DataType::Utf8 | DataType::Null => true,
        DataType::List(item) => lists && is_image(item.data_type(), false),
        DataType::Struct(fields) => {
            let of = |name: &str| fields.iter().find(|field| field.name() == name).map(|field| field.data_type());
            let bytes = of("bytes").is_none_or(|bytes| matches!(bytes, DataType::Binary | DataType::Null));
            let path = of("path").is_none_or(is_text);
            bytes && path && (of("bytes").is_some() || of("path").is_some())
        }
        _ => false,
    }
}
