//! The demo: LLaVA's baseline and BASIC side by side on the embedded world, from embedded backbones to a report. It is a
//! study like those of `basic ablate`, which its engine runs.
//!
//! - `study` is the study with what the command line changes, `outcome` what its runs say, `record` what is written and told
//!   after each seed.
//! - `real` is another study, on real backbones.
//! - `summary` holds that, and `conclusion` its two sentences; `report` shows it as a page and as a table.

mod conclusion;
mod outcome;
mod real;
mod record;
pub mod report;
mod study;
pub mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use basic_core::{DeviceSpec, available_devices};
use basic_models::CheckpointError;
use basic_models::checkpoint::Contents;
use serde::Serialize;
use thiserror::Error;

pub use real::{MINUTES_A_RUN, REAL_SEEDS, RealConfig, RealEnded, run_real, runs_left};
pub use record::SeedDone;
pub use study::{Changes, FULL_SEEDS, SEEDS, SETTINGS};

use crate::pages::{PageError, PictureError};
use crate::studies::embedded_study::{CellRun, Embedded};
use crate::studies::{AblateError, AblateOptions, Event, Observer, Study};
use basic_data::ImageNameError;
use basic_models::atomic_file::write_atomically;
use record::Record;
use summary::Summary;

/// The arms, baseline first.
pub const ARMS: [&str; 2] = ["llava", "basic"];

/// Answers shown in the report.
const SHOWN: usize = 6;

/// What to run.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// Where everything is written.
    pub out: PathBuf,
    /// Seeds 0 to n - 1.
    pub seeds: usize,
    /// Where to compute.
    pub device: DeviceSpec,
    /// Both settings, both stages and all measures, in place of the setting `few` after the pretrain stage.
    pub full: bool,
    /// This one of the [`SETTINGS`] alone.
    pub only: Option<String>,
    /// What is changed of the recipes.
    pub changes: Changes,
    /// Replace a demo that is there.
    pub overwrite: bool,
    /// How often the validation split is asked in the pretrain stage, in steps.
    pub validate_every: usize,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Once it is set, the running steps come to their end and the demo shows the seeds that are done.
    pub stop: Arc<AtomicBool>,
}

