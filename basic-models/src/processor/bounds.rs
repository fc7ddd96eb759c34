//! What rendering a chat template may cost.

use std::cell::Cell;
use std::time::{Duration, Instant};

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Instructions of one rendering.
pub(super) const FUEL: u64 = 10_000_000;
/// How long compiling or rendering may take.
pub(super) const TIME: Duration = Duration::from_secs(5);
/// Bytes that one rendering may write and make on the way, all together.
const BYTES: usize = 512 << 20;
/// Bytes of one value, written out.
pub(super) const VALUE: usize = 16 << 20;
/// What an item of a list or a map counts besides its text.
const ITEM: usize = 16;
/// How deep values may nest.
const DEPTH: usize = 64;
/// Parts into which a list may be cut.
const PARTS: usize = 100_000;
/// The widest field of a format.
const WIDTH: usize = 9999;

/// The filter that checks what was made.
pub(super) const MADE: &str = "#made";
/// The filter that checks what a namespace is to hold.
pub(super) const KEPT: &str = "#kept";
/// The filter that stands for `~`.
pub(super) const CONCAT: &str = "#concat";
/// The filter that stands for `*`.
pub(super) const MULTIPLY: &str = "#multiply";

type Result<T, E = Error> = std::result::Result<T, E>;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(BYTES) };
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Begins a rendering on this thread.
pub(super) fn begin() {
    LEFT.set(BYTES);
    BEGUN.set(Some(Instant::now()));
}

/// An error of these bounds.
pub(super) fn over(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The error of what takes too long.
pub(super) fn too_long() -> Error {
    over(format!("it takes longer than the {} seconds that it may take", TIME.as_secs()))
}

/// Bounds what templates of an environment may do.
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
    // Nobody waits any more; the thread ends here.
    if BEGUN.get().is_some_and(|begun| begun.elapsed() > 2 * TIME) {
        return Err(too_long());
    }
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => {
            // What goes on after it was given up has nothing left either.
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

/// Checks what was made: how large it would be if it were written, and what is left of the budget.
fn made(value: Value) -> Result<Value> {
    weigh(&value)?;
    // The parts of a list are shared with what it was made of; they cost nothing again.
    take(match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(1).saturating_mul(3 * ITEM),
    })?;
    // Sums and slices of lists are views of views otherwise, as deep as there were operations.
    match value.kind() {
        ValueKind::Iterable => Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())),
        _ => Ok(value),
    }
}

/// The bytes of a value if it were written.
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

/// Whether a value is a namespace or holds one.
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

/// Whether `left * right` stays below a limit, where one of them is text or a list.
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

/// `*`, as the engine has it.
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

/// Checks a filter or a method that may make much of little, before it does.
fn foresee(name: &str, value: &Value, args: &[Value]) -> Result<()> {
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let own = weigh(value)?;
    let given = args.iter().try_fold(0usize, |sum, arg| weigh(arg).map(|bytes| sum.saturating_add(bytes)))?;
    match name {
        "replace" => {
            let times = value.as_str().map_or(own, |value| value.matches(text(0)).count());
            fits(own.saturating_add(times.saturating_mul(weigh(args.get(1).unwrap_or(&Value::UNDEFINED))?)), 2 * VALUE)
        }
        // Of the filter the value is the list, of the method it is what joins.
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
