//! Writes safetensors tensor by tensor, in one file or in shards with an index, in transformers' format.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::CheckpointError;
use super::floats::{Float, FloatType, encode, rows_of_transpose};
use super::fused;
use super::names::Layout;
use super::staged::StagedDir;
use crate::adapters::{Adapter, adapters, dense, merged};
use crate::config::VisionNames;
use crate::parameters::{ParamPath, Slot};

/// The number of elements that are converted at a time.
const WINDOW: usize = 1 << 20;

/// The options for writing weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// The type: f32, f16 or bf16.
    pub dtype: DType,
    /// The most bytes of tensors in a file; `None` writes a single file. A larger tensor gets a file of its own.
    pub shard_size: Option<u64>,
    /// Whether the decoder's query, key and value matrices are stored as one, and the gate and up matrices too.
    pub fused: bool,
    /// The names of the vision encoder's tensors, if they differ from CLIP's.
    pub vision: Option<&'static VisionNames>,
}

impl SaveOptions {
    /// Options for a single file of type `dtype`.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, shard_size: None, fused: false, vision: None }
    }
}

/// Parses a size in transformers' format: `500MB`, `5GB` (powers of ten), `4GiB` (powers of two), or bytes.
///
/// # Errors
///
/// Returns the formats that are allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let upper = text.trim().to_ascii_uppercase();
    let unit = UNITS.iter().find_map(|(unit, size)| Some((upper.strip_suffix(unit)?, *size)));
    let (number, unit) = unit.unwrap_or((&upper, 1));
    let size = number.trim().parse::<f64>().ok().map(|number| number * unit as f64);
    match size {
        Some(size) if (1.0..1e18).contains(&size) => Ok(size as u64),
        _ => Err("write a size such as 5GB, 500MB or 4GiB".into()),
    }
}

/// A function that writes a tensor's values.
type Values<'a> = Box<dyn Fn(&mut Sink<'_>) -> Result<(), CheckpointError> + 'a>;

/// A tensor to be written: its name and shape, and the function that writes its values.
pub(super) struct Outgoing<'a> {
    pub slot: Slot,
    pub write: Values<'a>,
}

impl<'a> Outgoing<'a> {
    pub fn new(slot: &Slot, write: impl Fn(&mut Sink<'_>) -> Result<(), CheckpointError> + 'a) -> Self {
        Self { slot: slot.clone(), write: Box::new(write) }
    }
}

/// What tensors are written to, a file or an encoder in front of one.
pub(super) struct Sink<'a> {
    out: &'a mut dyn Write,
    named: PathBuf,
    written: u64,
    buffer: Vec<u8>,
    /// The number of finite values of the current tensor that became infinite.
    overflown: usize,
}

impl<'a> Sink<'a> {
    /// A sink whose errors name the file `named`.
    pub fn new(out: &'a mut dyn Write, named: &Path) -> Self {
        Self { out, named: named.into(), written: 0, buffer: Vec::new(), overflown: 0 }
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(CheckpointError::io(&self.named))
    }

    pub fn encode<T: Float>(&mut self, values: &[T], to: FloatType) -> Result<(), CheckpointError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        encode(values, to, &mut buffer);
        if to == FloatType::F16 && T::TYPE != FloatType::F16 {
            self.overflown += overflown(values, &buffer);
        }
        let put = self.put(&buffer);
        self.buffer = buffer;
        put
    }
}

/// The number of `values` that are finite but infinite in `bytes`, their f16 form. Values that were
/// infinite before stay so.
fn overflown<T: Float>(values: &[T], bytes: &[u8]) -> usize {
    let (halves, _) = bytes.as_chunks::<2>();
    let infinite = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7FFF == 0x7C00;
    let mut value = [0.0f32];
    let mut finite = |from: &T| {
        T::give(std::slice::from_ref(from), &mut value);
        value[0].is_finite()
    };
    halves.iter().zip(values).filter(|(half, from)| infinite(half) && finite(from)).count()
}

/// The tensors with values that do not fit the type in which they are written.
#[derive(Default)]
pub(super) struct Overflown {
    values: usize,
    tensors: usize,
    first: String,
}

impl Overflown {
    pub fn add(&mut self, name: &str, values: usize) {
        if values > 0 {
            self.values += values;
            self.tensors += 1;
            if self.first.is_empty() {
                self.first = name.into();
            }
        }
    }

    /// Returns an error if there are any; a caller that writes has not renamed its target yet.
    pub fn check(self, path: PathBuf) -> Result<(), CheckpointError> {
        let Self { values, tensors, first } = self;
        if values == 0 { Ok(()) } else { Err(CheckpointError::Overflow { path, values, tensors, first }) }
    }
}

/// A tensor of a file: one slot, or several whose rows are joined.
struct Planned<'a> {
    name: String,
    info: TensorInfo,
    parts: Vec<Outgoing<'a>>,
}

