//! All cells of a study, one after another or over several devices.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use basic_core::DeviceSpec;
use basic_models::checkpoint::Contents;

use super::AblateError;
use super::event::{Event, Observer};
use super::expand::{Chain, Expanded, Planned};
use super::measure::Evaluator;
use super::result::StageResult;
use super::stage::{Ended, Worker};

/// One chain that has to be run, whichever cells want it.
pub(super) struct Job {
    pub chain: Chain,
    /// The first cell that wants it.
    pub cell: String,
}

/// Results by hash.
pub(super) type Results = BTreeMap<String, StageResult>;

struct State {
    waiting: Vec<usize>,
    running: BTreeSet<usize>,
    results: Results,
    failed: Vec<(String, AblateError)>,
}

/// What the workers share.
pub(super) struct Schedule<'a> {
    pub study: &'a Expanded,
    pub jobs: Vec<Job>,
    pub stop: Arc<AtomicBool>,
    pub revision: Option<String>,
    pub observer: Observer<'a>,
    /// Writes the tables from what is there.
    pub write: &'a (dyn Fn(&Results) -> Result<(), AblateError> + Sync),
}

/// What a schedule came to.
pub(super) struct Finished {
    pub results: Results,
    pub failed: Vec<(String, AblateError)>,
    pub stopped: bool,
}

/// The chains of the chosen cells, each once: all cells with the first seed, then with the next.
pub(super) fn jobs(study: &Expanded, only: &[String]) -> Vec<Job> {
    let mut seen = BTreeSet::new();
    let mut jobs = Vec::new();
    for seed in 0..study.study.seeds.len() {
        for cell in study.cells.iter().filter(|cell| Expanded::chosen(cell, only)) {
            let chain = &cell.chains[seed];
            let last = chain.stages.last().map(|stage| stage.hash.clone());
            if seen.insert(last) {
                jobs.push(Job { chain: chain.clone(), cell: cell.id.clone() });
            }
        }
    }
    jobs
}

/// The jobs of one of `world` processes. Jobs that have a stage in common are one process's, which runs that stage once.
pub(super) fn share(jobs: Vec<Job>, rank: usize, world: usize) -> Vec<Job> {
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    let mut next = 0;
    let mut of = |job: &Job| {
        // A stage's hash covers the stages before it, so jobs that share any share their first.
        let first = job.chain.stages.first().map(|stage| stage.hash.clone()).unwrap_or_default();
        *owners.entry(first).or_insert_with(|| {
            next += 1;
            (next - 1) % world.max(1)
        })
    };
    jobs.into_iter().filter(|job| of(job) == rank).collect()
}

