//! The thread that looks through the token lens, beside the one that generates: both share the model's weights.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use axum::http::StatusCode;
use basic_core::Basic;
use basic_data::ImageSource;
use basic_eval::lens::{Grid, Lens, LensError, LensOptions, Meaning, Reading, Rule, seen_image};
use basic_models::nn::Llava;
use basic_models::processor::Prompt;
use basic_models::{Checkpoint, ImageTokens};
use tokio::sync::oneshot;

use super::spawn;
use crate::error::{ApiError, ServeError};

/// The most requests that wait for the lens.
const WAITING: usize = 8;

/// An image to look at.
pub(crate) struct LensJob {
    pub prompt: Prompt,
    pub image: ImageSource,
    /// How many tokens are listed for each patch.
    pub top: usize,
    /// The layers to read; `None` for all.
    pub layers: Option<Vec<usize>>,
}

/// What the lens shows.
pub(crate) struct LensAnswer {
    pub reading: Reading,
    pub grid: Grid,
    /// The number of supervising layers.
    pub k: usize,
    /// The image as the model sees it, as a `data:` URL.
    pub seen: String,
}

type Waiting = (LensJob, oneshot::Sender<Result<LensAnswer, ApiError>>);

/// Takes images for the lens's thread, which ends when the desk is dropped.
pub(crate) struct LensDesk {
    name: String,
    jobs: SyncSender<Waiting>,
}

impl LensDesk {
    pub fn start(name: &str, checkpoint: Arc<Checkpoint>, model: Llava) -> Result<Self, ServeError> {
        let (jobs, waiting) = sync_channel(WAITING);
        spawn(&format!("{name}-lens"), move || look(&checkpoint, &model, &waiting))?;
        Ok(Self { name: name.into(), jobs })
    }

    /// Looks at an image.
    pub async fn look(&self, job: LensJob) -> Result<LensAnswer, ApiError> {
        let (reply, answer) = oneshot::channel();
        match self.jobs.try_send((job, reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let message = format!("the lens of {} has {WAITING} images waiting: try again in a while", self.name);
                return Err(ApiError::request(StatusCode::TOO_MANY_REQUESTS, "queue_full", message));
            }
            Err(TrySendError::Disconnected(_)) => return Err(ApiError::stopped(&self.name)),
        }
        answer.await.unwrap_or_else(|_| Err(ApiError::stopped(&self.name)))
    }
}

fn look(checkpoint: &Checkpoint, model: &Llava, waiting: &Receiver<Waiting>) {
    let mut lens: Option<Lens<'_>> = None;
    for (job, reply) in waiting {
        if reply.is_closed() {
            continue;
        }
        // A library's panic, such as that of a device without memory, ends this request alone, and the lens is made anew.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let mut ready = lens.take().map_or_else(|| new_lens(model, checkpoint), Ok)?;
            let answer = one(&mut ready, job);
            lens = Some(ready);
            answer
        }));
        let failed = |_| ApiError::server("the lens failed; the server's log has the reason");
        // A caller that went away needs no answer.
        let _ = reply.send(answer.map_err(failed).and_then(|answer| answer.map_err(|error| failure(&error))));
    }
}

/// A lens is made at the first request, because it holds the embedding table in f32.
fn new_lens<'a>(model: &'a Llava, checkpoint: &'a Checkpoint) -> Result<Lens<'a>, LensError> {
    let meaning = Meaning { rule: Rule::Word, min_similarity: None };
    let options = LensOptions { basic: Basic::default(), top: 1, all: false, layers: None, meaning };
    Lens::new(model, checkpoint, options)
}

fn one(lens: &mut Lens<'_>, job: LensJob) -> Result<LensAnswer, LensError> {
    lens.focus(job.top, job.layers)?;
    let seen = seen_image(lens.checkpoint(), &job.image)?;
    let reading = lens.read(ImageTokens::from(job.prompt), &[job.image], &[])?;
    Ok(LensAnswer { reading, grid: lens.grid().clone(), k: lens.k(), seen })
}

fn failure(error: &LensError) -> ApiError {
    match error {
        LensError::Layer { .. } => ApiError::field("layers", error.to_string()),
        LensError::OwnGrids => ApiError::field("model", error.to_string()),
        LensError::Checkpoint(_) | LensError::Processor(_) | LensError::Size { .. } => {
            ApiError::field("image", error.to_string())
        }
        error => ApiError::server(error.to_string()),
    }
}
