//! A whole run: recipe in, checkpoint, metrics and a record of how it was made out.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use basic_core::DeviceSpec;
use basic_models::checkpoint::{AssembleOptions, StagedDir};
use basic_models::{Checkpoint, CheckpointError};
use burn::tensor::DType;
use serde::Serialize;

use super::{Progress, TrainError, Trainer, set_trainable};
use crate::data::{DataSet, Samples, prepare};
use crate::files::write_atomically;
use crate::recipe::{Recipe, Stage};

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Overrides the recipe's device.
    pub device: Option<DeviceSpec>,
    /// Overrides the recipe's output.
    pub out: Option<PathBuf>,
    /// Replace a run that is there.
    pub overwrite: bool,
    /// The source's git revision, where known.
    pub revision: Option<String>,
}

/// How a run was made: `run.json`.
#[derive(Debug, Clone, Serialize)]
pub struct RunInfo {
    /// `running`, `done` or `failed`.
    pub status: &'static str,
    /// The resolved recipe: every default written out.
    pub recipe: Recipe,
    /// Steps of the run.
    pub steps: usize,
    /// Samples in the data.
    pub samples: usize,
    /// basic's version.
    pub version: &'static str,
    /// Burn's version.
    pub burn: &'static str,
    /// The source's git revision, where known.
    pub revision: Option<String>,
    /// Seconds so far.
    pub seconds: f64,
}

/// The records of a run.
const RUN_FILES: [&str; 2] = ["run.json", "metrics.jsonl"];

/// Runs a recipe. `metrics.jsonl` and `run.json` grow in the output directory; the checkpoint's files get their names
/// when all of them are on disk.
///
/// # Errors
///
/// [`TrainError`]; the output directory then holds the metrics up to the failure and no checkpoint.
pub fn run(recipe: &Recipe, options: &RunOptions, progress: Progress) -> Result<PathBuf, TrainError> {
    let start = Instant::now();
    let mut recipe = recipe.clone();
    if let Some(device) = options.device {
        recipe.device = device;
    }
    let out = options.out.clone().or(recipe.output.clone()).ok_or(TrainError::NoOutput)?;
    recipe.output = Some(out.clone());
    recipe.optimizer.lr = Some(recipe.lr());
    recipe.train.trainable = Some(recipe.trainable());
    let device = recipe.device.open()?.autodiff();

    let checkpoint = open_model(&recipe)?;
    recipe.objective.k = Some(recipe.objective.resolve_k(checkpoint.config.text_config.num_hidden_layers)?);
    let data = DataSet::open(&recipe.data, recipe.seed)?;
    // Every sample is tokenized once before the first step, so that a bad one costs seconds and not hours.
    let captions = recipe.stage == Stage::Pretrain;
    let style = recipe.data.conversation.resolve(&checkpoint, captions)?;
    for index in 0..data.len() {
        prepare(&data.outline(index)?, &checkpoint, &style)?;
    }
    let mut trainer = Trainer::new(&recipe, &checkpoint, &data)?;
    let same = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| out.canonicalize().is_ok_and(|out| dir == out));
    if recipe.model.checkpoint.iter().any(same) {
        let reason = "is the model to start from: choose another output directory";
        return Err(CheckpointError::Mismatch(format!("{}: {reason}", out.display())).into());
    }
    let mut model = set_trainable(checkpoint.load(DType::F32, &device)?, &recipe.trainable());
    let replaced = prepare_output(&out, options.overwrite)?;
    let io = |path: PathBuf| move |source| TrainError::Io { path, source };
    let info = |status, seconds| RunInfo {
        status,
        recipe: recipe.clone(),
        steps: recipe.steps(data.len()),
        samples: data.len(),
        version: env!("CARGO_PKG_VERSION"),
        burn: "0.22.1",
        revision: options.revision.clone(),
        seconds,
    };
    let steps = trainer.steps();
    let trained = (|| {
        write_info(&out, &info("running", 0.0))?;
        let metrics_path = out.join("metrics.jsonl");
        let mut metrics = BufWriter::new(File::create(&metrics_path).map_err(io(metrics_path.clone()))?);
        while trainer.done() < steps {
            let step;
            (model, step) = trainer.step(model.clone())?;
            let line = serde_json::to_string(&step).map_err(|e| std::io::Error::other(e.to_string()));
            line.and_then(|line| writeln!(metrics, "{line}").and_then(|()| metrics.flush()))
                .map_err(io(metrics_path.clone()))?;
            progress(&step, steps);
        }
        save(&checkpoint, &model, &out)
    })();
    let seconds = start.elapsed().as_secs_f64();
    match trained {
        Ok(()) => {
            write_info(&out, &info("done", seconds))?;
            replaced.discard()?;
        }
        Err(error) => {
            // The failure itself is what the caller must hear of, not a full disk on top of it.
            let _ = write_info(&out, &info("failed", seconds));
            let _ = replaced.restore();
            return Err(error);
        }
    }
    Ok(out)
}

