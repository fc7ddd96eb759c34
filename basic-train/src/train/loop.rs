//! A run from its recipe to its checkpoint. [`run`] reads from top to bottom as a run goes: [`open`] what the recipe names,
//! [`prepare`] the model and the output directory, [`train`], [`conclude`].

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basic_core::DeviceSpec;
use basic_data::{DataSet, Samples, Watched};
use basic_models::{Checkpoint, Llava};
use burn::module::Module;
use xxhash_rust::xxh3::xxh3_64;

use super::caches::identify;
use super::inputs::{HeldOut, Inputs, unchanged};
use super::model::open_model;
use super::output::{self, Replaced};
use super::run_files::RunFiles;
use super::{
    Caches, Outcome, Progress, RunInfo, RunOptions, Status, StepSource, Stores, TrainError, Trainer, checks,
    prepare_model, state,
};
use crate::directory_lock::Held;
use crate::parallel::{Replicas, Solo};
use crate::recipe::Recipe;
use crate::watch::{Watcher, Watchers, is_evaluated, missing_steps};

/// Between two looks at the data files, at least; and so many times what the last look took.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_SHARE: u32 = 100;

/// Runs a recipe. `metrics.jsonl` and `run.json` grow in the output directory; the checkpoint's files get their names
/// when all of them are on disk. `warn` hears of what is not as it should be and does not end the run.
///
/// # Errors
///
/// [`TrainError`]; the output directory then holds the metrics up to the failure, the states that were saved, and no
/// checkpoint.
pub fn run(
    recipe: &Recipe,
    options: &RunOptions,
    warn: &mut dyn FnMut(&str),
    progress: Progress,
) -> Result<Outcome, TrainError> {
    let opened = open(recipe, options, warn)?;
    alike(&opened)?;
    let Prepared { first, record, replaced } = prepare(&opened, warn)?;
    let trained = train(&opened, &record, first, progress);
    if let Some(problem) = opened.stores.problem() {
        warn(&problem);
    }
    conclude(&record, replaced, trained)
}

/// Returns an error if processes that were launched together do not read the same. All have opened what they read when it
/// returns, and none has written anything.
fn alike(opened: &Opened) -> Result<(), TrainError> {
    let Some(group) = &opened.options.group else { return Ok(()) };
    // Each process has a device of its own.
    let recipe = Recipe { device: DeviceSpec::Auto, ..opened.recipe.clone() };
    let hash = |bytes: &[u8]| format!("{:016x}", xxh3_64(bytes));
    let Inputs { data, model, beside } = opened.inputs.clone();
    let version = (env!("CARGO_PKG_VERSION"), &opened.options.revision, opened.options.resume);
    let [version, recipe] =
        [serde_json::to_vec(&version), serde_json::to_vec(&recipe)].map(|text| hash(&text.unwrap_or_default()));
    let own = [
        ("the version and the command line", version),
        ("the recipe's values", recipe),
        ("the data files", data),
        ("the model's files", model),
        ("the model's configuration and vocabulary", beside),
    ];
    let all = group.share(&own.clone().map(|(_, hash)| hash))?;
    let differs = |(i, (what, _)): (usize, &(&'static str, String))| {
        let rank = all.iter().position(|hashes| hashes[i] != all[0][i])?;
        Some(TrainError::Differs { rank, what })
    };
    own.iter().enumerate().find_map(differs).map_or(Ok(()), Err)
}

/// What a run reads, opened and looked through. Nothing is written yet.
struct Opened<'a> {
    start: Instant,
    options: &'a RunOptions,
    /// With every default written out.
    recipe: Recipe,
    out: PathBuf,
    /// The record of the run that goes on, where its recipe was the one given.
    recorded: Option<RunInfo>,
    replicas: Replicas,
    checkpoint: Checkpoint,
    data: Arc<DataSet>,
    inputs: Inputs,
    /// What lies beside the model's weights, and is read again for the checkpoint.
    beside: Watched,
    source: Arc<StepSource>,
    held_out: Option<HeldOut>,
    stores: Stores,
}

/// What stands before the first step of this start.
struct Prepared<'a> {
    first: First<'a>,
    record: RunFiles<'a>,
    /// The earlier run in the output directory, put aside.
    replaced: Replaced,
}

/// The model and the state that all replicas begin with, and their caches.
struct First<'a> {
    model: Llava,
    trainer: Trainer<'a>,
    caches: Vec<Caches>,
}

