//! Generates the missing answers of a benchmark, on one device or several.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use basic_data::{ImageSource, VisionCache};
use basic_models::Checkpoint;
use basic_models::config::Tiles;
use basic_models::nn::Llava;

use super::answers::{Said, Store, Stored, key};
use super::question_files::id;
use super::{Answers, Asked, BenchmarkError, Peers};
use crate::questions::{Answerer, EvalError, EvalOptions, Prompts};

/// The stack size of a device's thread in bytes, which is what the main thread usually has.
const STACK: usize = 8 << 20;
/// The size of each device's cache of patch features in MiB.
pub(super) const CACHE_MIB: usize = 256;

/// Generates the answers to those of `asked` that `answers` lacks, with one model per device. Each device takes the
/// next unanswered batch, and the answers to a batch are stored as soon as they are generated. `progress` is called
/// with the number of questions answered so far. With `peers`, each process takes every [`Peers::world`]-th unanswered
/// batch, and after each batch all processes have the answers of all; it then has one model.
///
/// The composition of the batches depends only on the questions and the batch size, not on which questions have answers
/// or on the number of devices, so that these do not change the answers. A batch with some answers missing is therefore
/// generated again as a whole.
///
/// # Errors
///
/// [`BenchmarkError`] that names the question or the file; the answers to other batches stay stored.
pub fn respond(
    models: Vec<Llava>,
    peers: Option<&dyn Peers>,
    checkpoint: &Checkpoint,
    options: &EvalOptions,
    asked: &[Asked],
    answers: &mut Answers,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), BenchmarkError> {
    share(models, peers, options.batch_size, asked, answers, progress, &|model, queue| {
        let mut cache = VisionCache::new(CACHE_MIB);
        let mut answerer = Answerer::new(model, checkpoint, options, &mut cache)?;
        while let Some(batch) = queue.next()? {
            let images = images(batch)?;
            let prompts = batch.iter().zip(&images);
            let prompts = prompts.map(|(asked, image)| (id(&asked.id), asked.prompt.as_str(), image.as_ref()));
            let texts = answerer.answer(&prompts.collect::<Vec<_>>())?;
            queue.store(batch, texts.into_iter().map(|text| Said { text }).collect())?;
        }
        Ok(())
    })
}

/// The images of questions; those in tables are read now.
pub(super) fn images(asked: &[&Asked]) -> Result<Vec<Option<ImageSource>>, BenchmarkError> {
    asked.iter().map(|asked| asked.image.as_ref().map(|image| image.source()).transpose()).collect()
}

/// Builds every prompt, so that a question that cannot be asked is reported before the weights are read.
///
/// # Errors
///
/// [`BenchmarkError`] that names the question.
pub fn check_prompts(checkpoint: &Checkpoint, options: &EvalOptions, asked: &[Asked]) -> Result<(), BenchmarkError> {
    let prompts = Prompts::new(checkpoint, options)?;
    asked.iter().try_for_each(|asked| Ok(prompts.check(&id(&asked.id), &asked.prompt, &tiles(asked, checkpoint)?)?))
}

/// The tiles of a question's image. A model that does not cut images does not need to see it.
pub(super) fn tiles(asked: &Asked, checkpoint: &Checkpoint) -> Result<Vec<Tiles>, BenchmarkError> {
    let tiling = checkpoint.config.tiling();
    match &asked.image {
        Some(image) if tiling.varies() => {
            Ok(ImageSource::tiles_of(&[image.source()?], checkpoint).map_err(EvalError::from)?)
        }
        Some(_) => Ok(vec![Tiles::whole(checkpoint.config.visual_tokens())]),
        None => Ok(Vec::new()),
    }
}

/// What a device does: it takes batches from the queue until there is none, and stores what it makes of each.
type Work<'w, T> = dyn Fn(&Llava, &Queue<'_, '_, T>) -> Result<(), BenchmarkError> + Sync + 'w;

/// Shares the batches of questions that `store` lacks among the models, each of which does `work`.
pub(super) fn share<T: Stored>(
    models: Vec<Llava>,
    peers: Option<&dyn Peers>,
    batch_size: usize,
    asked: &[Asked],
    store: &mut Store<T>,
    progress: &(dyn Fn(usize) + Sync),
    work: &Work<'_, T>,
) -> Result<(), BenchmarkError> {
    // Prompts of similar length share a batch, which needs less padding. A question that occurs twice is asked once.
    let mut seen = HashSet::new();
    let mut order: Vec<&Asked> = asked.iter().filter(|question| seen.insert(key(question))).collect();
    order.sort_by_key(|question| question.prompt.len());
    let batches = order.chunks(batch_size.max(1));
    let open: Vec<&[&Asked]> = batches.filter(|batch| batch.iter().any(|asked| !store.holds(asked))).collect();
    progress(store.count());
    let next = AtomicUsize::new(0);
    let queue = Queue { open, peers, next, failed: AtomicBool::new(false), store: Mutex::new(store), progress };
    let guarded = |model: &Llava| {
        let result = work(model, &queue);
        if result.is_err() {
            queue.failed.store(true, Ordering::SeqCst);
        }
        result
    };
    if models.len() == 1 {
        return models.iter().try_for_each(guarded);
    }
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(models.len());
        for (rank, model) in models.into_iter().enumerate() {
            let guarded = &guarded;
            let named = std::thread::Builder::new().name(format!("shard {rank}")).stack_size(STACK);
            let thread = named.spawn_scoped(scope, move || guarded(&model));
            threads.push(thread.map_err(|e| BenchmarkError::Thread { rank, source: e })?);
        }
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect()
    })
}

/// The batches that the devices, or the processes, share.
pub(super) struct Queue<'a, 's, T> {
    open: Vec<&'a [&'a Asked]>,
    peers: Option<&'a dyn Peers>,
    // Of processes, the next round: each takes one batch of a round.
    next: AtomicUsize,
    failed: AtomicBool,
    store: Mutex<&'s mut Store<T>>,
    progress: &'a (dyn Fn(usize) + Sync),
}

impl<T: Stored> Queue<'_, '_, T> {
    /// The next batch; `None` if there is none left, or if another device has failed.
    pub fn next(&self) -> Result<Option<&[&Asked]>, BenchmarkError> {
        if self.failed.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let Some(peers) = self.peers else {
            return Ok(self.open.get(self.next.fetch_add(1, Ordering::SeqCst)).copied());
        };
        let first = self.next.load(Ordering::SeqCst) * peers.world();
        match self.open.get(first + peers.rank()) {
            Some(batch) => Ok(Some(*batch)),
            // The last round of the others.
            None if first < self.open.len() => self.gather(peers, Vec::new()).map(|()| None),
            None => Ok(None),
        }
    }

    /// Stores what was made of a batch.
    pub fn store(&self, batch: &[&Asked], made: Vec<T>) -> Result<(), BenchmarkError> {
        match self.peers {
            Some(peers) => self.gather(peers, made),
            None => self.add(batch, made),
        }
    }

    fn add(&self, batch: &[&Asked], made: Vec<T>) -> Result<(), BenchmarkError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.add(batch, made)?;
        (self.progress)(store.count());
        Ok(())
    }

    /// Ends a round: all processes store what all have made of their batches.
    fn gather(&self, peers: &dyn Peers, made: Vec<T>) -> Result<(), BenchmarkError> {
        let first = self.next.fetch_add(1, Ordering::SeqCst) * peers.world();
        let all: Vec<Vec<T>> = peers.gather(&made)?;
        self.open.iter().skip(first).zip(all).try_for_each(|(batch, made)| self.add(batch, made))
    }
}
