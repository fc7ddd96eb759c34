//! Saves and restores the state of a run in `checkpoints/step-N/`: the trained parameters, the optimizer's state
//! (`moments`), and a record with the checksums of both. A resumed run continues as if it had never stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use basic_models::Llava;
use basic_models::checkpoint::{Contents, ParamPath, StagedDir, crash_cleanup};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::TrainError;
use super::checksum::{Checksum, checksum};
use super::moments;
use super::tensor_file::{Outgoing, Tensors, write};
use crate::optim::Optimizer;
use crate::parallel::shard::Layout;
use crate::parallel::{Collective, share, together};
use crate::recipe::Shard;

const PARAMETERS: &str = "trained.safetensors";
const RECORD: &str = "state.json";
const IMAGES: &str = "images.bin";
const PREFIX: &str = "step-";

/// The contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Number of optimizer steps done. Together with the seed it determines the order of the data.
    pub step: usize,
    /// Number of steps that were skipped because their loss or gradients were not finite.
    pub skipped_steps: usize,
    /// Indices of the samples that were left out because they are broken.
    pub skipped_samples: BTreeSet<usize>,
    /// Number of consecutive steps skipped up to here.
    pub nonfinite_in_a_row: usize,
    /// Number of updates of each parameter.
    pub updates: BTreeMap<String, usize>,
    /// A fingerprint of the data files.
    pub data: String,
    /// A fingerprint of the model files that the run began with; empty in a state of an earlier version.
    #[serde(default)]
    pub model: String,
    /// A fingerprint of the configurations and vocabularies beside the model files.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub beside: String,
    /// The objective on the held-out set, if it was evaluated at this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<f64>,
    /// Number of samples trained on so far, counting repetitions; `None` in a state of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<u64>,
    /// Number of draws left out so far because the sample was too long.
    #[serde(default)]
    pub too_long: u64,
    /// Length and checksum of the other files in this directory.
    pub files: BTreeMap<String, Checksum>,
    /// The checksum of this record; empty in a state of an earlier version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub checksum: String,
}

impl Position {
    /// The position before the first step.
    pub fn start() -> Self {
        Self { trained: Some(0), ..Self::default() }
    }

    /// The record's checksum. It covers all values except `checksum`, and `model` and `beside`, which are compared with
    /// the model itself.
    fn digest(&self) -> serde_json::Result<String> {
        let (model, beside, checksum) = Default::default();
        let plain = Self { model, beside, checksum, ..self.clone() };
        Ok(format!("{:016x}", xxh3_64(&serde_json::to_vec(&plain)?)))
    }
}

fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// The states of a run, from the latest to the earliest.
pub fn saved(run: &Path) -> Vec<(usize, PathBuf)> {
    let entries = fs::read_dir(folder(run)).into_iter().flatten().flatten();
    let step = |entry: fs::DirEntry| {
        let name = entry.file_name();
        Some((step_of(name.to_str()?)?, entry.path()))
    };
    let mut found: Vec<(usize, PathBuf)> = entries.filter_map(step).collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    found
}

/// The ranks that save a state together, and what is divided among them.
#[derive(Clone, Copy)]
pub struct Ranks<'a> {
    /// The ranks.
    pub collective: &'a dyn Collective,
    /// What each of them holds a share of.
    pub shard: Shard,
}

impl Ranks<'_> {
    /// The layout that says which elements of the optimizer's state this rank holds.
    pub fn layout(&self, model: &Llava) -> Layout {
        match self.shard {
            Shard::None => Layout::of(model, 0, 1),
            Shard::Optimizer | Shard::Gradients => Layout::of(model, self.collective.rank(), self.collective.world()),
        }
    }
}

/// Whether the state after `step` steps has the whole model beside it (`checkpoint.full`).
pub fn has_model(run: &Path, step: usize) -> bool {
    of(run, step).join("model/config.json").is_file()
}

