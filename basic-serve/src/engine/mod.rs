//! One checkpoint's engine: a thread that owns the model and batches sequences continuously, and one for the lens.

mod lens;
mod queue;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use basic_models::Checkpoint;
use basic_models::generate::{Finish, GenerationDefaults, LogProbs, Sequence};
use basic_models::nn::Llava;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) use lens::{LensAnswer, LensDesk, LensJob};
use queue::{Queue, Refused};

use crate::error::{ApiError, ServeError};
use crate::metrics::ModelMetrics;
use crate::options::{DEFAULT_CONTEXT, MOST_QUEUED, MOST_ROWS, ServeOptions};

/// A sequence to generate, and where its tokens go.
pub(crate) struct Job {
    pub sequence: Sequence,
    /// The texts that end the answer.
    pub stop: Vec<String>,
    /// The number of the answer within its request.
    pub index: usize,
    pub submitted: Instant,
    sink: UnboundedSender<Said>,
}

impl Job {
    /// Whether the client has gone away, so that nobody reads the answer.
    fn abandoned(&self) -> bool {
        self.sink.is_closed()
    }
}

/// What an engine says about an answer.
#[derive(Debug)]
pub(crate) enum Said {
    /// A new token. Its text is what became final with it, possibly nothing.
    Token { index: usize, id: u32, text: String, logprobs: Option<LogProbs>, finish: Option<Finish> },
    /// The answer ended by an error.
    Failed(ApiError),
}

/// A checkpoint that is being served.
pub(crate) struct Engine {
    pub name: String,
    pub checkpoint: Arc<Checkpoint>,
    pub defaults: GenerationDefaults,
    pub end_ids: Vec<u32>,
    /// The most tokens of a prompt and its answer.
    pub context: usize,
    /// The second at which it was loaded, since 1970.
    pub created: u64,
    pub lens: LensDesk,
    queue: Arc<Queue>,
}

/// How long a context the options give a model.
pub(crate) fn context(checkpoint: &Checkpoint, options: &ServeOptions) -> usize {
    let own = checkpoint.config.text_config.context();
    options.max_context.unwrap_or(DEFAULT_CONTEXT).min(own)
}

impl Engine {
    /// Starts the threads of a loaded checkpoint.
    pub fn start(
        name: String,
        mut checkpoint: Checkpoint,
        model: Llava,
        options: &ServeOptions,
        metrics: ModelMetrics,
    ) -> Result<Self, ServeError> {
        check(&checkpoint, options)?;
        checkpoint.images = checkpoint.images.with_max_pixels(options.max_pixels);
        let defaults = GenerationDefaults::load(&checkpoint.dir)?;
        let end_ids = defaults.end_ids(&checkpoint);
        let checkpoint = Arc::new(checkpoint);
        let context = context(&checkpoint, options);
        let queue = Arc::new(Queue::new(options.max_queue, metrics.queue.clone()));
        let lens = LensDesk::start(&name, checkpoint.clone(), model.clone())?;
        let (worker, shared, rows) = (queue.clone(), checkpoint.clone(), options.max_batch);
        let run = move || {
            let work = || work::Work::new(&model, &shared.tokenizer, rows, context, &metrics).run(&worker);
            // A library's panic (a device out of memory) ends this model alone; `/health` and further requests say so.
            let _ = catch_unwind(AssertUnwindSafe(work));
            worker.close();
            metrics.running.set(0);
        };
        spawn(&name, run)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self { name, checkpoint, defaults, end_ids, context, created, lens, queue })
    }

    /// Whether the model still computes.
    pub fn alive(&self) -> bool {
        !self.queue.is_closed()
    }

    /// Puts the sequences of a request into the queue, and returns what they will say. Dropping the receiver cancels them.
    pub fn submit(&self, sequences: Vec<(Sequence, Vec<String>)>) -> Result<UnboundedReceiver<Said>, ApiError> {
        let (sink, heard) = unbounded_channel();
        let submitted = Instant::now();
        let jobs = sequences.into_iter().enumerate().map(|(index, (sequence, stop))| Job {
            sequence,
            stop,
            index,
            submitted,
            sink: sink.clone(),
        });
        match self.queue.push(jobs.collect()) {
            Ok(()) => Ok(heard),
            Err(Refused::Closed) => Err(ApiError::stopped(&self.name)),
            Err(Refused::Full) => Err(ApiError::request(
                axum::http::StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                format!("the model {} has as many requests waiting as it takes: try again in a while", self.name),
            )),
        }
    }

    /// Ends the threads after the token that is being computed.
    pub fn stop(&self) {
        self.queue.close();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn check(checkpoint: &Checkpoint, options: &ServeOptions) -> Result<(), ServeError> {
    let wrong = |name, value: usize, expected: String| ServeError::Option { name, value: value.to_string(), expected };
    if !(1..=MOST_ROWS).contains(&options.max_batch) {
        return Err(wrong("max-batch", options.max_batch, format!("1 to {MOST_ROWS}")));
    }
    if !(1..=MOST_QUEUED).contains(&options.max_queue) {
        return Err(wrong("max-queue", options.max_queue, format!("1 to {MOST_QUEUED}")));
    }
    let own = checkpoint.config.text_config.context();
    match options.max_context {
        Some(asked) if asked < 2 || asked > own => {
            Err(wrong("max-context", asked, format!("2 to {own}, the model's context")))
        }
        _ => Ok(()),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    let started = std::thread::Builder::new().name(format!("basic-{name}")).spawn(run);
    started.map(|_| ()).map_err(|source| ServeError::Thread { name: name.into(), source })
}
