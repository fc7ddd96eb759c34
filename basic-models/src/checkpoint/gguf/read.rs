//! Reads the header of a GGUF file: metadata, and where each tensor lies. Every size that the file states is checked
//! against the file's length and its budget before memory is reserved for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::CheckpointError;
use super::error::GgufError;
use super::format::{ALIGNMENT, ALIGNMENT_KEY, Kind, MAGIC, VERSION, other_name, value};
use super::metadata::{Metadata, Value};
use crate::outside::{Budget, excerpt};

/// The most keys, and the most tensors, of a file; the largest models have a few thousand.
const MOST: u64 = 1 << 16;

/// The longest name of a key or a tensor, in bytes.
const LONGEST_NAME: u64 = 1 << 10;

/// The most dimensions of a tensor.
const DIMENSIONS: u32 = 4;

/// The largest alignment.
const MOST_ALIGNED: u64 = 1 << 20;

/// Bytes of memory for an entry of a map, and for a text, besides its own bytes.
const ENTRY: u64 = 256;
const TEXT: u64 = 32;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Its shape in Hugging Face's order, the slowest axis first; the file has the opposite order.
    pub shape: Vec<usize>,
    /// The position of its first byte in the file.
    pub start: usize,
    /// The number of bytes.
    pub bytes: usize,
}

/// The header of a file.
#[derive(Debug)]
pub(super) struct Header {
    /// The keys and values.
    pub metadata: Metadata,
    /// The tensors, in the file's order.
    pub tensors: Vec<Found>,
}

/// Reads the header of the file whose bytes are `bytes`; errors call it `path`.
///
/// # Errors
///
/// Returns [`GgufError`], which names the file and the key or the tensor, and the budget's error.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Header, CheckpointError> {
    read_within(path, bytes, &Budget::of(path))
}

pub(super) fn read_within(path: &Path, bytes: &[u8], budget: &Budget) -> Result<Header, CheckpointError> {
    let mut cursor = Cursor { path, bytes, at: 0, budget };
    if cursor.take(4, "the first four bytes")? != MAGIC {
        return Err(cursor.bad("it does not begin with GGUF").into());
    }
    match cursor.u32("the version")? {
        2 | VERSION => {}
        version if matches!(version.swap_bytes(), 2 | VERSION) => {
            return Err(cursor.bad("its bytes are in big-endian order, and only little-endian files are read").into());
        }
        version => return Err(cursor.bad(format!("it has version {version}; 2 and 3 are read")).into()),
    }
    let tensors = cursor.at_most("tensors")?;
    let keys = cursor.at_most("keys")?;
    let mut values = BTreeMap::new();
    for _ in 0..keys {
        let key = cursor.name("a key")?;
        let found = cursor.value(&key)?;
        if values.insert(key.clone(), found).is_some() {
            return Err(cursor.bad(format!("the key {} stands there twice", excerpt(&key))).into());
        }
    }
    let metadata = Metadata::new(path, values);
    let alignment = match metadata.count(ALIGNMENT_KEY)?.map(u64::from) {
        None => ALIGNMENT,
        Some(given) if given.is_power_of_two() && given <= MOST_ALIGNED => given,
        Some(given) => {
            return Err(metadata.wrong(ALIGNMENT_KEY, format!("is {given}, and must be a power of two")).into());
        }
    };
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(cursor.tensor()?);
    }
    let data = (cursor.at as u64).next_multiple_of(alignment);
    let tensors = placed(&cursor, infos, data, alignment)?;
    Ok(Header { metadata, tensors })
}

