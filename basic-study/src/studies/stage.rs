//! Running and measuring the stages of one cell with one seed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use basic_core::DeviceSpec;
use basic_eval::lens::{LensError, check_replaceable};
use basic_models::checkpoint::Contents;
use basic_train::recipe::Recipe;
use basic_train::train::{Outcome, RunInfo, RunOptions, Status, lacks, run};
use basic_train::watch::StepMetrics;

use super::AblateError;
use super::event::{Event, Observer};
use super::expand::{Chain, Expanded};
use super::measure::{Evaluator, Loaded};
use super::result::{SampleAnswer, StageResult, Values};
use super::study::{EarlyStopping, Measure, StopBy};

/// How a chain ended.
pub(super) enum Ended {
    /// All of its stages have results.
    Done,
    /// It was asked to stop.
    Stopped,
}

/// Runs chains on one device.
pub(super) struct Worker<'a> {
    pub study: &'a Expanded,
    pub device: DeviceSpec,
    pub evaluator: Evaluator,
    pub stop: Arc<AtomicBool>,
    pub revision: Option<String>,
    /// Hears what is done: stage and result.
    pub done: &'a (dyn Fn(&Chain, usize, StageResult) -> Result<(), AblateError> + Sync),
    pub observer: Observer<'a>,
}

/// What training took.
#[derive(Default)]
struct Took {
    steps: usize,
    seconds: f64,
    step_seconds: f64,
}

