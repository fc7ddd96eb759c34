//! Finds the factors of each of a model's weights, so that the weight is read with its adapter merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::CheckpointError;
use super::super::fused::FusedPart;
use super::super::laid_over::{LaidOver, Placed};
use super::super::read::TensorFiles;
use super::super::source::{Entry, Stored, Taken};
use super::{AdapterFiles, CONFIG};
use crate::adapters::Factors;
use crate::nn::Llava;
use crate::parameters::{LORA_A, LORA_B, Slot};

impl LaidOver for AdapterFiles {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.lora.paths().map(Path::to_path_buf).collect()
    }

    fn whole_names(&self) -> Vec<String> {
        self.whole_names.iter().map(|(name, _)| name.clone()).collect()
    }

    fn place(&self, slots: &[Slot]) -> Result<BTreeMap<String, Placed>, CheckpointError> {
        let rows: BTreeMap<&str, usize> =
            slots.iter().map(|slot| (slot.name.as_str(), slot.shape.first().copied().unwrap_or(1))).collect();
        let rows = |name: &str| rows.get(name).copied();
        let (mut found, mut shapes) = (BTreeMap::new(), Vec::new());
        for slot in slots.iter().filter(|slot| slot.transposed && !slot.is_adapter()) {
            let Some((a, b)) = self.pair(slot, &rows) else { continue };
            let rank = a.shape.first().copied().unwrap_or_default();
            let wanted = [vec![rank, slot.shape[1]], vec![slot.shape[0], rank]];
            for (entry, wanted) in [&a, &b].into_iter().zip(wanted) {
                if entry.shape != wanted || rank == 0 {
                    shapes.push(format!("{} is {:?}, not {wanted:?}", entry.disk, entry.shape));
                }
            }
            let module = a.disk.strip_suffix(LORA_A).unwrap_or(&a.disk);
            if let Some((key, said)) = self.config.other_rank(module, rank) {
                let reason = format!(
                    "is {said}, and {} is {:?}, of rank {rank}: the two files belong to different adapters",
                    a.disk, a.shape
                );
                return Err(CheckpointError::AdapterConfig { path: self.dir.join(CONFIG), key: key.into(), reason });
            }
            let scale = self.config.scale(module, rank);
            let placed = Placed { a: self.taken(a)?, b: self.taken(b)?, rank, scale };
            found.insert(slot.name.clone(), placed);
        }
        match shapes.is_empty() {
            true => Ok(found),
            false => Err(CheckpointError::Shapes { path: self.dir.clone(), shapes }),
        }
    }

    fn factors(&self, placed: &Placed) -> Result<Factors, CheckpointError> {
        let read = |taken: &Taken| {
            let slot = Slot { name: taken.entry.disk.clone(), shape: taken.entry.shape.clone(), transposed: true };
            self.lora.values::<f32>(taken, &slot)
        };
        Ok(Factors { a: read(&placed.a)?, b: read(&placed.b)?, rank: placed.rank, scale: placed.scale })
    }

    fn fits(&self, model: &Llava) -> Result<(), CheckpointError> {
        AdapterFiles::fits(self, model)
    }
}

impl AdapterFiles {
    /// The tensors of a model with these adapters. Tensors that the adapters' files contain in full
    /// replace the model's.
    pub(in super::super) fn over(mut self, base: TensorFiles) -> TensorFiles {
        let mut files = std::mem::take(&mut self.whole).over(base);
        files.adapters = Some(Box::new(self));
        files
    }

    /// A weight's factors: its own, or its rows of the factors of the fused matrix that it is a part of.
    fn pair(&self, slot: &Slot, rows: &dyn Fn(&str) -> Option<usize>) -> Option<(Entry, Entry)> {
        let layer = slot.name.strip_suffix(".weight")?;
        let of = |layer: &str| {
            let factor = |suffix: &str| self.lora.entry(&format!("{layer}{suffix}")).cloned();
            Some((factor(LORA_A)?, factor(LORA_B)?))
        };
        if let Some(pair) = of(layer) {
            return Some(pair);
        }
        let part = FusedPart::of(&slot.name)?;
        let (a, b) = of(part.whole().strip_suffix(".weight")?)?;
        let (first, all) = part.rows(rows)?;
        // If the height differs, all rows are kept, so that the shape is reported as wrong.
        let b = if b.shape.first() == Some(&all) { b.rows(first, slot.shape[0]) } else { b };
        Some((a, b))
    }

    fn taken(&self, entry: Entry) -> Result<Taken, CheckpointError> {
        match &entry.dtype {
            Stored::Float(float) => Ok(Taken { float: *float, added: 0, entry }),
            Stored::Other(dtype) => {
                let path = self.lora.path(&entry).to_path_buf();
                Err(CheckpointError::Dtype { path, name: entry.disk.clone(), dtype: dtype.clone() })
            }
        }
    }
}
