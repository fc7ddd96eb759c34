//! Converts the cells of a table: text columns to JSON values, and image columns to bytes or paths.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, StructArray};
use arrow_schema::DataType;
use basic_models::outside::{Budget, Unparsed, parse_json};
use serde_json::{Map, Value};

use crate::keys::TURN_KEYS;
use crate::sample_record as record;

/// The largest size in bytes of the texts in one row, because a row may refer to one text of a dictionary any number of
/// times.
pub(super) const ROW_TEXT: usize = 16 << 20;

/// The size in bytes that is counted for a JSON value besides its text.
const NODE: usize = 32;

/// The rest of [`ROW_TEXT`] for one row.
pub(super) struct Room(usize);

impl Room {
    pub fn new() -> Self {
        Self(ROW_TEXT)
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.0 = self.0.checked_sub(bytes.saturating_add(NODE)).ok_or_else(|| {
            format!("holds more than {} MiB of text, more than a conversation may have", ROW_TEXT >> 20)
        })?;
        Ok(())
    }
}

/// A cell as JSON; null if the cell is null or of a type that no conversation has.
pub(super) fn value(array: &ArrayRef, row: usize, room: &mut Room) -> Result<Value, String> {
    room.take(0)?;
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Utf8View => {
            let text = array.as_string_view().value(row);
            room.take(text.len())?;
            text.into()
        }
        // Some writers do not mark a column of bytes as text.
        DataType::BinaryView => {
            let bytes = array.as_binary_view().value(row);
            room.take(bytes.len())?;
            std::str::from_utf8(bytes).map_err(|_| "holds a text that is not UTF-8".to_string())?.into()
        }
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            let items: Result<Vec<Value>, String> = (0..items.len()).map(|item| value(&items, item, room)).collect();
            Value::Array(items?)
        }
        DataType::Struct(_) => {
            let fields = array.as_struct();
            let mut object = Map::new();
            for (name, column) in fields.column_names().into_iter().zip(fields.columns()) {
                let cell = value(column, row, room)?;
                // A null column is treated as absent, because a table gives every row the fields of all rows.
                if !cell.is_null() {
                    object.insert(name.to_string(), cell);
                }
            }
            Value::Object(object)
        }
        _ => Value::Null,
    })
}

/// Converts turns from any of the forms in tables: a list; JSON as text, of the whole list or of each turn; or a
/// structure of lists, which older versions of Hugging Face's datasets make of a sequence of structures.
///
/// The parsed JSON values are counted against `budget`.
pub(super) fn turns(name: &str, cell: Value, budget: &Budget) -> Result<Value, String> {
    match cell {
        Value::String(text) => {
            let parsed = parsed(name, &text, budget)?;
            // The text may be JSON inside JSON, if it was serialized twice, or a whole record in the column for its
            // turns.
            match parsed {
                Value::String(text) => self::parsed(name, &text, budget).and_then(|value| list(name, value)),
                other => list(name, other),
            }
        }
        Value::Array(items) if items.iter().any(Value::is_string) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => parsed(name, &text, budget),
                other => Ok(other),
            })
            .collect(),
        Value::Object(columns) => rows(name, columns),
        other => Ok(other),
    }
}

fn parsed(name: &str, text: &str, budget: &Budget) -> Result<Value, String> {
    parse_json(record::without_mark(text.as_bytes()), budget).map_err(|error| match error {
        Unparsed::Syntax(error) => format!(
            "its column \"{name}\" holds a text that is no JSON ({error}): write turns as a list, or with json.dumps"
        ),
        Unparsed::Costly(_) => {
            format!(
                "the JSON in its column \"{name}\" takes more memory than a sample may; --file-bytes raises the limit"
            )
        }
    })
}

fn list(name: &str, value: Value) -> Result<Value, String> {
    match value {
        Value::Array(_) | Value::Null => Ok(value),
        Value::Object(mut record) => match TURN_KEYS.iter().find_map(|key| record.remove(*key)) {
            Some(turns @ Value::Array(_)) => Ok(turns),
            _ => Err(format!("its column \"{name}\" holds JSON that is no list of turns")),
        },
        _ => Err(format!("its column \"{name}\" holds JSON that is no list of turns")),
    }
}

/// Converts `{from: [..], value: [..]}` to `[{from, value}, ..]`.
fn rows(name: &str, columns: Map<String, Value>) -> Result<Value, String> {
    let mut turns: Vec<Map<String, Value>> = Vec::new();
    for (number, (key, column)) in columns.into_iter().enumerate() {
        let Value::Array(items) = column else {
            return Err(format!("its column \"{name}\" holds a structure whose \"{key}\" is no list"));
        };
        if number == 0 {
            turns.resize_with(items.len(), Map::new);
        }
        if items.len() != turns.len() {
            return Err(format!("its column \"{name}\" holds a structure of lists of different lengths"));
        }
        for (turn, item) in turns.iter_mut().zip(items) {
            if !item.is_null() {
                turn.insert(key.clone(), item);
            }
        }
    }
    Ok(Value::Array(turns.into_iter().map(Value::Object).collect()))
}

