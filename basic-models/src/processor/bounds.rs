//! Limits on what rendering a chat template may cost.

use std::cell::Cell;
use std::time::{Duration, Instant};

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The number of instructions that one rendering may run.
pub(super) const FUEL: u64 = 10_000_000;
/// How long compiling or rendering may take.
pub(super) const TIME: Duration = Duration::from_secs(5);
/// Bytes that one rendering may create in total: its output and all values on the way.
const BYTES: usize = 512 << 20;
/// The most bytes of one value, written out.
pub(super) const VALUE: usize = 16 << 20;
/// Bytes that an item of a list or a map counts besides its text.
const ITEM: usize = 16;
/// How deep values may be nested.
const DEPTH: usize = 64;
/// The number of parts that a list may be cut into.
const PARTS: usize = 100_000;
/// The widest field of a format.
const WIDTH: usize = 9999;

/// The filter that checks a value that was just created.
pub(super) const MADE: &str = "#made";
/// The filter that checks a value before a namespace stores it.
pub(super) const KEPT: &str = "#kept";
/// The filter that replaces the operator `~`.
pub(super) const CONCAT: &str = "#concat";
/// The filter that replaces the operator `*`.
pub(super) const MULTIPLY: &str = "#multiply";

type Result<T, E = Error> = std::result::Result<T, E>;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(BYTES) };
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Starts the limits of a rendering on this thread.
pub(super) fn begin() {
    LEFT.set(BYTES);
    BEGUN.set(Some(Instant::now()));
}

/// The error for something that exceeds these limits.
pub(super) fn over(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The error for something that takes too long.
pub(super) fn too_long() -> Error {
    over(format!("it takes longer than the {} seconds that it may take", TIME.as_secs()))
}

/// Limits what the templates of an environment can do.
pub(super) fn bound(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, state, value| {
        take(weigh(value)?)?;
        minijinja::escape_formatter(out, state, value)
    });
    environment.set_unknown_method_callback(|state, value, method, args| {
        foresee(method, value, args)?;
        unknown_method_callback(state, value, method, args)
    });
    environment.add_filter(MADE, made);
    environment.add_filter(KEPT, |value: Value| {
        if holds_namespace(&value, 0)? { Err(over("it keeps a namespace in a namespace".into())) } else { Ok(value) }
    });
    environment.add_filter(CONCAT, |left: Value, right: Value| {
        let bytes = weigh(&left)?.saturating_add(weigh(&right)?);
        fits(bytes, VALUE)?;
        take(bytes)?;
        Ok(Value::from(format!("{left}{right}")))
    });
    environment.add_filter(MULTIPLY, multiply);
    let own = [
        ("join", Value::from_function(filters::join)),
        ("replace", Value::from_function(filters::replace)),
        ("indent", Value::from_function(filters::indent)),
        ("format", Value::from_function(filters::format)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("chain", Value::from_function(filters::chain)),
    ];
    for (name, own) in own {
        environment.add_filter(name, move |state: &State<'_, '_>, args: Rest<Value>| {
            if let Some((value, rest)) = args.split_first() {
                foresee(name, value, rest)?;
            }
            let value = own.call(state, &args)?;
            match (name, value.kind()) {
                ("chain", ValueKind::Seq | ValueKind::Iterable) => {
                    weigh(&value)?;
                    Ok(Value::from(value.try_iter()?.collect::<Vec<_>>()))
                }
                _ => Ok(value),
            }
        });
    }
    environment.remove_global("debug");
    environment.remove_filter("pprint");
}

fn take(bytes: usize) -> Result<()> {
    // Nobody waits for the result any more, so the thread ends here.
    if BEGUN.get().is_some_and(|begun| begun.elapsed() > 2 * TIME) {
        return Err(too_long());
    }
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => {
            // A template that catches this error has nothing left to spend either.
            LEFT.set(0);
            Err(over(format!("it makes more than the {BYTES} bytes that one rendering may make")))
        }
    }
}

fn fits(bytes: usize, limit: usize) -> Result<()> {
    match bytes <= limit {
        true => Ok(()),
        false => Err(over(format!("it makes a value of more than {limit} bytes"))),
    }
}

/// Checks a new value: its size if it were written out, and what remains of the budget.
fn made(value: Value) -> Result<Value> {
    weigh(&value)?;
    // The parts of a list are shared with the values that it was made from, so they cost nothing again.
    take(match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(1).saturating_mul(3 * ITEM),
    })?;
    // Sums and slices of lists would otherwise be views of views, nested as deeply as there were operations.
    match value.kind() {
        ValueKind::Iterable => Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())),
        _ => Ok(value),
    }
}

/// The number of bytes of a value if it were written out.
fn weigh(value: &Value) -> Result<usize> {
    let mut sum = 0;
    add(value, 0, &mut sum)?;
    Ok(sum)
}

