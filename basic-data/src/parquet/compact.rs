//! Copies what a window shows when that takes much less memory than the pages it refers to.
//!
//! Texts and bytes are decoded as views into whole pages. This costs nothing where one value of a dictionary appears in
//! many rows, but much where a window shows a few rows of a page of hundreds of megabytes.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, ListArray, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, FieldRef, Fields};

/// The fields with the view types for texts and bytes.
pub(super) fn viewed(fields: &Fields) -> Fields {
    fields.iter().map(view).collect()
}

fn view(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Utf8 => DataType::Utf8View,
        DataType::Binary => DataType::BinaryView,
        DataType::List(item) => DataType::List(view(item)),
        DataType::Struct(fields) => DataType::Struct(viewed(fields)),
        _ => return field.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}

/// The batch with copies of what it shows, if those take less than half of the `held` bytes of its pages.
pub(super) fn compact(batch: RecordBatch, held: u64) -> RecordBatch {
    let shown = batch.columns().iter().fold(0u64, |sum, column| sum.saturating_add(shown(column)));
    if shown >= held / 2 {
        return batch;
    }
    let columns = batch.columns().iter().map(copied).collect();
    RecordBatch::try_new(batch.schema(), columns).unwrap_or(batch)
}

/// The number of text and binary bytes that an array shows; a value that is shown several times counts several times.
pub(super) fn shown(array: &ArrayRef) -> u64 {
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().lengths().map(u64::from).sum(),
        DataType::BinaryView => array.as_binary_view().lengths().map(u64::from).sum(),
        DataType::List(_) => shown(array.as_list::<i32>().values()),
        DataType::Struct(_) => array.as_struct().columns().iter().map(shown).sum(),
        _ => 0,
    }
}

/// The bytes that batches keep in memory: their views, and the pages or copies behind these, each counted once.
pub(super) fn kept(batches: &[RecordBatch]) -> u64 {
    let mut seen = HashSet::new();
    batches
        .iter()
        .flat_map(|batch| batch.columns())
        .fold(0, |sum, column| sum.saturating_add(kept_of(column, &mut seen)))
}

fn kept_of(array: &ArrayRef, seen: &mut HashSet<usize>) -> u64 {
    let mut new = |(place, len): (usize, usize)| if seen.insert(place) { len as u64 } else { 0 };
    let own = array.len() as u64 * 16;
    own + match array.data_type() {
        DataType::Utf8View => {
            let pages = array.as_string_view().data_buffers().iter();
            pages.map(|page| new((page.as_ptr() as usize, page.len()))).sum()
        }
        DataType::BinaryView => {
            let pages = array.as_binary_view().data_buffers().iter();
            pages.map(|page| new((page.as_ptr() as usize, page.len()))).sum()
        }
        DataType::List(_) => kept_of(array.as_list::<i32>().values(), seen),
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| kept_of(column, seen)).sum(),
        _ => 0,
    }
}

fn copied(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
            match ListArray::try_new(item.clone(), offsets, copied(list.values()), nulls) {
                Ok(list) => Arc::new(list),
                Err(_) => array.clone(),
            }
        }
        DataType::Struct(fields) => {
            let whole = array.as_struct();
            let columns = whole.columns().iter().map(copied).collect();
            match StructArray::try_new(fields.clone(), columns, whole.nulls().cloned()) {
                Ok(whole) => Arc::new(whole),
                Err(_) => array.clone(),
            }
        }
        _ => array.clone(),
    }
}