impl Schedule<'_> {
    /// Runs what has no result yet, one worker a device.
    pub fn run(&self, devices: &[DeviceSpec], results: Results) -> Result<Finished, AblateError> {
        let finished = |job: &Job, results: &Results| job.chain.stages.iter().all(|s| results.contains_key(&s.hash));
        let waiting = (0..self.jobs.len()).filter(|at| !finished(&self.jobs[*at], &results)).collect();
        let state = Mutex::new(State { waiting, running: BTreeSet::new(), results, failed: Vec::new() });
        self.sweep(&state)?;
        let changed = Condvar::new();
        // A cell's operations run in a pool of their worker's own: shares of the machine that don't mix.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / devices.len().max(1)).max(1);
        let outcomes: Vec<Result<(), AblateError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = devices
                .iter()
                .map(|device| {
                    let (state, changed) = (&state, &changed);
                    scope.spawn(move || {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(8 << 20).build();
                        let pool = pool.map_err(|error| AblateError::Worker(error.to_string()))?;
                        pool.install(|| self.work(*device, devices.len(), state, changed))
                    })
                })
                .collect();
            let panicked = |_| Err(AblateError::Worker("panicked".into()));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).collect()
        });
        outcomes.into_iter().collect::<Result<(), _>>()?;
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stopped = !state.waiting.is_empty();
        Ok(Finished { results: state.results, failed: state.failed, stopped })
    }

    fn work(
        &self,
        device: DeviceSpec,
        workers: usize,
        state: &Mutex<State>,
        changed: &Condvar,
    ) -> Result<(), AblateError> {
        let done = |chain: &Chain, stage: usize, result: StageResult| {
            let mut state = lock(state);
            let line = self.line(chain, stage, &result);
            state.results.insert(result.hash.clone(), result);
            (self.write)(&state.results)?;
            let left = self.left(&state.results, workers);
            (self.observer)(Event::Line(&format!("{line}; {left}")));
            Ok(())
        };
        // Files that every cell is measured on: what is wrong with them is told once, before anything is trained.
        let any = !lock(state).waiting.is_empty();
        let mut worker = any.then(|| self.worker(device, &done)).transpose()?;
        while let Some(at) = self.take(state, changed) {
            let job = &self.jobs[at];
            let label = format!("{}, seed {}", job.cell, job.chain.seed);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let mut own = match worker.take() {
                    Some(own) => own,
                    None => self.worker(device, &done)?,
                };
                let ended = own.chain(&job.chain, &label);
                worker = Some(own);
                ended
            }));
            let outcome =
                outcome.unwrap_or_else(|panic| Err(AblateError::Worker(basic_train::parallel::panic_text(&*panic))));
            let mut held = lock(state);
            held.running.remove(&at);
            match outcome {
                Ok(Ended::Done) => {}
                Ok(Ended::Stopped) => held.waiting.push(at),
                Err(error) => {
                    (self.observer)(Event::Warning(&format!("{label}: failed: {error}")));
                    held.failed.push((label, error));
                }
            }
            drop(held);
            changed.notify_all();
            self.sweep(state)?;
        }
        Ok(())
    }

    fn worker<'b>(
        &'b self,
        device: DeviceSpec,
        done: &'b (dyn Fn(&Chain, usize, StageResult) -> Result<(), AblateError> + Sync),
    ) -> Result<Worker<'b>, AblateError> {
        let (stop, revision) = (self.stop.clone(), self.revision.clone());
        let evaluator = Evaluator::open(self.study, device)?;
        Ok(Worker { study: self.study, device, evaluator, stop, revision, done, observer: self.observer })
    }

    /// The next job none of whose stages is being run by another worker; waits where there are only such.
    fn take(&self, state: &Mutex<State>, changed: &Condvar) -> Option<usize> {
        let mut held = lock(state);
        loop {
            if self.stop.load(Ordering::SeqCst) || held.waiting.is_empty() {
                return None;
            }
            let busy: BTreeSet<&str> = held.running.iter().flat_map(|at| self.hashes(*at)).collect();
            let free = held.waiting.iter().position(|at| !self.hashes(*at).any(|hash| busy.contains(hash)));
            if let Some(place) = free {
                let at = held.waiting.remove(place);
                held.running.insert(at);
                return Some(at);
            }
            held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stages(&self, job: usize) -> impl Iterator<Item = &Planned> {
        self.jobs[job].chain.stages.iter()
    }

    fn hashes(&self, job: usize) -> impl Iterator<Item = &str> {
        self.stages(job).map(|stage| stage.hash.as_str())
    }

    /// Deletes the checkpoints that no job needs any more; what somebody has put beside their files stays.
    fn sweep(&self, state: &Mutex<State>) -> Result<(), AblateError> {
        if self.study.study.keep_checkpoints {
            return Ok(());
        }
        let held = lock(state);
        let needed: BTreeSet<&str> = held.waiting.iter().chain(&held.running).flat_map(|at| self.hashes(*at)).collect();
        for Planned { hash, run, .. } in (0..self.jobs.len()).flat_map(|at| self.stages(at)) {
            if !needed.contains(hash.as_str()) && held.results.contains_key(hash) && run.is_dir() {
                Contents::Run.clear(run)?;
            }
        }
        Ok(())
    }

    fn line(&self, chain: &Chain, stage: usize, result: &StageResult) -> String {
        let name = &self.study.study.stages[stage].name;
        let last = chain.stages.last().map(|stage| stage.hash.as_str());
        let job = self.jobs.iter().find(|job| job.chain.stages.last().map(|stage| stage.hash.as_str()) == last);
        let cell = job.map_or("", |job| job.cell.as_str());
        let value = result.values.get("accuracy").map(|share| format!(", accuracy {:.1}%", 100.0 * share));
        let seconds = result.train_seconds + result.measure_seconds;
        format!("{cell}, seed {}, {name}: {seconds:.0} s{}", chain.seed, value.unwrap_or_default())
    }

    /// How many stages have results, and how long the rest may take.
    fn left(&self, results: &Results, workers: usize) -> String {
        let stages = self.study.study.stages.len();
        let (mut done, mut all, mut rest) = (0, 0, 0.0);
        for stage in 0..stages {
            let hashes: BTreeSet<&str> = self.jobs.iter().map(|job| job.chain.stages[stage].hash.as_str()).collect();
            let there: Vec<&StageResult> = hashes.iter().filter_map(|hash| results.get(*hash)).collect();
            let seconds: f64 = there.iter().map(|r| r.train_seconds + r.measure_seconds).sum();
            all += hashes.len();
            done += there.len();
            rest += seconds / there.len().max(1) as f64 * (hashes.len() - there.len()) as f64;
        }
        let minutes = rest / 60.0 / workers.max(1) as f64;
        format!("{done} of {all} stages done, about {minutes:.0} min left")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
