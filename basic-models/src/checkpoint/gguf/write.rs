//! Writes a GGUF file tensor by tensor: f32 values come in, are reordered, scaled and quantized, and go to the disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use half::f16;

use super::super::CheckpointError;
use super::super::staged::StagedDir;
use super::super::write::{Outgoing, Sink};
use super::blocks::quantize;
use super::error::GgufError;
use super::format::{ALIGNMENT, BLOCK, Kind, MAGIC, VERSION, value};

/// A value of the metadata, in the type in which it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    U32(u32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Floats(Vec<f32>),
}

/// What is done with the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    /// Nothing.
    Keep,
    /// The two halves of each head's rows are interleaved, as llama.cpp's rotation of Llama expects them.
    Interleave {
        /// The rows of a head.
        height: usize,
        /// The values of a row.
        columns: usize,
    },
    /// Every value is raised by this.
    Add(f32),
    /// Every value is multiplied by this.
    Scale(f32),
}

/// A tensor to write: one parameter, or several whose rows are joined.
pub(super) struct Tensor<'a> {
    pub name: String,
    pub kind: Kind,
    /// The shape in Hugging Face's order.
    pub shape: Vec<usize>,
    pub parts: Vec<Outgoing<'a>>,
    pub change: Change,
}

/// Writes a file of a staged directory.
///
/// # Errors
///
/// Returns I/O errors and [`GgufError::Unrepresentable`]; the caller then drops the directory.
pub(super) fn write(
    staged: &StagedDir,
    name: &str,
    items: &[(String, Item)],
    tensors: &[Tensor<'_>],
) -> Result<(), CheckpointError> {
    let named = staged.named(name);
    let header = header(items, tensors).ok_or_else(|| too_large(&named))?;
    let file = File::create(staged.path().join(name)).map_err(CheckpointError::io(&named))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&header).map_err(CheckpointError::io(&named))?;
    let mut refused = Refused::default();
    for tensor in tensors {
        let mut encoder = Encoder::new(&mut out, tensor);
        let mut sink = Sink::new(&mut encoder, &named);
        tensor.parts.iter().try_for_each(|part| (part.write)(&mut sink))?;
        let (written, values) = encoder.finish().map_err(CheckpointError::io(&named))?;
        refused.add(tensor, values);
        if Some(written) != bytes(tensor) {
            let reason = format!("{}: {} has another length than its shape says", named.display(), tensor.name);
            return Err(CheckpointError::Mismatch(reason));
        }
        let gap = written.next_multiple_of(ALIGNMENT) - written;
        out.write_all(&[0; ALIGNMENT as usize][..gap as usize]).map_err(CheckpointError::io(&named))?;
    }
    refused.check(&named)?;
    let file = out.into_inner().map_err(|e| CheckpointError::io(&named)(e.into_error()))?;
    file.sync_all().map_err(CheckpointError::io(&named))
}

fn too_large(named: &std::path::Path) -> CheckpointError {
    CheckpointError::Mismatch(format!("{}: the tensors take more bytes than can be counted", named.display()))
}

/// The bytes of a tensor in the file.
fn bytes(tensor: &Tensor<'_>) -> Option<u64> {
    let values = tensor.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64))?;
    tensor.kind.bytes(values)
}

