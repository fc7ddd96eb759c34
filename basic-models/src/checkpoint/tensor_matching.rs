//! Matches each parameter with its tensor on disk. Everything is checked before the first weight is read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::CheckpointError;
use super::fused::FusedPart;
use super::names::{Layout, vision_names_of};
use super::read::{TensorFiles, VOCABULARY};
use super::source::{Entry, Stored, Taken};
use crate::config::VisionNames;
use crate::parameters::Slot;

/// The result of looking for the tensors of a set of slots.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The tensors that fit.
    pub taken: BTreeMap<String, Taken>,
    /// The names (module paths) of the missing ones.
    pub missing: Vec<String>,
    /// The tensors of the wrong shape, with both shapes.
    pub shapes: Vec<String>,
    /// The tensors of an unsupported type.
    pub dtypes: Vec<(Entry, String)>,
}

impl TensorFiles {
    /// Finds the tensor for each slot.
    ///
    /// # Errors
    ///
    /// Returns a [`CheckpointError`] that lists every missing tensor, or every wrong shape, or names an unsupported
    /// type.
    pub(super) fn take(&self, wanted: &[Slot]) -> Result<BTreeMap<String, Taken>, CheckpointError> {
        let Survey { taken, missing, shapes, dtypes } = self.survey(wanted);
        if !missing.is_empty() {
            let path = self.home(&missing[0]).map(|(dir, _)| dir.clone()).unwrap_or_default();
            let vision = vision_names_of(wanted);
            let names = missing.iter().map(|name| self.disk_name(name, vision)).collect();
            return Err(CheckpointError::Missing { path, names });
        }
        if !shapes.is_empty() {
            let path = self.dirs.first().map(|(dir, _)| dir.clone()).unwrap_or_default();
            return Err(CheckpointError::Shapes { path, shapes });
        }
        match dtypes.into_iter().next() {
            Some((entry, dtype)) => {
                let path = self.files[entry.file].path.clone();
                Err(CheckpointError::Dtype { path, name: entry.disk, dtype })
            }
            None => Ok(taken),
        }
    }

    /// Looks for the tensor of each slot, and collects everything that is wrong.
    pub(super) fn survey(&self, wanted: &[Slot]) -> Survey {
        let rows: BTreeMap<&str, usize> =
            wanted.iter().map(|s| (s.name.as_str(), s.shape.first().copied().unwrap_or(1))).collect();
        let rows = |name: &str| rows.get(name).copied();
        let mut survey = Survey::default();
        for slot in wanted {
            let entry = match self.tensors.get(&slot.name) {
                Some(entry) => entry.clone(),
                None => match self.part(slot, &rows, &mut survey.shapes) {
                    Some(entry) => entry,
                    None => {
                        survey.missing.push(slot.name.clone());
                        continue;
                    }
                },
            };
            let added = match self.grows {
                Some((from, to))
                    if VOCABULARY.contains(&slot.name.as_str())
                        && entry.shape.first() == Some(&from)
                        && slot.shape.first() == Some(&to) =>
                {
                    to.saturating_sub(from)
                }
                _ => 0,
            };
            let mut shape = entry.shape.clone();
            if let Some(rows) = shape.first_mut() {
                *rows += added;
            }
            if shape != slot.shape {
                survey.shapes.push(format!("{} is {:?}, not {:?}", entry.disk, entry.shape, slot.shape));
                continue;
            }
            match &entry.dtype {
                Stored::Float(float) => {
                    let taken = Taken { float: *float, added, entry };
                    survey.taken.insert(slot.name.clone(), taken);
                }
                Stored::Other(dtype) => {
                    let dtype = dtype.clone();
                    survey.dtypes.push((entry, dtype));
                }
            }
        }
        survey.shapes.dedup();
        survey
    }

    /// The rows of a fused matrix that belong to a slot. If the matrix does not have as many rows as its parts
    /// together, the entry is the whole matrix, and its wrong shape is recorded once.
    fn part(&self, slot: &Slot, rows: &dyn Fn(&str) -> Option<usize>, shapes: &mut Vec<String>) -> Option<Entry> {
        let part = FusedPart::of(&slot.name)?;
        let whole = self.tensors.get(&part.whole())?;
        let (first, all) = part.rows(rows)?;
        if whole.shape.first() != Some(&all) || whole.shape[1..] != slot.shape[1..] {
            let wanted: Vec<usize> = [all].into_iter().chain(slot.shape[1..].iter().copied()).collect();
            shapes.push(format!("{} is {:?}, not {wanted:?}", whole.disk, whole.shape));
            // With the expected shape, so that it is not recorded a second time.
            return Some(Entry { shape: slot.shape.clone(), ..whole.clone() });
        }
        Some(whole.rows(first, slot.shape[0]))
    }

    /// The directory to which the parameter with this project's name `name` belongs.
    fn home(&self, name: &str) -> Option<&(PathBuf, Layout)> {
        let vision = name.starts_with("vision_tower.");
        let fits = |layout: Layout| match layout {
            Layout::Llava | Layout::Adapters => true,
            Layout::Vision => vision,
            Layout::Decoder | Layout::Gguf => !vision,
        };
        self.dirs.iter().rev().find(|(_, layout)| fits(*layout)).or(self.dirs.first())
    }

    /// The name that a parameter would have on disk; `vision` as for [`Layout::disk`].
    pub(super) fn disk_name(&self, name: &str, vision: Option<&VisionNames>) -> String {
        self.home(name).map_or_else(|| name.into(), |(_, layout)| layout.disk(name, vision))
    }
}
