//! Worker threads that make samples ready, and hand them over in the order in which they were asked for.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use basic_models::ImageTokens;
use basic_models::processor::{ImageProcessor, PixelValues, ProcessorError};

use super::{LoaderError, Preparer};
use crate::{DataError, FeatureKeys, HeldFeatures, ImageSource, KnownFeatures, Sample, Samples};

/// A sample to make ready, and which of the replicas that are here it is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub index: usize,
    pub replica: usize,
}

/// A sample that is ready for a batch.
#[derive(Debug)]
pub struct Loaded {
    /// Its index over all data of the run.
    pub index: usize,
    /// The data file that it is from: for messages.
    pub file: Arc<Path>,
    /// Its index and id in that file: for messages.
    pub place: String,
    /// Ids, labels, image positions; no pixels.
    pub tokens: ImageTokens,
    /// Its images.
    pub images: Vec<LoadedImage>,
}

/// An image of a sample.
#[derive(Debug)]
pub struct LoadedImage {
    /// Where it is from.
    pub source: ImageSource,
    /// Its pixel values; `None` where the replica's cache holds its features or the store on disk has them.
    pub pixels: Option<PixelValues>,
    /// What the store on disk knows of its features, where it was asked.
    pub known: Option<KnownFeatures>,
    /// Its pixel values for the other encoder that a supervision method compares with; `None` where there is no
    /// such encoder, or where the replica's cache holds its features or the store on disk has them.
    pub other_pixels: Option<PixelValues>,
    /// What the store on disk knows of its features by the other encoder, where it was asked.
    pub other_known: Option<KnownFeatures>,
}

impl LoadedImage {
    /// Whether its file was read for it.
    fn is_read(&self) -> bool {
        self.pixels.is_some() || self.known.is_some()
    }
}

/// What is ready for one encoder.
#[derive(Debug, Default)]
struct Ready {
    pixels: Option<PixelValues>,
    known: Option<KnownFeatures>,
}

impl Ready {
    /// Nothing for an image whose features are held, its features where the store has them, else its pixel values.
    fn make(held: Option<&FeatureKeys>, source: &ImageSource, images: &ImageProcessor) -> Result<Self, ProcessorError> {
        if held.is_some_and(|held| held.contains(source.name())) {
            return Ok(Self::default());
        }
        let Some((known, read)) = held.and_then(FeatureKeys::store).and_then(|store| store.look(source)) else {
            return Ok(Self { pixels: Some(source.process(images)?), known: None });
        };
        let missing = known.features.is_none();
        let pixels = missing.then(|| read.process(images)).transpose()?;
        Ok(Self { pixels, known: Some(known) })
    }
}

/// Why a sample is not ready.
#[derive(Debug)]
pub(super) enum Failure {
    Data(DataError),
    Panicked(String),
}

/// What a worker does.
#[derive(Debug)]
pub(super) struct Task {
    pub samples: Arc<dyn Samples>,
    pub preparer: Arc<Preparer>,
    pub held: Vec<HeldFeatures>,
}

impl Task {
    fn run(&self, job: Job) -> Result<Loaded, Failure> {
        let load = || self.load(job).map_err(Failure::Data);
        catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| Err(Failure::Panicked(message(&*panic))))
    }

    fn load(&self, job: Job) -> Result<Loaded, DataError> {
        let sample = self.samples.sample(job.index)?;
        let prepared = self.preparer.prepare(&sample)?;
        let held = self.held.get(job.replica);
        let image = |source: ImageSource| {
            let ready = |held: Option<&FeatureKeys>, images: &ImageProcessor| {
                Ready::make(held, &source, images).map_err(|error| sample.image_error(error.into()))
            };
            let Ready { pixels, known } = ready(held.map(|held| &held.own), self.preparer.images())?;
            let other = self.preparer.other_images().map(|images| ready(held.map(|held| &held.other), images));
            let Ready { pixels: other_pixels, known: other_known } = other.transpose()?.unwrap_or_default();
            Ok(LoadedImage { source, pixels, known, other_pixels, other_known })
        };
        let images: Result<Vec<LoadedImage>, DataError> = prepared.images.into_iter().map(image).collect();
        let images = images?;
        self.seen(job.index, &sample, &images)?;
        Ok(Loaded {
            index: job.index,
            file: sample.file.clone(),
            place: sample.place.clone(),
            tokens: prepared.tokens,
            images,
        })
    }
}

impl Task {
    /// Checks that image files are what they were, once they have been read.
    fn seen(&self, index: usize, sample: &Sample, images: &[LoadedImage]) -> Result<(), DataError> {
        let Some(seen) = self.samples.seen() else { return Ok(()) };
        let file = |image: &LoadedImage| match &image.source {
            ImageSource::File(path) => Some(path.clone()),
            ImageSource::Bytes { .. } => None,
        };
        let files: Vec<PathBuf> = images.iter().filter_map(file).collect();
        let whole = images.iter().all(LoadedImage::is_read);
        // Where features are held, nothing is read.
        match whole && !files.is_empty() {
            true => seen.check(index, &sample.messages, &files.iter().map(PathBuf::as_path).collect::<Vec<_>>()),
            false => Ok(()),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
}

/// The workers; without any, the work is done where its result is asked for.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    task: Task,
    state: Mutex<State>,
    work: Condvar,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<(u64, Job)>,
    done: HashMap<u64, Result<Loaded, Failure>>,
    submitted: u64,
    stopped: bool,
}

impl Shared {
    // A worker never panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.stopped {
            let Some((number, job)) = state.jobs.pop_front() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let done = self.task.run(job);
            state = self.lock();
            state.done.insert(number, done);
            self.ready.notify_one();
        }
    }
}

impl Pool {
    pub fn start(task: Task, threads: usize) -> Result<Self, LoaderError> {
        let shared = Shared { task, state: Mutex::default(), work: Condvar::new(), ready: Condvar::new() };
        let mut pool = Self { shared: Arc::new(shared), threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let shared = pool.shared.clone();
            let spawned = Builder::new().name(format!("data-{number}")).spawn(move || shared.work());
            pool.threads.push(spawned.map_err(LoaderError::Start)?);
        }
        Ok(pool)
    }

    /// Asks for samples; the results are [taken](Pool::take) by the number of the request, counted from 0.
    pub fn submit(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = self.shared.lock();
        for job in jobs {
            let number = state.submitted;
            state.submitted += 1;
            state.jobs.push_back((number, job));
        }
        self.shared.work.notify_all();
    }

    /// The result of request `number`, once. Waits for it.
    pub fn take(&self, number: u64) -> Result<Loaded, Failure> {
        let mut state = self.shared.lock();
        loop {
            if let Some(done) = state.done.remove(&number) {
                return done;
            }
            if !self.threads.is_empty() {
                state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some((next, job)) = state.jobs.pop_front() else {
                return Err(Failure::Panicked(format!("request {number} was never made")));
            };
            drop(state);
            let done = self.shared.task.run(job);
            state = self.shared.lock();
            state.done.insert(next, done);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker's panics are caught: there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}
