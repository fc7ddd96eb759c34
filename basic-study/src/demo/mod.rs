//! The demo: LLaVA's baseline and BASIC side by side on the embedded world, from embedded backbones to a report. It is a
//! study like those of `basic ablate`, which its engine runs.
//!
//! - `study` is the study with what the command line changes, `outcome` what its runs say.
//! - `summary` holds that; `report` shows it as a page and as a table.

mod outcome;
pub mod report;
mod study;
pub mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use basic_core::DeviceSpec;
use basic_models::CheckpointError;
use basic_models::checkpoint::Contents;
use serde::Serialize;
use thiserror::Error;

pub use study::{Changes, SETTINGS};

use crate::pages::{PageError, PictureError};
use crate::studies::embedded_study::{CellRun, Embedded};
use crate::studies::{AblateError, AblateOptions, Observer, Study};
use basic_data::ImageNameError;
use basic_eval::questions::read_questions;
use basic_models::atomic_file::write_atomically;
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

/// Runs the demo and writes `summary.json` and `report.html`.
///
/// # Errors
///
/// [`DemoError`] that names the file and the way out.
pub fn run(config: &DemoConfig, observer: Observer) -> Result<Summary, DemoError> {
    let start = Instant::now();
    let study = study::study(config.seeds, config.only.as_deref(), config.validate_every)?;
    let runs = conduct(study, config, SHOWN, observer)?;
    for stage in runs.iter().flat_map(|run| &run.stages) {
        let text = toml::to_string(&stage.recipe).map_err(|error| std::io::Error::other(error.to_string()));
        write(&stage.run.join("recipe.toml"), text)?;
    }
    let data = config.out.join("data");
    let questions = read_questions(&data.join("eval.jsonl")).map_err(AblateError::from)?;
    let summary = Summary {
        version: env!("CARGO_PKG_VERSION").into(),
        revision: config.revision.clone(),
        device: config.device.to_string(),
        seconds: start.elapsed().as_secs_f64(),
        settings: outcome::settings(&runs, questions.len())?,
        majority: outcome::majority(&questions),
    };
    let json = serde_json::to_string_pretty(&summary).map_err(|error| std::io::Error::other(error.to_string()));
    write(&config.out.join("summary.json"), json.map(|json| json + "\n"))?;
    write(&config.out.join("report.html"), Ok(report::render_html(&summary, &data)?))?;
    Ok(summary)
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
    let runs = conduct(study::of_lambdas(study, pairs), config, 0, observer)?;
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
fn conduct(study: Study, config: &DemoConfig, samples: usize, observer: Observer) -> Result<Vec<CellRun>, DemoError> {
    let study = Embedded::new(study, &config.out, &config.changes.sets(), samples)?;
    clear(config)?;
    let options = AblateOptions {
        out: config.out.clone(),
        sets: Vec::new(),
        only: Vec::new(),
        devices: vec![config.device],
        stop: Arc::new(AtomicBool::new(false)),
        revision: config.revision.clone(),
    };
    Ok(study.run(&options, observer)?)
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
        if let Some(path) = [summary, config.out.join("report.html")].iter().find(|path| there(path)).filter(|_| !ours)
        {
            let reason = "is of no demo, and --overwrite takes nothing else away: move it elsewhere, or choose another";
            return Err(CheckpointError::Mismatch(format!("{}: {reason} directory", path.display())).into());
        }
        parts.iter().filter(|(path, _)| there(path)).try_for_each(|(path, contents)| contents.remove(path))?;
    }
    Ok(())
}

fn write(path: &Path, text: std::io::Result<String>) -> Result<(), DemoError> {
    let written = text.and_then(|text| write_atomically(path, text.as_bytes()));
    Ok(written.map_err(AblateError::io(path))?)
}
