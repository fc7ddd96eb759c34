//! Reads weights from files, into a module or directly into other files. Each is converted as it is read.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use super::CheckpointError;
use super::floats::{Float, FloatType, decode, decode_transposed, encode};
use super::laid_over::Placed;
use super::read::TensorFiles;
use super::source::{Entry, Taken};
use super::write::{Outgoing, Overflown, Sink, write_tensor};
use crate::adapters::{Adapter, Factors, merged};
use crate::parameters::{ParamPath, Slot, slots};

impl TensorFiles {
    /// Fills `module`, whose parameters have names below `prefix`, and converts each tensor to `dtype`. All names and
    /// shapes are checked before the first weight is read.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that lists every missing tensor, or every wrong shape.
    pub fn load<M: Module>(
        &self,
        module: M,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<M, CheckpointError> {
        let wanted = slots(&module, prefix);
        self.fill(module, prefix, &wanted, dtype, device)
    }

    /// [`TensorFiles::load`] for the parameters that the files have; the others keep their values.
    pub(super) fn load_held<M: Module>(
        &self,
        module: M,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<M, CheckpointError> {
        let mut wanted = slots(&module, prefix);
        wanted.retain(|slot| self.contains(&slot.name));
        self.fill(module, prefix, &wanted, dtype, device)
    }

    fn fill<M: Module>(
        &self,
        module: M,
        prefix: &str,
        wanted: &[Slot],
        dtype: DType,
        device: &Device,
    ) -> Result<M, CheckpointError> {
        let (taken, placed) = (self.take(wanted)?, self.placed(wanted)?);
        let path = ParamPath::new(prefix);
        let (device, overflown) = (device.clone(), Overflown::default());
        let mut fill = Fill { source: self, taken, placed, path, dtype, device, overflown, failed: None };
        let module = module.map(&mut fill);
        if let Some(error) = fill.failed {
            return Err(error);
        }
        fill.overflown.check(self.dirs.first().map(|(dir, _)| dir.clone()).unwrap_or_default())?;
        Ok(module)
    }

    /// The adapters of the given weights.
    fn placed(&self, wanted: &[Slot]) -> Result<BTreeMap<String, Placed>, CheckpointError> {
        self.adapters.as_ref().map_or_else(|| Ok(BTreeMap::new()), |adapters| adapters.place(wanted))
    }

    /// A weight with its adapter merged, in f32, in Burn's layout.
    fn folded(
        &self,
        taken: &Taken,
        slot: &Slot,
        placed: &Placed,
        device: &Device,
    ) -> Result<Tensor<2>, CheckpointError> {
        let (outputs, inputs) = (slot.shape[0], slot.shape[1]);
        let base = self.values::<f32>(taken, slot)?;
        let Some(adapters) = &self.adapters else { return Ok(matrix(base, [inputs, outputs], device)) };
        let Factors { a, b, rank, scale } = adapters.factors(placed)?;
        let finite = [&base, &a, &b].iter().all(|values| values.par_iter().all(|value| value.is_finite()));
        let (a, b) = (matrix(a, [inputs, rank], device), matrix(b, [rank, outputs], device));
        let merged = merged(matrix(base, [inputs, outputs], device), &Adapter { a, b, scale });
        if finite && !merged.clone().is_finite().all().into_scalar::<bool>() {
            let (path, name) = (adapters.dir().to_path_buf(), slot.name.clone());
            return Err(CheckpointError::NotFinite { path, name, scale });
        }
        Ok(merged)
    }

    /// The values of a parameter, row-major, and transposed if Burn's layout is.
    pub(super) fn values<T: Float>(&self, taken: &Taken, slot: &Slot) -> Result<Vec<T>, CheckpointError> {
        let Taken { entry, float, added } = taken;
        let mut out = T::zeros(slot.shape.iter().product());
        if out.is_empty() {
            return Ok(out);
        }
        let rows = slot.shape.first().copied().unwrap_or(1);
        let columns: usize = slot.shape.iter().skip(1).product();
        let mut done = 0; // rows if transposed, otherwise elements
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

    /// See [`super::source::SourceFile::windows`].
    pub(super) fn windows(
        &self,
        entry: &Entry,
        unit: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.files[entry.file].windows(entry, unit, take)
    }

    /// The mean of a matrix's rows.
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

    /// The tensors to write to other files, read as they are written. Those with adapters are merged
    /// one by one on `device`.
    pub(super) fn outgoing(
        &self,
        wanted: &[Slot],
        to: FloatType,
        device: &Device,
    ) -> Result<Vec<Outgoing<'_>>, CheckpointError> {
        let (mut taken, mut placed) = (self.take(wanted)?, self.placed(wanted)?);
        let stream = |slot: &Slot| {
            let taken = taken.remove(&slot.name)?;
            if let Some(placed) = placed.remove(&slot.name) {
                let (slot, device) = (slot.clone(), device.clone());
                return Some(Outgoing::new(&slot.clone(), move |sink| {
                    write_tensor(self.folded(&taken, &slot, &placed, &device)?, &slot, to, sink)
                }));
            }
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

fn matrix(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// The smallest number that is infinite in f16: halfway between its largest number and what would be the next.
const TOO_LARGE: f32 = 65520.0;

struct Fill<'a> {
    source: &'a TensorFiles,
    taken: BTreeMap<String, Taken>,
    placed: BTreeMap<String, Placed>,
    path: ParamPath,
    dtype: DType,
    device: Device,
    /// Finite values that become infinite in f16.
    overflown: Overflown,
    failed: Option<CheckpointError>,
}

impl Fill<'_> {
    fn tensor<const D: usize>(&mut self, taken: &Taken, slot: &Slot) -> Result<Tensor<D>, CheckpointError> {
        if let Some(placed) = self.placed.remove(&slot.name) {
            let plain = self.device.clone().without_autodiff();
            let folded = self.source.folded(taken, slot, &placed, &plain)?;
            if self.dtype == DType::F16 {
                let large = folded.clone().abs().greater_equal_elem(TOO_LARGE).bool_and(folded.clone().is_finite());
                let count = large.int().sum().into_scalar::<i64>();
                self.overflown.add(&taken.entry.disk, usize::try_from(count).unwrap_or(usize::MAX));
            }
            let folded = folded.cast(self.dtype);
            let folded: Tensor<D> = folded.reshape(Shape::from(vec![slot.shape[1], slot.shape[0]]));
            return Ok(if self.device.is_autodiff() { Tensor::from_inner(folded) } else { folded });
        }
        let shape = match slot.transposed {
            true => vec![slot.shape[1], slot.shape[0]],
            false => slot.shape.clone(),
        };
        let data = match FloatType::of(self.dtype) {
            FloatType::F32 => TensorData::new(self.source.values::<f32>(taken, slot)?, shape),
            FloatType::F16 => {
                let values = self.source.values::<f16>(taken, slot)?;
                if taken.float != FloatType::F16 && values.iter().any(|value| value.is_infinite()) {
                    // This is rare. Values that were infinite before stay infinite.
                    let wide = self.source.values::<f32>(taken, slot)?;
                    let became = |(half, wide): &(&f16, &f32)| half.is_infinite() && wide.is_finite();
                    self.overflown.add(&taken.entry.disk, values.iter().zip(&wide).filter(became).count());
                }
                TensorData::new(values, shape)
            }
            FloatType::BF16 => TensorData::new(self.source.values::<bf16>(taken, slot)?, shape),
        };
        let held = FloatType::of(self.dtype).dtype();
        let tensor = Tensor::from_data(data, (&self.device, held));
        Ok(if held == self.dtype { tensor } else { tensor.cast(self.dtype) })
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
        match self.tensor(&taken, &slot) {
            // On a device without autodiff, this only records that the parameter can be trained.
            Ok(tensor) => Param::initialized(ParamId::new(), tensor).set_require_grad(true),
            Err(error) => {
                self.failed = Some(error);
                param
            }
        }
    }
}
