//! Ablations: trains and measures the cells of a study with several seeds each, and writes tables of the results.
//!
//! - `study` and `factor` read the TOML file; `resolve` makes its recipes and `expand` its cells; `result_key` names a result
//!   by everything that it depends on, `layout` knows where it is stored, and `places` where its paths lead.
//! - `stage` trains and measures one cell with one seed; `measure`, `shapes`, `held_out` and `lens` have the measurements;
//!   `schedule` runs all cells; `event` is what the observer of a study receives on the way.
//! - `summary` collects the results in `column`s; `table`, `figure` and `page` show them.
//! - `embedded_study` runs studies that are part of the binary, such as the demo.

mod column;
pub(crate) mod embedded_study;
mod embedded_world;
mod event;
mod expand;
mod factor;
mod figure;
mod held_out;
mod layout;
mod lens;
mod measure;
pub(crate) mod page;
mod places;
mod resolve;
mod result;
mod result_key;
mod schedule;
mod shapes;
mod stage;
mod study;
mod summary;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use basic_core::{DeviceError, DeviceSpec};
use basic_data::DataError;
use basic_data::shapes::ShapesError;
use basic_eval::benchmarks::BenchmarkError;
use basic_eval::lens::LensError;
use basic_eval::losses::InspectError;
use basic_eval::measures::AnalysisError;
use basic_eval::questions::EvalError;
use basic_models::CheckpointError;
use basic_models::atomic_file::write_atomically;
use basic_train::directory_lock::{Held, HoldError};
use basic_train::parallel::{Collective, CollectiveError};
use basic_train::recipe::{RecipeError, toml_reason};
use basic_train::train::TrainError;
use serde::Serialize;
use thiserror::Error;

pub use column::{Better, Column, LayerOf, Unit};
pub use event::{Event, Observer};
pub use factor::{Factor, Variant};
pub use held_out::HeldOutConfig;
pub use lens::LensConfig;
pub use places::Moved;
pub use result::{SampleAnswer, StageResult, Values};
pub use study::{Measure, Study};
pub use summary::{Entry, Rows, Run, Summary, SummaryRow};

use crate::pages::PageError;
use expand::{Expanded, expand};
use layout::Layout;
use schedule::{Finished, Results, Schedule};

