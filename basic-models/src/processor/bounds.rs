//! What rendering a chat template may cost.

use std::cell::Cell;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};

/// The longest template, in bytes.
pub(super) const SOURCE: usize = 256 << 10;
/// The stack on which templates are compiled: a chain of operators is as deep as it is long.
pub(super) const STACK: usize = 256 << 20;
/// Instructions of one rendering.
const FUEL: u64 = 20_000_000;
/// Bytes that one rendering may write, and what is joined on the way.
const BYTES: usize = 256 << 20;
/// How deep values may nest that are written.
const DEPTH: usize = 64;
/// Parts into which a list may be cut or filled up.
const PARTS: usize = 100_000;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(BYTES) };
}

/// Begins a rendering on this thread.
pub(super) fn begin() {
    LEFT.set(BYTES);
}

/// Bounds what templates of an environment may do.
pub(super) fn bound(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(100);
    environment.set_formatter(|out, state, value| {
        weigh(value, 0)?;
        minijinja::escape_formatter(out, state, value)
    });
    environment.add_filter("join", |value: Value, joiner: Option<String>| {
        weigh(&value, 0)?;
        let joints = value.len().unwrap_or_default();
        take(joints.saturating_mul(joiner.as_deref().map_or(0, str::len)))?;
        minijinja::filters::join(&value, joiner.map(Into::into))
    });
    environment.add_filter("batch", |state: &minijinja::State, value: Value, count: usize, fill: Option<Value>| {
        parts(count)?;
        minijinja::filters::batch(state, value, count, fill)
    });
    environment.add_filter("slice", |state: &minijinja::State, value: Value, count: usize, fill: Option<Value>| {
        parts(count)?;
        minijinja::filters::slice(state, value, count, fill)
    });
    environment.remove_global("debug");
    environment.remove_filter("pprint");
}

fn take(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get().checked_sub(bytes);
    let over = || over(format!("it writes more than {BYTES} bytes"));
    LEFT.set(left.ok_or_else(over)?);
    Ok(())
}

fn parts(count: usize) -> Result<(), Error> {
    if count > PARTS { Err(over(format!("it asks for more than {PARTS} parts"))) } else { Ok(()) }
}

/// Takes what writing a value costs; one that holds itself is too deep.
fn weigh(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(over(format!("it writes a value nested deeper than {DEPTH}")));
    }
    take(value.as_str().map_or(16, str::len))?;
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        for item in value.try_iter()? {
            if value.kind() == ValueKind::Map {
                weigh(&value.get_item(&item)?, depth + 1)?;
            }
            weigh(&item, depth + 1)?;
        }
    }
    Ok(())
}

fn over(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