/// Opens all that a recipe names and refuses what cannot be trained.
fn open<'a>(given: &Recipe, options: &'a RunOptions, warn: &mut dyn FnMut(&str)) -> Result<Opened<'a>, TrainError> {
    let start = Instant::now();
    let mut recipe = given.clone();
    if let Some(device) = options.devices.first() {
        recipe.device = *device;
    }
    let out = options.out.clone().or(recipe.output.clone()).ok_or(TrainError::NoOutput)?;
    recipe.output = Some(out.clone());
    // A study goes on by its own recipes, all others by the run's record.
    let recorded = options.resume.then(|| RunInfo::open(&out).ok()).flatten().filter(|info| info.recipe == *given);
    if let Some(group) = &options.group {
        group.set_time_limit(Duration::from_secs(recipe.parallel.timeout_s));
    }
    recipe.optimizer.lr = Some(recipe.lr());
    recipe.resolve_parts();
    let replicas = match &options.group {
        Some(group) => Replicas::launched(recipe.device, group.clone())?,
        None if options.devices.is_empty() => Replicas::open(&[recipe.device])?,
        None => Replicas::open(&options.devices)?,
    };
    checks::fits(&recipe, options, replicas.world(), &replicas.devices()[0])?;

    let checkpoint = open_model(&recipe)?;
    checkpoint.warnings().iter().for_each(|warning| warn(warning));
    checks::objective(&recipe, &checkpoint)?;
    recipe.objective = recipe.objective.resolved(checkpoint.config.text_config.num_hidden_layers)?;
    let data = Arc::new(DataSet::open(&recipe.data, recipe.seed)?);
    let inputs = Inputs::of(&recipe, &data, &checkpoint)?;
    let beside = Watched::of(&checkpoint.beside_files())?;
    let source = Arc::new(StepSource::new(&recipe, &checkpoint, data.clone())?);
    checks::samples(&recipe, &source)?;
    let held_out = HeldOut::open(&recipe, &checkpoint)?;
    let stores = Stores::open(&recipe)?;
    checks::output(&recipe, &out, options.overwrite)?;
    checkpoint.check_beside()?;
    if (0..source.steps()).all(|step| recipe.rate_is_zero(step, source.steps())) {
        warn(
            "the learning rate is 0 in every step, nothing will be learned: see optimizer.lr, the lr of [parts], and schedule.warmup_ratio, by which the first step has none",
        );
    }
    Ok(Opened {
        start,
        options,
        recipe,
        out,
        recorded,
        replicas,
        checkpoint,
        data,
        inputs,
        beside,
        source,
        held_out,
        stores,
    })
}

/// Loads the model, with the state of a run that goes on; starts the loader; takes the output directory and writes the
/// first record there.
fn prepare<'a>(opened: &'a Opened<'a>, warn: &mut dyn FnMut(&str)) -> Result<Prepared<'a>, TrainError> {
    let Opened { start, options, recipe, out, recorded, replicas, checkpoint, data, inputs, beside, source, .. } =
        opened;
    let Opened { held_out, stores, .. } = opened;
    let mut own = None;
    let from = match options.resume {
        true => replicas.from_first(|| {
            own = Some(Held::take(out)?);
            state::sweep(out);
            state::latest(out, warn)
        })?,
        false => None,
    };
    if options.resume && from.is_none() {
        warn(&format!("{}: no state was saved; the run begins at its first step", out.display()));
    }
    let mut model = prepare_model(recipe, checkpoint.load(recipe.train.dtype.dtype(), &replicas.devices()[0])?)?;
    let caches: Vec<Caches> = replicas.devices().iter().map(|_| Caches::new(recipe, stores)).collect();
    let held = caches.iter().map(Caches::held).collect();
    // The state of all replicas is that of the first.
    let mut trainer = Trainer::replica(recipe, source.clone(), Arc::new(Solo), Caches::new(recipe, stores));
    if let Some((path, position)) = from {
        if let Some(what) = inputs.changed(&position) {
            let reason =
                format!("the {what} are not what they were when this state was saved: put them back, or start anew");
            return Err(TrainError::Resume { path, reason });
        }
        if let (Some(bytes), Some(seen)) = (state::images(&path, &position)?, data.seen()) {
            let wrong = |reason| TrainError::Resume { path: path.join("images.bin"), reason };
            seen.restore(&bytes).map_err(wrong)?;
        }
        model = trainer.restore_model(model, &path, position)?;
    }
    if options.resume {
        // Behind the state, whose tensors tell more exactly what a changed recipe does not fit.
        if let Some(info) = recorded {
            info.intact(out)?;
        }
        if let Some(missing) = missing_steps(out, trainer.done()) {
            warn(&missing);
        }
    }
    identify(stores, &model, &checkpoint.images);
    source.start(recipe, trainer.done(), held, trainer.position().skipped_samples.clone(), replicas.process())?;
    let (replaced, held) = match own {
        Some(own) => (output::reopen(out), Some(own)),
        None if replicas.leads() => {
            let (replaced, held) = output::prepare(out, options.overwrite, checks::read_paths(recipe))?;
            (replaced, Some(held))
        }
        None => (Replaced::nothing(out), None),
    };
    let held_out = held_out.as_ref();
    let record = RunFiles { out, recipe, options, source, inputs, held_out, start: *start, data, beside, held };
    if let Err(error) = record.write(Status::Running) {
        let _ = Replaced::restore(replaced);
        return Err(error);
    }
    Ok(Prepared { first: First { model, trainer, caches }, record, replaced })
}