/// Opens the model that a recipe starts from.
///
/// # Errors
///
/// [`CheckpointError`] that names the file.
pub(crate) fn open_model(recipe: &Recipe) -> Result<Checkpoint, CheckpointError> {
    match (&recipe.model.checkpoint, &recipe.model.vision, &recipe.model.llm) {
        (Some(dir), _, _) => Checkpoint::open(dir),
        (None, Some(vision), Some(llm)) => {
            let mut options = AssembleOptions { seed: recipe.seed, ..AssembleOptions::default() };
            if let Some(projector) = &recipe.model.projector {
                options.projector = projector.clone();
            }
            Checkpoint::assemble_with(vision, llm, &options)
        }
        // `Recipe::open` has checked it; a recipe built in code may not have been.
        _ => Err(CheckpointError::Mismatch("[model] needs either `checkpoint`, or `vision` and `llm`".into())),
    }
}

fn write_info(out: &Path, info: &RunInfo) -> Result<(), TrainError> {
    let path = out.join("run.json");
    let text = serde_json::to_string_pretty(info).map_err(|e| std::io::Error::other(e.to_string()));
    text.and_then(|text| write_atomically(&path, (text + "\n").as_bytes()))
        .map_err(|source| TrainError::Io { path, source })
}

/// An earlier run that is being replaced: put aside until the new one has succeeded.
struct Replaced {
    out: PathBuf,
    aside: Option<PathBuf>,
}

/// Makes the output directory. What an earlier run left is refused, or moved aside where it may be replaced.
fn prepare_output(out: &Path, overwrite: bool) -> Result<Replaced, TrainError> {
    let entries: Vec<PathBuf> = match std::fs::read_dir(out) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(TrainError::Io { path: out.into(), source }),
    };
    if !entries.is_empty() && !overwrite {
        return Err(CheckpointError::Exists(out.into()).into());
    }
    std::fs::create_dir_all(out).map_err(|source| TrainError::Io { path: out.into(), source })?;
    if entries.is_empty() {
        return Ok(Replaced { out: out.into(), aside: None });
    }
    let aside = out.join(".replaced");
    if !aside.is_dir() {
        move_all(entries.iter().filter(|path| **path != aside), &aside)?;
    }
    // Where there is one already, a run that was killed left it: it holds the last whole checkpoint.
    Ok(Replaced { out: out.into(), aside: Some(aside) })
}

impl Replaced {
    /// The new run is whole: the earlier one goes.
    fn discard(self) -> Result<(), TrainError> {
        let Some(aside) = self.aside else { return Ok(()) };
        std::fs::remove_dir_all(&aside).map_err(|source| TrainError::Io { path: aside, source })
    }

    /// The new run has failed: the earlier one comes back, the failed one's records stay as `failed-*`.
    fn restore(self) -> Result<(), TrainError> {
        let Some(aside) = self.aside else { return Ok(()) };
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TrainError::Io { path, source }
        };
        for name in RUN_FILES {
            let path = self.out.join(name);
            if path.is_file() {
                std::fs::rename(&path, self.out.join(format!("failed-{name}"))).map_err(io(&path))?;
            }
        }
        let held = std::fs::read_dir(&aside).map_err(io(&aside))?;
        let held: Vec<PathBuf> = held.flatten().map(|e| e.path()).collect();
        move_all(held.iter(), &self.out)?;
        std::fs::remove_dir(&aside).map_err(io(&aside))
    }
}

fn move_all<'a>(paths: impl Iterator<Item = &'a PathBuf>, target: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(target).map_err(|source| TrainError::Io { path: target.into(), source })?;
    for path in paths {
        let to = target.join(path.file_name().unwrap_or_default());
        std::fs::rename(path, &to).map_err(|source| TrainError::Io { path: path.clone(), source })?;
    }
    Ok(())
}

/// Writes the checkpoint into a folder inside `out`, then moves its files up, `config.json` last: a directory without
/// it is not taken for a checkpoint.
fn save(checkpoint: &Checkpoint, model: &basic_models::Llava, out: &Path) -> Result<(), TrainError> {
    let staged = StagedDir::new(&out.join("checkpoint"), true)?;
    checkpoint.save_into(model, &staged, DType::F32)?;
    staged.sync()?;
    let io = |path: PathBuf| move |source| TrainError::Io { path, source };
    let listing = std::fs::read_dir(staged.path()).map_err(io(out.into()))?;
    let mut files: Vec<PathBuf> = listing.flatten().map(|e| e.path()).collect();
    files.sort_by_key(|path| path.ends_with("config.json"));
    for file in files {
        let target = out.join(file.file_name().unwrap_or_default());
        std::fs::rename(&file, &target).map_err(io(target))?;
    }
    Ok(())
}