/// A tensor as the header describes it: with an offset from where the data begin.
struct Info {
    name: String,
    kind: Kind,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

/// The tensors with their positions in the file. Names must differ, and no two tensors may overlap.
fn placed(cursor: &Cursor<'_>, infos: Vec<Info>, data: u64, alignment: u64) -> Result<Vec<Found>, GgufError> {
    let (mut names, mut ranges) = (BTreeSet::new(), Vec::with_capacity(infos.len()));
    let mut found = Vec::with_capacity(infos.len());
    for info in infos {
        if !names.insert(info.name.clone()) {
            return Err(cursor.tensor_error(&info.name, "stands there twice"));
        }
        if !info.offset.is_multiple_of(alignment) {
            let reason = format!("begins at {}, which is no multiple of the alignment {alignment}", info.offset);
            return Err(cursor.tensor_error(&info.name, reason));
        }
        let end = data.checked_add(info.offset).and_then(|start| start.checked_add(info.bytes));
        let Some(end) = end.filter(|end| *end <= cursor.bytes.len() as u64) else {
            let (length, bytes, offset) = (cursor.bytes.len(), info.bytes, info.offset);
            let reason = format!("takes {bytes} bytes from {offset} on, and the file has only {length} bytes");
            return Err(cursor.tensor_error(&info.name, format!("{reason}: it was cut short")));
        };
        let start = end - info.bytes;
        ranges.push((start, end, found.len()));
        let (start, bytes) = (start as usize, info.bytes as usize);
        found.push(Found { name: info.name, kind: info.kind, shape: info.shape, start, bytes });
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            let reason = format!("overlaps tensor {}", excerpt(&found[*first].name));
            return Err(cursor.tensor_error(&found[*second].name, reason));
        }
    }
    Ok(found)
}

/// A position in the file's bytes.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    budget: &'a Budget,
}

impl<'a> Cursor<'a> {
    fn bad(&self, reason: impl Into<String>) -> GgufError {
        GgufError::Malformed { path: self.path.into(), reason: reason.into() }
    }