/// Trains a replica on each device, all from the same model and state; gives the step at which the run was asked to stop.
fn train(opened: &Opened, record: &RunFiles, first: First, progress: Progress) -> Result<Option<usize>, TrainError> {
    let Opened { recipe, replicas, checkpoint, source, .. } = opened;
    let First { model, trainer, caches } = first;
    // A process that was launched with others has one of the replicas.
    let (here, alone) = (replicas.devices().len(), replicas.process().is_some());
    let (caches, progress) = (Mutex::new(caches), Mutex::new(progress));
    let begin = Mutex::new((Some(model), Some(trainer), here));
    let results = replicas.run(|collective, device| {
        let rank = collective.rank();
        let caches = std::mem::take(&mut lock(&caches)[if alone { 0 } else { rank }]);
        let mut trainer = Trainer::replica(recipe, source.clone(), collective, caches);
        let model = {
            let mut begin = lock(&begin);
            let (model, first, left) = &mut *begin;
            if let (Some(first), Some(model)) = (first.as_ref(), model.as_ref()) {
                trainer.follow(first, model)?;
            }
            let own = model.clone();
            *left -= 1;
            // Where nothing else holds them, updates change weights and moments in place.
            if *left == 0 {
                (*model, *first) = (None, None);
            }
            own.ok_or(TrainError::NoOutput)?
        };
        // Every replica has leaves of its own.
        let model = if here == 1 { model } else { model.fork(device) };
        steps(record, checkpoint, &mut trainer, model, &mut |step, steps| {
            if rank == 0 {
                (lock(&progress))(step, steps);
            }
        })
    });
    Ok(results?.into_iter().flatten().next())
}