/// Writes a module's parameters to a staged directory as one `model.safetensors` of type `dtype` (f32, f16 or bf16).
///
/// # Errors
///
/// Returns [`CheckpointError::Io`], which names the file.
pub fn write_tensors<M: Module>(
    staged: &StagedDir,
    module: &M,
    prefix: &str,
    layout: Layout,
    dtype: DType,
) -> Result<(), CheckpointError> {
    write_outgoing(staged, gather(module, prefix, FloatType::of(dtype)), layout, &SaveOptions::new(dtype))
}

/// A module's parameters, with adapters merged into their weights. Each is copied from its device when it is written.
pub(super) fn gather<M: Module>(module: &M, prefix: &str, to: FloatType) -> Vec<Outgoing<'static>> {
    let mut adapters = adapters(module, prefix);
    gather_as(module, prefix, to, &mut |slot| match slot.is_adapter() {
        true => None,
        false => Some(adapters.remove(&slot.name)),
    })
}

/// Those of a module's parameters that are `wanted`, without merging adapters.
pub(super) fn gather_apart<M: Module>(
    module: &M,
    to: FloatType,
    wanted: &dyn Fn(&Slot) -> bool,
) -> Vec<Outgoing<'static>> {
    gather_as(module, "", to, &mut |slot| wanted(slot).then_some(None))
}

/// The parameters for which `choose` returns a value: the adapter to merge into them, if any.
fn gather_as<M: Module>(
    module: &M,
    prefix: &str,
    to: FloatType,
    choose: &mut dyn FnMut(&Slot) -> Option<Option<Adapter>>,
) -> Vec<Outgoing<'static>> {
    let mut gather = Gather { path: ParamPath::new(prefix), to, choose, tensors: Vec::new() };
    module.visit(&mut gather);
    gather.tensors
}

/// Writes tensors to one file of a staged directory.
pub(super) fn write_single(
    staged: &StagedDir,
    name: &str,
    tensors: Vec<Outgoing<'_>>,
    layout: Layout,
    options: &SaveOptions,
) -> Result<(), CheckpointError> {
    let shards = plan(tensors, layout, &SaveOptions { shard_size: None, ..*options });
    let mut overflown = Overflown::default();
    shards.iter().try_for_each(|tensors| write_file(staged, name, tensors, &mut overflown))?;
    overflown.check(staged.named(name))
}

/// Writes tensors to a staged directory: `model.safetensors`, or shards and their index if one file would be larger
/// than the options allow.
pub(super) fn write_outgoing(
    staged: &StagedDir,
    tensors: Vec<Outgoing<'_>>,
    layout: Layout,
    options: &SaveOptions,
) -> Result<(), CheckpointError> {
    let shards = plan(tensors, layout, options);
    let mut overflown = Overflown::default();
    if let [single] = &shards[..] {
        write_file(staged, "model.safetensors", single, &mut overflown)?;
        return overflown.check(staged.named("model.safetensors"));
    }
    let mut map = BTreeMap::new();
    let (mut size, mut parameters) = (0, 0);
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_file(staged, &name, shard, &mut overflown)?;
        for tensor in shard {
            map.insert(&tensor.name, name.clone());
            size += tensor.info.data_offsets.1 - tensor.info.data_offsets.0;
            parameters += tensor.info.shape.iter().product::<usize>();
        }
    }
    overflown.check(staged.named("model.safetensors.index.json"))?;
    let index = json!({ "metadata": { "total_parameters": parameters, "total_size": size }, "weight_map": map });
    staged.write("model.safetensors.index.json", format!("{index:#}\n").as_bytes())
}

fn plan<'a>(tensors: Vec<Outgoing<'a>>, layout: Layout, options: &SaveOptions) -> Vec<Vec<Planned<'a>>> {
    let float = FloatType::of(options.dtype);
    let slots: Vec<Slot> = tensors.iter().map(|tensor| tensor.slot.clone()).collect();
    let mut by_name: HashMap<String, Outgoing<'a>> = tensors.into_iter().map(|t| (t.slot.name.clone(), t)).collect();
    let joined = match options.fused {
        true => fused::join(slots),
        false => slots.into_iter().map(|slot| (slot.name.clone(), vec![slot])).collect(),
    };
    let mut shards: Vec<Vec<Planned<'a>>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, slots) in joined {
        let mut shape = slots[0].shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = slots.iter().map(|slot| slot.shape[0]).sum();
        }
        let bytes = shape.iter().product::<usize>() * float.size();
        if filled > 0 && options.shard_size.is_some_and(|limit| (filled + bytes) as u64 > limit) {
            shards.push(Vec::new());
            filled = 0;
        }
        let info = TensorInfo { dtype: float.safetensors(), shape, data_offsets: (filled, filled + bytes) };
        filled += bytes;
        let parts = slots.iter().filter_map(|slot| by_name.remove(&slot.name)).collect();
        if let Some(shard) = shards.last_mut() {
            shard.push(Planned { name: layout.disk(&name, options.vision), info, parts });
        }
    }
    shards
}