/// Why a study could not be run.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AblateError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {}", toml_reason(source), path = path.display())]
    Toml { path: PathBuf, source: toml::de::Error },
    #[error("{path}: {reason}", path = path.display())]
    Study { path: PathBuf, reason: String },
    #[error("{path}: {reason}: delete it and run the study again", path = path.display())]
    Result { path: PathBuf, reason: String },
    #[error(transparent)]
    Held(#[from] HoldError),
    #[error("--only {0}: no cell has this name: --list shows them")]
    Only(String),
    #[error("--devices {0}: a GPU is named twice; the CPU alone may be")]
    Twice(DeviceSpec),
    #[error("{failed} of {of} cells and seeds failed, such as {cell}: {source}")]
    Failed { failed: usize, of: usize, cell: String, source: Box<AblateError> },
    #[error("a worker ended: {0}")]
    Worker(String),
    #[error("rank {rank}: {message}")]
    Rank { rank: usize, message: String },
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Page(#[from] PageError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Lens(#[from] LensError),
    #[error(transparent)]
    Benchmark(#[from] BenchmarkError),
    #[error(transparent)]
    Shapes(#[from] ShapesError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl AblateError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// What the command line adds to a study.
#[derive(Clone)]
pub struct AblateOptions {
    /// Where everything is written.
    pub out: PathBuf,
    /// Changes of recipe keys, `KEY=VALUE`; cells still have the last word.
    pub sets: Vec<String>,
    /// Run these cells alone.
    pub only: Vec<String>,
    /// One worker each.
    pub devices: Vec<DeviceSpec>,
    /// The processes that this one was launched with: each runs some of the cells, and the first writes the tables.
    pub group: Option<Arc<dyn Collective>>,
    /// Once it is set, the running stages save their states and the study ends.
    pub stop: Arc<AtomicBool>,
    /// The source's git revision, where known.
    pub revision: Option<String>,
}

/// A cell with one seed, as `--list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// `setting/factor/name`
    pub cell: String,
    /// The seed.
    pub seed: u64,
    /// The stages' folders below `cells/`, and whether they have a result.
    pub stages: Vec<(String, String, bool)>,
}

/// How a study ended.
#[derive(Debug)]
pub struct Ablated {
    /// What it found.
    pub summary: Summary,
    /// Whether it was asked to stop.
    pub stopped: bool,
}

fn open(path: &Path, study: Study, options: &AblateOptions) -> Result<Expanded, AblateError> {
    let expanded = expand(path, study, &options.out, &options.sets, Layout::Hashed)?;
    for pattern in &options.only {
        if !expanded.cells.iter().any(|cell| Expanded::chosen(cell, std::slice::from_ref(pattern))) {
            return Err(AblateError::Only(pattern.clone()));
        }
    }
    Ok(expanded)
}

/// The cells of a study and which of them are done; nothing is run or written.
///
/// # Errors
///
/// [`AblateError`] that names the file and the key.
pub fn list(path: &Path, options: &AblateOptions) -> Result<Vec<Listed>, AblateError> {
    list_study(path, Study::open(path)?, options)
}

/// [`list`] for a study that was read already, from the file of this name.
pub(crate) fn list_study(path: &Path, study: Study, options: &AblateOptions) -> Result<Vec<Listed>, AblateError> {
    let expanded = open(path, study, options)?;
    let mut listed = Vec::new();
    for cell in expanded.cells.iter().filter(|cell| Expanded::chosen(cell, &options.only)) {
        for chain in &cell.chains {
            let mut stages = Vec::new();
            for (planned, config) in chain.stages.iter().zip(&expanded.study.stages) {
                let done = StageResult::read(planned)?.is_some();
                stages.push((config.name.clone(), planned.hash.clone(), done));
            }
            listed.push(Listed { cell: cell.id.clone(), seed: chain.seed, stages });
        }
    }
    Ok(listed)
}

/// Runs what of a study has no result yet and writes `results.json`, `table.md`, `table.csv` and `table.html`, again
/// after every stage.
///
/// # Errors
///
/// [`AblateError`]; one cell's failure does not keep the others from being run.
pub fn ablate(path: &Path, options: &AblateOptions, observer: Observer) -> Result<Ablated, AblateError> {
    ablate_study(path, Study::open(path)?, options, observer)
}

/// [`ablate`] for a study that was read already, from the file of this name.
pub(crate) fn ablate_study(
    path: &Path,
    study: Study,
    options: &AblateOptions,
    observer: Observer,
) -> Result<Ablated, AblateError> {
    let study = open(path, study, options)?;
    let write = |results: &Results| write(&study, results, &options.out, &options.revision);
    let (results, stopped) = conduct(&study, options, observer, &write)?;
    Ok(Ablated { summary: summary::summarize(&study, &results, options.revision.clone()), stopped })
}

/// Runs what of a study has no result yet. `write` is given all results that are there, before the first stage and after
/// each. Returns them, and whether it was asked to stop.
fn conduct(
    study: &Expanded,
    options: &AblateOptions,
    observer: Observer,
    write: &(dyn Fn(&Results) -> Result<(), AblateError> + Sync),
) -> Result<(Results, bool), AblateError> {
    for (index, device) in options.devices.iter().enumerate() {
        let shared = matches!(device, DeviceSpec::Cpu | DeviceSpec::NdArray);
        if !shared && options.devices[..index].contains(device) {
            return Err(AblateError::Twice(*device));
        }
    }
    let group = options.group.as_deref();
    let leads = group.is_none_or(|group| group.rank() == 0);
    let held = if leads { Some(Held::take(&options.out)?) } else { None };
    if let Some(world) = study.world.as_ref().filter(|_| leads) {
        observer(Event::Part("data set", 1));
        world.make()?;
    }
    group.map_or(Ok(()), |group| group.barrier())?;
    let jobs = schedule::jobs(study, &options.only);
    let of = jobs.len();
    let jobs = match group {
        Some(group) => schedule::share(jobs, group.rank(), group.world()),
        None => jobs,
    };
    let found = results(study, observer)?;
    let nothing = |_: &Results| Ok(());
    let write: &(dyn Fn(&Results) -> Result<(), AblateError> + Sync) = if held.is_some() { write } else { &nothing };
    write(&found)?;
    for text in study.study.unmeasured().iter().filter(|_| leads) {
        observer(Event::Warning(&format!("warning: {text}")));
    }
    let (stop, revision) = (options.stop.clone(), options.revision.clone());
    let schedule = Schedule { study, jobs, stop, revision, observer, write };
    let Finished { results: mut found, mut failed, mut stopped } = schedule.run(&options.devices, found)?;
    if let Some(group) = group {
        let own: Vec<(String, String)> = failed.iter().map(|(cell, error)| (cell.clone(), error.to_string())).collect();
        let all = group.share(&(own, stopped))?;
        stopped = all.iter().any(|(_, stopped)| *stopped);
        failed = Vec::new();
        for (rank, (cells, _)) in all.into_iter().enumerate() {
            failed.extend(cells.into_iter().map(|(cell, message)| (cell, AblateError::Rank { rank, message })));
        }
        found = results(study, &|_| {})?;
    }
    write(&found)?;
    let count = failed.len();
    if let Some((cell, source)) = failed.into_iter().next() {
        return Err(AblateError::Failed { failed: count, of, cell, source: Box::new(source) });
    }
    Ok((found, stopped))
}

/// The results that are there.
fn results(study: &Expanded, observer: Observer) -> Result<Results, AblateError> {
    let mut found = Results::new();
    let mut others = 0;
    for stage in study.cells.iter().flat_map(|cell| &cell.chains).flat_map(|chain| &chain.stages) {
        if found.contains_key(&stage.hash) {
            continue;
        }
        if let Some(result) = StageResult::read(stage)? {
            others += usize::from(result.version != env!("CARGO_PKG_VERSION"));
            found.insert(stage.hash.clone(), result);
        }
    }
    if others > 0 {
        let version = env!("CARGO_PKG_VERSION");
        let text = format!("warning: {others} results are of another version of basic than {version}");
        observer(Event::Warning(&text));
    }
    Ok(found)
}

fn write(study: &Expanded, results: &Results, out: &Path, revision: &Option<String>) -> Result<(), AblateError> {
    let summary = summary::summarize(study, results, revision.clone());
    let json = serde_json::to_string_pretty(&summary).map_err(|e| std::io::Error::other(e.to_string()));
    let json = json.map_err(AblateError::io(&out.join("results.json")))?;
    let csv = table::csv(&summary).map_err(|e| std::io::Error::other(e.to_string()));
    let csv = csv.map_err(AblateError::io(&out.join("table.csv")))?;
    let files = [
        ("results.json", (json + "\n").into_bytes()),
        ("table.md", table::markdown(&summary).into_bytes()),
        ("table.csv", csv),
        ("table.html", page::render(&summary)?.into_bytes()),
    ];
    for (name, bytes) in files {
        let path = out.join(name);
        write_atomically(&path, &bytes).map_err(AblateError::io(&path))?;
    }
    Ok(())
}
