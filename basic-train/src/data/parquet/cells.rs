//! Cells of a table: JSON values of text columns, and images.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, StructArray};
use arrow_schema::DataType;
use serde_json::{Map, Value};

/// A cell as JSON; null where it is null, or of a type that no conversation has.
pub(super) fn value(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
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
            (0..items.len()).map(|item| value(&items, item)).collect()
        }
        DataType::Struct(_) => {
            let fields = array.as_struct();
            // A column that is null is as one that is not there: tables give every row the fields of all rows.
            let field = |(name, column): (&str, &ArrayRef)| {
                let cell = value(column, row);
                (!cell.is_null()).then(|| (name.to_string(), cell))
            };
            Value::Object(
                fields.column_names().into_iter().zip(fields.columns()).filter_map(field).collect::<Map<_, _>>(),
            )
        }
        _ => Value::Null,
    }
}

/// An image in a cell.
#[derive(Debug, PartialEq)]
pub(super) enum Cell<'a> {
    Bytes(&'a [u8]),
    Path(&'a str),
}

/// The images in a cell; none where it is null. `unread` says that their bytes were left out, and are empty.
pub(super) fn images(array: &ArrayRef, row: usize, unread: bool) -> Result<Vec<Cell<'_>>, String> {
    if array.is_null(row) {
        return Ok(Vec::new());
    }
    let image = |array, row| if unread { Ok(Cell::Bytes(&[])) } else { image(array, row) };
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            let item = |at: usize| match list.values().is_null(at) {
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
        DataType::Binary => Ok(Cell::Bytes(array.as_binary::<i32>().value(row))),
        DataType::Utf8 => Ok(Cell::Path(array.as_string::<i32>().value(row))),
        DataType::Struct(_) => from_struct(array.as_struct(), row),
        other => Err(format!("holds an image of type {other}")),
    }
}

/// `{bytes, path}`: the bytes where there are any, else the path.
fn from_struct(fields: &StructArray, row: usize) -> Result<Cell<'_>, String> {
    if let Some(bytes) = fields.column_by_name("bytes").filter(|bytes| !bytes.is_null(row)) {
        return Ok(Cell::Bytes(bytes.as_binary::<i32>().value(row)));
    }
    match fields.column_by_name("path").filter(|path| !path.is_null(row)) {
        Some(path) => Ok(Cell::Path(path.as_string::<i32>().value(row))),
        None => Err("holds an image with neither bytes nor a path".into()),
    }
}