/// The directory of the state after `step` steps.
fn of(run: &Path, step: usize) -> PathBuf {
    folder(run).join(format!("{PREFIX}{step:08}"))
}

/// Saves a state. All ranks call it together: each writes its share of the optimizer's state, and rank 0 everything else.
/// `images` is the record of the image files that have been read, and `more` may write further files into the same
/// directory. The directory gets its name only when all ranks have their files on disk.
///
/// # Errors
///
/// [`TrainError::Io`] that names the file, on the rank that could not write it, and on all others
/// [`CollectiveError::Replica`](crate::parallel::CollectiveError::Replica) with its message; earlier states are not
/// affected.
pub fn save(
    run: &Path,
    model: &Llava,
    optimizer: &Optimizer,
    ranks: Ranks,
    mut position: Position,
    images: Option<Vec<u8>>,
    more: impl FnOnce(&Path),
) -> Result<PathBuf, TrainError> {
    let Ranks { collective, shard } = ranks;
    let target = of(run, position.step);
    let io = |name: &str| {
        let path = target.join(name);
        move |source| TrainError::Io { path, source }
    };
    // The first rank makes the directory and tells the others its name.
    let first = collective.rank() == 0;
    let mut staged = None;
    let mut begin = || -> Result<Vec<u8>, TrainError> {
        let name = |dir: &StagedDir| dir.path().file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        Ok(name(staged.insert(StagedDir::new(&target, true)?)))
    };
    let names = share(collective, if first { begin() } else { Ok(Vec::new()) })?;
    let named = names.into_iter().next().unwrap_or_default();
    let dir = match &staged {
        Some(staged) => staged.path().to_path_buf(),
        None => folder(run).join(String::from_utf8_lossy(&named).into_owned()),
    };

    let write_own = || -> Result<BTreeMap<String, Checksum>, TrainError> {
        let mut written = Vec::new();
        if shard != Shard::None {
            let layout = ranks.layout(model);
            let pieces = Some((&layout, collective.rank(), collective.world()));
            written.push(moments::save(&dir, optimizer, pieces).map_err(|(name, error)| io(&name)(error))?);
        }
        if let Some(staged) = &staged {
            write(&dir.join(PARAMETERS), trained(model)).map_err(io(PARAMETERS))?;
            written.push(PARAMETERS.into());
            if shard == Shard::None {
                written.push(moments::save(&dir, optimizer, None).map_err(|(name, error)| io(&name)(error))?);
            }
            if let Some(images) = &images {
                staged.write(IMAGES, images)?;
                written.push(IMAGES.into());
            }
            more(&dir);
        }
        let sum = |name: String| Ok((name.clone(), checksum(&dir.join(&name)).map_err(io(&name))?));
        written.into_iter().map(sum).collect()
    };
    let written = write_own().and_then(|files| serde_json::to_vec(&files).map_err(|error| io(RECORD)(error.into())));
    let written = share(collective, written)?;

    // Nobody goes on before the state has its name.
    let name_it = |staged: StagedDir| -> Result<(), TrainError> {
        position.updates = optimizer.updates();
        for files in &written {
            let files: BTreeMap<String, Checksum> =
                serde_json::from_slice(files).map_err(|error| io(RECORD)(error.into()))?;
            position.files.extend(files);
        }
        // JSON has no NaN or infinity.
        position.evaluation = position.evaluation.filter(|value| value.is_finite());
        position.checksum = position.digest().map_err(|e| io(RECORD)(e.into()))?;
        let text = serde_json::to_string_pretty(&position).map_err(|e| io(RECORD)(e.into()))?;
        staged.write(RECORD, (text + "\n").as_bytes())?;
        Ok(staged.commit()?)
    };
    together(collective, staged.map_or(Ok(()), name_it))?;
    Ok(target)
}

