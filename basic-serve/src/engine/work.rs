//! The loop of an engine's thread: sequences join at the next token, and leave when they are complete or abandoned.

use basic_models::generate::{ContinuousBatch, Finish, GenerateError, NextToken, TextStream};
use basic_models::nn::Llava;
use basic_models::processor::Tokenizer;

use super::queue::Queue;
use super::{Job, Said};
use crate::error::ApiError;
use crate::metrics::ModelMetrics;

/// A batch with the texts of its rows.
pub(super) struct Work<'m> {
    batch: ContinuousBatch<'m>,
    tokenizer: &'m Tokenizer,
    metrics: &'m ModelMetrics,
    rows: Vec<Option<Writing<'m>>>,
}

/// An answer that is being written.
struct Writing<'m> {
    text: TextStream<'m>,
    eos: Vec<u32>,
    index: usize,
    sink: tokio::sync::mpsc::UnboundedSender<Said>,
}

impl<'m> Work<'m> {
    pub fn new(
        model: &'m Llava,
        tokenizer: &'m Tokenizer,
        rows: usize,
        context: usize,
        metrics: &'m ModelMetrics,
    ) -> Self {
        let batch = ContinuousBatch::new(model, rows, context);
        Self { batch, tokenizer, metrics, rows: (0..rows).map(|_| None).collect() }
    }

    /// Works until the queue is closed.
    pub fn run(mut self, queue: &Queue) {
        loop {
            self.drop_abandoned();
            let active = self.batch.active();
            self.metrics.running.set(i64::try_from(active).unwrap_or(i64::MAX));
            // At most one prompt is computed between two tokens, so that the answers that are being written go on.
            let job = match active {
                0 => match queue.wait() {
                    Some(job) => Some(job),
                    None => return,
                },
                _ if queue.is_closed() => return,
                _ if active < self.batch.rows() => queue.take(),
                _ => None,
            };
            if let Some(job) = job {
                self.admit(job);
            }
            self.step();
        }
    }

    fn admit(&mut self, job: Job) {
        let Job { sequence, stop, index, submitted, sink } = job;
        let (eos, length) = (sequence.config.eos.clone(), sequence.prompt.ids.len());
        let joined = match self.batch.join(sequence) {
            Ok(Some(joined)) => joined,
            // The loop admits only while a row is free.
            Ok(None) => return send(&sink, Said::Failed(ApiError::server("no row of the batch is free"))),
            Err(error) => return send(&sink, Said::Failed(failure(&error))),
        };
        self.metrics.prompt_tokens.inc_by(length as u64);
        self.metrics.reused_tokens.inc_by(joined.reused as u64);
        self.metrics.first_token.observe(submitted.elapsed().as_secs_f64());
        let writing = Writing { text: TextStream::new(self.tokenizer, stop), eos, index, sink };
        self.rows[joined.row] = Some(writing);
        self.say(joined.row, Ok(joined.token));
    }

    fn step(&mut self) {
        match self.batch.step() {
            Ok(tokens) => tokens.into_iter().for_each(|(row, token)| self.say(row, token)),
            // The device failed: none of the rows can go on, but the next ones may.
            Err(error) => {
                for row in 0..self.rows.len() {
                    self.fail(row, failure(&error));
                }
            }
        }
    }

    /// Passes a row's token on, as text.
    fn say(&mut self, row: usize, token: Result<NextToken, GenerateError>) {
        let NextToken { id, mut finish, logprobs } = match token {
            Ok(token) => token,
            Err(error) => return self.fail(row, failure(&error)),
        };
        self.metrics.generated_tokens.inc();
        let Some(writing) = &mut self.rows[row] else { return };
        let mut text = String::new();
        if !writing.eos.contains(&id) {
            match writing.text.push(id) {
                Ok(piece) => text.push_str(piece),
                Err(error) => {
                    let error = ApiError::server(format!("the tokenizer failed on a new token: {error}"));
                    return self.fail(row, error);
                }
            }
        }
        if writing.text.stopped() {
            finish = Some(Finish::Stop);
        }
        if finish.is_some() {
            text.push_str(writing.text.finish());
        }
        send(&writing.sink, Said::Token { index: writing.index, id, text, logprobs, finish });
        if finish.is_some() {
            self.rows[row] = None;
            self.batch.leave(row);
        }
    }

    fn fail(&mut self, row: usize, error: ApiError) {
        if let Some(writing) = self.rows[row].take() {
            send(&writing.sink, Said::Failed(error));
        }
        self.batch.leave(row);
    }

    fn drop_abandoned(&mut self) {
        for row in 0..self.rows.len() {
            if self.rows[row].as_ref().is_some_and(|writing| writing.sink.is_closed()) {
                self.rows[row] = None;
                self.batch.leave(row);
                self.metrics.cancelled.inc();
            }
        }
    }
}

/// A receiver that is gone is noticed before the next token.
fn send(sink: &tokio::sync::mpsc::UnboundedSender<Said>, said: Said) {
    let _ = sink.send(said);
}

fn failure(error: &GenerateError) -> ApiError {
    match error {
        GenerateError::NotFinite { .. } => ApiError::server(
            "the model's logits are not finite: the checkpoint's weights or configuration are broken, or its type is \
             too narrow (--dtype float32)",
        ),
        error => ApiError::server(error.to_string()),
    }
}
