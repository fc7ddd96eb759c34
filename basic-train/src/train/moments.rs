//! The optimizer's state on disk: one file, or one from each rank, with that rank's pieces. It is read by any number of
//! ranks, each of which reads only the elements that it needs.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::Dtype;

use super::TrainError;
use super::state::Position;
use super::tensor_file::{Outgoing, Tensors, write, write_with};
use crate::optim::{Optimizer, ParameterState};
use crate::parallel::shard::Layout;

/// The file of a state that is not divided.
const WHOLE: &str = "optimizer.safetensors";
/// The metadata of a rank's file: for each parameter the first of its elements, and how many the parameter has.
const PIECES: &str = "pieces";
/// What there is of each parameter; the master weights only of 16-bit parameters.
const KINDS: [&str; 3] = ["first", "second", "master"];

/// The name of a rank's file, counted from 1 as the shards of a checkpoint are.
pub fn file_of(rank: usize, ranks: usize) -> String {
    format!("optimizer-{:05}-of-{ranks:05}.safetensors", rank + 1)
}

/// The number of a rank's file, from 1, and the number of files.
fn number(name: &str) -> Option<(usize, usize)> {
    let (index, count) = name.strip_prefix("optimizer-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    Some((index.parse().ok()?, count.parse().ok()?))
}

/// The files of the optimizer's state that a record lists.
///
/// # Errors
///
/// What is missing among them.
pub fn files(position: &Position) -> Result<Vec<String>, String> {
    if position.files.contains_key(WHOLE) {
        return Ok(vec![WHOLE.into()]);
    }
    let numbers: Vec<(usize, usize)> = position.files.keys().filter_map(|name| number(name)).collect();
    let Some((_, ranks)) = numbers.first() else { return Err(format!("does not list {WHOLE}")) };
    // A record of this program lists files of one number of ranks.
    match (1..=*ranks).find(|index| !numbers.contains(&(*index, *ranks))) {
        Some(index) => Err(format!("does not list {}", file_of(index - 1, *ranks))),
        None => Ok((0..*ranks).map(|rank| file_of(rank, *ranks)).collect()),
    }
}

/// Writes a state into a folder: all of it, or with a layout this rank's pieces. Returns the file's name.
///
/// # Errors
///
/// The name, and an I/O error.
pub fn save(
    dir: &Path,
    optimizer: &Optimizer,
    pieces: Option<(&Layout, usize, usize)>,
) -> Result<String, (String, std::io::Error)> {
    let name = pieces.map_or(WHOLE.into(), |(_, rank, ranks)| file_of(rank, ranks));
    let tensors = optimizer.states().iter().flat_map(|(name, state)| {
        let ParameterState { first, second, master, .. } = state.clone();
        let tensors = KINDS.into_iter().zip([Some(first), Some(second), master]);
        tensors.filter_map(move |(kind, tensor)| Some(Outgoing::new(format!("{name}.{kind}"), tensor?, false)))
    });
    let (path, tensors) = (dir.join(&name), tensors.collect());
    let written = match pieces {
        None => write(&path, tensors),
        Some((layout, ..)) => {
            let of = |(bucket, member)| (member, layout.piece(bucket, member).of.start);
            let places: BTreeMap<&str, (usize, usize)> = layout
                .members()
                .map(of)
                .filter(|(member, _)| optimizer.states().contains_key(&member.name))
                .map(|(member, start)| (member.name.as_str(), (start, member.range.len())))
                .collect();
            let text = serde_json::to_string(&places).map_err(std::io::Error::from);
            text.and_then(|text| write_with(&path, tensors, HashMap::from([(PIECES.into(), text)])))
        }
    };
    written.map(|()| name.clone()).map_err(|error| (name, error))
}

/// Some elements of a tensor of the state, in one of the files.
#[derive(Debug, Clone)]
struct Stored {
    file: usize,
    elements: Range<usize>,
}

/// The optimizer's state in its files, whose headers were read and checked: for every parameter that was updated, the
/// elements of its moments are there once.
pub struct Moments {
    files: Vec<(PathBuf, Tensors)>,
    /// Where each tensor's elements are, in order.
    stored: BTreeMap<String, Vec<Stored>>,
}

impl Moments {
    /// Opens the files and compares them with the parameters of a layout.
    ///
    /// # Errors
    ///
    /// [`TrainError::Resume`] that names the file and the parameter whose elements are missing, occur twice or do not fit,
    /// and [`TrainError::Io`] for a file that cannot be read.
    pub fn open(state: &Path, position: &Position, layout: &Layout) -> Result<Self, TrainError> {
        let wrong = |path: PathBuf, reason| TrainError::Resume { path, reason };
        let names = files(position).map_err(|reason| wrong(state.join("state.json"), reason))?;
        let sizes: BTreeMap<&str, usize> =
            layout.members().map(|(_, member)| (member.name.as_str(), member.range.len())).collect();
        let mut this = Self { files: Vec::with_capacity(names.len()), stored: BTreeMap::new() };
        for name in names {
            let path = state.join(name);
            let file = Tensors::open(&path).map_err(|source| TrainError::Io { path: path.clone(), source })?;
            this.list(&file, &sizes).map_err(|reason| wrong(path.clone(), reason))?;
            this.files.push((path, file));
        }
        for name in position.updates.keys() {
            let Some(size) = sizes.get(name.as_str()) else {
                let path = this.place(state);
                return Err(wrong(
                    path,
                    format!("holds {name}, which this run does not train: was the recipe changed?"),
                ));
            };
            for kind in KINDS {
                this.covered(state, name, kind, *size)?;
            }
        }
        Ok(this)
    }

    /// Lists what a file holds.
    fn list(&mut self, file: &Tensors, sizes: &BTreeMap<&str, usize>) -> Result<(), String> {
        let places: Option<BTreeMap<String, (usize, usize)>> = match file.metadata(PIECES) {
            Some(text) => Some(serde_json::from_str(text).map_err(|error| format!("its {PIECES}: {error}"))?),
            None => None,
        };
        let index = self.files.len();
        let mut names: Vec<String> = file.names().collect();
        names.sort();
        for name in names {
            let parameter = name.rsplit_once('.').map_or("", |(parameter, _)| parameter);
            // What is no longer in the model is found by its name in the record.
            let (Some(size), Some((dtype, length))) = (sizes.get(parameter), file.size(&name)) else { continue };
            let (start, of) = match &places {
                None => (0, length),
                Some(places) => *places.get(parameter).ok_or_else(|| format!("does not say where {name} begins"))?,
            };
            if dtype != Dtype::F32 {
                return Err(format!("{name} is of type {dtype:?}, F32 was saved"));
            }
            if of != *size {
                return Err(format!(
                    "{name} is of {of} elements, this run's parameter has {size}: was the recipe changed?"
                ));
            }
            let Some(end) = start.checked_add(length).filter(|end| *end <= of) else {
                return Err(format!("{name} has {length} elements from {start} on, its parameter {of} in all"));
            };
            let stored = self.stored.entry(name.clone()).or_default();
            let at = stored.partition_point(|other| other.elements.start < start);
            let near = stored[at.saturating_sub(1)..].iter().take(2);
            for other in near {
                if other.elements.start < end && start < other.elements.end {
                    let file = self.files[other.file].0.file_name().unwrap_or_default().display();
                    return Err(format!("holds elements {start}..{end} of {name}, some of which are also in {file}"));
                }
            }
            stored.insert(at, Stored { file: index, elements: start..end });
        }
        Ok(())
    }

    /// The file at fault, where there is one, or the folder.
    fn place(&self, state: &Path) -> PathBuf {
        match &self.files[..] {
            [(path, _)] => path.clone(),
            _ => state.into(),
        }
    }

    /// Checks that all elements of a tensor are there; a master copy may be missing altogether.
    fn covered(&self, state: &Path, name: &str, kind: &str, size: usize) -> Result<(), TrainError> {
        let stored = self.stored.get(&format!("{name}.{kind}"));
        let lacks = |what: String| Err(TrainError::Resume { path: self.place(state), reason: format!("lacks {what}") });
        let Some(stored) = stored else {
            return if kind == "master" { Ok(()) } else { lacks(format!("the moments of {name}")) };
        };
        let mut next = 0;
        for Stored { elements, .. } in stored {
            if elements.start > next {
                break;
            }
            next = elements.end;
        }
        let until = stored.iter().map(|stored| stored.elements.start).find(|start| *start > next).unwrap_or(size);
        if next < size { lacks(format!("elements {next}..{until} of {name}.{kind}")) } else { Ok(()) }
    }

    /// Reads elements of a tensor; `None` if there is no such tensor.
    fn read(&mut self, name: &str, elements: &Range<usize>, device: &Device) -> Result<Option<Tensor<1>>, TrainError> {
        let Some(stored) = self.stored.get(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        for Stored { file, elements: there } in stored {
            let (start, end) = (there.start.max(elements.start), there.end.min(elements.end));
            if start < end {
                let (path, file) = &mut self.files[*file];
                let read = file.read_f32(name, start - there.start..end - there.start);
                bytes.extend(read.map_err(|source| TrainError::Io { path: path.clone(), source })?);
            }
        }
        let length = bytes.len() / size_of::<f32>();
        Ok(Some(Tensor::from_data(TensorData::from_bytes_vec(bytes, [length], DType::F32), (device, DType::F32))))
    }

    /// Gives an optimizer the state of what a rank owns; it must be the layout that the files were compared with, or that
    /// of another rank.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] that names the file.
    pub fn restore(
        mut self,
        position: &Position,
        layout: &Layout,
        optimizer: &mut Optimizer,
    ) -> Result<(), TrainError> {
        let (mut states, mut elsewhere) = (BTreeMap::new(), Vec::new());
        for (bucket, member) in layout.members() {
            let Some(time) = position.updates.get(&member.name).copied() else { continue };
            let piece = layout.piece(bucket, member).of;
            if piece.is_empty() {
                elsewhere.push((member.name.clone(), time));
                continue;
            }
            let mut read = |kind: &str| self.read(&format!("{}.{kind}", member.name), &piece, &bucket.device);
            let [first, second, master] = [read("first")?, read("second")?, read("master")?];
            if let (Some(first), Some(second)) = (first, second) {
                states.insert(member.name.clone(), ParameterState { time, first, second, master });
            }
        }
        optimizer.set_states(states);
        elsewhere.into_iter().for_each(|(name, time)| optimizer.set_elsewhere(name, time));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