    fn tensor_error(&self, tensor: &str, reason: impl Into<String>) -> GgufError {
        GgufError::Tensor { path: self.path.into(), tensor: tensor.into(), reason: reason.into() }
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            let (at, length) = (self.at, self.bytes.len());
            return Err(self.bad(format!("{what} takes {count} bytes from {at} on, and the file has {length}")));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn at_most(&mut self, what: &str) -> Result<u64, GgufError> {
        let count = self.u64(&format!("the number of {what}"))?;
        match count {
            0..=MOST => Ok(count),
            _ => Err(self.bad(format!("it states {count} {what}, and at most {MOST} are read"))),
        }
    }

    /// A name of a key or a tensor.
    fn name(&mut self, what: &str) -> Result<String, CheckpointError> {
        let length = self.u64(what)?;
        if length == 0 || length > LONGEST_NAME {
            return Err(self.bad(format!("{what} has {length} bytes; 1 to {LONGEST_NAME} are read")).into());
        }
        self.budget.take(ENTRY + 2 * length)?;
        match std::str::from_utf8(self.take(length as usize, what)?) {
            Ok(name) => Ok(name.into()),
            Err(_) => Err(self.bad(format!("{what} is not UTF-8")).into()),
        }
    }

    /// A text, of which a copy is taken from the budget.
    fn text(&mut self, key: &str) -> Result<String, CheckpointError> {
        let what = excerpt(key);
        let length = self.u64(&what)?;
        // Checked against the file first: a lying length is damage, and no reason to raise the budget.
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length, &what)?;
        self.budget.take(TEXT + length as u64)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(self.key_error(key, "is not UTF-8").into()),
        }
    }

    fn key_error(&self, key: &str, reason: impl Into<String>) -> GgufError {
        GgufError::Key { path: self.path.into(), key: key.into(), reason: reason.into() }
    }

    fn value(&mut self, key: &str) -> Result<Value, CheckpointError> {
        let kind = self.u32(&excerpt(key))?;
        match kind {
            value::STRING => Ok(Value::Text(self.text(key)?)),
            value::ARRAY => self.list(key),
            _ => {
                let size = value::size(kind)
                    .ok_or_else(|| self.key_error(key, format!("has a value of type {kind}, of 0 to 12")))?;
                let bytes = self.take(size, &excerpt(key))?;
                scalar(kind, bytes).ok_or_else(|| self.key_error(key, "is neither true nor false").into())
            }
        }
    }

    fn list(&mut self, key: &str) -> Result<Value, CheckpointError> {
        let (kind, count) = (self.u32(&excerpt(key))?, self.u64(&excerpt(key))?);
        let left = (self.bytes.len() - self.at) as u64;
        // A text takes at least the eight bytes of its length.
        let Some(least) = (if kind == value::STRING { Some(8) } else { value::size(kind) }) else {
            let reason = format!("is a list of values of type {kind}; lists of numbers, flags and texts are read");
            return Err(self.key_error(key, reason).into());
        };
        if count.checked_mul(least as u64).is_none_or(|bytes| bytes > left) {
            let reason = format!("is a list of {count} values, and the file has only {left} bytes more");
            return Err(self.key_error(key, reason).into());
        }
        let count = count as usize;
        if kind == value::STRING {
            self.budget.take(TEXT * count as u64)?;
            let mut texts = Vec::with_capacity(count);
            for _ in 0..count {
                texts.push(self.text(key)?);
            }
            return Ok(Value::Texts(texts));
        }
        self.budget.take(8 * count as u64)?;
        let bytes = self.take(count * least, &excerpt(key))?;
        let values = bytes.chunks_exact(least).map(|bytes| scalar(kind, bytes));
        let list = match kind {
            value::F32 | value::F64 => values.map(|one| one.and_then(single)).collect::<Option<_>>().map(Value::Floats),
            value::BOOL => values.map(|one| one.and_then(flag)).collect::<Option<_>>().map(Value::Flags),
            _ => values.map(|one| one.and_then(integer)).collect::<Option<_>>().map(Value::Integers),
        };
        list.ok_or_else(|| self.key_error(key, "has a value that is out of range").into())
    }

    fn tensor(&mut self) -> Result<Info, CheckpointError> {
        let name = self.name("the name of a tensor")?;
        let dimensions = self.u32(&name)?;
        if dimensions == 0 || dimensions > DIMENSIONS {
            let reason = format!("has {dimensions} dimensions; 1 to {DIMENSIONS} are read");
            return Err(self.tensor_error(&name, reason).into());
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64(&name)?);
        }
        let (number, offset) = (self.u32(&name)?, self.u64(&name)?);
        let Some(kind) = Kind::of(number) else {
            let reason = format!(
                "is {}; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read: llama-quantize --allow-requantize writes them",
                other_name(number)
            );
            return Err(self.tensor_error(&name, reason).into());
        };
        if shape.contains(&0) {
            return Err(self.tensor_error(&name, format!("has no values: its dimensions are {shape:?}")).into());
        }
        let values = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        // Rows must be whole blocks, and the number of bytes must fit the address space.
        let bytes = values.filter(|_| shape[0].is_multiple_of(kind.block().0 as u64));
        let bytes = bytes.and_then(|values| kind.bytes(values)).filter(|bytes| isize::try_from(*bytes).is_ok());
        let Some(bytes) = bytes else {
            let reason = format!("cannot be {} with the dimensions {shape:?}", kind.name());
            return Err(self.tensor_error(&name, reason).into());
        };
        let shape = shape.iter().rev().map(|size| *size as usize).collect();
        Ok(Info { name, kind, shape, bytes, offset })
    }
}

/// The value in `bytes`, which has the size of the type; `None` for a flag that is neither 0 nor 1.
fn scalar(kind: u32, bytes: &[u8]) -> Option<Value> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    // Sign-extended from the type's own width.
    let signed = || {
        let shift = 64 - 8 * bytes.len() as u32;
        ((unsigned << shift) as i64) >> shift
    };
    Some(match kind {
        value::U8 | value::U16 | value::U32 | value::U64 => Value::Integer(unsigned.into()),
        value::I8 | value::I16 | value::I32 | value::I64 => Value::Integer(signed().into()),
        value::F32 => Value::Float(f32::from_bits(unsigned as u32).into()),
        value::F64 => Value::Float(f64::from_bits(unsigned)),
        value::BOOL if unsigned <= 1 => Value::Flag(unsigned == 1),
        _ => return None,
    })
}

fn single(value: Value) -> Option<f32> {
    if let Value::Float(number) = value { Some(number as f32) } else { None }
}

fn flag(value: Value) -> Option<bool> {
    if let Value::Flag(set) = value { Some(set) } else { None }
}

fn integer(value: Value) -> Option<i64> {
    if let Value::Integer(number) = value { i64::try_from(number).ok() } else { None }
}