/// Removes all states except the last `keep` states up to `step`, the best one, and those to which others have added
/// files. States after `step`, where the run now is, are damaged ones that it could not resume from, so they do not
/// count among the last.
///
/// # Errors
///
/// [`TrainError::Io`] that names the directory.
pub fn prune(run: &Path, keep: usize, step: usize) -> Result<(), TrainError> {
    let (later, all): (Vec<_>, Vec<_>) = saved(run).into_iter().partition(|(at, _)| *at > step);
    let score = |path: &Path| record(path).ok()?.evaluation.filter(|value| value.is_finite());
    let scored = all.iter().filter_map(|(_, path)| Some((score(path)?, path)));
    let best = scored.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, path)| path.clone());
    let stale = all.iter().skip(keep.max(1)).map(|(_, path)| path.clone()).filter(|path| Some(path) != best.as_ref());
    for path in stale.chain(later.into_iter().map(|(_, path)| path)).collect::<Vec<_>>() {
        if Contents::Part.check(&path).is_err() {
            continue;
        }
        // Renamed first, so that a partly removed directory is not taken for a state.
        let doomed = path.with_file_name(format!(".basic-stale-{}", path.file_name().unwrap_or_default().display()));
        let io = |source| TrainError::Io { path: path.clone(), source };
        fs::rename(&path, &doomed).map_err(io)?;
        Contents::Part.clear(&doomed)?;
    }
    Ok(())
}

/// Removes what a killed run left half-written; the caller must hold the run's lock.
pub fn sweep(run: &Path) {
    [run, &folder(run)].into_iter().for_each(crash_cleanup::sweep);
}