/// Why the demo stopped.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The study could not be run.
    #[error(transparent)]
    Study(#[from] AblateError),
    /// What is there is not replaced.
    #[error(transparent)]
    There(#[from] CheckpointError),
    /// A sample's image is not below the folder of images.
    #[error("sample {0}")]
    Outside(#[from] ImageNameError),
    /// A sample's image cannot be shown.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The page's template failed, which is a defect of this crate.
    #[error(transparent)]
    Page(#[from] PageError),
}

/// How a demo ended.
#[derive(Debug)]
pub struct Ended {
    /// What its seeds show; none where not one was done in both arms.
    pub summary: Option<Summary>,
    /// Whether it was asked to stop.
    pub stopped: bool,
}

/// Runs the demo, and writes `summary.json` and `report.html` after every seed, which `told` hears of.
///
/// # Errors
///
/// [`DemoError`] that names the file and the way out.
pub fn run(config: &DemoConfig, observer: Observer, told: &(dyn Fn(&SeedDone) + Sync)) -> Result<Ended, DemoError> {
    let mut study = study::study(config.seeds, config.only.as_deref(), config.validate_every)?;
    if !config.full {
        study = study::short(study);
    }
    let devices = devices(config.device);
    let record = Record::new(config, &study, devices.len(), told);
    let ran = conduct(study, config, devices, SHOWN, observer, &|runs| record.hear(runs));
    // What could not be written ends the runs, and is the reason to tell.
    let summary = record.end()?;
    let (_, stopped) = ran?;
    Ok(Ended { summary, stopped })
}

/// One pair of lambdas; both 0 is the baseline.
#[derive(Debug, Clone, Serialize)]
pub struct SweepRow {
    /// Weight of the directional loss.
    pub lambda_das: f64,
    /// Weight of the semantic loss.
    pub lambda_sds: f64,
    /// Exact match on the validation split after the pretrain stage, per seed.
    pub last: Vec<f64>,
    /// The same at each run's best step.
    pub best: Vec<f64>,
}

/// Runs the pretrain stage for every pair of lambdas, with seeds that the demo does not use, and asks the validation split.
///
/// # Errors
///
/// [`DemoError`] that names the file.
pub fn sweep(config: &DemoConfig, pairs: &[(f64, f64)], observer: Observer) -> Result<Vec<SweepRow>, DemoError> {
    let study = study::study(config.seeds, config.only.as_deref(), config.validate_every)?;
    let study = study::of_lambdas(study, pairs);
    let (runs, _) = conduct(study, config, devices(config.device), 0, observer, &|_| {})?;
    let row = |pair: &(f64, f64)| {
        let name = study::cell(*pair);
        let values = |metric: &str| {
            let here = runs.iter().filter(|run| run.cell == name).flat_map(|run| &run.stages);
            here.filter_map(|stage| stage.result.values.get(metric).copied()).collect()
        };
        SweepRow { lambda_das: pair.0, lambda_sds: pair.1, last: values("accuracy"), best: values("best.validation") }
    };
    Ok(pairs.iter().map(row).collect())
}

/// Runs a study in the demo's directory.
fn conduct(
    study: Study,
    config: &DemoConfig,
    devices: Vec<DeviceSpec>,
    samples: usize,
    observer: Observer,
    told: &(dyn Fn(&[CellRun]) + Sync),
) -> Result<(Vec<CellRun>, bool), DemoError> {
    let study = Embedded::new(study, &config.out, &config.changes.sets(), samples)?;
    clear(config)?;
    observer(Event::Part("demo", study.steps()));
    let options = AblateOptions {
        out: config.out.clone(),
        sets: Vec::new(),
        only: Vec::new(),
        devices,
        group: None,
        stop: config.stop.clone(),
        revision: config.revision.clone(),
    };
    Ok(study.run(&options, observer, told)?)
}

/// The device of each worker. The models are so small that two at a time, each on half of a CPU's cores, take less time than
/// one after the other on all of them; a GPU takes one at a time.
fn devices(device: DeviceSpec) -> Vec<DeviceSpec> {
    let found = || available_devices().into_iter().find(|info| info.usable && !info.software).map(|info| info.spec);
    let device = if device == DeviceSpec::Auto { found().unwrap_or(device) } else { device };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let two = matches!(device, DeviceSpec::Cpu | DeviceSpec::NdArray) && cores > 1;
    vec![device; if two { 2 } else { 1 }]
}

/// Clears what an earlier demo left, where that is allowed.
fn clear(config: &DemoConfig) -> Result<(), DemoError> {
    if config.out.read_dir().is_ok_and(|mut d| d.next().is_some()) {
        if !config.overwrite {
            return Err(CheckpointError::Exists(config.out.clone()).into());
        }
        // Only what a demo writes; anything else in the directory stays, and in these folders there is nothing else.
        let parts = [("data", Contents::Shapes), ("backbones", Contents::Backbones), ("runs", Contents::DemoRuns)];
        let parts = parts.map(|(name, contents)| (config.out.join(name), contents));
        let there = |path: &Path| path.symlink_metadata().is_ok();
        parts.iter().filter(|(path, _)| there(path)).try_for_each(|(path, contents)| contents.check(path))?;
        let summary = config.out.join("summary.json");
        let read = basic_models::outside::read(&summary).ok();
        let ours = read.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        let ours = ours.is_some_and(|summary| summary.get("settings").is_some());
        let results = [summary, config.out.join("report.html")];
        if let Some(path) = results.iter().find(|path| there(path)).filter(|_| !ours) {
            let reason = "is of no demo, and --overwrite takes nothing else away: move it elsewhere, or choose another";
            return Err(CheckpointError::Mismatch(format!("{}: {reason} directory", path.display())).into());
        }
        parts.iter().filter(|(path, _)| there(path)).try_for_each(|(path, contents)| contents.remove(path))?;
        // A demo that is stopped before its first seed is done leaves no results, and none of another demo either.
        for path in results.iter().filter(|path| there(path)) {
            std::fs::remove_file(path).map_err(AblateError::io(path))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: std::io::Result<String>) -> Result<(), DemoError> {
    let written = text.and_then(|text| write_atomically(path, text.as_bytes()));
    Ok(written.map_err(AblateError::io(path))?)
}