/// Does all steps and, on the first replica, writes the checkpoint; or gives the step at which the run was asked to
/// stop.
fn steps(
    record: &RunFiles,
    checkpoint: &Checkpoint,
    trainer: &mut Trainer,
    mut model: Llava,
    progress: Progress,
) -> Result<Option<usize>, TrainError> {
    let writes = trainer.rank() == 0;
    let mut watchers = if writes { record.watchers(trainer.done())? } else { Watchers::default() };
    // A state that is saved again keeps what it knew.
    let mut evaluated = trainer.position().evaluation.map(|total| (trainer.done(), total));
    let steps = trainer.steps();
    let (mut looked, mut pause) = (Instant::now(), LOOK_EVERY);
    let mut left_out = None;
    // A run that ended at an evaluation, or where it could not write the whole model, makes it up.
    let mut incomplete = writes && record.lacks_model(trainer.done());
    if let Some(held_out) = record.evaluates_at(trainer.done(), steps).filter(|_| evaluated.is_none())
        && trainer.agree(writes && !is_evaluated(record.out, trainer.done()))?
    {
        evaluate(record, held_out, checkpoint, trainer, &model, &mut watchers, &mut evaluated)?;
        incomplete = true;
    }
    if trainer.agree(incomplete)? {
        record.save(checkpoint, trainer, &model, evaluated)?;
    }
    while trainer.done() < steps {
        if trainer.agree(record.options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::SeqCst)))? {
            record.save(checkpoint, trainer, &model, evaluated)?;
            return Ok(Some(trainer.done()));
        }
        let step;
        (model, step) = trainer.step(model)?;
        watchers.step(&step)?;
        left_out = step.left_out.last().cloned().or(left_out);
        progress(&step, steps);
        // What only the first rank sees, all ranks must know of, because they save together.
        if trainer.agree(writes && record.vanished())? {
            record.save(checkpoint, trainer, &model, evaluated)?;
        }
        if writes && looked.elapsed() >= pause {
            let start = Instant::now();
            record.unchanged()?;
            (looked, pause) = (Instant::now(), LOOK_EVERY.max(start.elapsed() * LOOK_SHARE));
        }
        let done = trainer.done();
        let due = |every: Option<usize>| every.is_some_and(|every| done.is_multiple_of(every));
        if let Some(held_out) = record.evaluates_at(done, steps) {
            evaluate(record, held_out, checkpoint, trainer, &model, &mut watchers, &mut evaluated)?;
        }
        if due(record.recipe.checkpoint.every) && done < steps {
            record.save(checkpoint, trainer, &model, evaluated)?;
        }
    }
    if trainer.position().trained == Some(0) {
        return Err(TrainError::NothingLearned { out: record.out.into(), steps, last: left_out });
    }
    trainer.together(if writes { record.unchanged() } else { Ok(()) })?;
    // The last state stays until the checkpoint is whole: where the disk is full now, nothing is lost.
    if trainer.agree(record.recipe.checkpoint.every.is_some() || (writes && record.vanished()))? {
        record.save(checkpoint, trainer, &model, evaluated)?;
    }
    let write = || {
        unchanged(record.beside, "the checkpoint would not be what was trained with")?;
        output::save(checkpoint, &model, record.out, record.recipe)
    };
    if let Err(error) = trainer.together(if writes { write() } else { Ok(()) }) {
        // What was trained is often far smaller than the checkpoint: there may be room for that.
        if record.recipe.checkpoint.every.is_none() {
            let _ = record.save(checkpoint, trainer, &model, evaluated);
        }
        return Err(error);
    }
    Ok(None)
}

/// Evaluates the held-out samples on the first replica. Where that fails, what was trained is none the worse for it: its state
/// is saved.
fn evaluate(
    record: &RunFiles,
    held_out: &HeldOut,
    checkpoint: &Checkpoint,
    trainer: &mut Trainer,
    model: &Llava,
    watchers: &mut Watchers,
    evaluated: &mut Option<(usize, f64)>,
) -> Result<(), TrainError> {
    let (done, first) = (trainer.done(), trainer.rank() == 0);
    let mut own = || -> Result<f64, TrainError> {
        held_out.images_unchanged()?;
        let encoder = trainer.encoder(model)?;
        let evaluation = held_out.evaluate(done, model, checkpoint, record.recipe, encoder)?;
        watchers.evaluation(&evaluation)?;
        Ok(evaluation.total)
    };
    let found = if first { own().map(Some) } else { Ok(None) };
    match trainer.together(found) {
        Ok(total) => {
            *evaluated = total.map(|total| (done, total)).or(*evaluated);
            Ok(())
        }
        Err(error) => {
            // The failure itself is what the caller must hear of.
            let _ = record.save(checkpoint, trainer, model, *evaluated);
            Err(error)
        }
    }
}

/// Writes how the run ended. An earlier run that it replaces goes where it is done, and comes back where it failed without
/// a state to go on from.
fn conclude(
    record: &RunFiles,
    replaced: Replaced,
    trained: Result<Option<usize>, TrainError>,
) -> Result<Outcome, TrainError> {
    let out = record.out.to_path_buf();
    match trained {
        Ok(Some(step)) => {
            record.write(Status::Stopped)?;
            Ok(Outcome::Stopped { out, step, steps: record.source.steps() })
        }
        Ok(None) => {
            record.write(Status::Done)?;
            replaced.discard()?;
            Ok(Outcome::Done(out))
        }
        // What is there now is not this run's.
        Err(error) if record.lost() => Err(error),
        Err(error) => {
            // The failure itself is what the caller must hear of, not a full disk on top of it.
            let _ = record.write(Status::Failed);
            // With states it can go on, and what it replaces stays aside; without, the earlier run comes back.
            if record.held.is_some() && state::saved(&out).is_empty() {
                let _ = Replaced::restore(replaced);
            }
            Err(error)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