/// Everything before the tensors' values, padded; `None` if the positions overflow.
fn header(items: &[(String, Item)], tensors: &[Tensor<'_>]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    for (key, item) in items {
        text(&mut out, key);
        self::item(&mut out, item);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = offset.checked_add(bytes(tensor)?)?.checked_next_multiple_of(ALIGNMENT)?;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    Some(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn item(out: &mut Vec<u8>, item: &Item) {
    let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
        out.extend(value::ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match item {
        Item::U32(number) => {
            out.extend(value::U32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Item::F32(number) => {
            out.extend(value::F32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Item::Flag(set) => {
            out.extend(value::BOOL.to_le_bytes());
            out.push(u8::from(*set));
        }
        Item::Text(one) => {
            out.extend(value::STRING.to_le_bytes());
            text(out, one);
        }
        Item::Texts(texts) => {
            list(out, value::STRING, texts.len());
            texts.iter().for_each(|one| text(out, one));
        }
        Item::Integers(numbers) => {
            list(out, value::I32, numbers.len());
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Item::Floats(numbers) => {
            list(out, value::F32, numbers.len());
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
}

/// The tensors with values that their type cannot represent.
#[derive(Default)]
struct Refused {
    values: usize,
    tensors: usize,
    first: Option<(String, Kind)>,
}

impl Refused {
    fn add(&mut self, tensor: &Tensor<'_>, values: usize) {
        if values > 0 {
            self.values += values;
            self.tensors += 1;
            self.first.get_or_insert_with(|| (tensor.name.clone(), tensor.kind));
        }
    }

    fn check(self, named: &std::path::Path) -> Result<(), GgufError> {
        let Some((first, kind)) = self.first else { return Ok(()) };
        let (path, values, tensors) = (named.into(), self.values, self.tensors);
        Err(GgufError::Unrepresentable { path, values, tensors, first, quant: kind.name() })
    }
}

/// Turns a stream of f32 values into the tensor's bytes. It holds a block at a time, or the whole tensor if its rows
/// are reordered.
struct Encoder<'a, W: Write> {
    out: &'a mut W,
    kind: Kind,
    change: Change,
    /// The bytes of f32 values that are not converted yet.
    pending: Vec<u8>,
    encoded: Vec<u8>,
    written: u64,
    refused: usize,
}

impl<'a, W: Write> Encoder<'a, W> {
    fn new(out: &'a mut W, tensor: &Tensor<'_>) -> Self {
        let (kind, change) = (tensor.kind, tensor.change);
        Self { out, kind, change, pending: Vec::new(), encoded: Vec::new(), written: 0, refused: 0 }
    }

    /// The number of bytes written and of values that the type cannot represent.
    fn finish(mut self) -> io::Result<(u64, usize)> {
        let pending = std::mem::take(&mut self.pending);
        let values = decoded(&pending);
        match self.change {
            Change::Interleave { height, columns } => {
                let mut ordered = vec![0.0; values.len()];
                for (row, to) in ordered.chunks_mut(columns.max(1)).enumerate() {
                    let (head, inside) = (row / height, row % height);
                    let from = head * height + (inside % 2) * (height / 2) + inside / 2;
                    to.copy_from_slice(&values[from * columns..][..to.len()]);
                }
                self.encode(ordered)?;
            }
            _ => self.encode(values)?,
        }
        Ok((self.written, self.refused))
    }

    fn encode(&mut self, mut values: Vec<f32>) -> io::Result<()> {
        match self.change {
            Change::Add(more) => values.iter_mut().for_each(|value| *value += more),
            Change::Scale(factor) => values.iter_mut().for_each(|value| *value *= factor),
            Change::Keep | Change::Interleave { .. } => {}
        }
        self.encoded.clear();
        match self.kind {
            Kind::F16 => {
                for value in &values {
                    let half = f16::from_f32(*value);
                    self.refused += usize::from(half.is_infinite() && value.is_finite());
                    self.encoded.extend(half.to_le_bytes());
                }
            }
            Kind::Q8_0 | Kind::Q4_0 => {
                for block in values.chunks_exact(BLOCK) {
                    let unfit = block.iter().filter(|value| !value.is_finite()).count();
                    let fits = quantize(self.kind, block, &mut self.encoded);
                    self.refused += if unfit == 0 && !fits { 1 } else { unfit };
                }
            }
            _ => self.encoded.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
        self.written += self.encoded.len() as u64;
        self.out.write_all(&self.encoded)
    }
}

impl<W: Write> Write for Encoder<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if !matches!(self.change, Change::Interleave { .. }) {
            let whole = self.pending.len() / (4 * BLOCK) * (4 * BLOCK);
            let values = decoded(&self.pending[..whole]);
            self.pending.drain(..whole);
            self.encode(values)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decoded(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|value| f32::from_le_bytes(*value)).collect()
}