fn add(value: &Value, depth: usize, sum: &mut usize) -> Result<()> {
    if depth > DEPTH {
        return Err(over(format!("it makes a value that nests deeper than {DEPTH}")));
    }
    *sum = sum.saturating_add(ITEM + value.as_str().map_or(0, str::len));
    fits(*sum, VALUE)?;
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                add(&key, depth + 1, sum)?;
                let item = value.get_item(&key)?;
                if depth > 0 && is_namespace(&item) {
                    return Err(over("it keeps a namespace in another value".into()));
                }
                add(&item, depth + 1, sum)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                if is_namespace(&item) {
                    return Err(over("it keeps a namespace in another value".into()));
                }
                add(&item, depth + 1, sum)?;
            }
        }
        ValueKind::Bytes => *sum = sum.saturating_add(value.len().unwrap_or(0)),
        _ => {}
    }
    Ok(())
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Whether a value is a namespace or contains one.
fn holds_namespace(value: &Value, depth: usize) -> Result<bool> {
    if is_namespace(value) {
        return Ok(true);
    }
    if depth > DEPTH {
        return Err(over(format!("it makes a value that nests deeper than {DEPTH}")));
    }
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                if holds_namespace(&value.get_item(&key)?, depth + 1)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                if holds_namespace(&item, depth + 1)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Checks that `left * right` stays below a limit, if one of them is a text or a list.
pub(super) fn product(left: &Value, right: &Value, limit: usize) -> Result<()> {
    let times = |value: &Value, other: &Value| -> Result<()> {
        if !matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable) {
            return Ok(());
        }
        let count = i128::try_from(other.clone()).unwrap_or(0).max(0);
        let bytes = match value.as_str() {
            Some(text) => text.len(),
            None => weigh(value)?,
        };
        fits(usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(bytes), limit)
    };
    times(left, right)?;
    times(right, left)
}

/// The operator `*`, with the engine's semantics.
fn multiply(left: Value, right: Value) -> Result<Value> {
    product(&left, &right, VALUE)?;
    let repeated = match (left.kind(), right.kind()) {
        (ValueKind::Number | ValueKind::Bool, ValueKind::Number | ValueKind::Bool) => None,
        (ValueKind::String | ValueKind::Seq | ValueKind::Iterable, _) => Some((&left, &right)),
        (_, ValueKind::String | ValueKind::Seq | ValueKind::Iterable) => Some((&right, &left)),
        _ => {
            return Err(over(format!(
                "tried to use * operator on unsupported types {} and {}",
                left.kind(),
                right.kind()
            )));
        }
    };
    let made_of = match repeated {
        Some((value, count)) => {
            let count = usize::try_from(count.clone())?;
            match value.as_str() {
                Some(text) => Value::from(text.repeat(count)),
                None => {
                    let items: Vec<Value> = value.try_iter()?.collect();
                    Value::from((0..count).flat_map(|_| items.iter().cloned()).collect::<Vec<_>>())
                }
            }
        }
        None => match (left.is_integer(), right.is_integer()) {
            (true, true) => {
                let product = i128::try_from(left)?.checked_mul(i128::try_from(right)?);
                let product = product.ok_or_else(|| over("a product has too many digits".into()))?;
                i64::try_from(product).map_or_else(|_| Value::from(product), Value::from)
            }
            _ => Value::from(f64::try_from(left)? * f64::try_from(right)?),
        },
    };
    made(made_of)
}

/// Checks, before it runs, a filter or a method that can create something large from little.
fn foresee(name: &str, value: &Value, args: &[Value]) -> Result<()> {
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let own = weigh(value)?;
    let given = args.iter().try_fold(0usize, |sum, arg| weigh(arg).map(|bytes| sum.saturating_add(bytes)))?;
    match name {
        "replace" => {
            let times = value.as_str().map_or(own, |value| value.matches(text(0)).count());
            fits(own.saturating_add(times.saturating_mul(weigh(args.get(1).unwrap_or(&Value::UNDEFINED))?)), 2 * VALUE)
        }
        // For the filter, the value is the list; for the method, it is the separator.
        "join" => {
            let count = |value: &Value| match value.as_str() {
                Some(text) => text.len(),
                None => value.len().unwrap_or_else(|| value.try_iter().map_or(0, Iterator::count)),
            };
            let joined = match args.first() {
                Some(arg) if arg.as_str().is_some() && value.as_str().is_none() => {
                    count(value).saturating_mul(text(0).len())
                }
                Some(arg) => count(arg).saturating_mul(own).max(count(value).saturating_mul(weigh(arg)?)),
                None => 0,
            };
            fits(joined.saturating_add(own).saturating_add(given), 4 * VALUE)
        }
        "indent" => {
            let lines = value.as_str().map_or(own, |value| value.matches('\n').count() + 1);
            let width = args.iter().filter_map(|arg| usize::try_from(arg.clone()).ok()).max().unwrap_or(4);
            let named = args.iter().filter_map(|arg| usize::try_from(arg.get_attr("width").ok()?).ok()).max();
            fits(lines.saturating_mul(width.max(named.unwrap_or(0))).saturating_add(own), VALUE)
        }
        "format" => {
            let format = value.as_str().unwrap_or_default();
            let wide = |digits: &str| digits.len() > 4 && digits.bytes().all(|b| b.is_ascii_digit());
            let large = |arg: &Value| usize::try_from(arg.clone()).is_ok_and(|width| width > WIDTH);
            let nested = format.contains('*') || format.contains(":{");
            if format.split(|c: char| !c.is_ascii_digit()).any(wide) || (nested && args.iter().any(large)) {
                return Err(over(format!("it formats a field wider than {WIDTH}")));
            }
            let fields = format.bytes().filter(|b| matches!(b, b'%' | b'{')).count();
            let widths = if format.bytes().any(|b| b.is_ascii_digit()) || nested { WIDTH } else { 0 };
            fits(own.saturating_add(fields.saturating_mul(given.saturating_add(widths))), 2 * VALUE)
        }
        "batch" | "slice" => {
            let count = args.first().and_then(|count| usize::try_from(count.clone()).ok()).unwrap_or(0);
            match count > PARTS {
                true => Err(over(format!("it asks for more than {PARTS} parts"))),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
