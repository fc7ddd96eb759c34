//! Weights from files: into a module, or straight into other files, converted one by one while they stream in.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};

use super::CheckpointError;
use super::floats::{Float, FloatType, decode, decode_transposed, encode};
use super::names::{ParamPath, Slot, slots};
use super::read::TensorFiles;
use super::source::Entry;
use super::take::Taken;
use super::write::{Outgoing, Sink};

impl TensorFiles {
    /// Fills `module`, whose parameters are named below `prefix`, converting each tensor to `dtype`. All names and
    /// shapes are checked before the first weight is read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] that lists every missing tensor, or every wrong shape.
    pub fn load<M: Module>(
        &self,
        module: M,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<M, CheckpointError> {
        let taken = self.take(&slots(&module, prefix))?;
        let path = ParamPath::new(prefix);
        let mut fill = Fill { source: self, taken, path, dtype, device: device.clone(), failed: None };
        let module = module.map(&mut fill);
        match fill.failed {
            Some(error) => Err(error),
            None => Ok(module),
        }
    }

    /// The values of a parameter, row-major, transposed where Burn has it so.
    fn values<T: Float>(&self, taken: &Taken, slot: &Slot) -> Result<Vec<T>, CheckpointError> {
        let Taken { entry, float, added } = taken;
        let mut out = vec![T::default(); slot.shape.iter().product()];
        if out.is_empty() {
            return Ok(out);
        }
        let rows = slot.shape.first().copied().unwrap_or(1);
        let columns: usize = slot.shape.iter().skip(1).product();
        let mut done = 0; // rows where transposed, else elements
        self.windows(entry, if slot.transposed { columns * float.size() } else { float.size() }, &mut |bytes| {
            if slot.transposed {
                decode_transposed(bytes, *float, columns, rows, done, &mut out);
                done += bytes.len() / (columns * float.size());
            } else {
                let count = bytes.len() / float.size();
                decode(bytes, *float, &mut out[done..done + count]);
                done += count;
            }
            Ok(())
        })?;
        if *added > 0 {
            let mut mean = vec![T::default(); columns];
            T::take_f32(&self.mean(entry, *float, columns)?, &mut mean);
            for row in rows - added..rows {
                for (column, value) in mean.iter().enumerate() {
                    out[if slot.transposed { column * rows + row } else { row * columns + column }] = *value;
                }
            }
        }
        Ok(out)
    }

    fn windows(
        &self,
        entry: &Entry,
        unit: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.files[entry.file].windows(entry, unit, take)
    }

    /// The mean of a matrix' rows.
    fn mean(&self, entry: &Entry, float: FloatType, columns: usize) -> Result<Vec<f32>, CheckpointError> {
        let (mut sums, mut rows) = (vec![0.0f64; columns], 0usize);
        let mut row = vec![0.0f32; columns];
        self.windows(entry, columns * float.size(), &mut |bytes| {
            for bytes in bytes.chunks_exact(columns * float.size()) {
                decode(bytes, float, &mut row);
                sums.iter_mut().zip(&row).for_each(|(sum, value)| *sum += f64::from(*value));
                rows += 1;
            }
            Ok(())
        })?;
        Ok(sums.into_iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect())
    }

    /// Tensors that stream from here into other files.
    pub(super) fn outgoing(&self, wanted: &[Slot], to: FloatType) -> Result<Vec<Outgoing<'_>>, CheckpointError> {
        let mut taken = self.take(wanted)?;
        let stream = |slot: &Slot| {
            let taken = taken.remove(&slot.name)?;
            let columns: usize = slot.shape.iter().skip(1).product();
            Some(Outgoing::new(slot, move |sink| self.stream(&taken, columns, to, sink)))
        };
        Ok(wanted.iter().filter_map(stream).collect())
    }

    fn stream(&self, taken: &Taken, columns: usize, to: FloatType, sink: &mut Sink) -> Result<(), CheckpointError> {
        let Taken { entry, float, added } = taken;
        self.windows(entry, float.size(), &mut |bytes| {
            if *float == to {
                return sink.put(bytes);
            }
            let mut values = vec![0.0f32; bytes.len() / float.size()];
            decode(bytes, *float, &mut values);
            sink.encode(&values, to)
        })?;
        if *added > 0 {
            let mut row = Vec::new();
            encode(&self.mean(entry, *float, columns)?, to, &mut row);
            (0..*added).try_for_each(|_| sink.put(&row))?;
        }
        Ok(())
    }
}

struct Fill<'a> {
    source: &'a TensorFiles,
    taken: BTreeMap<String, Taken>,
    path: ParamPath,
    dtype: DType,
    device: Device,
    failed: Option<CheckpointError>,
}

impl Fill<'_> {
    fn data(&self, taken: &Taken, slot: &Slot, shape: &[usize]) -> Result<TensorData, CheckpointError> {
        let shape = shape.to_vec();
        Ok(match FloatType::of(self.dtype) {
            FloatType::F32 => TensorData::new(self.source.values::<f32>(taken, slot)?, shape),
            FloatType::F16 => TensorData::new(self.source.values::<f16>(taken, slot)?, shape),
            FloatType::BF16 => TensorData::new(self.source.values::<bf16>(taken, slot)?, shape),
        })
    }
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().to_vec();
        let slot = self.path.slot(&shape);
        // `take` has found a tensor for every slot.
        let Some(taken) = self.taken.remove(&slot.name).filter(|_| self.failed.is_none()) else { return param };
        match self.data(&taken, &slot, &shape) {
            Ok(data) => {
                let held = FloatType::of(self.dtype).dtype();
                let mut tensor = Tensor::<D>::from_data(data, (&self.device, held));
                if held != self.dtype {
                    tensor = tensor.cast(self.dtype);
                }
                // On a device without autodiff this only notes that the parameter can be trained.
                Param::initialized(ParamId::new(), tensor).set_require_grad(true)
            }
            Err(error) => {
                self.failed = Some(error);
                param
            }
        }
    }
}