fn record(state: &Path) -> Result<Position, String> {
    let path = state.join(RECORD);
    let text = basic_models::outside::read_json_text(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let position: Position = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let damaged = |why: &str| Err(format!("{} is damaged: {why}", path.display()));
    let named = state.file_name().and_then(|name| name.to_str()).and_then(step_of);
    if named.is_some_and(|step| step != position.step) {
        return damaged(&format!("it says step {}, its folder's name another", position.step));
    }
    match position.digest() {
        Ok(own) if position.checksum.is_empty() || own == position.checksum => Ok(position),
        _ => damaged("its values are not those that its checksum was made of"),
    }
}

/// The step number in the name of a state's folder.
fn step_of(name: &str) -> Option<usize> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Reads a state's record and checks its files.
fn verify(state: &Path) -> Result<Position, String> {
    let position = record(state)?;
    // A state has no record of image files if the run read none, or if an earlier version wrote it.
    let images = position.files.contains_key(IMAGES).then(|| IMAGES.to_string());
    let optimizer = moments::files(&position).map_err(|reason| format!("{RECORD} {reason}"))?;
    for name in [PARAMETERS.to_string()].into_iter().chain(optimizer).chain(images) {
        let path = state.join(&name);
        let found = checksum(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let expected = position.files.get(&name).ok_or_else(|| format!("{RECORD} does not list {name}"))?;
        if found != *expected {
            return Err(format!(
                "{} is damaged: {} bytes with checksum {}, written were {} with {}",
                path.display(),
                found.bytes,
                found.xxh3,
                expected.bytes,
                expected.xxh3
            ));
        }
    }
    Ok(position)
}

/// The latest undamaged state; `warn` is called for each damaged one.
///
/// # Errors
///
/// [`TrainError::Resume`] if there are states but all of them are damaged.
pub fn latest(run: &Path, warn: &mut dyn FnMut(&str)) -> Result<Option<(PathBuf, Position)>, TrainError> {
    let mut damaged = Vec::new();
    for (_, path) in saved(run) {
        match verify(&path) {
            Ok(position) => return Ok(Some((path, position))),
            Err(reason) => {
                warn(&format!("{reason}; the state before it is used"));
                damaged.push(reason);
            }
        }
    }
    match damaged.first() {
        None => Ok(None),
        Some(first) => Err(TrainError::Resume {
            path: folder(run),
            reason: format!("none of its {} states is whole ({first}): start the run anew", damaged.len()),
        }),
    }
}

/// A state's record of the image files that were read; `None` if it has none.
///
/// # Errors
///
/// [`TrainError::Io`] that names the file.
pub fn images(state: &Path, position: &Position) -> Result<Option<Vec<u8>>, TrainError> {
    let path = state.join(IMAGES);
    let read = position.files.contains_key(IMAGES).then(|| fs::read(&path)).transpose();
    read.map_err(|source| TrainError::Io { path, source })
}

/// Restores the trained parameters of a state into a model that was made from the same recipe.
///
/// # Errors
///
/// [`TrainError::Resume`] if a tensor is missing, unexpected or of another shape; [`TrainError::Io`] if a file cannot
/// be read.
pub fn restore(state: &Path, model: Llava) -> Result<Llava, TrainError> {
    let path = state.join(PARAMETERS);
    let io = |source| TrainError::Io { path: path.clone(), source };
    let file = Tensors::open(&path).map_err(io)?;
    let mut left: Vec<String> = file.names().collect();
    let mut fill = Fill { path: ParamPath::new(""), file, taken: Vec::new(), failed: None, only: &|_| true };
    let model = model.map(&mut fill);
    let wrong = |reason: String| TrainError::Resume { path: path.clone(), reason };
    if let Some(reason) = fill.failed {
        return Err(wrong(reason));
    }
    left.retain(|name| !fill.taken.contains(name));
    if let Some(name) = left.first() {
        return Err(wrong(format!("holds {name}, which this run does not train: was the recipe changed?")));
    }
    Ok(model)
}

/// The trained parameters, with Hugging Face's names and orientation.
pub(super) fn trained<M: Module>(module: &M) -> Vec<Outgoing> {
    struct Trained {
        path: ParamPath,
        found: Vec<Outgoing>,
    }
    impl ModuleVisitor for Trained {
        fn enter_module(&mut self, name: &str, owner: &str) {
            self.path.enter(name, owner);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let tensor = param.val();
                let slot = self.path.slot(&tensor.dims());
                self.found.push(Outgoing::new(slot.name, tensor, slot.transposed));
            }
        }
    }
    let mut trained = Trained { path: ParamPath::new(""), found: Vec::new() };
    module.visit(&mut trained);
    trained.found
}

/// Fills the trained parameters from a file, by name.
pub(super) struct Fill<'a> {
    pub path: ParamPath,
    pub file: Tensors,
    /// The names that were found in the file.
    pub taken: Vec<String>,
    /// The first error.
    pub failed: Option<String>,
    /// Selects the names to be filled.
    pub only: &'a dyn Fn(&str) -> bool,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() || self.failed.is_some() {
            return param;
        }
        let (dims, dtype) = (param.val().dims(), param.val().dtype());
        let slot = self.path.slot(&dims);
        if !(self.only)(&slot.name) {
            return param;
        }
        let data: TensorData = match self.file.read(&slot.name, slot.transposed) {
            Ok(Some(data)) => data,
            Ok(None) => {
                self.failed = Some(format!("lacks {}, which this run trains: was the recipe changed?", slot.name));
                return param;
            }
            Err(error) => {
                self.failed = Some(format!("{}: {error}", slot.name));
                return param;
            }
        };
        if data.shape().to_vec() != dims || data.dtype() != dtype {
            self.failed = Some(format!(
                "{} is {:?} {:?}, this run's is {dims:?} {dtype:?}: was the recipe changed?",
                slot.name,
                data.shape().to_vec(),
                data.dtype()
            ));
            return param;
        }
        self.taken.push(slot.name);
        param.map(|held| {
            let (device, strategy) = (held.device().without_autodiff(), held.gradient_checkpointing_strategy());
            let tensor = Tensor::<D>::from_data(data, (&device, dtype)).autodiff();
            match strategy {
                Some(strategy) => tensor.with_gradient_checkpointing_strategy(strategy),
                None => tensor,
            }
            .require_grad()
        })
    }
}
