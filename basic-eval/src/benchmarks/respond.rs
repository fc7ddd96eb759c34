//! Generates the missing answers of a benchmark, on one device or several.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use basic_data::VisionCache;
use basic_models::Checkpoint;
use basic_models::nn::Llava;

use super::answers::key;
use super::question_files::id;
use super::{Answers, Asked, BenchmarkError};
use crate::questions::{Answerer, EvalOptions, Prompts};

/// The stack size of a device's thread in bytes, which is what the main thread usually has.
const STACK: usize = 8 << 20;
const CACHE_MIB: usize = 256;

/// Generates the answers to those of `asked` that `answers` lacks, with one model per device. Each device takes the
/// next unanswered batch, and the answers to a batch are stored as soon as they are generated. `progress` is called
/// with the number of questions answered so far.
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
    checkpoint: &Checkpoint,
    options: &EvalOptions,
    asked: &[Asked],
    answers: &mut Answers,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), BenchmarkError> {
    // Prompts of similar length share a batch, which needs less padding. A question that occurs twice is asked once.
    let mut seen = HashSet::new();
    let mut order: Vec<&Asked> = asked.iter().filter(|question| seen.insert(key(question))).collect();
    order.sort_by_key(|question| question.prompt.len());
    let batches = order.chunks(options.batch_size.max(1));
    let open: Vec<&[&Asked]> = batches.filter(|batch| batch.iter().any(|asked| !answers.holds(asked))).collect();
    progress(answers.count());
    let shards = Shards { checkpoint, options, open, next: AtomicUsize::new(0), failed: AtomicBool::new(false) };
    let answers = Mutex::new(answers);
    if models.len() == 1 {
        return models.iter().try_for_each(|model| shards.work(model, &answers, progress));
    }
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(models.len());
        for (rank, model) in models.into_iter().enumerate() {
            let (shards, answers) = (&shards, &answers);
            let named = std::thread::Builder::new().name(format!("shard {rank}")).stack_size(STACK);
            let thread = named.spawn_scoped(scope, move || shards.work(&model, answers, progress));
            threads.push(thread.map_err(|e| BenchmarkError::Thread { rank, source: e })?);
        }
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect()
    })
}

/// Builds every prompt, so that a question that cannot be asked is reported before the weights are read.
///
/// # Errors
///
/// [`BenchmarkError`] that names the question.
pub fn check_prompts(checkpoint: &Checkpoint, options: &EvalOptions, asked: &[Asked]) -> Result<(), BenchmarkError> {
    let prompts = asked.iter().map(|asked| (id(&asked.id), asked.prompt.as_str(), asked.image.clone()));
    Ok(Prompts::new(checkpoint, options)?.check(prompts)?)
}

/// The batches that the devices share.
struct Shards<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a EvalOptions,
    open: Vec<&'a [&'a Asked]>,
    next: AtomicUsize,
    failed: AtomicBool,
}

impl Shards<'_> {
    /// Answers batches until none is left or another device has failed.
    fn work(
        &self,
        model: &Llava,
        answers: &Mutex<&mut Answers>,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<(), BenchmarkError> {
        let result = self.answer(model, answers, progress);
        if result.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        result
    }

    fn answer(
        &self,
        model: &Llava,
        answers: &Mutex<&mut Answers>,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<(), BenchmarkError> {
        let mut cache = VisionCache::new(CACHE_MIB);
        let mut answerer = Answerer::new(model, self.checkpoint, self.options, &mut cache)?;
        while !self.failed.load(Ordering::SeqCst) {
            let Some(batch) = self.open.get(self.next.fetch_add(1, Ordering::SeqCst)) else { break };
            let prompts =
                batch.iter().map(|question| (id(&question.id), question.prompt.as_str(), question.image.as_ref()));
            let texts = answerer.answer(&prompts.collect::<Vec<_>>())?;
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.add(batch, texts)?;
            progress(answers.count());
        }
        Ok(())
    }
}
