//! The demo: LLaVA's baseline and BASIC side by side on the embedded world, from embedded backbones to a report.

mod assets;
mod measure;
mod plan;
pub mod report;
pub mod summary;
mod sweep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use basic_core::{DeviceError, DeviceSpec};
use basic_data::shapes::{ShapesError, write_dataset};
use basic_data::{DataError, DataSet, VisionCache};
use basic_eval::losses::InspectError;
use basic_eval::measures::AnalysisError;
use basic_eval::questions::EvalError;
use basic_models::atomic_file::write_atomically;
use basic_models::checkpoint::Contents;
use basic_models::nn::Llava;
use basic_models::{Checkpoint, CheckpointError};
use basic_train::recipe::{Recipe, Stage};
use basic_train::train::{TrainError, Trainer};
use basic_train::trainable::set_trainable;
use basic_train::watch::StepMetrics;
use burn::module::Module;
use burn::tensor::{DType, Device};
use thiserror::Error;

pub(crate) use assets::embedded;
pub use assets::write_backbones;
pub use plan::{Paths, Plan};
pub use sweep::{SweepRow, sweep};

pub(crate) use measure::Bench;
use summary::{Arm, Best, CurvePoint, Run, Setting, Summary};

/// The arms, baseline first.
pub const ARMS: [&str; 2] = ["llava", "basic"];

/// What to run.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// Where everything is written.
    pub out: PathBuf,
    /// Seeds 0 to n - 1.
    pub seeds: usize,
    /// Where to compute.
    pub device: DeviceSpec,
    /// The settings.
    pub plans: Vec<Plan>,
    /// Replace a demo that is there.
    pub overwrite: bool,
    /// Scenes of train, validation and eval.
    pub scenes: [usize; 3],
    /// How often the validation split is asked in the pretrain stage, in steps.
    pub validate_every: usize,
    /// The source's git revision, where known.
    pub revision: Option<String>,
}

/// Why the demo stopped.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DemoError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Shapes(#[from] ShapesError),
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
    Report(#[from] report::ReportError),
}