fn write_file(
    staged: &StagedDir,
    name: &str,
    tensors: &[Planned<'_>],
    overflown: &mut Overflown,
) -> Result<(), CheckpointError> {
    let named = staged.named(name);
    let invalid = |reason: String| CheckpointError::Mismatch(format!("{}: {reason}", named.display()));
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let infos = tensors.iter().map(|t| {
        let (TensorInfo { dtype, shape, data_offsets }, name) = (&t.info, t.name.clone());
        (name, TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: *data_offsets })
    });
    let header = Metadata::new(Some(format), infos.collect()).map_err(|e| invalid(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| invalid(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(staged.path().join(name)).map_err(CheckpointError::io(&named))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut sink = Sink::new(&mut out, &named);
    sink.put(&(header.len() as u64).to_le_bytes())?;
    sink.put(&header)?;
    let data = sink.written;
    for tensor in tensors {
        tensor.parts.iter().try_for_each(|part| (part.write)(&mut sink))?;
        overflown.add(&tensor.name, std::mem::take(&mut sink.overflown));
        if sink.written - data != tensor.info.data_offsets.1 as u64 {
            return Err(invalid(format!("{} has another length than its shape says", tensor.name)));
        }
    }
    let file = out.into_inner().map_err(|e| CheckpointError::io(&named)(e.into_error()))?;
    file.sync_all().map_err(CheckpointError::io(&named))
}

struct Gather<'a> {
    path: ParamPath,
    to: FloatType,
    choose: &'a mut dyn FnMut(&Slot) -> Option<Option<Adapter>>,
    tensors: Vec<Outgoing<'static>>,
}

impl ModuleVisitor for Gather<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let slot = self.path.slot(&param.lazy_shape().to_vec());
        let Some(adapter) = (self.choose)(&slot) else { return };
        let tensor = param.val();
        let to = self.to;
        let write = {
            let slot = slot.clone();
            move |sink: &mut Sink<'_>| match &adapter {
                Some(adapter) => write_tensor(merged(tensor.clone(), adapter), &slot, to, sink),
                None => write_tensor(dense(tensor.clone()), &slot, to, sink),
            }
        };
        self.tensors.push(Outgoing::new(&slot, write));
    }
}

/// Copies a tensor from its device and writes it.
pub(super) fn write_tensor<const D: usize>(
    tensor: Tensor<D>,
    slot: &Slot,
    to: FloatType,
    sink: &mut Sink,
) -> Result<(), CheckpointError> {
    let unread =
        |error: String| CheckpointError::Mismatch(format!("{}: could not be read from the device: {error}", slot.name));
    let data = tensor.try_into_data().map_err(|e| unread(e.to_string()))?;
    let written = match data.dtype() {
        DType::F16 => data.as_slice::<f16>().map(|values| put(values, slot, to, sink)),
        DType::BF16 => data.as_slice::<bf16>().map(|values| put(values, slot, to, sink)),
        DType::F32 => data.as_slice::<f32>().map(|values| put(values, slot, to, sink)),
        _ => {
            let data: TensorData = data.convert_dtype(DType::F32);
            data.as_slice::<f32>().map(|values| put(values, slot, to, sink))
        }
    };
    written.map_err(|e| unread(e.to_string()))?
}

fn put<T: Float>(values: &[T], slot: &Slot, to: FloatType, sink: &mut Sink) -> Result<(), CheckpointError> {
    if !slot.transposed {
        return values.chunks(WINDOW).try_for_each(|values| sink.encode(values, to));
    }
    let (rows, columns) = (slot.shape[0], slot.shape[1]);
    let height = (WINDOW / columns.max(1)).max(1);
    for first in (0..rows).step_by(height) {
        let height = height.min(rows - first);
        sink.encode(&rows_of_transpose(values, rows, columns, first, height), to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_values_that_float16_makes_infinite_are_counted_and_refused() {
        let write = |values: &'static [f32], to: DType| {
            let dir = tempfile::tempdir().unwrap();
            let staged = StagedDir::new(&dir.path().join("out"), false).unwrap();
            let slot = |name: &str| Slot { name: name.into(), shape: vec![values.len()], transposed: false };
            let tensor = |name| Outgoing::new(&slot(name), move |sink| sink.encode(values, FloatType::of(to)));
            let tensors = vec![tensor("a.bias"), tensor("b.bias")];
            write_outgoing(&staged, tensors, Layout::Llava, &SaveOptions::new(to)).map_err(|e| e.to_string())
        };
        let large = &[1e6, 65504.0, f32::INFINITY, -7e4, f32::NAN];
        let said = write(large, DType::F16).unwrap_err();
        assert!(said.contains("4 values of 2 tensors (first: a.bias)") && said.contains("bfloat16"), "{said}");
        write(large, DType::BF16).unwrap();
        // Infinite values and NaN stay what they are; 65519 is rounded down.
        write(&[65519.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN], DType::F16).unwrap();
    }

    #[test]
    fn sizes_are_read_as_transformers_reads_them() {
        for (text, size) in
            [("5GB", 5_000_000_000), ("200KB", 200_000), ("1.5 mb", 1_500_000), ("2GiB", 2 << 30), ("17", 17)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "GB", "-1GB", "0", "many", "1e30GB", "NaN"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