impl Worker<'_> {
    /// Trains and measures what of a chain has no result yet.
    pub fn chain(&mut self, chain: &Chain, label: &str) -> Result<Ended, AblateError> {
        for stage in 0..chain.stages.len() {
            if StageResult::read(&chain.stages[stage])?.is_some() {
                continue;
            }
            let Some(took) = self.trained(chain, stage, label)? else { return Ok(Ended::Stopped) };
            let start = Instant::now();
            let (values, samples) = self.measure(chain, stage, label)?;
            let planned = &chain.stages[stage];
            let result = StageResult {
                hash: planned.hash.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                revision: self.revision.clone(),
                device: self.device.to_string(),
                steps: took.steps,
                train_seconds: took.seconds,
                step_seconds: took.step_seconds,
                measure_seconds: start.elapsed().as_secs_f64(),
                values,
                samples,
                key: planned.key.clone(),
            };
            result.write(planned)?;
            // The states along the way have been looked at.
            let run = &planned.run;
            if self.study.study.stages[stage].early_stopping.is_some() && run.join("checkpoints").is_dir() {
                Contents::Run.clear_folder(run, "checkpoints")?;
            }
            (self.done)(chain, stage, result)?;
        }
        Ok(Ended::Done)
    }

    /// Trains a stage, and first those before it, as far as their checkpoints are not there. `None` where it was asked
    /// to stop.
    fn trained(&self, chain: &Chain, stage: usize, label: &str) -> Result<Option<Took>, AblateError> {
        let dir = chain.stages[stage].run.clone();
        let info = RunInfo::open(&dir).ok();
        // A run that is done and has lost its checkpoint is no more than its states.
        let whole = |info: &&RunInfo| info.status == Status::Done && lacks(&dir).is_none();
        if let Some(info) = info.as_ref().filter(whole) {
            let step_seconds = info.seconds / info.steps.max(1) as f64;
            return Ok(Some(Took { steps: info.steps, seconds: info.seconds, step_seconds }));
        }
        if stage > 0 && self.trained(chain, stage - 1, label)?.is_none() {
            return Ok(None);
        }
        let resume = info.is_some() && states(&dir).is_ok_and(|states| !states.is_empty());
        let recipe = self.recipe(chain, stage);
        if stage == 0 && !resume {
            self.check_measures(&recipe)?;
        }
        if !resume && dir.exists() {
            Contents::Run.remove_unmarked(&dir)?;
        }
        let options = RunOptions {
            devices: vec![self.device],
            out: Some(dir.clone()),
            resume,
            stop: Some(self.stop.clone()),
            revision: self.revision.clone(),
            ..RunOptions::default()
        };
        let name = &self.study.study.stages[stage].name;
        let start = Instant::now();
        let (mut seconds, mut told) = (Vec::new(), Instant::now());
        let mut progress = |step: &StepMetrics, steps: usize| {
            if seconds.is_empty() {
                (self.observer)(Event::Part(&format!("{name} {label}"), steps));
            }
            seconds.push(step.seconds);
            (self.observer)(Event::Step(step));
            // Small runs are over before anybody asks where they are.
            if told.elapsed().as_secs() >= 60 {
                told = Instant::now();
                let line = format!("{label}, {name}: step {} of {steps}, lm {:.3}", step.step, step.losses.lm);
                (self.observer)(Event::Line(&line));
            }
        };
        let mut warn = |text: &str| (self.observer)(Event::Warning(&format!("{label}, {name}: warning: {text}")));
        if let Outcome::Stopped { .. } = run(&recipe, &options, &mut warn, &mut progress)? {
            return Ok(None);
        }
        let steps = seconds.len();
        seconds.sort_by(f64::total_cmp);
        let step_seconds = seconds.get(steps / 2).copied().unwrap_or_default();
        let steps = RunInfo::open(&dir).map_or(steps, |info| info.steps);
        Ok(Some(Took { steps, seconds: start.elapsed().as_secs_f64(), step_seconds }))
    }

    /// Checks that what the stages measure can be measured on the model, before any of it is trained.
    fn check_measures(&self, first: &Recipe) -> Result<(), AblateError> {
        let study = &self.study.study;
        let measures: Vec<Measure> = study.stages.iter().flat_map(|stage| study.measures(stage)).collect();
        let lens = study.evaluation.lens.as_ref().filter(|_| measures.contains(&Measure::Lens));
        let replaced = measures.contains(&Measure::ReplacedChoices);
        if lens.is_none() && !replaced {
            return Ok(());
        }
        let config = first.model.config(first.seed)?;
        let wrong = |measure: &str, error: LensError| {
            let reason = format!("{measure} cannot be measured: {error}");
            AblateError::Study { path: self.study.path.clone(), reason }
        };
        if replaced {
            check_replaceable(&config).map_err(|error| wrong("replaced_choices", error))?;
        }
        lens.map_or(Ok(()), |lens| lens.check(&config)).map_err(|error| wrong("lens", error))
    }

    /// The recipe of a stage as it is run.
    fn recipe(&self, chain: &Chain, stage: usize) -> Recipe {
        let mut recipe = chain.stages[stage].recipe.placed.clone();
        if stage > 0 {
            recipe.model.checkpoint = Some(chain.stages[stage - 1].run.clone());
        }
        if let Some(stop) = &self.study.study.stages[stage].early_stopping {
            recipe.checkpoint.every = Some(stop.every);
            recipe.checkpoint.full = true;
            recipe.checkpoint.keep_last = usize::MAX;
            if let (StopBy::Loss, Some(eval)) = (stop.by, &mut recipe.eval) {
                eval.every = stop.every;
            }
        }
        recipe.watch.tensorboard = false;
        recipe
    }

    fn measure(
        &mut self,
        chain: &Chain,
        stage: usize,
        label: &str,
    ) -> Result<(Values, Vec<SampleAnswer>), AblateError> {
        let study = &self.study.study;
        let (planned, config) = (&chain.stages[stage], &study.stages[stage]);
        let recipe = &planned.recipe.placed;
        let (dir, dtype) = (&planned.run, recipe.train.dtype.dtype());
        let recipes: Vec<Recipe> = chain.stages[..=stage].iter().map(|s| s.recipe.placed.clone()).collect();
        self.evaluator.keep_features(&recipes[0], &recipes, dir)?;
        let loaded = Loaded::open(dir, dtype, self.evaluator.device())?;
        let (measures, answers) = (study.measures(config), planned.folder.join("answers"));
        (self.observer)(Event::Part(&format!("asking {label}"), self.evaluator.questions()));
        let (mut values, samples) = self.evaluator.scores(&loaded, &measures, &answers, self.observer)?;
        values.extend(self.evaluator.held_out(&loaded, &measures, &recipe.objective, self.observer)?);
        values.extend(self.evaluator.lens(&loaded, &measures)?);
        let Some(stop) = &config.early_stopping else { return Ok((values, samples)) };
        let (step, validation, best) = self.best(dir, stage, stop, recipe, label)?;
        let last = states(dir).map_err(AblateError::io(dir))?.last().is_some_and(|(at, _)| *at == step);
        let at_best = match last {
            true => {
                let scored = |name: &String| name.starts_with("accuracy") || self.is_benchmark(name);
                values.iter().filter(|(name, _)| scored(name)).map(|(name, value)| (name.clone(), *value)).collect()
            }
            false => {
                let loaded = Loaded::open(&best, dtype, self.evaluator.device())?;
                self.evaluator.scores(&loaded, &measures, &answers.join(format!("step-{step}")), self.observer)?.0
            }
        };
        values.extend(at_best.into_iter().map(|(name, value)| (format!("best.{name}"), value)));
        values.insert("best.step".into(), step as f64);
        values.insert("best.validation".into(), validation);
        Ok((values, samples))
    }

    fn is_benchmark(&self, name: &str) -> bool {
        let names = &self.study.study.evaluation.benchmarks;
        names.iter().any(|bench| name.strip_prefix(bench.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.')))
    }

    /// The step of a run that a validation set says is best, what it says, and the checkpoint there. Of equal ones the
    /// first.
    fn best(
        &mut self,
        dir: &Path,
        stage: usize,
        stop: &EarlyStopping,
        recipe: &Recipe,
        label: &str,
    ) -> Result<(usize, f64, PathBuf), AblateError> {
        let found = states(dir).map_err(AblateError::io(dir))?;
        let losses = if stop.by == StopBy::Loss { losses(dir)? } else { Vec::new() };
        let questions = self.evaluator.validation(stage);
        let mut best: Option<(f64, usize, f64, PathBuf)> = None;
        (self.observer)(Event::Part(&format!("validating {label}"), found.len()));
        for (at, (step, state)) in found.into_iter().enumerate() {
            (self.observer)(Event::Done(at));
            let model = state.join("model");
            let said = match &questions {
                Some(questions) => {
                    let loaded = Loaded::open(&model, recipe.train.dtype.dtype(), self.evaluator.device())?;
                    Some(self.evaluator.accuracy(&loaded, questions)?)
                }
                None => losses.iter().find(|(at, _)| *at == step).map(|(_, loss)| *loss),
            };
            let Some(said) = said else { continue };
            let rank = if questions.is_some() { said } else { -said };
            if best.as_ref().is_none_or(|(most, ..)| rank > *most) {
                best = Some((rank, step, said, model));
            }
        }
        let (_, step, said, model) = best.ok_or_else(|| AblateError::Result {
            path: dir.into(),
            reason: "holds no state that a validation set could choose: delete it and run again".into(),
        })?;
        Ok((step, said, model))
    }
}

/// A run's states with whole checkpoints, in order.
fn states(run: &Path) -> std::io::Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    let folder = run.join("checkpoints");
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The language-model losses of a run's held-out evaluations.
fn losses(run: &Path) -> Result<Vec<(usize, f64)>, AblateError> {
    let path = run.join("eval.jsonl");
    let text = basic_models::outside::read_text(&path).map_err(AblateError::io(&path))?;
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((value["step"].as_u64()? as usize, value["lm"].as_f64()?))
    };
    Ok(text.lines().filter_map(line).collect())
}