/// What the demo is doing.
pub enum Event<'a> {
    /// A new stage: its name and how many units it has.
    Stage(&'a str, usize),
    /// A training step.
    Step(&'a StepMetrics),
    /// Units of an evaluation done.
    Done(usize),
}

/// Sees what the demo is doing.
pub type Observer<'a> = &'a mut dyn FnMut(Event);

/// Runs the demo and writes `summary.json` and `report.html`.
///
/// # Errors
///
/// [`DemoError`] that names the file and the way out.
pub fn run(config: &DemoConfig, observer: Observer) -> Result<Summary, DemoError> {
    let start = Instant::now();
    let paths = Paths::new(&config.out);
    let device = prepare_world(config, &paths, observer)?;
    let bench = Bench::open(&paths, &device)?;
    let mut settings = Vec::new();
    for plan in &config.plans {
        let mut arms: Vec<Arm> = ARMS.iter().map(|name| Arm { name: (*name).into(), runs: Vec::new() }).collect();
        for seed in 0..config.seeds as u64 {
            for arm in &mut arms {
                let run = one_run(config, plan, &arm.name, seed, &paths, &bench, &device, observer)?;
                arm.runs.push(run);
            }
        }
        settings.push(Setting {
            name: plan.name.clone(),
            description: plan.description.clone(),
            captions: plan.captions,
            conversations: plan.conversations,
            eval_questions: bench.eval.len(),
            lambda_das: plan.lambda_das,
            lambda_sds: plan.lambda_sds,
            arms,
        });
    }
    let summary = Summary {
        version: env!("CARGO_PKG_VERSION").into(),
        revision: config.revision.clone(),
        device: config.device.to_string(),
        seconds: start.elapsed().as_secs_f64(),
        settings,
        majority: bench.majority(),
    };
    let io = io_error;
    let json = config.out.join("summary.json");
    let text = serde_json::to_string_pretty(&summary).map_err(|e| std::io::Error::other(e.to_string()));
    text.and_then(|text| write_atomically(&json, (text + "\n").as_bytes())).map_err(io(&json))?;
    let html = config.out.join("report.html");
    let page = report::render_html(&summary, &paths.data)?;
    write_atomically(&html, page.as_bytes()).map_err(io(&html))?;
    Ok(summary)
}

fn io_error(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> DemoError + use<> {
    let path = path.to_path_buf();
    move |source| DemoError::Io { path, source }
}

/// Clears what an earlier demo left, where that is allowed, and writes backbones and data set.
fn prepare_world(config: &DemoConfig, paths: &Paths, observer: Observer) -> Result<Device, DemoError> {
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
    let device = config.device.open()?.autodiff();
    write_backbones(&paths.backbones).map_err(io_error(&paths.backbones))?;
    let [train, validation, eval] = config.scenes;
    observer(Event::Stage("data set", 1));
    write_dataset(&paths.data, train, validation, eval, 0)?;
    observer(Event::Done(1));
    Ok(device)
}

/// Both stages of one arm with one seed.
#[allow(clippy::too_many_arguments)]
fn one_run(
    config: &DemoConfig,
    plan: &Plan,
    arm: &str,
    seed: u64,
    paths: &Paths,
    bench: &Bench,
    device: &Device,
    observer: Observer,
) -> Result<Run, DemoError> {
    let recipe = plan.recipe(Stage::Pretrain, arm, seed, config.device, paths);
    let checkpoint = Checkpoint::assemble(&paths.backbones.join("vision"), &paths.backbones.join("llm"), seed)?;
    let model = checkpoint.load(DType::F32, device)?;
    let label = format!("{}, {arm}, seed {seed}", plan.name);
    let mut cache = VisionCache::new(256);
    let mut best: Option<(Best, Llava)> = None;
    let mut validate = |step: usize, model: &Llava, cache: &mut VisionCache| -> Result<(), DemoError> {
        let accuracy = bench.validation_accuracy(&model.valid(), &checkpoint, cache)?;
        if best.as_ref().is_none_or(|(b, _)| accuracy > b.validation_accuracy) {
            best = Some((Best { step, validation_accuracy: accuracy, accuracy: 0.0 }, model.valid()));
        }
        Ok(())
    };
    let every = config.validate_every.max(1);
    let (model, curve, seconds) =
        train(&recipe, &checkpoint, model, &format!("{label}: pretrain"), observer, |step, model| {
            if step % every == 0 || step == plan.pretrain_steps {
                validate(step, model, &mut cache)?;
            }
            Ok(())
        })?;
    observer(Event::Stage(&format!("{label}: evaluation"), bench.eval.len()));
    let pretrain = bench.measure(&model, &checkpoint, &recipe, curve, seconds, &mut cache, observer)?;
    let best = match best {
        Some((best, _)) if best.step == plan.pretrain_steps => Best { accuracy: pretrain.accuracy, ..best },
        Some((best, model)) => Best { accuracy: bench.eval_accuracy(&model, &checkpoint, &mut cache)?, ..best },
        None => Best { step: plan.pretrain_steps, validation_accuracy: 0.0, accuracy: pretrain.accuracy },
    };
    save(&checkpoint, &model, &recipe)?;
    let recipe = plan.recipe(Stage::Finetune, arm, seed, config.device, paths);
    let (model, curve, seconds) =
        train(&recipe, &checkpoint, model, &format!("{label}: finetune"), observer, |_, _| Ok(()))?;
    observer(Event::Stage(&format!("{label}: evaluation"), bench.eval.len()));
    let finetune = bench.measure(&model, &checkpoint, &recipe, curve, seconds, &mut cache, observer)?;
    save(&checkpoint, &model, &recipe)?;
    Ok(Run { seed, pretrain, best, finetune })
}

type Trained = (Llava, Vec<CurvePoint>, f64);

/// All steps of a stage; returns the model, the losses and the median seconds of a step.
fn train(
    recipe: &Recipe,
    checkpoint: &Checkpoint,
    model: Llava,
    label: &str,
    observer: Observer,
    mut after: impl FnMut(usize, &Llava) -> Result<(), DemoError>,
) -> Result<Trained, DemoError> {
    let data = DataSet::open(&recipe.data, recipe.seed)?;
    let mut trainer = Trainer::new(recipe, checkpoint, std::sync::Arc::new(data))?;
    let steps = trainer.steps();
    observer(Event::Stage(label, steps));
    let mut model = set_trainable(model, &recipe.trainable());
    let mut curve = Vec::with_capacity(steps);
    let mut seconds = Vec::with_capacity(steps);
    while trainer.done() < steps {
        let metrics;
        (model, metrics) = trainer.step(model)?;
        observer(Event::Step(&metrics));
        let term = |name: &str| metrics.losses.get(name).copied().unwrap_or_default().into();
        curve.push(CurvePoint {
            step: metrics.step,
            lm: metrics.losses.lm.into(),
            das: term("das"),
            sds: term("sds"),
            total: metrics.total.into(),
        });
        seconds.push(metrics.seconds);
        after(metrics.step, &model)?;
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
    Ok((model, curve, median))
}

/// Writes the checkpoint of a stage with the recipe that repeats it.
fn save(checkpoint: &Checkpoint, model: &Llava, recipe: &Recipe) -> Result<(), DemoError> {
    let Some(out) = &recipe.output else { return Ok(()) };
    checkpoint.save(&model.valid(), out, DType::F32, true)?;
    let path = out.join("recipe.toml");
    let io = |source| DemoError::Io { path: path.clone(), source };
    let text = toml::to_string(recipe).map_err(|e| io(std::io::Error::other(e.to_string())))?;
    write_atomically(&path, text.as_bytes()).map_err(io)
}

/// Gradient norms by loss, as the summary holds them.
fn norms(norms: &basic_core::Losses<f32>) -> BTreeMap<String, f64> {
    norms.named().map(|(name, norm)| (name.to_string(), f64::from(*norm))).collect()
}