/// An image in a cell.
#[derive(Debug, PartialEq)]
pub(super) enum Cell<'a> {
    Bytes(&'a [u8]),
    Path(&'a str),
}

/// Whether a cell is empty: null, an empty list, or a structure whose fields are all null.
pub(super) fn is_blank(array: &ArrayRef, row: usize) -> bool {
    let nothing = |field: &ArrayRef| *field.data_type() == DataType::Null || field.is_null(row);
    match array.data_type() {
        DataType::Null => true,
        _ if array.is_null(row) => true,
        DataType::List(_) => array.as_list::<i32>().value_length(row) == 0,
        DataType::Struct(_) => array.as_struct().columns().iter().all(nothing),
        _ => false,
    }
}

/// Whether a cell has no image, as in a row of text alone: it is empty, a blank name, or a list or a structure of only such
/// values.
pub(super) fn is_imageless(array: &ArrayRef, row: usize) -> bool {
    if is_blank(array, row) {
        return true;
    }
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().value(row).trim().is_empty(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).all(|item| is_imageless(&items, item))
        }
        DataType::Struct(_) => array.as_struct().columns().iter().all(|field| is_imageless(field, row)),
        _ => false,
    }
}

/// Whether a cell neither names nor holds media: it is empty, a blank text, a bare number or flag, or a list or
/// structure of only such values.
pub(super) fn is_silent(array: &ArrayRef, row: usize) -> bool {
    if is_blank(array, row) {
        return true;
    }
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().value(row).trim().is_empty(),
        DataType::BinaryView => array.as_binary_view().value(row).trim_ascii().is_empty(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            // The samples of a sound are numbers, so a list of numbers counts as media.
            items.data_type().is_nested() && (0..items.len()).all(|item| is_silent(&items, item))
                || matches!(items.data_type(), DataType::Utf8View | DataType::BinaryView)
                    && (0..items.len()).all(|item| is_silent(&items, item))
        }
        DataType::Struct(_) => array.as_struct().columns().iter().all(|field| is_silent(field, row)),
        other => other.is_primitive() || *other == DataType::Boolean,
    }
}

/// The images in a cell; none if it is null. `unread` says that the images' bytes were not read and are empty.
pub(super) fn images(array: &ArrayRef, row: usize, unread: bool) -> Result<Vec<Cell<'_>>, String> {
    if array.is_null(row) || *array.data_type() == DataType::Null {
        return Ok(Vec::new());
    }
    let image = |array, row| if unread { Ok(Cell::Bytes(&[])) } else { image(array, row) };
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            let item = |at: usize| match list.values().is_null(at) || *list.values().data_type() == DataType::Null {
                true => Err("holds an empty place in its list of images".into()),
                false => image(list.values(), at),
            };
            range.map(item).collect()
        }
        _ => Ok(vec![image(array, row)?]),
    }
}

fn image(array: &ArrayRef, row: usize) -> Result<Cell<'_>, String> {
    match array.data_type() {
        DataType::BinaryView => Ok(Cell::Bytes(array.as_binary_view().value(row))),
        DataType::Utf8View => Ok(Cell::Path(array.as_string_view().value(row))),
        DataType::Struct(_) => from_struct(array.as_struct(), row),
        other => Err(format!("holds an image of type {other}")),
    }
}

/// An image from `{bytes, path}`: the bytes if there are any, else the path.
fn from_struct(fields: &StructArray, row: usize) -> Result<Cell<'_>, String> {
    let field = |name: &str| {
        let field = fields.column_by_name(name)?;
        (*field.data_type() != DataType::Null && !field.is_null(row)).then_some(field)
    };
    if let Some(bytes) = field("bytes").and_then(|bytes| bytes.as_binary_view_opt()) {
        return Ok(Cell::Bytes(bytes.value(row)));
    }
    let Some(path) = field("path") else { return Err("holds an image with neither bytes nor a path".into()) };
    match (path.as_string_view_opt(), path.as_binary_view_opt()) {
        (Some(path), _) => Ok(Cell::Path(path.value(row))),
        (_, Some(path)) => {
            let path = std::str::from_utf8(path.value(row)).map_err(|_| "holds a path that is not UTF-8")?;
            Ok(Cell::Path(path))
        }
        _ => Err(format!("holds an image whose path is of type {}", path.data_type())),
    }
}
